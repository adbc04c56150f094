"""Turns: no more requests go on than could get a share, none is left waiting, and no place is lost."""

import asyncio

import pytest
from flashsale.inventory.v1 import inventory_service_pb2 as inventory

from gateway.sold_out import READING_S_MAX, SaleStock
from gateway.stock_turns import _MARGIN, StockTurns


class Sale:
    """A sale whose readings and time the test makes."""

    def __init__(self, available: int, waiting_max: int = 1_000) -> None:
        self.now = 100.0
        self.stock = SaleStock("sale", 1_000, 5.0, sole=True)
        self.turns = StockTurns(self.stock, waiting_max=waiting_max, wait_s_max=0.5, clock=lambda: self.now)
        self.read(available, reset=True)

    def read(self, available: int, *, is_open: bool = True, reset: bool = False, waiting: int = 0) -> None:
        stock = inventory.Stock(sale_id="sale", available=available, total=100, open=is_open, waiting=waiting)
        self.stock.apply(inventory.WatchStockResponse(stock=stock, fingerprints_reset=reset), self.now)
        self.turns.look_again()

    async def enter(self, count: int) -> list["asyncio.Task[bool]"]:
        """Requests that come one after another; returns when each has entered or waits."""
        tasks = [asyncio.create_task(self.turns.enter()) for _ in range(count)]
        await settle()
        return tasks


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def entered(tasks: list["asyncio.Task[bool]"]) -> int:
    return sum(task.done() and not task.cancelled() and task.result() for task in tasks)


async def end(tasks: list["asyncio.Task[bool]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_as_many_go_on_as_there_are_units_and_a_margin() -> None:
    sale = Sale(available=3)
    tasks = await sale.enter(100)
    assert entered(tasks) == sale.turns.inside == 3 + _MARGIN
    assert sale.turns.waiting == 100 - 3 - _MARGIN
    await end(tasks)


async def test_who_leaves_makes_room_for_the_one_who_waits_longest() -> None:
    sale = Sale(available=3)
    tasks = await sale.enter(100)
    sale.turns.leave()
    await settle()
    assert entered(tasks) == 4 + _MARGIN
    assert [task.done() for task in tasks] == [True] * (4 + _MARGIN) + [False] * (96 - _MARGIN)
    await end(tasks)


async def test_more_units_let_more_go_on() -> None:
    sale = Sale(available=3)
    tasks = await sale.enter(100)
    sale.read(50)
    await settle()
    assert entered(tasks) == 50 + _MARGIN
    await end(tasks)


@pytest.mark.parametrize("how", ["sold out", "closed", "a line has formed"])
async def test_nobody_is_kept_waiting_for_stock_that_has_gone(how: str) -> None:
    sale = Sale(available=3)
    tasks = await sale.enter(100)
    sale.read(0 if how == "sold out" else 3, is_open=how != "closed", waiting=int(how == "a line has formed"))
    await settle()
    assert entered(tasks) == 100
    assert sale.turns.waiting == 0


async def test_a_reading_that_has_lapsed_holds_nobody_back() -> None:
    sale = Sale(available=3)
    tasks = await sale.enter(3 + _MARGIN)
    sale.now += READING_S_MAX
    tasks += await sale.enter(50)
    assert entered(tasks) == 53 + _MARGIN


async def test_no_more_wait_than_may() -> None:
    sale = Sale(available=1, waiting_max=5)
    tasks = await sale.enter(1 + _MARGIN + 5)
    assert not await sale.turns.enter()
    await end(tasks[-5:])


async def test_nobody_waits_longer_than_promised() -> None:
    sale = Sale(available=1)
    early = await sale.enter(1 + _MARGIN + 1)
    sale.now += 0.3
    late = await sale.enter(1)
    sale.now += 0.3
    sale.turns.refuse_overdue()
    await settle()
    assert (early[-1].done(), early[-1].result(), late[0].done()) == (True, False, False)
    assert sale.turns.inside == 1 + _MARGIN
    await end(late)


async def test_who_gives_up_at_the_moment_of_his_turn_passes_the_place_on() -> None:
    sale = Sale(available=1)
    tasks = await sale.enter(1 + _MARGIN + 2)
    giving_up, last = tasks[-2:]
    sale.turns.leave()
    giving_up.cancel()
    await settle()
    assert giving_up.cancelled()
    assert entered([last]) == 1
    assert sale.turns.inside == 1 + _MARGIN


async def test_who_gave_up_before_takes_nobodys_place() -> None:
    sale = Sale(available=1)
    tasks = await sale.enter(1 + _MARGIN + 3)
    await end(tasks[-3:-1])
    sale.turns.leave()
    await settle()
    assert entered(tasks[-1:]) == 1
    assert sale.turns.inside == 1 + _MARGIN
