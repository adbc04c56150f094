"""Processes that sleep through their own deadlines, and clocks that jump: nobody acts on what has run out."""

import asyncio
import glob
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.faults import Fault, Inject
from tests.faults.kills import fired_and_back
from tests.faults.run import FaultError, Run, Scale
from tests.faults.traffic import Habits

#: Longest sleep of a stopped process, seconds: the broker's heartbeat, the hold's time and the sweeper's waits.
_SLEEP_S_MAX = 45.0
_LIBFAKETIME = "/usr/lib/*/faketime/libfaketime.so.1"
#: How long a jumped clock stays wrong, seconds.
_WRONG_S = 3.0


def _asleep_at(point: str) -> Inject:
    """The process that takes the point sleeps until what it was about to do has been decided otherwise."""

    async def inject(run: Run) -> None:
        run.world.arm(point, "stop")
        asking = asyncio.ensure_future(run.recalibrate(3)) if point.startswith("recalibration.") else None
        pid = await run.await_fired(point)
        try:
            await _OTHERWISE[point](run)
        finally:
            _wake(pid)
            if asking is not None:
                await asking

    return inject


def _wake(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)


async def _until_hold_expired(run: Run) -> None:
    await run.until(lambda: run.watcher.expired_holds > 0, "the hold's end", _SLEEP_S_MAX)
    run.effects["holds expired"] = run.watcher.expired_holds


async def _until_new_epoch(run: Run) -> None:
    before = run.watcher.epoch
    await _recalibrate_until(run, before)
    run.effects["recalibrated meanwhile"] = run.watcher.epoch - before


async def _recalibrate_until(run: Run, before: int) -> None:
    deadline = time.monotonic() + _SLEEP_S_MAX
    while run.watcher.epoch <= before:
        if time.monotonic() > deadline:
            raise FaultError("no other process recalibrated")
        # The stopped replica answers nothing; the next call goes to the other one.
        await run.recalibrate(3)
        await asyncio.sleep(0.2)


async def _until_abandoned(run: Run) -> None:
    await run.until(lambda: run.watcher.abandoned > 0, "the sweeper", _SLEEP_S_MAX)
    run.effects["abandoned meanwhile"] = run.watcher.abandoned


async def _until_taken_over(run: Run) -> None:
    """The broker gives the partition to the other worker, which settles what the stopped one had claimed."""
    since = time.monotonic()
    settled = run.watcher.settled
    await asyncio.sleep(0)
    await run.until(lambda: run.watcher.settled_at > since and run.watcher.settled > settled, "the other worker")
    await run.until(
        lambda: (
            run.traffic.sent_all
            and run.watcher.settled + run.watcher.in_line >= len(run.history.accepted) - len(run.history.cancelled)
        ),
        "the other worker's end",
        _SLEEP_S_MAX,
    )
    run.recovery_s["partition taken over"] = time.monotonic() - since


_OTHERWISE = {
    "settlement.held": _until_hold_expired,
    "settlement.claimed": _until_taken_over,
    "settlement.captured": _until_taken_over,
    "inventory.granted": _until_new_epoch,
    "recalibration.counted": _until_new_epoch,
    "purchase.reserved": _until_abandoned,
}


def _asleep(part: str) -> Inject:
    async def inject(run: Run) -> None:
        stack = run.world.stack
        await run.world.off(stack.signal, part, signal.SIGSTOP)
        run.effects[f"{part} asleep"] = 1
        try:
            await asyncio.sleep(_WRONG_S)
        finally:
            await run.world.off(stack.signal, part, signal.SIGCONT)
        await run.settlement_resumes(f"{part} asleep", time.monotonic())

    return inject


async def _expirer_killed(run: Run) -> None:
    """The holds of a stopped worker lapse, and the process that ends them is killed in the middle of it."""
    sleeper = await run.fire("settlement.held", "stop")
    try:
        names = await run.world.off(run.world.processes)
        run.world.arm("balance.expired")
        await fired_and_back(run, "balance.expired", names)
    finally:
        _wake(sleeper)


def _jump(kind: str, seconds: int) -> Inject:
    async def inject(run: Run) -> None:
        clock = run.world.clock_of(kind)
        clock.write_text(f"{seconds:+d}s\n")
        run.effects[f"clock of {kind} {seconds:+d} s"] = 1
        try:
            await asyncio.sleep(_WRONG_S)
        finally:
            clock.write_text("+0s\n")
        await run.settlement_resumes("clock", time.monotonic())

    return inject


def libfaketime() -> Path | None:
    """The library that fakes clocks, if it is installed."""
    found = glob.glob(_LIBFAKETIME)
    return Path(found[0]) if found else None


def _no_libfaketime() -> str:
    return "" if libfaketime() else "libfaketime is not installed (Debian: faketime)"


def faults() -> Iterator[Fault]:
    """All faults of time."""
    slow = Scale(spread_s=3.0, habits=Habits(give_up=0.0))
    for point in _OTHERWISE:
        careless = Scale(spread_s=3.0, habits=Habits(give_up=1.0, cancel=0.0, repeat=0.0, wait=0.0))
        scale = careless if point == "purchase.reserved" else slow
        yield Fault(f"asleep at {point}", "time", _asleep_at(point), scale=scale)
    yield Fault("asleep at settlement.held, expirer killed", "time", _expirer_killed, scale=slow)
    for part in ("redis", "postgres", "inventory", "purchase", "gateway-2"):
        yield Fault(f"{part} asleep", "time", _asleep(part), phase="burst")
    for kind in ("inventory", "balance", "purchase", "settlement", "gateway"):
        for seconds in (3600, -3600):
            title = f"clock of {kind} {'forward' if seconds > 0 else 'back'} an hour"
            yield Fault(title, "time", _jump(kind, seconds), obstacle=_no_libfaketime, faked_clocks=True)
