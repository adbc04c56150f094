"""The end of a sale under fault: when it is reached, and what must be true then."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.acceptance.recount import Recount
from tests.faults.books import Snapshot
from tests.faults.history import Key
from tests.faults.watcher import AWAY

if TYPE_CHECKING:
    from tests.faults.run import Run

#: Longest time from the last fault to rest, seconds: the sweeper's and the reaper's ways several times over.
_REST_S_MAX = 75.0
_LOOK_S = 0.1
#: At rest for so many looks in a row.
_LOOKS_MIN = 3


async def until_settled(run: Run) -> None:
    """Waits until everybody has an answer, every purchase is final, nothing is held or reserved, the gate follows SQL,
    and nothing is on sale that somebody hopes for. What is still missing when the time is up is a breach of I4."""
    deadline = time.monotonic() + _REST_S_MAX
    quiet = 0
    missing = "no look was possible"
    while quiet < _LOOKS_MIN:
        if time.monotonic() > deadline:
            run.verdict.broken("I4", f"not at rest after {_REST_S_MAX:.0f} s: {missing}")
            return
        try:
            missing = _missing(run, await run.books.snapshot(), await run.books.moves_left())
        except AWAY as error:
            missing = f"a server is away: {type(error).__name__}"
        quiet = 0 if missing else quiet + 1
        await asyncio.sleep(_LOOK_S)


def _missing(run: Run, now: Snapshot, moves_left: int) -> str:
    """What keeps the sale from being at rest, or ""."""
    states = Counter(row.state for row in now.purchases.values())
    units = Counter(unit.state for unit in now.reservations.values())
    holds = Counter(now.holds.values())
    if not run.traffic.sent_all:
        return f"{run.traffic.answered} of {len(run.buyers)} buyers are answered"
    unfinished = {state: states[state] for state in ("RESERVED", "SETTLING", "PARKED") if states[state]}
    if unfinished:
        return f"purchases {unfinished}"
    if units["RESERVED"] or holds["HELD"] or moves_left:
        return f"{units['RESERVED']} reserved, {holds['HELD']} held, {moves_left} gate moves"
    if now.gate.get("serving") != "1":
        return "the gate is not in service"
    sold = sum(unit.quantity for unit in now.reservations.values() if unit.state == "SOLD")
    counts = tuple(int(now.gate[name]) for name in ("available", "reserved", "sold"))
    if counts != (run.scale.shares - sold, 0, sold):
        return f"the gate says {counts} and SQL has sold {sold}"
    if counts[0] and run.traffic.hoping:
        return f"{counts[0]} units on sale and {run.traffic.hoping} buyers who want them"
    return ""


async def require_end(run: Run) -> None:
    """Checks what must be true at rest: answers against states, nothing unsold that was wanted, and the books
    recounted."""
    verdict, history = run.verdict, run.history
    now = await run.books.snapshot()
    by_key: dict[Key, str] = {(row.user_id, row.request_id): row.state for row in now.purchases.values()}
    for key in history.accepted:
        verdict.require("I4", by_key.get(key) in ("CONFIRMED", "FAILED", "CANCELLED"), f"{key} is {by_key.get(key)}")
    for event in history.denied:
        told = f"{event.key} owns a share and was told {event.status} {event.reason}"
        verdict.require("I5", by_key.get(event.key) != "CONFIRMED", told)
    for key in history.cancelled:
        verdict.require("I5", by_key.get(key) == "CANCELLED", f"{key} was told cancelled and is {by_key.get(key)}")
    poor = {buyer.key for buyer in run.buyers if not buyer.funded}
    for key in poor & by_key.keys():
        verdict.require("I2", by_key[key] != "CONFIRMED", f"{key} could not pay and owns a share")
    _require_no_unit_left(run, now)
    await asyncio.to_thread(_recount, run)


def _require_no_unit_left(run: Run, now: Snapshot) -> None:
    """I7: all is sold, or nobody who could have paid was sent away."""
    sold = sum(unit.quantity for unit in now.reservations.values() if unit.state == "SOLD")
    unserved = sum(1 for buyer in run.buyers if buyer.funded and buyer.key in run.traffic.refused)
    what = f"{sold} of {run.scale.shares} sold, and {unserved} who could pay were told sold out"
    run.verdict.require("I7", sold == run.scale.shares or not unserved, what)


def _recount(run: Run) -> None:
    recount = Recount(run.world.environment)
    checks: tuple[tuple[str, Callable[[], None]], ...] = (
        ("I1", lambda: recount.shares(run.sale_id, run.scale.shares)),
        ("I2", lambda: recount.outcomes(run.sale_id)),
        ("I3", recount.books),
        ("I5", lambda: recount.identity(run.sale_id)),
        ("I6", lambda: recount.stock(run.sale_id, run.scale.shares)),
    )
    for promise, check in checks:
        try:
            check()
        except AssertionError as error:
            run.verdict.require(promise, False, f"the recount differs: {str(error)[:200]}")
        else:
            run.verdict.require(promise, True, "")
