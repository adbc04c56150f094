"""Settling purchases against real inventory and balance services: ends, repetitions, refusals, outages."""

import uuid
from collections.abc import AsyncIterator

import pytest
from flashsale.balance.v1 import balance_service_pb2 as balance_pb
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as pb
from flashsale.purchase.v1.purchase_service_pb2_grpc import PurchaseServiceStub

from mesh.channels import open_channel
from purchase_svc.pacing import Pace
from purchase_svc.process import running_serve
from purchase_svc.settings import ServeSettings
from tests.support.servers import Servers
from tests.support.settlement_rig import PRICE, SettlementRig, settlement_rig

NO_FUNDS = f"FAILED {ErrorReason.ERROR_REASON_INSUFFICIENT_FUNDS}"
NO_ACCOUNT = f"FAILED {ErrorReason.ERROR_REASON_ACCOUNT_NOT_FOUND}"


@pytest.fixture
async def rig(servers: Servers) -> AsyncIterator[SettlementRig]:
    async with settlement_rig(servers) as made:
        yield made


async def test_rich_buyers_get_shares_and_poor_ones_neither_shares_nor_charge(rig: SettlementRig) -> None:
    await rig.new_sale(100)
    await rig.fund(f"rich{n}" for n in range(30))
    await rig.fund([f"poor{n}" for n in range(10)], PRICE - 1)
    ids = await rig.buy([f"rich{n}" for n in range(30)], quantity=2)
    ids += await rig.buy(f"poor{n}" for n in range(10))
    ids += await rig.buy(f"stranger{n}" for n in range(5))
    async with rig.worker():
        await rig.publish(ids)
        assert await rig.finished(ids) == {"CONFIRMED": 30, NO_FUNDS: 10, NO_ACCOUNT: 5}
    await rig.audit()
    assert await rig.stock() == (40, 0, 60)


async def test_a_unit_of_a_buyer_without_money_sells_again(rig: SettlementRig) -> None:
    await rig.new_sale(1)
    await rig.fund(["poor"], 0)
    await rig.fund(["rich"])
    async with rig.worker():
        first = await rig.buy(["poor"])
        await rig.publish(first)
        assert await rig.finished(first) == {NO_FUNDS: 1}
        second = await rig.buy(["rich"])
        await rig.publish(second)
        assert await rig.finished(second) == {"CONFIRMED": 1}
    await rig.audit()


async def test_every_message_delivered_many_times_to_two_workers_captures_once(rig: SettlementRig) -> None:
    await rig.new_sale(300)
    users = [f"user{n}" for n in range(200)]
    await rig.fund(users)
    ids = await rig.buy(users)
    async with rig.worker(), rig.worker():
        for size in (250, 7, 40, 250):
            await rig.publish(ids, per_message=size)
        assert await rig.finished(ids) == {"CONFIRMED": 200}
        await rig.publish(ids)
    await rig.audit()


async def test_two_workers_together_send_at_the_rate_as_balance_sees_it(rig: SettlementRig) -> None:
    rate, burst, buyers = 500, 100, 1_000
    await rig.new_sale(buyers)
    users = [f"user{n}" for n in range(buyers)]
    await rig.fund(users)
    ids = await rig.buy(users)
    await rig.publish(ids)
    async with rig.worker(rate_per_s=rate, burst=burst), rig.worker(rate_per_s=rate, burst=burst):
        assert await rig.finished(ids) == {"CONFIRMED": buyers}
    books = await rig.balance.CheckBooks(balance_pb.CheckBooksRequest(beneficiary=rig.sale_id))
    assert books.holds_decided == buyers
    assert books.holds_per_s_max <= rate + burst
    # The bucket is full at the beginning; what comes after it comes at the rate.
    span_s = (books.last_hold_time.ToNanoseconds() - books.first_hold_time.ToNanoseconds()) / 1e9
    assert (buyers - Pace(rate, burst).capacity) / span_s == pytest.approx(rate, rel=0.05)
    await rig.audit()


async def test_purchases_bought_over_grpc_settle_by_themselves(rig: SettlementRig) -> None:
    await rig.new_sale(200)
    users = [f"user{n}" for n in range(200)]
    await rig.fund(users)
    settings = ServeSettings(
        database_url=rig.settings.database_url,
        amqp_url=rig.settings.amqp_url,
        inventory_target=rig.settings.inventory_target,
        balance_target=rig.settings.balance_target,
        listen="127.0.0.1:0",
    )
    async with running_serve(settings) as serving, rig.worker():
        channel = open_channel(f"127.0.0.1:{serving.port}")
        async with channel:
            requests = [
                pb.CreatePurchaseRequest(request_id="r1", user_id=user, sale_id=rig.sale_id, quantity=1)
                for user in users
            ]
            response = await PurchaseServiceStub(channel).BatchCreatePurchases(
                pb.BatchCreatePurchasesRequest(requests=requests)
            )
        ids = [uuid.UUID(outcome.purchase_id) for outcome in response.outcomes]
        assert await rig.finished(ids) == {"CONFIRMED": 200}
    await rig.audit()
