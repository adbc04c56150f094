"""The settlement worker as a process of its own: start, health, end, and SIGKILL in the middle of the work."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.servers import Servers
from tests.support.settlement_rig import SettlementRig, settlement_rig
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def rig(servers: Servers) -> AsyncIterator[SettlementRig]:
    async with settlement_rig(servers) as made:
        yield made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(rig: SettlementRig, **changes: str) -> dict[str, str]:
    given = {
        "PURCHASE_DATABASE_URL": rig.settings.database_url,
        "SETTLEMENT_AMQP_URL": rig.settings.amqp_url,
        "PURCHASE_INVENTORY_TARGET": rig.settings.inventory_target,
        "PURCHASE_BALANCE_TARGET": rig.settings.balance_target,
        "SETTLEMENT_LISTEN": f"127.0.0.1:{free_port()}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
        "PATH": os.environ["PATH"],
    }
    return given | changes


async def start(env: dict[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "purchase_svc", "settle"),
        cwd=ROOT,
        env=env,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process, within_s: float = 30) -> tuple[int | None, str]:
    _, errors = await asyncio.wait_for(process.communicate(), within_s)
    return process.returncode, errors.decode()


async def serving(target: str) -> bool:
    async with grpc.aio.insecure_channel(target) as channel:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_the_process_says_it_serves_and_ends_cleanly_on_sigterm(rig: SettlementRig) -> None:
    await rig.new_sale(100)
    await rig.fund([f"user{n}" for n in range(50)])
    ids = await rig.buy(f"user{n}" for n in range(50))
    env = environment(rig)
    process = await start(env)
    try:
        await eventually(lambda: serving(env["SETTLEMENT_LISTEN"]), within_s=30)
        await rig.publish(ids)
        assert await rig.finished(ids, within_s=30) == {"CONFIRMED": 50}
    finally:
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == (0, "")
    await rig.audit()


async def test_processes_killed_in_the_middle_of_the_work_lose_nothing(rig: SettlementRig) -> None:
    await rig.new_sale(2_000)
    users = [f"user{n}" for n in range(1_500)]
    await rig.fund(users)
    ids = await rig.buy(users)
    await rig.publish(ids, per_message=50)
    env = environment(rig)
    for share in (0.1, 0.5):
        process = await start(env)

        async def far_enough(share: float = share) -> bool:
            return (await rig.states(ids)).get("CONFIRMED", 0) > share * len(ids)

        await eventually(far_enough, within_s=40)
        process.kill()
        await ended(process)
    assert set(await rig.states(ids)) & {"RESERVED", "SETTLING"}
    async with rig.worker():
        assert await rig.finished(ids, within_s=60) == {"CONFIRMED": 1_500}
    await rig.audit()


@pytest.mark.parametrize(
    ("name", "value"),
    [("SETTLEMENT_RATE_PER_S", "0"), ("SETTLEMENT_BURST", "many"), ("PURCHASE_BALANCE_TARGET", "")],
)
async def test_a_wrong_setting_ends_the_process_with_a_line_that_names_it(
    rig: SettlementRig, name: str, value: str
) -> None:
    code, errors = await ended(await start(environment(rig, **{name: value})))
    assert code == 2
    assert errors.startswith(f"settings: {name}: ")
    assert errors.count("\n") == 1


async def test_an_unmigrated_database_is_refused(servers: Servers, rig: SettlementRig) -> None:
    url = servers.new_database("purchase")
    code, errors = await ended(await start(environment(rig, PURCHASE_DATABASE_URL=url)))
    assert code == 2
    assert "run the migrate command first" in errors
