"""The purchase process as the supervisor sees it: exit codes, migration, health, and a clean end on SIGTERM."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.channels import open_channel
from stack.ports import PortLease
from tests.support.servers import Servers

ROOT = Path(__file__).resolve().parents[2]


async def start(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "purchase_svc",
        *arguments,
        cwd=ROOT,
        env={**kept, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(*arguments: str, **environment: str) -> tuple[int | None, str]:
    """Exit code and standard error."""
    process = await start(*arguments, **environment)
    _, errors = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, errors.decode()


@pytest.mark.parametrize("arguments", [(), ("buy",), ("serve", "now")])
async def test_a_wrong_verb_is_told_the_right_ones(arguments: tuple[str, ...]) -> None:
    code, errors = await run(*arguments)
    assert code == 2
    assert errors.startswith("usage: python -m purchase_svc migrate|serve|settle\n")
    for verb in ("dead-letters", "replay-dead-letters", "parked", "replay-parked", "fail-parked"):
        assert f"python -m purchase_svc {verb}" in errors


async def test_a_missing_setting_is_named_in_one_line() -> None:
    code, errors = await run("serve")
    assert code == 2
    assert errors.startswith("settings: PURCHASE_DATABASE_URL: not set")
    assert errors.count("\n") == 1


async def test_serving_starts_only_on_a_migrated_database_and_ends_cleanly(servers: Servers) -> None:
    lease = PortLease()
    target = f"127.0.0.1:{lease.ports.purchase}"
    environment = {
        "PURCHASE_DATABASE_URL": servers.new_database("purchase"),
        "PURCHASE_AMQP_URL": servers.amqp_url,
        "PURCHASE_INVENTORY_TARGET": "127.0.0.1:1",
        "PURCHASE_BALANCE_TARGET": "127.0.0.1:1",
        "PURCHASE_LISTEN": target,
    }
    try:
        code, errors = await run("serve", **environment)
        assert (code, errors.count("\n")) == (2, 1)
        assert "migrate" in errors
        for _ in range(2):
            assert (await run("migrate", **environment))[0] == 0
        with psycopg.connect(environment["PURCHASE_DATABASE_URL"]) as conn:
            assert conn.execute("SELECT count(*) FROM purchases").fetchone() == (0,)
        process = await start("serve", **environment)
        channel = open_channel(target)
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            for name in ("", "flashsale.purchase.v1.PurchaseService"):
                request = health_pb2.HealthCheckRequest(service=name)
                while True:
                    answer = await stub.Check(request, timeout=20, wait_for_ready=True)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        break
            process.send_signal(signal.SIGTERM)
            _, errors_of_end = await asyncio.wait_for(process.communicate(), 20)
            assert (process.returncode, errors_of_end) == (0, b"")
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
        finally:
            await channel.close()
            if process.returncode is None:
                process.kill()
                await process.wait()
    finally:
        lease.close()
