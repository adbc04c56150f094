"""Services and the broker going away while purchases are settled; what the sweeper finds afterwards."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as inventory_pb

from mesh.errors import DomainError
from purchase_svc import settlement_queue
from tests.support.servers import Servers
from tests.support.settlement_rig import SettlementRig, empty_queues, settlement_rig
from tests.support.waiting import eventually

ABANDONED = f"FAILED {ErrorReason.ERROR_REASON_ABANDONED}"
PARKED = f"PARKED {ErrorReason.ERROR_REASON_UNAVAILABLE}"


@pytest.fixture
async def rig(servers: Servers) -> AsyncIterator[SettlementRig]:
    async with settlement_rig(servers) as made:
        yield made


async def funded_purchases(rig: SettlementRig, buyers: int, *, total: int = 0) -> list[uuid.UUID]:
    await rig.new_sale(total or 2 * buyers, per_user=1_000)
    users = [f"user{n}" for n in range(buyers)]
    await rig.fund(users)
    return await rig.buy(users)


@pytest.mark.parametrize("away", ["balance", "inventory"])
async def test_while_a_service_is_away_nothing_is_released_and_all_finish_after(rig: SettlementRig, away: str) -> None:
    ids = await funded_purchases(rig, 60)
    service = rig.balance_service if away == "balance" else rig.inventory_service
    async with rig.worker() as worker:
        await service.stop()
        await rig.publish(ids)

        async def all_tried() -> bool:
            rows = await rig.sql("SELECT count(*) FROM purchases WHERE state = 'SETTLING' AND attempts > 0")
            return bool(rows[0][0] == 60 and worker.settlement.tally["RETRY UNAVAILABLE"] >= 60)

        await eventually(all_tried)
        assert set(await rig.states(ids)) == {"SETTLING"}
        await service.start()
        if away == "balance":
            assert (await rig.stock())[1] == 60
        assert await rig.finished(ids, within_s=40) == {"CONFIRMED": 60}
    await rig.audit()


async def test_what_is_tried_too_often_is_parked_and_then_left_alone(rig: SettlementRig) -> None:
    ids = await funded_purchases(rig, 20)
    await rig.balance_service.stop()
    async with rig.worker(attempts_max=2) as worker:
        await rig.publish(ids)
        assert await rig.finished(ids, within_s=40) == {PARKED: 20}
        await worker.sweeper.sweep()
        await rig.publish(ids)
    assert await rig.states(ids) == {PARKED: 20}
    assert (await rig.stock())[1] == 20
    await rig.balance_service.start()


async def test_what_cannot_be_parsed_is_a_dead_letter_and_blocks_nobody(rig: SettlementRig) -> None:
    ids = await funded_purchases(rig, 60)
    connection = await aio_pika.connect(rig.settings.amqp_url)
    async with connection, rig.worker():
        channel = await connection.channel()
        exchange = await channel.get_exchange(settlement_queue.EXCHANGE)
        for body in (b"", b"nonsense", b"\x08\x02\x1a\x10" + bytes(16)):
            for partition in (0, 5):
                await exchange.publish(aio_pika.Message(body), settlement_queue.partition_key(partition))
        await rig.publish(ids)
        assert await rig.finished(ids) == {"CONFIRMED": 60}

        async def all_dead() -> bool:
            return await rig.dead_letters() == 6

        await eventually(all_dead)


@pytest.mark.slow
async def test_consumption_goes_on_after_a_broker_restart(servers: Servers, rig: SettlementRig) -> None:
    ids = await funded_purchases(rig, 300)
    async with rig.worker():
        await rig.publish(ids[:150], per_message=3)
        await asyncio.to_thread(servers.kill, "rabbitmq")

        async def published() -> bool:
            try:
                await rig.publish(ids[150:], per_message=3)
            except DomainError:
                return False
            return True

        await eventually(published, within_s=60)
        assert await rig.finished(ids, within_s=60) == {"CONFIRMED": 300}
    await rig.audit()


async def test_a_broker_that_lost_all_its_queues_loses_no_purchase(servers: Servers, rig: SettlementRig) -> None:
    ids = await funded_purchases(rig, 300)
    await rig.publish(ids)
    await empty_queues(servers.amqp_url, delete=True)
    async with rig.worker():
        assert await rig.finished(ids, within_s=40) == {"CONFIRMED": 300}
        # The same under a working consumer, and with retries lost on their way.
        more = await rig.buy([f"user{n}" for n in range(200)], request="r2")
        await rig.publish(more, per_message=5)
        await empty_queues(servers.amqp_url, delete=True)
        assert await rig.finished(more, within_s=40) == {"CONFIRMED": 200}
    await rig.audit()


async def test_a_lost_message_is_found_while_others_keep_the_partition_busy(rig: SettlementRig) -> None:
    users = [f"user{n}" for n in range(40)]
    ids = await funded_purchases(rig, 40, total=40_000)
    lost, others = ids[:5], ids[5:]
    await rig.purchases.mark_queued(lost)

    async def found() -> bool:
        # Somebody buys in every partition all the time, so none of them is ever silent.
        await rig.fund(users)
        await rig.publish(await rig.buy(users, request=uuid.uuid4().hex))
        return await rig.states(lost) == {"CONFIRMED": 5}

    async with rig.worker():
        await rig.publish(others)
        await eventually(found)


async def test_the_sweeper_queues_what_was_never_queued(rig: SettlementRig) -> None:
    ids = await funded_purchases(rig, 60)
    async with rig.worker():
        assert await rig.finished(ids) == {"CONFIRMED": 60}
    await rig.audit()


async def test_a_long_queue_is_not_queued_again(rig: SettlementRig) -> None:
    ids = await funded_purchases(rig, 300)
    await rig.publish(ids)
    before = await rig.sql("SELECT purchase_id, queue_time FROM purchases ORDER BY purchase_id")
    async with rig.worker(rate_per_s=100, burst=10, stale_after_ms=1_000) as worker:
        assert await rig.finished(ids, within_s=40) == {"CONFIRMED": 300}
        assert worker.settlement.tally["CONFIRMED"] == 300
    assert await rig.sql("SELECT purchase_id, queue_time FROM purchases ORDER BY purchase_id") == before


async def test_a_reservation_without_a_purchase_ends_as_abandoned_and_sells_again(rig: SettlementRig) -> None:
    await rig.new_sale(3)
    wishes = rig.wishes(["alice", "bob", "carol"])
    await rig.reserve(wishes)
    ids = [wish.purchase_id for wish in wishes]
    async with rig.worker():

        async def recorded() -> bool:
            return len(await rig.purchases.get_many(ids)) == 3

        await eventually(recorded)
        assert await rig.finished(ids) == {ABANDONED: 3}
    assert await rig.stock() == (3, 0, 0)
    await rig.audit()


async def test_a_reservation_of_a_paused_or_closed_sale_is_given_back_too(rig: SettlementRig) -> None:
    await rig.new_sale(3)
    wishes = rig.wishes(["alice"])
    await rig.reserve(wishes)
    await rig.inventory.CloseSale(inventory_pb.CloseSaleRequest(sale_id=rig.sale_id))
    async with rig.worker():

        async def given_back() -> bool:
            return await rig.stock(inventory_pb.STOCK_SOURCE_BOOK) == (3, 0, 0)

        await eventually(given_back)


async def test_a_cancelled_purchase_whose_release_was_lost_is_cleaned_up(rig: SettlementRig) -> None:
    ids = await funded_purchases(rig, 5)
    for each in ids:
        await rig.purchases.cancel(each, "")
    assert await rig.stock() == (5, 5, 0)
    async with rig.worker():
        assert await rig.finished(ids) == {"CANCELLED": 5}
    assert await rig.stock() == (10, 0, 0)
    await rig.audit()


async def test_one_worker_sweeps_follows_and_refunds_and_another_takes_over(rig: SettlementRig) -> None:
    async def holders() -> dict[str, Any]:
        return dict(await rig.sql("SELECT lease_name, holder FROM settlement_leases"))

    async def held() -> bool:
        return set(await holders()) == {"sweep", "waitlist", "refunds"}

    async with rig.worker():
        await eventually(held)
        first = await holders()
        async with rig.worker():
            await asyncio.sleep(0.5)
            assert await holders() == first

    async with rig.worker():
        await eventually(held)
        assert set((await holders()).values()).isdisjoint(first.values())
