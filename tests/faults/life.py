"""What happens to a sale while people wait in its line: more shares, a pause, its end."""

import asyncio
import time
from collections.abc import Iterator

from flashsale.inventory.v1 import inventory_service_pb2 as inventory

from bench.clients import call
from tests.faults.faults import Fault
from tests.faults.run import Run, Scale
from tests.faults.server_faults import flush_redis, gate_returns
from tests.faults.traffic import Habits

#: More people wait than shares come back, so that there is a line to the end.
LONG_LINE = Scale(users=400, shares=200, spread_s=2.5, habits=Habits(wait=0.8))
#: Shares that are added at once, and how often.
_MORE, _TIMES = 15, 4
_PAUSES = 3
_WIPES = 3


async def until_line(run: Run) -> None:
    """Waits until some people wait in line."""
    await run.until(lambda: run.watcher.in_line >= 10, "the line")


async def _raised(run: Run) -> None:
    """Shares are added under a line, again and again, and all go to it."""
    await until_line(run)
    promoted = run.watcher.promoted
    for _ in range(_TIMES):
        await run.raise_total(_MORE)
    await run.until(lambda: run.watcher.promoted >= promoted + _TIMES, "promotions")
    run.effects["shares added"] = _MORE * _TIMES


async def _paused(run: Run) -> None:
    """The sale is paused while people wait and are settled, and opened again."""
    await until_line(run)
    for _ in range(_PAUSES):
        await call(run.clients.inventory.PauseSale, inventory.PauseSaleRequest(sale_id=run.sale_id, actor="faults"))
        await asyncio.sleep(run.rng.uniform(0.1, 0.8))
        await call(run.clients.inventory.OpenSale, inventory.OpenSaleRequest(sale_id=run.sale_id, actor="faults"))
        await asyncio.sleep(run.rng.uniform(0.1, 0.5))
    run.effects["pauses"] = _PAUSES


async def _closed(run: Run) -> None:
    """The sale is closed while people buy, wait and are settled."""
    await until_line(run)
    run.effects["in line at the close"] = run.watcher.in_line
    await run.close()


async def _wiped(run: Run) -> None:
    """Redis forgets who waits, more than once; SQL does not, and nobody changes places."""
    await until_line(run)
    for _ in range(_WIPES):
        await run.world.off(flush_redis, run.world)
        await gate_returns(run, time.monotonic())
    run.effects["wipes with a line"] = _WIPES


async def raise_under_a_line(run: Run) -> None:
    """Makes the promoter work: a release serves the line by itself."""
    await until_line(run)
    await run.raise_total(_MORE)


async def close_with_a_line(run: Run) -> None:
    """Makes a line end."""
    await until_line(run)
    await run.close()


def faults() -> Iterator[Fault]:
    """All of a sale's life."""
    yield Fault("total raised under a line", "life", _raised, quick=True, scale=LONG_LINE)
    yield Fault("paused with a line", "life", _paused, scale=LONG_LINE)
    yield Fault("closed with a line", "life", _closed, scale=LONG_LINE)
    yield Fault("redis wiped with a line", "life", _wiped, scale=LONG_LINE)
