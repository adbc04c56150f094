"""Redis, PostgreSQL and RabbitMQ killed, restarted, emptied, behind in time, full, read-only: in the burst and while
settling."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator

import psycopg
import redis

from mesh.rabbit import connect_rabbit
from purchase_svc.settlement_queue import PARTITIONS, queue_name
from tests.faults.faults import Fault, Inject
from tests.faults.run import FaultError, Run
from tests.faults.world import World

#: Settlement goes on within this after a broker or database is back, seconds.
RESUME_S_MAX = 10.0
#: The gate is in service and exact within this after Redis accepts connections, seconds.
EXACT_S_MAX = 3.0
#: How long a server stays in a bad state, seconds.
_BAD_S = 2.0
#: What is cut off Redis's log: some dozen grants, and never all that there is of a sale.
_LOST_BYTES = 12_000


async def gate_returns(run: Run, since: float) -> None:
    """Notes how long after ``since`` the gate was in service again."""
    await run.until(lambda: run.watcher.gate_served_at > since, "the gate", 30)
    took_s = run.watcher.gate_served_at - since
    run.recovery_s["gate after redis"] = took_s
    run.require_within(took_s, EXACT_S_MAX, "the gate was in service")


async def _settlement_returns(run: Run, what: str, since: float) -> None:
    await run.settlement_resumes(what, since)
    took_s = run.recovery_s.get(f"settlement after {what}", 0.0)
    run.require_within(took_s, RESUME_S_MAX, f"settlement went on after {what}")


def _redis(do: Callable[[World], object], effect: str) -> Inject:
    async def inject(run: Run) -> None:
        await run.world.off(do, run.world)
        run.effects[effect] = 1
        await gate_returns(run, time.monotonic())

    return inject


def _client(world: World) -> "redis.Redis":
    return redis.Redis.from_url(world.environment["REDIS_URL"])


def flush_redis(world: World) -> None:
    """Redis forgets everything. Blocks."""
    with _client(world) as client:
        client.flushall()


def replace_redis(world: World) -> None:
    """Another instance with nothing in it takes the place of the one there was."""
    world.stack.stop("redis")
    data = world.stack.folder.redis / "data"
    for path in data.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    world.stack.start("redis")


async def _lose_the_last_second(run: Run) -> None:
    """Redis comes back behind: its log's end is gone, and with it at least one grant, or one step of a purchase, that
    was answered."""
    world = run.world
    # Asleep meanwhile, so that nobody rebuilds the gate before it was seen what is missing.
    inventories = [name for name in world.services if name.startswith("inventory")]
    for name in inventories:
        await world.off(world.stack.signal, name, signal.SIGSTOP)
    try:
        known = await run.books.records_in_gate()
        await world.off(_stop_and_truncate, world)
        kept = await run.books.records_in_gate()
        lost = {key for key, record in known.items() if kept.get(key) != record}
        remembered = "epoch" in await run.books.gate()
    finally:
        since = time.monotonic()
        for name in inventories:
            await world.off(world.stack.signal, name, signal.SIGCONT)
    run.effects["records of the gate lost"] = len(lost)
    if not lost:
        raise FaultError("no record of the gate was lost")
    if not remembered:
        raise FaultError("Redis forgot the sale altogether, which is another fault")
    await gate_returns(run, since)


def _stop_and_truncate(world: World) -> None:
    world.stack.stop("redis")
    log = max((world.stack.folder.redis / "data" / "appendonlydir").glob("*.incr.aof"), key=os.path.getmtime)
    with log.open("r+b") as file:
        file.truncate(max(0, file.seek(0, os.SEEK_END) - _LOST_BYTES))
    world.stack.start("redis")


async def _redis_full(run: Run) -> None:
    with _client(run.world) as client:
        await run.world.off(lambda: client.config_set("maxmemory", "1"))
        await asyncio.sleep(_BAD_S)
        await run.world.off(lambda: client.config_set("maxmemory", "1gb"))
    run.effects["redis full"] = 1


def _postgres(do: Callable[[World], object], effect: str) -> Inject:
    async def inject(run: Run) -> None:
        await run.world.off(do, run.world)
        run.effects[effect] = 1
        await _settlement_returns(run, "postgres", time.monotonic())

    return inject


def _admin(world: World) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(world.environment["POSTGRES_ADMIN_URL"], autocommit=True)


def _immediate_shutdown(world: World) -> None:
    pid = world.stack.pid("postgres")
    world.stack.signal("postgres", signal.SIGQUIT)
    world.stack.wait_restarted("postgres", pid, 60.0)


def _terminate_connections(world: World) -> None:
    with _admin(world) as conn:
        for _ in range(5):
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename IN"
                " ('inventory', 'balance', 'purchase')"
            )
            time.sleep(0.2)


def _read_only(world: World) -> None:
    with _admin(world) as conn:
        conn.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        conn.execute("SELECT pg_reload_conf()")
        time.sleep(_BAD_S)
        conn.execute("SET default_transaction_read_only = off")
        conn.execute("ALTER SYSTEM RESET default_transaction_read_only")
        conn.execute("SELECT pg_reload_conf()")


def _disk_full(world: World) -> None:
    world.disk.fill()
    time.sleep(_BAD_S)
    world.disk.empty()
    world.stack.wait_ready("postgres")


async def _deadlock(run: Run) -> None:
    """Somebody locks rows in the wrong order, so that PostgreSQL ends a transaction, sooner or later one of ours."""
    world = run.world
    url = world.environment["POSTGRES_ADMIN_URL"].rpartition("/")[0]
    users = [buyer.user_id for buyer in run.buyers if buyer.funded]

    def tangle() -> None:
        with psycopg.connect(f"{url}/balance") as conn:
            conn.execute("SET deadlock_timeout = '10s'")
            for first in range(0, len(users), 40):
                try:
                    for user in sorted(users[first : first + 40], reverse=True):
                        conn.execute("SELECT 1 FROM accounts WHERE user_id = %s FOR UPDATE", [user])
                        time.sleep(0.002)
                    conn.rollback()
                except psycopg.errors.DeadlockDetected:
                    conn.rollback()

    before = await world.off(_deadlocks, world)
    for _ in range(4):
        await world.off(tangle)
        # The counters reach the view when a session has been idle for a moment.
        await asyncio.sleep(0.6)
        if await world.off(_deadlocks, world) > before:
            break
    run.effects["deadlocks"] = await world.off(_deadlocks, world) - before
    if not run.effects["deadlocks"]:
        raise FaultError("PostgreSQL saw no deadlock")
    await _settlement_returns(run, "deadlocks", time.monotonic())


def _deadlocks(world: World) -> int:
    with _admin(world) as conn:
        row = conn.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = 'balance'").fetchone()
    assert row is not None
    return int(str(row[0]))


def _rabbit(do: Callable[[World], object], effect: str) -> Inject:
    async def inject(run: Run) -> None:
        await run.world.off(do, run.world)
        run.effects[effect] = 1
        await _settlement_returns(run, "rabbitmq", time.monotonic())

    return inject


async def _purge(run: Run) -> None:
    """Somebody empties the queues by hand."""
    purged = 0
    async with await connect_rabbit(run.world.environment["AMQP_URL"], name="purge") as connection:
        channel = await connection.channel()
        for partition in range(PARTITIONS):
            queue = await channel.get_queue(queue_name(partition), ensure=False)
            purged += (await queue.purge()).message_count or 0
    run.effects["messages purged"] = purged
    since = time.monotonic()
    if purged:
        await run.settlement_resumes("purge", since)


def _memory_alarm(world: World) -> None:
    world.stack.control_broker("set_vm_memory_high_watermark", "absolute", "1MB")
    time.sleep(_BAD_S)
    world.stack.control_broker("set_vm_memory_high_watermark", "0.25")


def _both(name: str, kind: str, inject: Inject, **options: object) -> Iterator[Fault]:
    for phase in ("burst", "settlement"):
        quick = phase == "burst" and name == "redis killed"
        yield Fault(f"{name} in {phase}", kind, inject, phase=phase, quick=quick, **options)  # type: ignore[arg-type]


def faults() -> Iterator[Fault]:
    """All faults of servers."""
    yield from _both("redis killed", "redis", _redis(lambda world: world.stack.kill("redis"), "redis killed"))
    yield from _both("redis restarted", "redis", _redis(lambda world: world.stack.restart("redis"), "redis restarted"))
    yield from _both("redis wiped", "redis", _redis(flush_redis, "redis wiped"))
    yield from _both("redis a second behind", "redis", _lose_the_last_second)
    yield from _both("redis full", "redis", _redis_full)
    yield from _both("redis replaced", "redis", _redis(replace_redis, "redis replaced"))
    yield from _both("postgres shut down at once", "postgres", _postgres(_immediate_shutdown, "postgres shut down"))
    yield from _both("postgres killed", "postgres", _postgres(lambda world: world.stack.kill("postgres"), "killed"))
    yield from _both("postgres connections ended", "postgres", _postgres(_terminate_connections, "connections ended"))
    yield from _both("postgres read-only", "postgres", _postgres(_read_only, "read-only"))
    yield from _both("postgres disk full", "postgres", _postgres(_disk_full, "disk full"))
    yield from _both("postgres deadlock", "postgres", _deadlock)
    yield from _both(
        "rabbitmq restarted", "rabbitmq", _rabbit(lambda world: world.stack.restart("rabbitmq"), "restarted")
    )
    yield from _both("rabbitmq killed", "rabbitmq", _rabbit(lambda world: world.stack.kill("rabbitmq"), "killed"))
    yield from _both("rabbitmq queues purged", "rabbitmq", _purge)
    yield from _both("rabbitmq memory alarm", "rabbitmq", _rabbit(_memory_alarm, "memory alarm"))
