"""Settling purchases against real inventory and balance services: ends, repetitions, refusals, outages."""

from collections.abc import AsyncIterator

import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason

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
