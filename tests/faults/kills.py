"""SIGKILL at every step, and at random: a process ends between two effects, and everything ends well all the same."""

import asyncio
import re
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from stack.errors import StackError
from tests.faults.faults import Fault, Inject
from tests.faults.life import LONG_LINE, close_with_a_line, raise_under_a_line
from tests.faults.run import FaultError, Run, Scale
from tests.faults.traffic import Habits

_SOURCES = Path(__file__).resolve().parents[2]
_POINT = re.compile(r'failpoints\.hit\("([\w.]+)"\)|"(balance\.\w+)"')
#: A killed service is back and serving within this, seconds.
BACK_S_MAX = 3.0
_WAIT_S_MAX = 30.0

#: Points that are only reached after something else has gone wrong: what to arm together with them.
_NEEDS: dict[str, tuple[tuple[str, str], ...]] = {
    "inventory.buried": (("inventory.granted", "kill"),),
    "sweeper.published": (("purchase.publishing", "kill"),),
    "sweeper.recorded": (("purchase.reserved", "kill"),),
    "sweeper.unheld": (("purchase.cancelled", "kill"),),
    "sweeper.released": (("purchase.cancelled", "kill"),),
    "balance.released": (("purchase.cancelled", "kill"),),
    "settlement.requeued": (("balance.placed", "kill"),),
}
#: Of these, those at which a purchase is found that its buyer has left.
_LOST = {"sweeper.published", "sweeper.recorded"}
#: Points that only something done to the whole sale leads to.
_LED_TO: dict[str, Callable[[Run], Awaitable[None]]] = {
    "inventory.promoting": raise_under_a_line,
    "inventory.promoted": raise_under_a_line,
    "inventory.line_closed": close_with_a_line,
}
#: Points of refunds.
_OF_REFUNDS = {"purchase.refunding", "refunder.reversed", "refunder.released", "balance.reversed"}
#: Points of promotions that a purchase is told of.
_OF_LINES = {"follower.taken_in", "follower.queued"}
#: Points that other faults reach, or that nothing in a purchase reaches.
_ELSEWHERE = {
    "balance.expired": "a hold expires only while its worker is stopped: tests/faults/clocks.py",
    "inventory.left": "a cancel releases, whether or not it waits; only operators leave the line for others",
}


def points() -> list[str]:
    """Every failpoint in the services' code."""
    found: set[str] = set()
    for folder in ("inventory_svc", "balance_svc", "purchase_svc"):
        for path in (_SOURCES / folder).glob("*.py"):
            found.update(first or second for first, second in _POINT.findall(path.read_text()))
    return sorted(found)


async def back(run: Run, name: str, old_pid: int, since: float) -> None:
    """Waits until a killed service serves again, and notes how long that took."""
    await run.world.off(run.world.stack.wait_restarted, name, old_pid, _WAIT_S_MAX)
    took_s = time.monotonic() - since
    run.recovery_s[f"{name.partition('-')[0]} serving"] = max(
        took_s, run.recovery_s.get(f"{name.partition('-')[0]} serving", 0.0)
    )
    run.require_within(took_s, BACK_S_MAX, f"{name} was back")


async def fired_and_back(run: Run, point: str, names: dict[int, str]) -> None:
    """Waits until a process has taken the point, and until it serves again. ``names`` are the services by process."""
    pid = await run.await_fired(point)
    since = time.monotonic()
    if pid not in names:
        raise FaultError(f"{point} was taken by process {pid}, which is none of {names}")
    await back(run, names[pid], pid, since)


def _kill_at(point: str) -> Inject:
    async def inject(run: Run) -> None:
        world = run.world
        needs = _NEEDS.get(point, ())
        names = await world.off(world.processes)
        # At once: what one leads to may follow at its heels.
        for name, action in (*needs, (point, "kill")):
            world.arm(name, action)
        for name, _ in needs:
            await fired_and_back(run, name, names)
            names |= await world.off(world.processes)
        if point.startswith("recalibration."):
            await run.recalibrate()
        if point in _LED_TO:
            await _LED_TO[point](run)
        await fired_and_back(run, point, names)

    return inject


def _kill(kind: str) -> Inject:
    async def inject(run: Run) -> None:
        stack = run.world.stack
        name = run.rng.choice([each for each in run.world.services if each.partition("-")[0] == kind])
        pid = await run.world.off(stack.pid, name)
        since = time.monotonic()
        await run.world.off(stack.signal, name, signal.SIGKILL)
        run.effects[f"kill {name}"] = 1
        await back(run, name, pid, since)

    return inject


async def _kill_all_of_every_kind(run: Run) -> None:
    """Every service process at once: what is left is what the servers hold."""
    names = await run.world.off(run.world.processes)
    since = time.monotonic()
    for name in names.values():
        await run.world.off(run.world.stack.signal, name, signal.SIGKILL)
    run.effects["kill of every service"] = 1
    for pid, name in names.items():
        await run.world.off(run.world.stack.wait_restarted, name, pid, _WAIT_S_MAX)
    run.recovery_s["every service serving"] = time.monotonic() - since


async def _kill_at_random(run: Run) -> None:
    """Any process, servers too, at any time, again and again."""
    stack = run.world.stack
    names = [*run.world.services, "redis", "postgres", "rabbitmq"]
    for _ in range(8):
        await asyncio.sleep(run.rng.uniform(0.1, 1.2))
        name = run.rng.choice(names)
        pid = await run.world.off(stack.pid, name)
        try:
            await run.world.off(stack.signal, name, signal.SIGKILL)
        except StackError:
            # It had not come up again from the last time.
            continue
        run.effects[f"kill {name}"] = run.effects.get(f"kill {name}", 0) + 1
        if name in ("postgres", "rabbitmq"):
            await run.world.off(stack.wait_restarted, name, pid, 60.0)


def _scale_of(point: str) -> Scale:
    """Buyers such that the point is reached, and that what they leave behind is there to be killed over."""
    if point in _LOST:
        # Nobody repeats or cancels: the killed call may carry a single purchase, and that one must be left behind.
        return Scale(spread_s=2.5, habits=Habits(cancel=0.0, repeat=0.0, give_up=1.0, wait=0.0, refund=0.0))
    if point in _NEEDS:
        return Scale(spread_s=2.5, habits=Habits(cancel=0.3, give_up=1.0))
    if point in _OF_REFUNDS:
        return Scale(spread_s=2.5, habits=Habits(refund=0.4))
    if point in _LED_TO or point in _OF_LINES:
        return LONG_LINE
    return Scale(spread_s=2.5, habits=Habits(cancel=0.12))


def faults() -> Iterator[Fault]:
    """All kills."""
    for point in points():
        if point not in _ELSEWHERE:
            quick = point in ("inventory.granted", "settlement.assigned")
            yield Fault(f"kill at {point}", "kill", _kill_at(point), quick=quick, scale=_scale_of(point))
    for kind in ("inventory", "balance", "purchase", "settlement", "gateway"):
        for phase in ("burst", "settlement"):
            yield Fault(f"kill {kind} in {phase}", "kill", _kill(kind), phase=phase)
    yield Fault("kill every service", "kill", _kill_all_of_every_kind, phase="settlement")
    for number in (1, 2):
        yield Fault(f"kill at random {number}", "random kills", _kill_at_random, scale=Scale(spread_s=8.0))
