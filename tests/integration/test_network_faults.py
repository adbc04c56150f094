"""The mesh's own pools and channels through a broken network: bounded, never another's reply, and well again after."""

import asyncio
import random
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import grpc
import psycopg
import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from grpc_health.v1 import health_pb2, health_pb2_grpc
from psycopg import sql
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mesh.channels import open_channel
from mesh.errors import DomainError
from mesh.postgres import Connection, Pool, in_transaction, open_pool, run_statement
from mesh.redis_pool import open_redis
from mesh.server import GrpcServer
from purchase_svc.settlement_publisher import SettlementPublisher
from tests.faults.links import ProxyThread
from tests.faults.tcp_proxy import TcpProxy
from tests.support.servers import Servers
from tests.support.settlement_rig import SettlementRig, settlement_rig
from tests.support.waiting import eventually

#: Faults under which a connection stays open and silent.
#: Each waits for a time-out or a heartbeat.
pytestmark = pytest.mark.slow

SILENT = ("black_hole", "unplug", "half_open")
CANCELLED_CALLS = 200
#: Bounds in seconds: a statement on a silent connection; locks of a transaction whose client is gone; a publish;
#: consuming again after a fault; calls again after a fault that only keepalive can notice.
STATEMENT_S_MAX, LOCKS_S_MAX, PUBLISH_S_MAX, CONSUME_S_MAX, KEEPALIVE_S_MAX = 10.0, 12.0, 5.5, 15.0, 15.0


Waits = dict[str, "asyncio.Task[None]"]


@pytest.fixture(scope="module")
def proxies() -> Iterator[ProxyThread]:
    with ProxyThread() as thread:
        yield thread


def led_through(proxies: ProxyThread, url: str, seed: int = 0) -> tuple[str, TcpProxy]:
    """The URL through a proxy, and the proxy."""
    found = re.search(r"127\.0\.0\.1:(\d+)", url)
    assert found is not None
    proxy = proxies.start(("127.0.0.1", int(found[1])), seed=seed)
    return url.replace(found[0], proxy.address), proxy


@contextmanager
def broken(proxy: TcpProxy, fault: str) -> Iterator[None]:
    """With a fault, which must take effect."""
    before = proxy.count().effects[fault]
    getattr(proxy, fault)()
    try:
        yield
        assert proxy.count().effects[fault] > before
    finally:
        proxy.heal()


async def takes_effect(proxy: TcpProxy, fault: str) -> None:
    """Waits until the fault has done something."""

    async def seen() -> bool:
        return proxy.count().effects[fault] > 0

    await eventually(seen)


async def took(work: Awaitable[object]) -> float:
    """How long it took, seconds."""
    began = time.monotonic()
    await work
    return time.monotonic() - began


