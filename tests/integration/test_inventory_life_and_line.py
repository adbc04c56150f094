"""Where a sale's life and its line meet: more units go to the line first, and only who may buy may wait."""

from collections.abc import AsyncIterator

import pytest_asyncio
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as pb

from tests.support.inventory_rig import OK, SOLD_OUT, InventoryRig, inventory_rig, item
from tests.support.sale_life import ask, in_s, sell, until_state
from tests.support.servers import Servers
from tests.support.waiting import eventually


@pytest_asyncio.fixture(scope="module")
async def rig(servers: Servers) -> AsyncIterator[InventoryRig]:
    async with inventory_rig(servers, timekeeper_period_ms=50, promoter_period_ms=100) as opened:
        yield opened


def waiter(sale_id: str, user: str) -> pb.ReserveItem:
    """A wish that joins the line if there is no unit."""
    wish = item(sale_id, user)
    wish.join_waitlist = True
    return wish


async def join(rig: InventoryRig, *wishes: pb.ReserveItem) -> list[tuple[int, bool, int]]:
    """Reason, whether it waits, and its place, of each."""
    response = await rig.inventory.BatchReserveShares(pb.BatchReserveSharesRequest(items=wishes), timeout=15)
    return [(outcome.reason, outcome.waiting, outcome.waitlist_position) for outcome in response.outcomes]


async def waitlist(rig: InventoryRig, sale_id: str) -> list[tuple[str, str]]:
    """Who has joined, and what has become of them, in the order of the line."""
    entries = (await rig.inventory.ListWaitlist(pb.ListWaitlistRequest(sale_id=sale_id), timeout=10)).entries
    return [(e.user_id, pb.WaitlistState.Name(e.state).removeprefix("WAITLIST_STATE_")) for e in entries]


async def test_more_units_of_a_sale_that_is_sold_out_go_to_the_line_first_and_in_its_order(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(1)
    await sell(rig, sale_id)
    await until_state(rig, sale_id, "SOLD_OUT")
    assert await join(rig, *(waiter(sale_id, user) for user in "abc")) == [(OK, True, 1), (OK, True, 2), (OK, True, 3)]
    await ask(rig, "Raise", sale_id, total=3)
    assert await rig.reserve_until_decided([item(sale_id, "newcomer")]) == [SOLD_OUT]

    async def served() -> bool:
        return await waitlist(rig, sale_id) == [("a", "PROMOTED"), ("b", "PROMOTED"), ("c", "WAITING")]

    await eventually(served)
    assert await rig.stock(sale_id) == await rig.stock(sale_id, book=True) == (0, 2, 1)
    await rig.confirm([item(sale_id, user).reservation_id for user in "ab"])
    await until_state(rig, sale_id, "SOLD_OUT")
    # A share that is given back passes to the line, and the sale is what its stock says.
    await rig.release([item(sale_id, "a").reservation_id], revoke_sold=True)
    assert (await waitlist(rig, sale_id))[2] == ("c", "PROMOTED")
    await rig.confirm([item(sale_id, "c").reservation_id])
    await until_state(rig, sale_id, "SOLD_OUT")
    assert await rig.stock(sale_id) == await rig.stock(sale_id, book=True) == (0, 0, 3)


async def test_the_line_ends_when_the_sale_closes_by_itself(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(1)
    await sell(rig, sale_id)
    assert await join(rig, waiter(sale_id, "a")) == [(OK, True, 1)]
    await ask(rig, "Schedule", sale_id, close_time=in_s(0.2))
    await until_state(rig, sale_id, "CLOSED")

    async def ended() -> bool:
        return await waitlist(rig, sale_id) == [("a", "CLOSED")]

    await eventually(ended)


async def test_nobody_is_served_while_the_sale_is_paused(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(1)
    sold = await sell(rig, sale_id)
    assert await join(rig, waiter(sale_id, "a")) == [(OK, True, 1)]
    await ask(rig, "Pause", sale_id)
    await rig.release([sold], revoke_sold=True)
    await ask(rig, "Raise", sale_id, total=2)
    assert await waitlist(rig, sale_id) == [("a", "WAITING")]
    assert await rig.stock(sale_id) == (2, 0, 0)
    await ask(rig, "Open", sale_id)

    async def served() -> bool:
        return await waitlist(rig, sale_id) == [("a", "PROMOTED")]

    await eventually(served)
    assert await rig.stock(sale_id) == (1, 1, 0)


async def test_only_who_may_buy_may_wait(rig: InventoryRig) -> None:
    sale_id = str((await rig.create_sale(1, eligible_users_only=True)).sale_id)
    users = pb.BatchAddEligibleUsersRequest(sale_id=sale_id, user_ids=["a", "b"])
    await rig.inventory.BatchAddEligibleUsers(users)
    await ask(rig, "Open", sale_id)
    refused = ErrorReason.ERROR_REASON_NOT_ELIGIBLE
    wishes = [waiter(sale_id, user) for user in ("mallory", "a", "eve", "b")]
    assert await join(rig, *wishes) == [(refused, False, 0), (OK, False, 0), (refused, False, 0), (OK, True, 1)]
    assert await waitlist(rig, sale_id) == [("b", "WAITING")]
