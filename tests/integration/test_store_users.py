"""What the services' users may do in Redis and RabbitMQ: their work, and nothing else."""

import asyncio
import os
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import pytest
import redis
from aio_pika.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused
from flashsale.inventory.v1 import inventory_service_pb2 as pb
from redis.exceptions import NoPermissionError, ResponseError

from mesh.errors import DomainError
from mesh.rabbit import connect_rabbit
from purchase_svc.dead_letter import put_aside
from purchase_svc.dead_letter_box import open_dead_letters
from purchase_svc.settlement_publisher import SettlementPublisher
from purchase_svc.settlement_queue import (
    DEAD,
    EXCHANGE,
    RETRY_DELAYS_S,
    declare,
    queue_depths,
    queue_name,
    retry_name,
)
from stack import broker_users, redis_server
from stack.folder import StackFolder
from stack.secret_store import load_or_create
from tests.support.inventory_rig import OK, inventory_rig, item
from tests.support.servers import Servers
from tests.support.settlement_rig import empty_queues
from tests.support.waiting import eventually

LUA = Path(__file__).parents[2] / "inventory_svc" / "lua"
Refused = ChannelAccessRefused


@pytest.fixture
def inventory_redis(servers: Servers) -> Iterator["redis.Redis"]:
    """Redis as the inventory service."""
    with redis.Redis.from_url(servers.inventory_redis_url) as client:
        yield client


async def test_a_whole_sale_needs_no_more_than_the_inventory_s_user_may(servers: Servers) -> None:
    """Reserving, waiting, selling, releasing, promoting, closing and recalibrating, by the service itself."""
    async with inventory_rig(servers, redis_url=servers.inventory_redis_url) as rig:
        sale_id = await rig.open_sale(3)
        items = [item(sale_id, f"user-{number}") for number in range(3)]
        assert await rig.reserve(items) == [OK] * 3
        waiting = item(sale_id, "waits")
        waiting.join_waitlist = True
        assert await rig.reserve([waiting]) == [OK]
        await rig.confirm([items[0].reservation_id])
        assert await rig.release([items[1].reservation_id]) == [OK]
        await rig.recalibrate(sale_id)
        assert await rig.stock(sale_id) == await rig.stock(sale_id, book=True) == (0, 2, 1)
        late = item(sale_id, "too late")
        late.join_waitlist = True
        assert await rig.reserve([late]) == [OK]
        await rig.inventory.CloseSale(pb.CloseSaleRequest(sale_id=sale_id), timeout=10)

        async def nobody_waits() -> bool:
            book = pb.GetStockRequest(sale_id=sale_id, source=pb.StockSource.STOCK_SOURCE_BOOK)
            return not (await rig.inventory.GetStock(book, timeout=10)).stock.waiting

        await eventually(nobody_waits)
        assert (await rig.recalibrate(sale_id)).waiting == 0


def test_the_rights_in_redis_are_those_that_the_scripts_and_the_service_need() -> None:
    called = set(
        re.findall(r"(?:redis\.call|call_in_parts)\('(\w+)'", "".join(p.read_text() for p in LUA.glob("*.lua")))
    )
    sent = {
        "ping",
        "evalsha",
        "script|load",
        "script|exists",
        "subscribe",
        "unsubscribe",
        "hset",
        "hscan",
        "expire",
        "zrem",
    }
    assert set(re.findall(r"\+(\S+)", redis_server.RIGHTS)) == {name.lower() for name in called} | sent


