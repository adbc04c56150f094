"""What the servers themselves say: how durable they are, and how much work they have been given."""

import asyncio
from collections.abc import Mapping
from typing import Any

import psycopg
from redis.asyncio import Redis

from bench.site import Site

_DATABASES = ("inventory", "balance", "purchase")
#: Messages that the broker has been given by publishers since it started, in its own language.
_MESSAGES = (
    "lists:sum([maps:get(messages_received_total, Counters, 0)"
    " || Counters <- maps:values(rabbit_global_counters:overview())])."
)


async def query(
    environment: Mapping[str, str], database: str, sql: str, parameters: Mapping[str, object] | None = None
) -> list[tuple[Any, ...]]:
    """What a query of the administrator's gives."""
    url = environment["POSTGRES_ADMIN_URL"].rpartition("/")[0]
    async with await psycopg.AsyncConnection.connect(f"{url}/{database}", autocommit=True) as connection:
        cursor = await connection.execute(sql.encode(), parameters)
        return await cursor.fetchall() if cursor.description else []


async def durability(environment: Mapping[str, str]) -> dict[str, str]:
    """The settings that make an answer durable, as the running servers have them."""
    names = ("fsync", "synchronous_commit", "full_page_writes")
    found = {name: str((await query(environment, "postgres", f"SHOW {name}"))[0][0]) for name in names}
    async with Redis.from_url(environment["REDIS_URL"], decode_responses=True) as client:
        for name in ("appendonly", "appendfsync"):
            found[name] = str((await client.config_get(name))[name])
    return found


async def recorded(environment: Mapping[str, str], sale_id: str) -> dict[str, int]:
    """What the database has of a sale, and how much of it is known to be queued; waits up to 10 s for the last
    messages."""
    rows = [(0, 0)]
    for _ in range(100):
        sql = (
            "SELECT count(*), count(coalesce(p.queue_time, b.queue_time)) FROM purchases p"
            " LEFT JOIN queued_batches b USING (batch_id) WHERE sale_id = %(sale_id)s"
        )
        rows = await query(environment, "purchase", sql, {"sale_id": sale_id})
        if rows[0][0] == rows[0][1]:
            break
        await asyncio.sleep(0.1)
    return {"purchases": int(rows[0][0]), "queued": int(rows[0][1])}


async def redis_memory(environment: Mapping[str, str]) -> int:
    """Bytes that Redis has allocated (used_memory of INFO)."""
    async with Redis.from_url(environment["REDIS_URL"]) as client:
        return int((await client.info("memory"))["used_memory"])


async def work_given(site: Site) -> dict[str, int]:
    """Commands, transactions and messages that the servers have been given so far, by server."""
    environment = site.environment
    async with Redis.from_url(environment["REDIS_URL"]) as client:
        stats = await client.info("commandstats")
    url = environment["POSTGRES_ADMIN_URL"]
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        # What a backend has done reaches the view when it has been idle for a moment.
        await asyncio.sleep(1.1)
        cursor = await connection.execute(
            "SELECT sum(xact_commit + xact_rollback) FROM pg_stat_database WHERE datname = ANY(%s)", [list(_DATABASES)]
        )
        row = await cursor.fetchone()
    assert row is not None
    return {
        "redis commands": sum(int(each["calls"]) for name, each in stats.items() if name != "cmdstat_info"),
        "sql transactions": int(row[0]),
        "messages": int(await asyncio.to_thread(site.stack.control_broker, "eval", _MESSAGES)),
    }
