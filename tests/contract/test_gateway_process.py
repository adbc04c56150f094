"""The gateway as a process: its port, its settings, its end."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.process import running
from gateway.settings import Settings
from mesh.settings import SettingsError
from tests.contract.gateway_harness import SECRET, harness, until

ROOT = Path(__file__).resolve().parents[2]


def _environment(**changes: str) -> dict[str, str]:
    targets = {f"GATEWAY_{name}_TARGET": "127.0.0.1:1" for name in ("PURCHASE", "INVENTORY", "BALANCE")}
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
        **targets,
        "GATEWAY_JWT_SECRET": SECRET,
        "GATEWAY_LISTEN": "127.0.0.1:0",
        **changes,
    }


def _run(*arguments: str, **changes: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gateway", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=_environment(**changes), capture_output=True, text=True, timeout=30, check=False
    )


def test_a_wrong_verb_or_setting_ends_the_process_with_2_and_one_line_that_names_it() -> None:
    ended = _run("dance")
    assert (ended.returncode, ended.stderr) == (2, "usage: python -m gateway serve\n")
    for changes, name in (
        ({"GATEWAY_JWT_SECRET": ""}, "GATEWAY_JWT_SECRET"),
        ({"GATEWAY_JWT_SECRET": "short"}, "GATEWAY_JWT_SECRET"),
        ({"GATEWAY_JWKS_FILE": "keys.json"}, "GATEWAY_JWKS_FILE"),
        ({"GATEWAY_JWT_SECRET": "", "GATEWAY_JWKS_FILE": "/nowhere/keys.json"}, "GATEWAY_JWKS_FILE"),
        ({"GATEWAY_LISTEN": "7080"}, "GATEWAY_LISTEN"),
        ({"GATEWAY_QUEUE_MAX": "many"}, "GATEWAY_QUEUE_MAX"),
    ):
        ended = _run("serve", **changes)
        assert ended.returncode == 2
        assert name in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
        assert "short" not in ended.stderr.replace("shorter", "")


async def test_a_port_that_somebody_has_is_not_shared() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = Settings("127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1", f"127.0.0.1:{port}", SECRET)
        with pytest.raises(SettingsError, match="GATEWAY_LISTEN"):
            async with running(settings):
                pass


async def test_a_gateway_without_a_purchase_service_says_so_and_goes_on() -> None:
    async with harness(purchase_target="127.0.0.1:1") as h:
        assert (await h.get("/healthz")).status == 503
        reply = await h.buy("key")
        assert (reply.status, reply.json["reason"]) == (503, "UNAVAILABLE")
        assert (await h.get("/v1/balance", "rich")).status == 200


async def test_a_task_that_fails_is_made_known() -> None:
    async with harness() as h:

        async def fail() -> None:
            raise RuntimeError("broken")

        h.may_crash = True
        h.gateway.parts.followers._background.start(fail(), "broken on purpose")
        async with asyncio.timeout(2):
            assert str(await h.gateway.crashed) == "broken"


async def test_on_sigterm_the_process_answers_what_it_has_and_ends_with_0() -> None:
    async with harness() as h:
        h.purchases.open.clear()
        target = f"127.0.0.1:{h.server.port}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = _environment(
            GATEWAY_PURCHASE_TARGET=target,
            GATEWAY_INVENTORY_TARGET=target,
            GATEWAY_BALANCE_TARGET=target,
            GATEWAY_LISTEN=f"127.0.0.1:{port}",
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", "serve", cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
        )
        try:
            h.gateway = replace(h.gateway, port=port)

            async def healthy() -> bool:
                try:
                    return (await h.get("/healthz")).status == 200
                except OSError:
                    return False

            async with asyncio.timeout(20):
                while not await healthy():
                    await asyncio.sleep(0.05)
            waiting = asyncio.ensure_future(h.buy("key"))
            await until(lambda: h.purchases.bought == ["key"])
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.1)
            assert process.returncode is None
            h.purchases.open.set()
            assert (await waiting).status == 202
            async with asyncio.timeout(10):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