async def fails(work: Awaitable[object], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        await work


async def again(call: Callable[[], Awaitable[object]], failure: type[Exception], within_s: float) -> None:
    """Repeats a call until it succeeds; fails when it does not in time."""

    async def succeeded() -> bool:
        try:
            await call()
        except failure:
            return False
        return True

    await eventually(succeeded, within_s)


async def cancel_at_random(call: Callable[[str], Awaitable[object]], longest_s: float) -> None:
    """Cancels calls at random points of their life, and insists that each next one is given its own reply."""
    points, cancelled = random.Random(3), 0
    for number in range(CANCELLED_CALLS):
        task = asyncio.ensure_future(call(f"cancelled {number}"))
        # The point at which to cancel is the fault.
        await asyncio.sleep(points.uniform(0.0, longest_s))
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        cancelled += isinstance(outcome, asyncio.CancelledError)
        assert await call(f"{number}") == f"{number}"
    # How many depends on how busy the machine is.
    assert cancelled > CANCELLED_CALLS / 10


# Redis


async def echo(client: "Redis", text: str) -> str:
    answer = await client.echo(text)
    assert isinstance(answer, bytes)
    return answer.decode()


async def test_a_redis_call_cancelled_on_a_slow_line_never_leaves_its_reply(
    servers: Servers, proxies: ProxyThread
) -> None:
    url, proxy = led_through(proxies, servers.redis_url)
    async with open_redis(url, connections_max=2) as client:
        proxy.delay(0.0, 0.003)
        await cancel_at_random(lambda text: echo(client, text), 0.007)
        assert proxy.count().effects["delay"] > CANCELLED_CALLS


async def test_a_redis_reply_cut_in_its_middle_is_an_error_and_the_next_is_whole(
    servers: Servers, proxies: ProxyThread
) -> None:
    url, proxy = led_through(proxies, servers.redis_url)
    async with open_redis(url, connections_max=2) as client:
        assert await echo(client, "warm") == "warm"
        for number in range(30):
            with broken(proxy, "reset_in_reply"):
                await fails(echo(client, f"{number}" * 500), RedisError)
            assert await echo(client, f"{number}") == f"{number}"


async def test_a_redis_call_on_a_silent_line_fails_in_a_second_and_the_next_succeeds(
    servers: Servers, proxies: ProxyThread
) -> None:
    async def survives(fault: str) -> None:
        url, proxy = led_through(proxies, servers.redis_url)
        async with open_redis(url, connections_max=2, timeout_s=1.0) as client:
            assert await echo(client, "warm") == "warm"
            with broken(proxy, fault):
                assert await took(fails(echo(client, "lost"), RedisError)) < 1.5
            await again(lambda: echo(client, "found"), RedisError, within_s=2)

    servers.redis_url  # noqa: B018 (starts it, which blocks)
    await asyncio.gather(*map(survives, SILENT))


# PostgreSQL


@pytest.fixture(scope="module")
def database_url(servers: Servers) -> str:
    return servers.new_database("faults")


async def say(pool: Pool, text: str) -> str:
    rows = await run_statement(pool, "SELECT %(text)s::text", {"text": text})
    return str(rows[0][0])


async def test_a_statement_cancelled_on_a_slow_line_never_leaves_its_rows(
    database_url: str, proxies: ProxyThread
) -> None:
    url, proxy = led_through(proxies, database_url)
    async with open_pool(url, name="cancelled", size=2) as pool:
        assert await say(pool, "warm") == "warm"
        proxy.delay(0.0, 0.003)
        await cancel_at_random(lambda text: say(pool, text), 0.006)
        assert proxy.count().effects["delay"] > CANCELLED_CALLS


async def test_rows_cut_in_their_middle_are_an_error_and_the_next_are_whole(
    database_url: str, proxies: ProxyThread
) -> None:
    url, proxy = led_through(proxies, database_url)

    async def twice(conn: Connection) -> None:
        await conn.execute("SELECT 1")
        await conn.execute("SELECT 2")

    async with open_pool(url, name="cut", size=2) as pool:

        async def complete() -> bool:
            return pool.get_stats().get("pool_available") == 2

        for number in range(10):
            # Or it would be the greeting of a new connection that is cut.
            await eventually(complete)
            with broken(proxy, "reset_in_reply"):
                await fails(say(pool, f"{number}" * 500) if number % 2 else in_transaction(pool, twice), DomainError)
            assert await say(pool, f"{number}") == f"{number}"


async def hangs_in(database_url: str, proxies: ProxyThread, fault: str) -> str:
    """Runs a statement under a fault: "" if it ends in time with UNAVAILABLE and the pool is well again after."""
    url, proxy = led_through(proxies, database_url)
    async with open_pool(url, name=fault, size=1) as pool:
        await say(pool, "warm")
        with broken(proxy, fault):
            lost = asyncio.ensure_future(say(pool, "lost"))
            await asyncio.wait({lost}, timeout=STATEMENT_S_MAX)
            hangs = "" if lost.done() else fault
        (outcome,) = await asyncio.gather(lost, return_exceptions=True)
        await again(lambda: say(pool, "found"), DomainError, within_s=5)
        if not hangs:
            assert isinstance(outcome, DomainError)
            assert outcome.reason == ErrorReason.ERROR_REASON_UNAVAILABLE
    return hangs


async def keeps_locks_in(database_url: str, proxies: ProxyThread, fault: str) -> str:
    """Breaks a transaction off by a fault of which PostgreSQL is told nothing: "" if it gives up its locks in time."""
    url, proxy = led_through(proxies, database_url)
    table = sql.Identifier(f"locked_{fault}")

    async def update(conn: Connection) -> None:
        await conn.execute(sql.SQL("UPDATE {} SET n = n + 1").format(table))
        getattr(proxy, fault)()
        await conn.execute("SELECT 1")

    async with (
        open_pool(url, name="locks", size=1) as pool,
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as other,
    ):
        await other.execute(sql.SQL("CREATE TABLE {} AS SELECT 1 AS n").format(table))
        await other.execute(sql.SQL("SET lock_timeout = {}").format(int(LOCKS_S_MAX * 1000)))
        lost = asyncio.ensure_future(in_transaction(pool, update))
        await takes_effect(proxy, fault)
        try:
            await other.execute(sql.SQL("UPDATE {} SET n = n + 10").format(table))
            keeps = ""
        except psycopg.errors.LockNotAvailable:
            keeps = fault
        proxy.heal()
        await asyncio.gather(lost, return_exceptions=True)
    return keeps


async def hanging_statements(database_url: str, proxies: ProxyThread) -> None:
    found = await asyncio.gather(*(hangs_in(database_url, proxies, fault) for fault in SILENT))
    assert [fault for fault in found if fault] == []


async def forgotten_locks(database_url: str, proxies: ProxyThread) -> None:
    found = await asyncio.gather(*(keeps_locks_in(database_url, proxies, fault) for fault in ("black_hole", "unplug")))
    assert [fault for fault in found if fault] == []


# RabbitMQ


@pytest.fixture(scope="module")
async def rig(servers: Servers) -> AsyncIterator[SettlementRig]:
    async with settlement_rig(servers) as made:
        await made.new_sale(1_000, per_user=1_000)
        await made.fund([f"user{n}" for n in range(20)], 10**6)
        yield made


async def publishing(rig: SettlementRig, proxies: ProxyThread) -> None:
    ids = [uuid.uuid4()]

    async def survives(fault: str) -> None:
        url, proxy = led_through(proxies, rig.settings.amqp_url)
        async with SettlementPublisher(url, name=fault) as publisher:
            await again(lambda: publisher.publish(0, ids), DomainError, within_s=20)
            with broken(proxy, fault):
                for _ in range(20):
                    assert await took(fails(publisher.publish(0, ids), DomainError)) < PUBLISH_S_MAX
                if fault == "half_open":
                    # Nobody else knows, so a new connection is as good as ever.
                    await again(lambda: publisher.publish(0, ids), DomainError, within_s=5)
            await again(lambda: publisher.publish(0, ids), DomainError, within_s=5)

    await asyncio.gather(*map(survives, (*SILENT, "cut")))


async def settles(rig: SettlementRig, within_s: float) -> None:
    """Buys and queues purchases, and insists that they are settled in time."""
    ids = await rig.buy([f"user{n}" for n in range(20)], request=uuid.uuid4().hex)
    await rig.publish(ids)
    assert await rig.finished(ids, within_s) == {"CONFIRMED": 20}


async def consuming(rig: SettlementRig, proxies: ProxyThread) -> None:
    url, proxy = led_through(proxies, rig.settings.amqp_url)
    async with rig.worker(amqp_url=url):
        await settles(rig, 20)
        for fault in ("cut_once", "cut", "black_hole", "unplug"):
            with broken(proxy, fault):
                # At the latest with the next heartbeat.
                await takes_effect(proxy, fault)
            await settles(rig, CONSUME_S_MAX)
        with broken(proxy, "half_open"):
            await settles(rig, CONSUME_S_MAX)


# gRPC


@asynccontextmanager
async def health(proxies: ProxyThread) -> AsyncIterator[tuple[Callable[[], Awaitable[object]], TcpProxy]]:
    """A call with a deadline of a second through a proxy, which was answered once."""
    async with GrpcServer("127.0.0.1:0", []) as server:
        await server.serving()
        target, proxy = led_through(proxies, f"127.0.0.1:{server.port}")
        async with open_channel(target) as channel:
            stub = health_pb2_grpc.HealthStub(channel)

            async def call() -> object:
                return await stub.Check(health_pb2.HealthCheckRequest(), timeout=1)  # type: ignore[attr-defined]

            await call()
            yield call, proxy


async def test_calls_resume_after_a_cut(proxies: ProxyThread) -> None:
    async with health(proxies) as (call, proxy):
        for fault in ("cut", "reset_in_reply"):
            with broken(proxy, fault):
                assert await took(fails(call(), grpc.aio.AioRpcError)) < 1.2
            await again(call, grpc.aio.AioRpcError, within_s=5)


async def test_a_silent_line_ends_calls_by_their_deadline_and_they_resume(proxies: ProxyThread) -> None:
    async def survives(fault: str) -> None:
        async with health(proxies) as (call, proxy):
            with broken(proxy, fault):
                for _ in range(2):
                    assert await took(fails(call(), grpc.aio.AioRpcError)) < 1.3
            await again(call, grpc.aio.AioRpcError, within_s=5)

    await asyncio.gather(survives("black_hole"), survives("unplug"))


async def keepalive(proxies: ProxyThread) -> None:
    async with health(proxies) as (call, proxy):
        with broken(proxy, "half_open"):
            await fails(call(), grpc.aio.AioRpcError)
            await again(call, grpc.aio.AioRpcError, KEEPALIVE_S_MAX)


# What takes its time


@pytest.fixture(scope="module")
async def waits(rig: SettlementRig, database_url: str, proxies: ProxyThread) -> AsyncIterator[Waits]:
    """What waits for a bound to be reached, all at once; each test is told of its own."""
    loop = asyncio.get_running_loop()
    tasks = {
        "statements": loop.create_task(hanging_statements(database_url, proxies)),
        "locks": loop.create_task(forgotten_locks(database_url, proxies)),
        "publishing": loop.create_task(publishing(rig, proxies)),
        "consuming": loop.create_task(consuming(rig, proxies)),
        "keepalive": loop.create_task(keepalive(proxies)),
    }
    yield tasks
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def test_a_publish_never_hangs_and_publishing_resumes(waits: Waits) -> None:
    await waits["publishing"]


async def test_a_statement_on_a_silent_line_ends_and_the_pool_recovers(waits: Waits) -> None:
    await waits["statements"]


async def test_a_transaction_whose_client_is_out_of_reach_gives_its_locks_up(waits: Waits) -> None:
    await waits["locks"]


async def test_calls_resume_on_a_line_whose_death_only_keepalive_can_notice(waits: Waits) -> None:
    await waits["keepalive"]


async def test_consuming_resumes_after_every_fault(waits: Waits) -> None:
    await waits["consuming"]
