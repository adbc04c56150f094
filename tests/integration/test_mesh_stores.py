"""Pools and migrations against the real servers: bounded, translated, and never handing one caller another's reply."""

import asyncio
import gc
import warnings
from pathlib import Path

import psycopg
import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from redis.exceptions import RedisError

from mesh.errors import DomainError
from mesh.migrations import migrate, read_migrations, require_migrated
from mesh.postgres import Connection, Queries, connection, in_transaction, open_pool
from mesh.rabbit import BROKER_ERRORS, connect_rabbit, publish_confirmed
from mesh.redis_pool import open_redis
from mesh.settings import SettingsError
from tests.support.servers import Servers


@pytest.fixture(scope="module")
def database_url(servers: Servers) -> str:
    return servers.new_database("mesh")


def folder_with(path: Path, *texts: str) -> Path:
    for number, text in enumerate(texts, 1):
        (path / f"{number:04}_step.sql").write_text(text)
    return path


async def test_migrations_apply_once_and_in_order(servers: Servers, tmp_path: Path) -> None:
    url = servers.new_database("migrated")
    folder = folder_with(tmp_path, "CREATE TABLE a (n int)", "ALTER TABLE a ADD COLUMN m int")
    both = await asyncio.gather(migrate(url, folder), migrate(url, folder))
    assert sorted(both, key=len) == [[], ["0001_step", "0002_step"]]
    await require_migrated(url, folder)


async def test_a_failing_migration_leaves_nothing_behind(servers: Servers, tmp_path: Path) -> None:
    url = servers.new_database("migrated")
    folder = folder_with(tmp_path, "CREATE TABLE a (n int); SELECT 1/0")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await migrate(url, folder)
    with pytest.raises(SettingsError, match="lacks migration 0001"):
        await require_migrated(url, folder)
    (folder / "0001_step.sql").write_text("CREATE TABLE a (n int)")
    assert await migrate(url, folder) == ["0001_step"]


async def test_no_statement_starts_processes_of_its_own(database_url: str) -> None:
    """However wrong PostgreSQL is about a table that nobody has analyzed yet."""
    explain = "EXPLAIN SELECT id FROM grown WHERE due ORDER BY at LIMIT 500"
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("CREATE TABLE grown (id int, due boolean, at timestamptz, more text)")
        conn.execute("ALTER TABLE grown SET (autovacuum_enabled = false)")
        conn.execute("CREATE INDEX ON grown (id) WHERE due")
        conn.execute("INSERT INTO grown SELECT n, false, now(), repeat('x', 300) FROM generate_series(1, 50000) AS n")
        assert "Gather" in str(conn.execute(explain).fetchall())
    async with open_pool(database_url, name="test", size=1) as pool, connection(pool) as conn_of_ours:
        plan = str(await (await conn_of_ours.execute(explain)).fetchall())
    assert "Limit" in plan
    assert "Gather" not in plan


async def test_a_migration_changed_after_it_was_applied_is_noticed(servers: Servers, tmp_path: Path) -> None:
    url = servers.new_database("migrated")
    folder = folder_with(tmp_path, "SELECT 1")
    await migrate(url, folder)
    (folder / "0001_step.sql").write_text("SELECT 2")
    with pytest.raises(SettingsError, match="0001 was changed"):
        await require_migrated(url, folder)


@pytest.mark.parametrize("name", ["1_short.sql", "0002_gap.sql"])
def test_migrations_that_are_not_numbered_1_2_3_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("SELECT 1")
    with pytest.raises(ValueError, match=r"named|numbers"):
        read_migrations(tmp_path)


async def test_a_transaction_that_loses_to_a_deadlock_is_repeated(database_url: str) -> None:
    async with open_pool(database_url, name="deadlock", size=2) as pool:
        async with connection(pool) as conn:
            await conn.execute("CREATE TABLE pair (id int PRIMARY KEY, n int NOT NULL)")
            await conn.execute("INSERT INTO pair VALUES (1, 0), (2, 0)")
        both_hold_one = asyncio.Barrier(2)
        tries = 0

        async def add(conn: Connection, order: tuple[int, int]) -> None:
            nonlocal tries
            tries += 1
            await conn.execute("UPDATE pair SET n = n + 1 WHERE id = %s", [order[0]])
            if tries <= 2:
                await both_hold_one.wait()
            await conn.execute("UPDATE pair SET n = n + 1 WHERE id = %s", [order[1]])

        await asyncio.gather(
            in_transaction(pool, lambda conn: add(conn, (1, 2))), in_transaction(pool, lambda conn: add(conn, (2, 1)))
        )
        async with connection(pool) as conn:
            rows = await (await conn.execute("SELECT n FROM pair")).fetchall()
        assert (rows, tries) == ([(2,), (2,)], 3)