@pytest.mark.parametrize(
    "command",
    [
        "FLUSHALL",
        "FLUSHDB",
        "CONFIG GET *",
        "CONFIG SET maxmemory 1",
        "SHUTDOWN NOSAVE",
        "KEYS *",
        "SCAN 0",
        "MONITOR",
        "CLIENT LIST",
        "CLIENT KILL TYPE normal",
        "SLAVEOF 127.0.0.1 1",
        "MODULE LIST",
        "ACL LIST",
        "ACL SETUSER inventory +@all",
        "EVAL return(1) 0",
        "FUNCTION LIST",
        "SCRIPT FLUSH",
        "SAVE",
        "DEL inventory:x",
        "GET inventory:x",
        "RENAME inventory:x inventory:y",
        "HSET other:key field value",
        "EXPIRE other:key 1",
        "HSCAN other:key 0",
        "SUBSCRIBE other",
        "PSUBSCRIBE *",
        "PUBLISH other x",
        "SWAPDB 0 1",
    ],
)
def test_redis_refuses_the_inventory_what_is_not_its_own(inventory_redis: "redis.Redis", command: str) -> None:
    with pytest.raises(NoPermissionError):
        inventory_redis.execute_command(*command.split())  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    "script",
    [
        "return redis.call('HSET', 'other:key', 'field', 'value')",
        "return redis.call('FLUSHALL')",
        "return redis.call('DEL', KEYS[1])",
        "return redis.call('PUBLISH', 'other', 'x')",
        "return redis.call('KEYS', '*')",
    ],
)
def test_a_script_may_no_more_than_who_calls_it(inventory_redis: "redis.Redis", script: str) -> None:
    digest = inventory_redis.script_load(script)
    with pytest.raises(ResponseError, match="The user executing the script can't"):
        inventory_redis.evalsha(digest, 1, "inventory:x")


def test_redis_knows_nobody_without_the_right_password(servers: Servers) -> None:
    address = servers.redis_url.rpartition("@")[2]
    password = urlsplit(servers.inventory_redis_url).password
    for credentials in ("inventory:wrong", f":{password}", f"default:{password}", "guest:guest"):
        with (
            redis.Redis.from_url(f"redis://{credentials}@{address}") as client,
            pytest.raises(redis.AuthenticationError),
        ):
            client.ping()


@asynccontextmanager
async def channel_as(url: str) -> AsyncIterator[AbstractChannel]:
    """A channel of its own for one thing that is refused, which closes it."""
    async with await aio_pika.connect(url) as connection:
        yield await connection.channel(publisher_confirms=True)


Attempt = Callable[[AbstractChannel], Awaitable[object]]


async def publish(channel: AbstractChannel, exchange: str, key: str = "00") -> None:
    await (await channel.get_exchange(exchange, ensure=False)).publish(aio_pika.Message(b"x"), key)


async def publish_directly(channel: AbstractChannel) -> None:
    await channel.default_exchange.publish(aio_pika.Message(b"x"), queue_name(0))


async def consume(channel: AbstractChannel, name: str) -> None:
    async def never(_: object) -> None:
        raise AssertionError("a message came")

    await (await channel.get_queue(name, ensure=False)).consume(never)


async def bind(channel: AbstractChannel, queue: str, exchange: str) -> None:
    await (await channel.get_queue(queue, ensure=False)).bind(exchange, "00")


async def purge(channel: AbstractChannel, name: str) -> None:
    await (await channel.get_queue(name, ensure=False)).purge()


SERVING_MAY_NOT: dict[str, Attempt] = {
    "take a message out of a partition": lambda channel: consume(channel, queue_name(0)),
    "take a message out of a retry queue": lambda channel: consume(channel, retry_name(1)),
    "empty a partition": lambda channel: purge(channel, queue_name(3)),
    "delete a partition": lambda channel: channel.queue_delete(queue_name(3)),
    "delete the dead letters": lambda channel: channel.queue_delete(DEAD),
    "delete the exchange": lambda channel: channel.exchange_delete(EXCHANGE),
    "make a queue": lambda channel: channel.declare_queue("mine"),
    "make a queue of the settlement": lambda channel: channel.declare_queue("settlement.99"),
    "make an exchange": lambda channel: channel.declare_exchange("mine"),
    "copy what is settled": lambda channel: bind(channel, DEAD, EXCHANGE),
    "hurry the retries": lambda channel: publish(channel, retry_name(1)),
    "publish past the exchange": publish_directly,
    "listen to the broker": lambda channel: channel.declare_exchange("amq.rabbitmq.log", passive=False),
}
SETTLING_MAY_NOT: dict[str, Attempt] = {
    "make a queue of another's": lambda channel: channel.declare_queue("mine"),
    "make a queue beside its own": lambda channel: channel.declare_queue("settlements"),
    "make an exchange of another's": lambda channel: channel.declare_exchange("mine"),
    "publish past the exchange": publish_directly,
    "publish to another exchange": lambda channel: publish(channel, "amq.direct"),
}


@pytest.fixture(scope="module")
async def broker(servers: Servers) -> Servers:
    """With the queues made, by the user that may."""
    url = servers.settlement_amqp_url
    async with await aio_pika.connect(url) as connection:
        await declare(await connection.channel())
    await empty_queues(url)
    return servers


