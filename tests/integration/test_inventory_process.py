"""The inventory process: it refuses what is wrong, drains, and never loses a background task silently."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from flashsale.inventory.v1 import inventory_service_pb2 as pb
from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.background import end_tasks
from mesh.redis_pool import open_redis
from stack.ports import PortLease
from tests.support.servers import Servers

ROOT = Path(__file__).resolve().parents[2]


def environment(**given: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("INVENTORY_")}
    return {**kept, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}", **given}


def run(*verbs: str, **given: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "inventory_svc", *verbs]
    return subprocess.run(command, env=environment(**given), capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("verbs", [(), ("sell",), ("serve", "now")])
def test_a_wrong_verb_prints_usage(verbs: tuple[str, ...]) -> None:
    done = run(*verbs)
    assert (done.returncode, done.stderr) == (2, "usage: python -m inventory_svc migrate|serve\n")


def test_a_wrong_setting_is_named_in_one_line(servers: Servers) -> None:
    done = run("serve", INVENTORY_DATABASE_URL="x", INVENTORY_REDIS_URL="y", INVENTORY_SQL_CONNECTIONS="none")
    assert done.returncode == 2
    assert done.stderr == "settings: INVENTORY_SQL_CONNECTIONS: 'none' is not a whole number\n"


def test_it_does_not_serve_on_a_database_that_is_not_migrated(servers: Servers) -> None:
    url = servers.new_database("inventory")
    done = run("serve", INVENTORY_DATABASE_URL=url, INVENTORY_REDIS_URL=servers.redis_url)
    assert done.returncode == 2
    assert "run the migrate command first" in done.stderr


async def test_it_serves_and_drains_within_its_grace_although_a_stream_is_open(servers: Servers) -> None:
    lease = PortLease()
    target = f"127.0.0.1:{lease.ports.inventory}"
    given = {
        "INVENTORY_DATABASE_URL": servers.new_database("inventory"),
        "INVENTORY_REDIS_URL": servers.redis_url,
        "INVENTORY_LISTEN": target,
    }
    assert (await asyncio.to_thread(run, "migrate", **given)).returncode == 0
    assert (await asyncio.to_thread(run, "migrate", **given)).returncode == 0
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "inventory_svc", "serve", env=environment(**given), stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with grpc.aio.insecure_channel(target) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            stub = InventoryServiceStub(channel)
            request = pb.CreateSaleRequest(request_id="r", display_name="Fund", total=3)
            request.unit_price.amount_minor, request.unit_price.currency_code = 100, "EUR"
            sale_id = (await stub.CreateSale(request)).sale.sale_id
            stream = stub.WatchStock(pb.WatchStockRequest(sale_id=sale_id))
            await stream.read()
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 10) == 0
            assert time.monotonic() - began < 3
            stream.cancel()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        lease.close()


async def test_tasks_end_although_the_driver_loses_a_cancellation(servers: Servers) -> None:
    async with open_redis(servers.redis_url) as redis:

        async def busy() -> None:
            while True:
                await redis.get("nothing")

        for _ in range(5):
            task = asyncio.create_task(busy())
            await redis.get("nothing")
            await asyncio.wait_for(end_tasks([task]), 5)
            assert task.done()


async def test_the_last_judge_of_share_numbers_is_the_database(servers: Servers) -> None:
    url = servers.new_database("inventory")
    given = {"INVENTORY_DATABASE_URL": url, "INVENTORY_REDIS_URL": servers.redis_url}
    assert (await asyncio.to_thread(run, "migrate", **given)).returncode == 0
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        await conn.execute(
            "INSERT INTO sales (sale_id, request_id, display_name, unit_price_minor, currency_code, total,"
            " per_user_limit, per_purchase_limit, state)"
            " VALUES ('00000000-0000-0000-0000-000000000001', 'r', 'x', 1, 'EUR', 2, 1, 1, 'OPEN')"
        )
        await conn.execute("INSERT INTO sale_totals (sale_id, total) SELECT sale_id, total FROM sales")
        await conn.execute("INSERT INTO share_pools (sale_id, total) SELECT sale_id, total FROM sales")
        insert = "INSERT INTO share_numbers SELECT sale_id, %s, %s, gen_random_uuid() FROM sales"
        await conn.execute(insert, (1, 2))
        for number, total, error in [
            (1, 2, psycopg.errors.UniqueViolation),
            (3, 2, psycopg.errors.CheckViolation),
            (0, 2, psycopg.errors.CheckViolation),
            (3, 3, psycopg.errors.ForeignKeyViolation),
        ]:
            with pytest.raises(error):
                await conn.execute(insert, (number, total))
        with pytest.raises(psycopg.errors.CheckViolation):
            await conn.execute("UPDATE share_pools SET next_number = 4")
