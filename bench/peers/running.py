"""Starts and ends the peers, on the stack's own servers."""

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import redis

_CHECKOUT = Path(__file__).resolve().parents[2]
_PEERS_BIN = _CHECKOUT / ".venv-peers" / "bin"
_SCHEMA = Path(__file__).with_name("schema.sql")
_START_S_MAX, _END_S_MAX, _LOOK_S = 30.0, 10.0, 0.05
#: As many worker processes as there are cores.
_WORKERS = str(os.cpu_count() or 1)


class PeerError(Exception):
    """A peer did not come up, or did not do its work; the message says what was seen."""


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running(
    command: Sequence[str], port: int, environment: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs a program until the block is left; returns once it listens on ``port`` (0: at once). Raises PeerError."""
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=_CHECKOUT,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{_CHECKOUT}:{_CHECKOUT / 'gen'}", **(environment or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            if port:
                await _until_listening(process, port, command[0], log.fileno())
            yield process
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                try:
                    await asyncio.wait_for(process.wait(), _END_S_MAX)
                except TimeoutError:
                    process.kill()
                    await process.wait()


async def _until_listening(process: asyncio.subprocess.Process, port: int, name: str, log: int) -> None:
    deadline = asyncio.get_running_loop().time() + _START_S_MAX
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        if process.returncode is not None or asyncio.get_running_loop().time() > deadline:
            size = os.fstat(log).st_size
            told = os.pread(log, 2_000, max(0, size - 2_000)).decode(errors="replace")
            raise PeerError(f"{name} does not come up:\n{told}")
        await asyncio.sleep(_LOOK_S)


@dataclass(frozen=True)
class PeerSale:
    """A sale in the peers' own database, with funded accounts for its buyers."""

    sale_id: str
    environment: dict[str, str]


def open_peer_sale(environment: Mapping[str, str], users: Sequence[str], units: int, price: int) -> PeerSale:
    """Makes the peers' database anew, fills it, and puts the units into Redis. Blocks."""
    base, _, _ = environment["POSTGRES_ADMIN_URL"].rpartition("/")
    sale_id = str(uuid.uuid4())
    with psycopg.connect(environment["POSTGRES_ADMIN_URL"], autocommit=True) as conn:
        conn.execute("DROP DATABASE IF EXISTS peer WITH (FORCE)")
        conn.execute("CREATE DATABASE peer")
    with psycopg.connect(f"{base}/peer") as conn:
        conn.execute(_SCHEMA.read_bytes())
        conn.execute("INSERT INTO sales VALUES (%s, %s, %s)", (sale_id, units, price))
        with conn.cursor().copy("COPY accounts FROM STDIN") as copy:
            for user in users:
                copy.write_row((user, price * 1_000_000))
        conn.commit()
        conn.autocommit = True
        conn.execute("VACUUM ANALYZE")
    with redis.Redis.from_url(environment["REDIS_URL"]) as client:
        client.set(f"peer:{sale_id}", units)
    return PeerSale(
        sale_id,
        {
            "PEER_DATABASE_URL": f"{base}/peer",
            "PEER_REDIS_URL": environment["REDIS_URL"],
            "PEER_AMQP_URL": environment["AMQP_URL"],
            "PEER_JWT_SECRET": environment["GATEWAY_JWT_SECRET"],
        },
    )


def _uvicorn(app: str, port: int) -> list[str]:
    program = str(_PEERS_BIN / "uvicorn")
    return [
        *(program, app, "--host", "127.0.0.1", "--port", str(port), "--workers", _WORKERS),
        *("--no-access-log", "--log-level", "warning", "--backlog", "8192"),
    ]


@asynccontextmanager
async def row_locks(sale: PeerSale) -> AsyncIterator[int]:
    """FastAPI with row locks; the port it serves on."""
    port = free_port()
    async with running(_uvicorn("bench.peers.row_locks:app", port), port, sale.environment):
        yield port


@asynccontextmanager
async def redis_and_celery(sale: PeerSale) -> AsyncIterator[int]:
    """FastAPI with Redis in front and Celery behind; the port it serves on."""
    port, app = free_port(), "bench.peers.redis_and_celery"
    worker = [str(_PEERS_BIN / "celery"), "-A", app, "worker", "--concurrency", _WORKERS, "--loglevel", "error"]
    async with (
        running(_uvicorn(f"{app}:app", port), port, sale.environment),
        running(worker, 0, sale.environment | {"C_FORCE_ROOT": "1"}),
    ):
        yield port


@asynccontextmanager
async def bare_grpc() -> AsyncIterator[int]:
    """A grpc.aio server whose CreatePurchase does nothing; the port it serves on."""
    port = free_port()
    async with running([sys.executable, "-m", "bench.peers.bare_grpc", str(port)], port):
        yield port


_NGINX = """
daemon off;
worker_processes auto;
pid {folder}/nginx.pid;
error_log stderr error;
worker_rlimit_nofile 20000;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000000;
    server {{
        listen 127.0.0.1:{port} backlog=8192 reuseport;
        location / {{
            default_type application/problem+json;
            return 409 '{body}';
        }}
    }}
}}
"""


@asynccontextmanager
async def nginx(body: str) -> AsyncIterator[int]:
    """nginx answering every request 409 with ``body``, which holds no quotes of its own kind; the port."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="flashsale-nginx-") as folder:
        # Its workers run as another user.
        await asyncio.to_thread(os.chmod, folder, 0o755)
        config = Path(folder) / "nginx.conf"
        await asyncio.to_thread(config.write_text, _NGINX.format(folder=folder, port=port, body=body))
        async with running(["nginx", "-e", "stderr", "-p", folder, "-c", str(config)], port):
            yield port