@pytest.mark.parametrize("what", list(SERVING_MAY_NOT))
async def test_rabbitmq_refuses_the_serving_process(broker: Servers, what: str) -> None:
    async with channel_as(broker.purchase_amqp_url) as channel:
        with pytest.raises(Refused):
            await SERVING_MAY_NOT[what](channel)


@pytest.mark.parametrize("what", list(SETTLING_MAY_NOT))
async def test_rabbitmq_refuses_the_settlement_worker(broker: Servers, what: str) -> None:
    async with channel_as(broker.settlement_amqp_url) as channel:
        with pytest.raises(Refused):
            await SETTLING_MAY_NOT[what](channel)


async def test_the_serving_process_may_do_its_work(broker: Servers) -> None:
    """Queues purchases, counts what waits, and lets an operator look at dead letters and take one out."""
    async with SettlementPublisher(broker.settlement_amqp_url, name="worker") as worker:
        await worker.put_aside(put_aside(b"poison", "a test", 0, datetime.now(UTC)))
    async with SettlementPublisher(broker.purchase_amqp_url, name="serving", declares=False) as publisher:
        await publisher.publish(5, [uuid.uuid4()])
        assert await publisher.depths() == (1, 1)
        async with open_dead_letters(broker.purchase_amqp_url) as box:
            async for _, taken in box.letters(1):
                await box.remove(taken)
        assert await publisher.depths() == (1, 0)
        with pytest.raises(DomainError):
            await publisher.publish_retry(5, [uuid.uuid4()], 1)
    await empty_queues(broker.settlement_amqp_url)


async def test_the_settlement_worker_makes_its_queues_anew(broker: Servers) -> None:
    await empty_queues(broker.settlement_amqp_url, delete=True)
    async with channel_as(broker.settlement_amqp_url) as channel:
        await channel.exchange_delete(EXCHANGE)
    async with SettlementPublisher(broker.purchase_amqp_url, name="serving", declares=False, pause_s=0.05) as publisher:
        with pytest.raises(DomainError):
            await publisher.publish(5, [uuid.uuid4()])
        async with SettlementPublisher(broker.settlement_amqp_url, name="worker") as worker:
            for delay_s in RETRY_DELAYS_S:
                await worker.publish_retry(5, [uuid.uuid4()], delay_s)
            await asyncio.sleep(0.06)
            await publisher.publish(5, [uuid.uuid4()])
    async with channel_as(broker.settlement_amqp_url) as channel:
        assert (await queue_depths(channel))[0] >= 1
    await empty_queues(broker.settlement_amqp_url)


async def test_rabbitmq_knows_nobody_without_the_right_password(broker: Servers) -> None:
    address = broker.amqp_url.rpartition("@")[2]
    for credentials in ("guest:guest", "purchase:wrong", "settlement:", "flashsale:flashsale"):
        with pytest.raises(aio_pika.exceptions.AMQPError):
            # One of aio-pika's own that fails closes itself whenever it is collected, in the midst of another test.
            await connect_rabbit(f"amqp://{credentials}@{address}", name="stranger")


def test_a_broker_that_was_left_running_is_told_what_has_changed_and_only_then(tmp_path: Path) -> None:
    folder, secrets = StackFolder(tmp_path), load_or_create(tmp_path / "secrets.env")
    folder.rabbitmq.mkdir()
    broker_users.write_definitions(folder, secrets)
    written_s = broker_users.definitions_file(folder).stat().st_mtime
    # Started afterwards it has read them; before, it has not.
    assert broker_users.are_told(folder, written_s + 1)
    assert not broker_users.are_told(folder, written_s - 1)
    broker_users.note_told(folder)
    broker_users.write_definitions(folder, secrets)
    assert broker_users.are_told(folder, written_s - 1)
    # It was told a second ago: a file's time is no finer than the kernel's ticks.
    for path in (broker_users.definitions_file(folder), broker_users.told_file(folder)):
        os.utime(path, (written_s - 1, written_s - 1))
    assert broker_users.are_told(folder, written_s - 2)
    broker_users.write_definitions(folder, replace(secrets, purchase_amqp_password="f" * 64))
    assert not broker_users.are_told(folder, written_s - 1)
