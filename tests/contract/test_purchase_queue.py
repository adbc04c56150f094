"""The settlement queue on a real RabbitMQ: what was confirmed arrives, also after the broker was away."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.errors import DomainError
from purchase_svc import settlement_queue
from purchase_svc.settlement_publisher import SettlementPublisher
from tests.support.servers import Servers
from tests.support.waiting import eventually


@pytest.fixture
async def channel(servers: Servers) -> AsyncIterator[AbstractChannel]:
    """A channel on declared, empty queues."""
    async with await aio_pika.connect(servers.amqp_url) as connection, await connection.channel() as channel:
        await settlement_queue.declare(channel)
        names = [settlement_queue.queue_name(partition) for partition in range(settlement_queue.PARTITIONS)]
        names += [settlement_queue.retry_name(delay_s) for delay_s in settlement_queue.RETRY_DELAYS_S]
        for name in [*names, settlement_queue.DEAD]:
            await (await channel.get_queue(name)).purge()
        yield channel


async def take(
    channel: AbstractChannel, partition: int, count: int = 1, within_s: float = 10.0
) -> list[settlement_queue.SettlementMessage]:
    """The next messages of a partition, acked."""
    queue = await channel.get_queue(settlement_queue.queue_name(partition), ensure=False)
    taken = []
    async with queue.iterator(timeout=within_s) as messages:
        async for message in messages:
            await message.ack()
            assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
            assert message.type == settlement_queue.MESSAGE_TYPE
            taken.append(settlement_queue.decode(message.body))
            if len(taken) == count:
                break
    return taken


async def published(publisher: SettlementPublisher, partition: int, ids: list[uuid.UUID]) -> bool:
    try:
        await publisher.publish(partition, ids)
    except DomainError as error:
        assert error.reason == ErrorReason.ERROR_REASON_UNAVAILABLE  # noqa: PT017 (every failure must be this)
        return False
    return True


async def test_a_published_batch_arrives_in_its_partition(servers: Servers, channel: AbstractChannel) -> None:
    ids = [uuid.uuid4() for _ in range(250)]
    async with SettlementPublisher(servers.amqp_url, name="test") as publisher:
        await publisher.publish(7, ids)
    assert await take(channel, 7) == [settlement_queue.SettlementMessage(7, tuple(ids))]


async def test_a_retry_comes_back_to_its_partition_after_the_delay(servers: Servers, channel: AbstractChannel) -> None:
    ids = [uuid.uuid4()]
    async with SettlementPublisher(servers.amqp_url, name="test") as publisher:
        began = time.monotonic()
        await publisher.publish_retry(3, ids, 1)
        assert (await publisher.depths())[0] == 1
        assert (await take(channel, 3))[0].purchase_ids == tuple(ids)
        assert time.monotonic() - began >= 0.99


async def test_depths_count_what_waits_and_what_is_dead(servers: Servers, channel: AbstractChannel) -> None:
    async with SettlementPublisher(servers.amqp_url, name="test") as publisher:
        assert await publisher.depths() == (0, 0)
        for partition in range(settlement_queue.PARTITIONS):
            await publisher.publish(partition, [uuid.uuid4()])
        exchange = await channel.get_exchange(settlement_queue.EXCHANGE, ensure=False)
        await exchange.publish(aio_pika.Message(b"?"), "00")
        assert await publisher.depths() == (17, 0)
        queue = await channel.get_queue("settlement.00", ensure=False)
        async with queue.iterator(timeout=10) as messages:
            for _ in range(2):
                await (await anext(messages)).reject(requeue=False)

        async def are_dead() -> bool:
            return await publisher.depths() == (15, 2)

        await eventually(are_dead)


async def test_many_at_once_are_all_confirmed(servers: Servers, channel: AbstractChannel) -> None:
    async with SettlementPublisher(servers.amqp_url, name="test", in_flight_max=8) as publisher:
        batches = [(number % 16, [uuid.uuid4() for _ in range(10)]) for number in range(200)]
        await asyncio.gather(*(publisher.publish(partition, ids) for partition, ids in batches))
        assert await publisher.depths() == (200, 0)


async def test_a_deleted_queue_is_made_anew(servers: Servers, channel: AbstractChannel) -> None:
    async with SettlementPublisher(servers.amqp_url, name="test", pause_s=0.05) as publisher:
        await publisher.publish(5, [uuid.uuid4()])
        await channel.queue_delete("settlement.05")
        ids = [uuid.uuid4()]
        assert not await published(publisher, 5, ids), "an unroutable message must not count as published"
        await eventually(lambda: published(publisher, 5, ids))
        assert (await take(channel, 5))[0].purchase_ids == tuple(ids)


async def test_a_publisher_may_start_before_the_broker(servers: Servers, channel: AbstractChannel) -> None:
    await asyncio.to_thread(servers.stop, "rabbitmq")
    try:
        async with SettlementPublisher(servers.amqp_url, name="test", pause_s=0.05) as publisher:
            began = time.monotonic()
            assert not await published(publisher, 1, [uuid.uuid4()])
            assert time.monotonic() - began < 6
            with pytest.raises(DomainError):
                await publisher.depths()
            await asyncio.to_thread(servers.start, "rabbitmq")
            await eventually(lambda: published(publisher, 1, [uuid.uuid4()]))
    finally:
        await asyncio.to_thread(servers.start, "rabbitmq")


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_what_was_confirmed_outlives_the_broker_and_publishing_resumes(
    servers: Servers, channel: AbstractChannel, how: str
) -> None:
    before, delayed, after = [uuid.uuid4()], [uuid.uuid4()], [uuid.uuid4()]
    async with SettlementPublisher(servers.amqp_url, name="test", pause_s=0.05) as publisher:
        await publisher.publish(2, before)
        await publisher.publish_retry(2, delayed, 5)
        await asyncio.to_thread(getattr(servers, how), "rabbitmq")
        await eventually(lambda: published(publisher, 2, after))
        async with await aio_pika.connect(servers.amqp_url) as connection, await connection.channel() as fresh:
            found = {message.purchase_ids for message in await take(fresh, 2, count=3, within_s=20)}
    assert found == {tuple(before), tuple(delayed), tuple(after)}
