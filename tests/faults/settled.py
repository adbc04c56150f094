"""The end of a sale under fault: when it is reached, and what must be true then."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
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
_UNFINISHED = ("RESERVED", "SETTLING", "PARKED", "REFUNDING")
#: What an accepted purchase may be at rest.
_ENDED = ("CONFIRMED", "FAILED", "CANCELLED", "REFUNDED", "WAITLISTED")
#: And once the sale is closed, by what became of its place in line.
_AFTER_CLOSE = {
    "LEFT": ("CANCELLED", "FAILED"),
    "CLOSED": ("FAILED", "CANCELLED"),
    "PROMOTED": ("CONFIRMED", "FAILED", "CANCELLED", "REFUNDED"),
    "WAITING": (),
}


async def until_settled(run: Run) -> None:
    """Waits until everybody has an answer, every purchase is final or waits in line, nothing is held or reserved, the
    gate follows SQL, and nothing is on sale that somebody waits or hopes for. What is still missing when the time is up
    is a breach of I4."""
    await _until_rest(run, lambda now, moves: _missing(run, now, moves))


async def until_closed(run: Run) -> None:
    """Waits, once the sale is closed, until nobody waits in line any more and everybody who did is told so."""
    await _until_rest(run, lambda now, _: _still_waiting(now))


def _still_waiting(now: Snapshot) -> str:
    states = Counter(row.state for row in now.purchases.values())
    waiting = sum(1 for place in now.line.values() if place.state == "WAITING")
    if states["WAITLISTED"] or waiting or now.gate.get("waiting") not in ("0", None):
        return f"{states['WAITLISTED']} are WAITLISTED, {waiting} in line, {now.gate.get('waiting')} by the gate"
    return ""


async def _until_rest(run: Run, missing_of: Callable[[Snapshot, int], str]) -> None:
    deadline = time.monotonic() + _REST_S_MAX
    quiet = 0
    missing = "no look was possible"
    while quiet < _LOOKS_MIN:
        if time.monotonic() > deadline:
            run.verdict.broken("I4", f"not at rest after {_REST_S_MAX:.0f} s: {missing}")
            return
        try:
            missing = missing_of(await run.books.snapshot(), await run.books.moves_left())
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
    unfinished = {state: states[state] for state in _UNFINISHED if states[state]}
    if unfinished:
        return f"purchases {unfinished}"
    to_refund = sum(
        1
        for row in now.purchases.values()
        if row.state == "CONFIRMED" and (row.user_id, row.request_id) in run.traffic.wants_refund
    )
    if to_refund:
        return f"{to_refund} buyers who want their money back"
    if units["RESERVED"] or holds["HELD"] or moves_left:
        return f"{units['RESERVED']} reserved, {holds['HELD']} held, {moves_left} gate moves"
    if now.gate.get("serving") != "1":
        return "the gate is not in service"
    sold = sum(unit.quantity for unit in now.reservations.values() if unit.state == "SOLD")
    counts = tuple(int(now.gate[name]) for name in ("available", "reserved", "sold"))
    if counts != (run.total - sold, 0, sold):
        return f"the gate says {counts} and SQL has sold {sold}"
    waitlisted = {key for key, row in now.purchases.items() if row.state == "WAITLISTED"}
    waiting = {key for key, place in now.line.items() if place.state == "WAITING"}
    if waitlisted != waiting:
        return f"{len(waitlisted)} are WAITLISTED and {len(waiting)} in line"
    if int(now.gate["waiting"]) != len(waiting):
        return f"{len(waiting)} are in line and {now.gate['waiting']} by the gate"
    if counts[0] and waiting:
        return f"{counts[0]} units on sale and {len(waiting)} in line for them"
    if counts[0] and run.traffic.hoping and not run.closed_early:
        return f"{counts[0]} units on sale and {run.traffic.hoping} buyers who want them"
    return ""


async def require_end(run: Run) -> None:
    """Checks what must be true at rest: answers against states, nothing unsold that was wanted, and the books
    recounted."""
    verdict, history = run.verdict, run.history
    now = await run.books.snapshot()
    by_key: dict[Key, str] = {(row.user_id, row.request_id): row.state for row in now.purchases.values()}
    for key in history.accepted:
        verdict.require("I4", by_key.get(key) in _ENDED, f"{key} is {by_key.get(key)}")
    for event in history.denied:
        told = f"{event.key} is {by_key.get(event.key)} and was told {event.status} {event.reason}"
        verdict.require("I5", by_key.get(event.key) not in ("CONFIRMED", "REFUNDED", "WAITLISTED"), told)
    for key in history.cancelled:
        verdict.require("I5", by_key.get(key) == "CANCELLED", f"{key} was told cancelled and is {by_key.get(key)}")
    for key in history.refunded:
        verdict.require("I5", by_key.get(key) == "REFUNDED", f"{key} was told refunded and is {by_key.get(key)}")
    refunded = {key for key, state in by_key.items() if state == "REFUNDED"}
    wanted = {buyer.key for buyer in run.buyers if buyer.refunds}
    verdict.require("I2", refunded <= wanted, f"{sorted(refunded - wanted)[:3]} had their money back unasked")
    waiters = {buyer.key for buyer in run.buyers if buyer.waits}
    refused = {event.key for event in history.events if event.act == "buy" and event.reason == "SOLD_OUT"} & waiters
    verdict.require("I8", not refused, f"{sorted(refused)[:3]} asked to wait and were told that all is sold")
    in_line = {(row.user_id, row.request_id) for key, row in now.purchases.items() if key in now.line}
    verdict.require("I8", in_line <= waiters, f"{sorted(in_line - waiters)[:3]} came into the line unasked")
    by_gate = await run.books.waiting_in_gate()
    waiting = {key for key, place in now.line.items() if place.state == "WAITING"}
    verdict.require("I6", by_gate == waiting, f"{len(by_gate ^ waiting)} wait by the gate or in SQL alone")
    poor = {buyer.key for buyer in run.buyers if not buyer.funded}
    for key in poor & by_key.keys():
        verdict.require("I2", by_key[key] != "CONFIRMED", f"{key} could not pay and owns a share")
    _require_no_unit_left(run, now)
    await asyncio.to_thread(_recount, run)


async def require_closed(run: Run) -> None:
    """Checks what must be true once the sale is closed: its line has ended, and nobody has become an owner by that."""
    now = await run.books.snapshot()
    for key, place in now.line.items():
        state = now.purchases[key].state if key in now.purchases else "not there"
        expected = _AFTER_CLOSE.get(place.state, _ENDED)
        run.verdict.require("I8", state in expected, f"{key} is {place.state} in line and its purchase {state}")
    await asyncio.to_thread(_recount, run, ("I1", "I2", "I3"))


def _require_no_unit_left(run: Run, now: Snapshot) -> None:
    """I7: all is sold, or nobody who could have paid was sent away. Of a sale closed early nothing more is sold."""
    if run.closed_early:
        return
    sold = sum(unit.quantity for unit in now.reservations.values() if unit.state == "SOLD")
    waiting = {(row.user_id, row.request_id) for row in now.purchases.values() if row.state == "WAITLISTED"}
    unserved = sum(1 for buyer in run.buyers if buyer.funded and buyer.key in run.traffic.refused | waiting)
    what = f"{sold} of {run.total} sold, and {unserved} who could pay wait or were told sold out"
    run.verdict.require("I7", sold == run.total or not unserved, what)


def _recount(run: Run, wanted: Sequence[str] = ("I1", "I2", "I3", "I5", "I6", "I8")) -> None:
    recount = Recount(run.world.environment)
    checks: tuple[tuple[str, Callable[[], None]], ...] = (
        ("I1", lambda: recount.shares(run.sale_id, run.total)),
        ("I2", lambda: recount.outcomes(run.sale_id)),
        ("I3", recount.books),
        ("I5", lambda: recount.identity(run.sale_id)),
        ("I6", lambda: recount.stock(run.sale_id, run.total)),
        ("I8", lambda: recount.line(run.sale_id)),
    )
    for promise, check in checks:
        if promise not in wanted:
            continue
        try:
            check()
        except AssertionError as error:
            run.verdict.require(promise, False, f"the recount differs: {str(error)[:200]}")
        else:
            run.verdict.require(promise, True, "")
