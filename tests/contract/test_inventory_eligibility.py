"""InventoryService, sales for certain users only: who is not on the list never gets as far as the stock."""

from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as pb

from tests.support.inventory_rig import OK, SOLD_OUT, InventoryRig, inventory_rig, item, second_rig
from tests.support.sale_life import ask, refusal
from tests.support.servers import Servers

NOT_ELIGIBLE = ErrorReason.ERROR_REASON_NOT_ELIGIBLE


@pytest_asyncio.fixture(scope="module")
async def rig(servers: Servers) -> AsyncIterator[InventoryRig]:
    async with inventory_rig(servers) as opened:
        yield opened


async def add(rig: InventoryRig, sale_id: str, *users: str) -> tuple[int, int]:
    """How many were new, and how many are on the list."""
    request = pb.BatchAddEligibleUsersRequest(sale_id=sale_id, user_ids=users)
    response = await rig.inventory.BatchAddEligibleUsers(request, timeout=15)
    return response.added, response.eligible


async def sale_for_some(rig: InventoryRig, total: int, *users: str) -> str:
    """An open sale for these users only; its id."""
    sale_id = str((await rig.create_sale(total, eligible_users_only=True)).sale_id)
    if users:
        await add(rig, sale_id, *users)
    await ask(rig, "Open", sale_id)
    return sale_id


async def gate_keys(rig: InventoryRig, sale_id: str) -> tuple[int, int, int]:
    """Counts of the gate: available units, changes of holders, and the epoch."""
    stock = (await rig.inventory.GetStock(pb.GetStockRequest(sale_id=sale_id))).stock
    return stock.available, stock.holder_changes, stock.epoch


async def test_only_who_is_on_the_list_gets_a_unit_and_the_others_touch_no_stock(rig: InventoryRig) -> None:
    sale_id = await sale_for_some(rig, 2, "alice", "bob")
    before = await gate_keys(rig, sale_id)
    assert await rig.reserve([item(sale_id, "mallory"), item(sale_id, "eve")]) == [NOT_ELIGIBLE] * 2
    assert await gate_keys(rig, sale_id) == before
    assert await rig.sql("SELECT 1 FROM reservations WHERE sale_id = %s", sale_id) == []
    # Each is answered by itself, and in its place.
    wishes = [item(sale_id, user) for user in ("mallory", "alice", "eve", "bob", "alice")]
    assert await rig.reserve(wishes) == [NOT_ELIGIBLE, OK, NOT_ELIGIBLE, OK, OK]
    assert await rig.stock(sale_id) == (0, 2, 0)
    # Sold out is for those who may buy.
    assert await rig.reserve([item(sale_id, "mallory"), item(sale_id, "bob", "r2")]) == [NOT_ELIGIBLE, SOLD_OUT]


async def test_a_winner_that_repeats_is_never_told_it_lost(rig: InventoryRig) -> None:
    sale_id = await sale_for_some(rig, 1, "alice")
    wish = item(sale_id, "alice")
    assert await rig.reserve([wish]) == [OK]
    assert await rig.reserve([wish, wish, item(sale_id, "mallory")]) == [OK, OK, NOT_ELIGIBLE]
    await rig.confirm([wish.reservation_id])
    # Another process has never heard of her, nor of a gate that is rebuilt.
    async with second_rig(rig.settings) as other:
        assert await other.reserve([wish]) == [OK]
        await other.recalibrate(sale_id)
        assert await other.reserve([wish]) == [OK]
    assert await rig.stock(sale_id) == (0, 0, 1)


async def test_who_is_added_later_may_buy_at_once_at_every_process(rig: InventoryRig) -> None:
    sale_id = await sale_for_some(rig, 5)
    async with second_rig(rig.settings) as other:
        for asked in (rig, other):
            assert await asked.reserve([item(sale_id, "carol")]) == [NOT_ELIGIBLE]
        assert await add(rig, sale_id, "carol") == (1, 1)
        assert await other.reserve([item(sale_id, "carol")]) == [OK]
        assert await rig.reserve([item(sale_id, "carol")]) == [OK]


async def test_lists_are_of_one_sale_each_and_adding_is_repeatable(rig: InventoryRig) -> None:
    first, second = await sale_for_some(rig, 5), await sale_for_some(rig, 5)
    assert await add(rig, first, "a", "b", "a") == (2, 2)
    assert await add(rig, first, "b", "c") == (1, 3)
    assert await add(rig, first, "a", "b", "c") == (0, 3)
    assert await rig.reserve([item(first, "a"), item(second, "a")]) == [OK, NOT_ELIGIBLE]
    many = [f"user {number}" for number in range(10_000)]
    assert await add(rig, second, *many) == (10_000, 10_000)
    wishes = [item(second, user) for user in (many[0], many[-1], "user 10000")]
    assert await rig.reserve(wishes) == [OK, OK, NOT_ELIGIBLE]


async def test_a_sale_for_everybody_asks_no_list(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(5)
    await add(rig, sale_id, "alice")
    assert await rig.reserve([item(sale_id, "anybody")]) == [OK]


@pytest.mark.parametrize(
    ("users", "field"),
    [([], "user_ids"), (["a"] * 10_001, "user_ids"), (["a", ""], "user_ids[1]"), (["x" * 129], "user_ids[0]")],
)
async def test_a_list_that_is_wrong_adds_nobody(rig: InventoryRig, users: list[str], field: str) -> None:
    sale_id = await sale_for_some(rig, 5)
    found = await refusal(add(rig, sale_id, *users))
    assert found == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", {field})
    assert await rig.reserve([item(sale_id, "a")]) == [NOT_ELIGIBLE]
