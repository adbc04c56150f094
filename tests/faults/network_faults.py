"""Every connection between two parts cut, cut one way, delayed, reset in the middle of a reply, left half open."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator

from tests.faults.faults import Fault, Inject
from tests.faults.http_client import HttpClient, NoAnswerError
from tests.faults.links import LINKS, Link
from tests.faults.run import FaultError, Run

#: How long a connection stays bad, seconds: longer than calls live, so that their ends are seen.
_BAD_S = 2.2

#: How many ask for balances, and the pause between two questions of one, seconds.
_ASKERS, _ASK_PAUSE_S = 8, 0.02

_FAULTS: dict[str, tuple[str, Callable[[Link], None]]] = {
    "cut": ("cut", Link.cut),
    "one way to the server": ("black_hole", lambda link: link.black_hole("to_server")),
    "one way to the client": ("black_hole", lambda link: link.black_hole("to_client")),
    "delayed": ("delay", lambda link: link.delay(0.1, 0.05)),
    "reset in a reply": ("reset_in_reply", lambda link: link.reset_in_reply(times=5)),
    "half open": ("half_open", Link.half_open),
    "unplugged": ("unplug", Link.unplug),
}


def _break(name: str, effect: str, apply: Callable[[Link], None]) -> Inject:
    async def inject(run: Run) -> None:
        link = run.world.links[name]
        before = link.effect(effect)
        apply(link)
        await asyncio.sleep(_BAD_S)
        seen = link.effect(effect) - before
        run.effects[f"{name} {effect}"] = seen
        link.heal()
        if not seen:
            raise FaultError(f"{effect} on {name} never took effect")
        await run.settlement_resumes("network", time.monotonic())

    return inject


def _while_balances_are_asked_for(inject: Inject) -> Inject:
    """Buying never asks for a balance, so somebody else does: answered, or told to come again, and never a 500."""

    async def ask(run: Run, statuses: Counter[int]) -> None:
        client = HttpClient()
        try:
            while True:
                try:
                    reply = await run.traffic.ask_balance(client, run.rng.choice(run.buyers).user_id)
                except NoAnswerError:
                    statuses[0] += 1
                else:
                    statuses[reply.status] += 1
                await asyncio.sleep(_ASK_PAUSE_S)
        finally:
            await client.close()

    async def inject_meanwhile(run: Run) -> None:
        statuses: Counter[int] = Counter()
        asking = [asyncio.create_task(ask(run, statuses)) for _ in range(_ASKERS)]
        try:
            await inject(run)
            calm = statuses[200]
            await run.until(lambda: statuses[200] > calm, "a balance after the fault")
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        run.effects["balances told"] = statuses[200]
        wrong = statuses.keys() - {0, 200, 429, 503, 504}
        run.verdict.require("answers", not wrong, f"who asked for a balance was told {sorted(wrong)}")

    return inject_meanwhile


def faults() -> Iterator[Fault]:
    """Each fault on each link; those that a burst does not use are broken while settling."""
    for name in LINKS:
        for words, (effect, apply) in _FAULTS.items():
            phase = (
                "settlement" if name in ("purchase->balance", "balance->postgres", "purchase->rabbitmq") else "burst"
            )
            inject = _break(name, effect, apply)
            if name == "gateway->balance":
                inject = _while_balances_are_asked_for(inject)
            yield Fault(f"{name} {words}", "network", inject, phase=phase)
