"""Fairness under faults: a bad connection costs a buyer its own delay and nothing else, and one who keeps asking takes
nothing from the others."""

import asyncio
from collections.abc import Iterator, Sequence

from bench.percentiles import percentile
from mesh.identity import partition_of
from purchase_svc.purchase import PARTITIONS
from tests.faults.faults import Fault
from tests.faults.history import Event
from tests.faults.http_client import HttpClient, NoAnswerError
from tests.faults.run import FaultError, Run, Scale
from tests.faults.traffic import Habits

#: A slow connection may delay its buyer by so much, seconds: its throttle and its stalls.
_OWN_DELAY_S = 1.5
_REPEATS, _AT_ONCE = 1_000, 20
#: The answers' p99 of everybody else may grow by this factor and this many milliseconds: the noise of two cores.
_P99_FACTOR, _P99_SLACK_MS = 2.0, 150.0


async def _slow_connections(run: Run) -> None:
    """Half of the connections are throttled and stall; who asked well before the end gets a share on either kind."""
    slow = run.world.links["client->gateway"].proxies[-1]
    slow.throttle(4_000)
    slow.lossy(0.2)
    await run.until(lambda: run.traffic.sent_all, "the end of the burst", 60)
    seen = slow.count().effects
    run.effects["throttled"] = seen["throttle"]
    run.effects["stalled"] = seen["lossy"]
    slow.heal()
    if not (run.effects["throttled"] and run.effects["stalled"]):
        raise FaultError(f"the slow connections were not slow: {dict(seen)}")
    ends = [event.at_s for event in run.history.events if event.reason == "SOLD_OUT"]
    sold_out_at = min(ends, default=float("inf"))
    first: dict[tuple[str, str], Event] = {}
    for event in run.history.events:
        first.setdefault(event.key, event)
    early = [key for key, event in first.items() if event.at_s - event.took_ms / 1000 < sold_out_at - _OWN_DELAY_S]
    for key in early:
        told = f"{key} asked {_OWN_DELAY_S} s before everything was sold and got nothing"
        run.verdict.require("fairness", key in run.history.accepted, told)
    run.effects["asked in time"] = len(early)


async def _one_who_keeps_asking(run: Run) -> None:
    """One user sends the same request 1,000 times; the others of its partition are answered as before."""
    spammer = next(buyer for buyer in run.buyers if buyer.key in run.history.accepted)
    partition = partition_of(spammer.user_id, PARTITIONS)
    since = len(run.history.events)
    await run.until(lambda: len(run.history.events) >= since + 300, "buyers before")
    before = run.history.events[since:]
    since = len(run.history.events)
    statuses = await _ask_again_and_again(run, spammer.user_id, spammer.request_id)
    during = run.history.events[since:]
    run.effects["repeats"] = len(statuses)
    run.effects["repeats shed"] = statuses.count(429)
    if not during:
        raise FaultError("nobody else asked meanwhile")
    calm, busy = _p99(before), _p99(during)
    run.effects["p99 before, ms"], run.effects["p99 meanwhile, ms"] = round(calm), round(busy)
    neighbours = [event for event in during if partition_of(event.user_id, PARTITIONS) == partition]
    run.effects["others of the partition"] = len(neighbours)
    told = f"p99 of the others went from {calm:.0f} to {busy:.0f} ms"
    run.verdict.require("fairness", busy <= calm * _P99_FACTOR + _P99_SLACK_MS, told)
    wrong = [status for status in statuses if status not in (202, 409, 429)]
    run.verdict.require("answers", not wrong, f"a repeated request was told {wrong[:3]}")


async def _ask_again_and_again(run: Run, user_id: str, request_id: str) -> list[int]:
    client, statuses = HttpClient(), []
    left = iter(range(_REPEATS))

    async def ask() -> None:
        for _ in left:
            try:
                statuses.append((await run.traffic.ask(client, user_id, request_id)).status)
            except NoAnswerError:
                statuses.append(0)

    await asyncio.gather(*(ask() for _ in range(_AT_ONCE)))
    await client.close()
    return statuses


def _p99(events: Sequence[Event]) -> float:
    took = sorted(event.took_ms for event in events if event.act == "buy")
    return percentile(took, 99)


def faults() -> Iterator[Fault]:
    """Both."""
    calm = Habits(repeat=0.0, cancel=0.0, give_up=0.0, wait=0.0, refund=0.0)
    slow = Scale(users=500, shares=300, spread_s=8.0, habits=calm)
    yield Fault("slow and lossy connections", "fairness", _slow_connections, scale=slow)
    many = Scale(users=2_000, shares=1_000, spread_s=12.0, habits=calm)
    yield Fault("one user asks 1,000 times", "fairness", _one_who_keeps_asking, scale=many)