async def test_an_absent_database_is_unavailable_within_the_bound(servers: Servers, database_url: str) -> None:
    async with open_pool(database_url, name="away", size=1) as pool:
        await asyncio.to_thread(servers.stop, "postgres")
        try:
            async with asyncio.timeout(5):
                with pytest.raises(DomainError) as caught:
                    async with connection(pool) as conn:
                        await conn.execute("SELECT 1")
            assert caught.value.reason == ErrorReason.ERROR_REASON_UNAVAILABLE
        finally:
            await asyncio.to_thread(servers.start, "postgres")
        async with asyncio.timeout(20):
            while True:
                try:
                    async with connection(pool) as conn:
                        await conn.execute("SELECT 1")
                    break
                except DomainError:
                    continue


def test_queries_are_found_by_name_and_a_double_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.sql").write_text("-- name: one\nSELECT 1;\n\n-- name: two\nSELECT 2;\n")
    queries = Queries(tmp_path)
    assert (queries.one, queries.two) == ("SELECT 1;", "SELECT 2;")
    with pytest.raises(AttributeError):
        _ = queries.three
    (tmp_path / "b.sql").write_text("-- name: one\nSELECT 3;\n")
    with pytest.raises(ValueError, match="twice"):
        Queries(tmp_path)


async def test_a_cancelled_redis_call_never_leaves_its_reply_to_the_next(servers: Servers) -> None:
    async with open_redis(servers.redis_url, connections_max=2) as client:
        for number in range(200):
            cancelled = asyncio.ensure_future(client.echo(f"cancelled {number}"))
            for _ in range(number % 7):
                await asyncio.sleep(0)
            cancelled.cancel()
            await asyncio.gather(cancelled, return_exceptions=True)
            assert await client.echo(f"{number}") == f"{number}".encode()


async def test_a_redis_call_is_bounded_in_time_and_sent_once(servers: Servers) -> None:
    async with open_redis(servers.redis_url, timeout_s=0.2) as client, open_redis(servers.redis_url) as other:
        await other.set("mesh:sent", 0)
        slow = """
            redis.call('INCR', KEYS[1])
            local began = redis.call('TIME')
            repeat local now = redis.call('TIME') until (now[1] - began[1]) * 1000000 + now[2] - began[2] > 500000
        """
        with pytest.raises(RedisError):
            await client.eval(slow, 1, "mesh:sent")
        async with asyncio.timeout(5):
            while True:
                try:
                    assert await other.get("mesh:sent") == b"1"
                    break
                except RedisError:
                    continue
        await other.delete("mesh:sent")


async def test_redis_connections_closed_by_the_server_are_replaced_before_they_are_used(servers: Servers) -> None:
    async with open_redis(servers.redis_url, connections_max=5) as client, asyncio.timeout(10):
        # Blocking, so that each takes a connection of its own.
        await asyncio.gather(*(client.blpop("mesh:empty", timeout=0.1) for _ in range(5)))
        await asyncio.to_thread(servers.restart, "redis")
        await asyncio.gather(*(client.blpop("mesh:empty", timeout=0.1) for _ in range(5)))


async def test_an_unroutable_message_is_refused_not_lost(servers: Servers) -> None:
    async with await connect_rabbit(servers.amqp_url, name="mesh-test") as rabbit:
        channel = await rabbit.channel(publisher_confirms=True, on_return_raises=True)
        exchange = await channel.declare_exchange("mesh-test", auto_delete=True)
        with pytest.raises(DomainError) as caught:
            await publish_confirmed(exchange, "nowhere", b"x", kind="test")
        assert caught.value.reason == ErrorReason.ERROR_REASON_UNAVAILABLE
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(exchange, "somewhere")
        await publish_confirmed(exchange, "somewhere", b"x", kind="test")
        message = await queue.get(timeout=5)
        assert message is not None
        assert (message.body, message.delivery_mode, message.type) == (b"x", 2, "test")
        await message.ack()
        await queue.unbind(exchange, "somewhere")


async def test_a_connection_that_failed_is_closed(servers: Servers) -> None:
    with warnings.catch_warnings():
        # What others have left behind is not judged here.
        warnings.simplefilter("ignore")
        await asyncio.to_thread(gc.collect)
    wrong = servers.amqp_url.replace("flashsale:", "flashsale:x", 1)
    with pytest.raises(BROKER_ERRORS):
        await connect_rabbit(wrong, name="mesh-test")
    # The connection that was never made is found by the collector in the midst of whatever runs then.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await asyncio.to_thread(gc.collect)
    assert [str(each.message) for each in caught] == []
