"""Deadlines and cancellation through every hop: work for which nobody waits any more stops, wherever it has come to.

The far end is held up by a lock on the rows it wants, so that it is at work when the time is up.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import psycopg
import pytest
from flashsale.balance.v1 import balance_service_pb2 as balance_pb
from flashsale.inventory.v1 import inventory_service_pb2 as inventory_pb
from flashsale.purchase.v1 import purchase_service_pb2 as pb

from balance_svc.servicer import BalanceServicer
from inventory_svc.servicer import InventoryServicer
from tests.support.life_rig import LifeRig, life_rig
from tests.support.purchase_rig import PurchaseRig, purchase_rig, wish
from tests.support.servers import Servers
from tests.support.waiting import eventually

#: What a caller has, and within which the far end must have stopped after that, seconds. Without deadlines it would go
#: on for 5 s, which is how long it waits for a lock.
TIMEOUT_S, STOPS_WITHIN_S = 0.4, 2.0


@asynccontextmanager
async def locked(database_url: str, table: str) -> AsyncIterator[None]:
    """Holds a table so that nobody can read it."""
    async with await psycopg.AsyncConnection.connect(database_url) as conn:
        await conn.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        yield
        await conn.rollback()


class Database:
    """Sees from outside what a service has under way in its database."""

    def __init__(self, servers: Servers, database_url: str) -> None:
        self._admin_url = servers.admin_url_of(database_url)
        self._name = database_url.rpartition("/")[2]

    async def at_work(self, application: str) -> int:
        """Statements of this application that wait for a lock, those apart by which holds expire: nobody asks for
        them."""
        async with await psycopg.AsyncConnection.connect(self._admin_url, autocommit=True) as conn:
            cursor = await conn.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name = %s"
                " AND state <> 'idle' AND wait_event_type = 'Lock' AND query NOT LIKE '%%expire_time <=%%'",
                (self._name, application),
            )
            row = await cursor.fetchone()
            assert row is not None
            return int(row[0])

    async def until(self, application: str, count: int, within_s: float = 10.0) -> None:
        """Waits until so many are."""

        async def so_many() -> bool:
            return await self.at_work(application) == count

        await eventually(so_many, within_s)


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    code: grpc.StatusCode = caught.value.code()
    return code


#: Calls that the purchase service makes on a caller's behalf, and the time, seconds, that their service was told of.
told: dict[str, list[float | None]] = {}


def note_time(patch: pytest.MonkeyPatch, servicer: type, method: str) -> None:
    """Has a service note how much time each call of a method comes with, before it does what it does."""
    inner = getattr(servicer, method)

    async def noting(self: Any, request: Any, context: Any) -> Any:
        told.setdefault(method, []).append(context.time_remaining())
        return await inner(self, request, context)

    patch.setattr(servicer, method, noting)


@pytest.fixture(scope="module")
async def rig(servers: Servers) -> AsyncIterator[LifeRig]:
    with pytest.MonkeyPatch.context() as patch:
        for method in ("BatchGetReservations", "GetSale", "BatchReserveShares"):
            note_time(patch, InventoryServicer, method)
        note_time(patch, BalanceServicer, "BatchGetHolds")
        async with life_rig(servers) as running:
            await running.services.new_sale(20)
            await running.services.fund(["alice", "bob"])
            yield running


async def test_every_service_behind_is_told_how_long_the_caller_waits(rig: LifeRig) -> None:
    buy = pb.CreatePurchaseRequest(request_id="told", user_id="alice", sale_id=rig.sale_id, quantity=1)
    told.clear()
    purchase = (await rig.purchases.CreatePurchase(buy, timeout=0.9)).purchase
    receipt = pb.GetReceiptRequest(purchase_id=purchase.purchase_id)
    await rig.purchases.GetReceipt(receipt, timeout=0.9)
    await rig.purchases.GetSaleStatement(pb.GetSaleStatementRequest(sale_id=rig.sale_id), timeout=0.9)
    # Whoever has no deadline is worked for as long as the service finds right.
    await rig.purchases.GetReceipt(receipt)
    unbounded = [told["BatchGetReservations"].pop(), told["BatchGetHolds"].pop()]
    assert told.keys() == {"BatchReserveShares", "BatchGetReservations", "BatchGetHolds", "GetSale"}
    for (left_s,) in told.values():
        assert left_s is not None
        assert 0 < left_s <= 0.9
    for left_s in unbounded:
        assert left_s is not None
        assert 0.9 < left_s <= 3.1


def inventory_url(rig: LifeRig) -> str:
    return str(rig.services.inventory_service._settings.database_url)


def balance_url(rig: LifeRig) -> str:
    return str(rig.services.balance_service._settings.database_url)


async def test_sql_stops_when_the_callers_time_is_up(servers: Servers, rig: LifeRig) -> None:
    database = Database(servers, inventory_url(rig))
    async with locked(inventory_url(rig), "reservations"):
        request = inventory_pb.ListReservationsRequest(sale_id=rig.sale_id)
        call = asyncio.ensure_future(rig.services.inventory.ListReservations(request, timeout=TIMEOUT_S))
        await database.until("inventory", 1)
        assert await code_of(call) is grpc.StatusCode.DEADLINE_EXCEEDED
        await database.until("inventory", 0, within_s=STOPS_WITHIN_S)


async def test_sql_stops_when_the_caller_cancels(servers: Servers, rig: LifeRig) -> None:
    database = Database(servers, balance_url(rig))
    async with locked(balance_url(rig), "holds"):
        call = rig.services.balance.ListHolds(balance_pb.ListHoldsRequest(), timeout=30)
        await database.until("balance", 1)
        call.cancel()
        await database.until("balance", 0, within_s=STOPS_WITHIN_S)


@pytest.mark.parametrize("how", ["deadline", "cancel"])
@pytest.mark.parametrize("far_end", ["inventory", "balance"])
async def test_a_receipt_stops_at_every_service_it_asks(servers: Servers, rig: LifeRig, far_end: str, how: str) -> None:
    purchase = await rig.buy("alice", request_id=f"{far_end}-{how}")
    url, table = (inventory_url(rig), "reservations") if far_end == "inventory" else (balance_url(rig), "holds")
    database = Database(servers, url)
    async with locked(url, table):
        timeout_s = TIMEOUT_S if how == "deadline" else 30.0
        request = pb.GetReceiptRequest(purchase_id=purchase.purchase_id)
        call = rig.purchases.GetReceipt(request, timeout=timeout_s)
        answer = asyncio.ensure_future(call)
        await database.until(far_end, 1)
        if how == "deadline":
            assert await code_of(answer) is grpc.StatusCode.DEADLINE_EXCEEDED
        else:
            answer.cancel()
        # The purchase service would wait for three seconds of its own accord.
        await database.until(far_end, 0, within_s=STOPS_WITHIN_S)


async def test_a_statement_stops_at_inventory_when_the_callers_time_is_up(servers: Servers, rig: LifeRig) -> None:
    database = Database(servers, inventory_url(rig))
    async with locked(inventory_url(rig), "reservations"):
        request = pb.GetSaleStatementRequest(sale_id=rig.sale_id)
        call = asyncio.ensure_future(rig.purchases.GetSaleStatement(request, timeout=TIMEOUT_S))
        await database.until("inventory", 1)
        assert await code_of(call) is grpc.StatusCode.DEADLINE_EXCEEDED
        await database.until("inventory", 0, within_s=STOPS_WITHIN_S)


@pytest.fixture
async def buying(servers: Servers) -> AsyncIterator[PurchaseRig]:
    async with purchase_rig(servers, batches_max=1) as running:
        yield running


async def test_a_buy_whose_time_is_up_before_it_is_begun_never_takes_a_unit(
    servers: Servers, buying: PurchaseRig
) -> None:
    sale_id = await buying.new_sale(total=10)
    url = buying.inventory_database_url
    database = Database(servers, url)
    async with locked(url, "reservations"):
        # One batch is under way and held up; the next buyer waits behind it until his time is up.
        first = asyncio.ensure_future(buying.purchases.CreatePurchase(wish(sale_id, "first"), timeout=4))
        await database.until("inventory", 1)
        assert await code_of(buying.purchases.CreatePurchase(wish(sale_id, "late"), timeout=TIMEOUT_S)) in (
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.UNAVAILABLE,
        )
    assert (await first).purchase.state == pb.PURCHASE_STATE_RESERVED
    # Whoever comes after both is served, so the late one would have been by now.
    await buying.buy(sale_id, "after")
    assert await buying.stock(sale_id) == (8, 2, 0)
    page = await buying.purchases.ListPurchases(pb.ListPurchasesRequest(sale_id=sale_id))
    assert sorted(each.user_id for each in page.purchases) == ["after", "first"]


async def test_a_buy_that_has_begun_is_held_up_at_inventory_no_longer_than_its_buyer_waits(
    servers: Servers, buying: PurchaseRig
) -> None:
    sale_id = await buying.new_sale(total=10)
    url = buying.inventory_database_url
    database = Database(servers, url)
    async with locked(url, "reservations"):
        call = asyncio.ensure_future(buying.purchases.CreatePurchase(wish(sale_id), timeout=TIMEOUT_S))
        await database.until("inventory", 1)
        assert await code_of(call) in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        await database.until("inventory", 0, within_s=STOPS_WITHIN_S)
    # Nobody knows how that ended, so it is repeated, and it is one purchase.
    assert (await buying.buy(sale_id)).state == pb.PURCHASE_STATE_RESERVED
    assert await buying.stock(sale_id) == (9, 1, 0)


async def test_watches_end_with_their_callers(buying: PurchaseRig) -> None:
    sale_id = await buying.new_sale(total=10)
    purchase = await buying.buy(sale_id)
    watching = buying.running.watching

    async def none() -> bool:
        return watching.watches == 0

    request = pb.WatchPurchaseRequest(purchase_id=purchase.purchase_id)
    cancelled = buying.purchases.WatchPurchase(request)
    assert (await cancelled.read()).purchase.purchase_id == purchase.purchase_id
    assert watching.watches == 1
    cancelled.cancel()
    await eventually(none, within_s=5)
    expiring = buying.purchases.WatchPurchase(request, timeout=TIMEOUT_S)
    await expiring.read()
    assert await code_of(expiring.read()) is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(none, within_s=5)
