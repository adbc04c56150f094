"""The limits of the servers we use, by their own benchmarks: pgbench and redis-benchmark."""

import asyncio
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from redis.asyncio import Redis

from bench.peers.running import PeerError
from stack import binaries

#: One hold as a transaction of its own: lock the account, look at it, hold, record.
_HOLD = """
\\set user random(1, {users})
BEGIN;
SELECT balance, held FROM accounts WHERE user_id = :user FOR UPDATE;
UPDATE accounts SET held = held + 1 WHERE user_id = :user AND held + 1 <= balance;
INSERT INTO holds (user_id, amount) VALUES (:user, 1);
COMMIT;
"""
_USERS = 50_000
#: Numbers of clients tried: the best of them is what counts.
CLIENTS = (8, 16, 32)
_DECREMENTS = 200_000
_BENCHMARK = "benchmark"


def prepare_holds(environment: Mapping[str, str]) -> str:
    """Makes pgbench's database anew and returns its URL. Blocks."""
    admin = environment["POSTGRES_ADMIN_URL"]
    url = f"{admin.rpartition('/')[0]}/pgbench"
    with psycopg.connect(admin, autocommit=True) as conn:
        conn.execute("DROP DATABASE IF EXISTS pgbench WITH (FORCE)")
        conn.execute("CREATE DATABASE pgbench")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            "CREATE TABLE accounts (user_id int PRIMARY KEY, balance bigint NOT NULL, held bigint NOT NULL,"
            " CHECK (0 <= held AND held <= balance)) WITH (fillfactor = 60)"
        )
        conn.execute(
            "CREATE TABLE holds (hold_id uuid PRIMARY KEY DEFAULT gen_random_uuid(), user_id int NOT NULL,"
            " amount bigint NOT NULL, state text NOT NULL DEFAULT 'HELD',"
            " create_time timestamptz NOT NULL DEFAULT clock_timestamp())"
        )
        conn.execute(
            "INSERT INTO accounts SELECT user_id, 1000000000, 0 FROM generate_series(1, %s) AS user_id", [_USERS]
        )
        conn.execute("VACUUM ANALYZE")
    return url


async def pgbench(url: str, clients: int, seconds: int) -> float:
    """Holds per second, one in each transaction. Raises PeerError."""
    parts = urlsplit(url)
    with tempfile.TemporaryDirectory(prefix="flashsale-pgbench-") as folder:
        script = Path(folder) / "hold.sql"
        await asyncio.to_thread(script.write_text, _HOLD.format(users=_USERS))
        options = {
            "-M": "prepared",
            "-c": str(clients),
            "-j": "2",
            "-T": str(seconds),
            "-f": str(script),
            "-h": str(parts.hostname),
            "-p": str(parts.port),
            "-U": str(parts.username),
        }
        command = [str(binaries.postgres("pgbench", Path("/"))), "-n"]
        for name, value in options.items():
            command += [name, value]
        output = await _output([*command, parts.path.lstrip("/")], {"PGPASSWORD": parts.password or ""})
    return _found(r"tps = ([\d.]+)", output)


async def redis_benchmark(environment: Mapping[str, str]) -> float:
    """DECRBY per second, one in each command."""
    parts = urlsplit(environment["REDIS_URL"])
    # It takes a password by its arguments only, which everybody on the machine may read: so it has a user that may do
    # nothing else.
    async with Redis.from_url(environment["REDIS_URL"]) as client:
        await client.execute_command(  # type: ignore[no-untyped-call]
            *("ACL SETUSER", _BENCHMARK, "reset", "on", "nopass", f"~{_BENCHMARK}:*", "+decrby")
        )
    output = await _output(
        [
            *("/usr/bin/redis-benchmark", "-h", str(parts.hostname), "-p", str(parts.port)),
            *("--user", _BENCHMARK, "-a", _BENCHMARK),
            *("-n", str(_DECREMENTS), "-c", "50", "-q", "DECRBY", f"{_BENCHMARK}:units", "1"),
        ],
        {},
    )
    return _found(r"([\d.]+) requests per second", output)


async def _output(command: list[str], environment: Mapping[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    return (await process.communicate())[0].decode(errors="replace")


def _found(pattern: str, output: str) -> float:
    found = re.search(pattern, output)
    if found is None:
        raise PeerError(f"no figure in: {output.strip()[-300:]}")
    return float(found[1])
