"""Every connection between two parts cut, cut one way, delayed, reset in the middle of a reply, left half open."""

import asyncio
import time
from collections.abc import Callable, Iterator

from tests.faults.faults import Fault, Inject
from tests.faults.links import LINKS, Link
from tests.faults.run import FaultError, Run

#: How long a connection stays bad, seconds: longer than calls live, so that their ends are seen.
_BAD_S = 2.2

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


def faults() -> Iterator[Fault]:
    """Each fault on each link; those that a burst does not use are broken while settling."""
    for name in LINKS:
        for words, (effect, apply) in _FAULTS.items():
            phase = (
                "settlement" if name in ("purchase->balance", "balance->postgres", "purchase->rabbitmq") else "burst"
            )
            if name == "gateway->balance":
                # Buying never asks for a balance.
                continue
            title = f"{name} {words}"
            yield Fault(title, "network", _break(name, effect, apply), phase=phase)
