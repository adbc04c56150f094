"""Two things at once that each must see the other: a count and the inserts it counts, a cancel and a settlement."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import psycopg

from tests.faults.faults import Fault
from tests.faults.run import FaultError, Run, Scale
from tests.faults.traffic import Habits
from tests.faults.world import World

#: How long an insert of reservations takes when it is slow, seconds: many times what a count of them takes.
_INSERT_S = 0.06
#: Purchases that are cancelled at once; the batch under way is among them.
_CANCELS_MAX = 120


async def _recalibrated_again_and_again(run: Run) -> None:
    """Counts of stock meet reservations being inserted, as often as two processes can count."""
    count = 0
    while not run.traffic.sent_all:
        await asyncio.gather(*(run.recalibrate() for _ in range(2)))
        count += 2
    run.effects["recalibrations"] = count


async def _recalibrated_while_inserts_are_slow(run: Run) -> None:
    """A count begins while a statement that inserts is at work and not committed."""
    async with _slow_inserts(run.world):
        await _recalibrated_again_and_again(run)


@asynccontextmanager
async def _slow_inserts(world: World) -> AsyncIterator[None]:
    await world.off(
        _in_inventory,
        world,
        "CREATE FUNCTION slow_insert() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN PERFORM pg_sleep({_INSERT_S}); RETURN NULL; END $$",
        "CREATE TRIGGER slow_insert AFTER INSERT ON reservations FOR EACH STATEMENT EXECUTE FUNCTION slow_insert()",
    )
    try:
        yield
    finally:
        await world.off(_in_inventory, world, "DROP FUNCTION slow_insert() CASCADE")


def _in_inventory(world: World, *statements: str) -> None:
    url = world.environment["POSTGRES_ADMIN_URL"].rpartition("/")[0]
    with psycopg.connect(f"{url}/inventory", autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement.encode())


async def _cancelled_while_being_settled(run: Run) -> None:
    """Buyers cancel while a worker that has taken their money, and not noted it, is asleep."""
    pid = await run.fire("settlement.captured", "stop")
    try:
        accepted = [buyer for buyer in run.buyers if buyer.key in run.history.accepted]
        too_late = run.history.statuses["cancel 409 PURCHASE_NOT_CANCELLABLE"]
        # The oldest: they are settled first.
        await asyncio.gather(*(run.traffic.cancel(buyer) for buyer in accepted[:_CANCELS_MAX]))
    finally:
        os.kill(pid, signal.SIGCONT)
    run.effects["cancels"] = len(accepted[:_CANCELS_MAX])
    run.effects["too late"] = run.history.statuses["cancel 409 PURCHASE_NOT_CANCELLABLE"] - too_late
    if not accepted:
        raise FaultError("nobody had a purchase to cancel")


def faults() -> Iterator[Fault]:
    """All overlaps."""
    slow = Scale(spread_s=3.0)
    yield Fault("recalibrated again and again", "overlap", _recalibrated_again_and_again, scale=slow)
    yield Fault("recalibrated while inserts are slow", "overlap", _recalibrated_while_inserts_are_slow, scale=slow)
    patient = Scale(spread_s=3.0, habits=Habits(cancel=0.0, give_up=0.0))
    yield Fault("cancelled while being settled", "overlap", _cancelled_while_being_settled, scale=patient)
