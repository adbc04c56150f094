"""The process: how it starts, what it refuses, how it ends, and what a fault of PostgreSQL costs."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from balance_svc.process import running
from balance_svc.settings import Settings
from mesh.settings import SettingsError
from tests.support.balance_service import BalanceClient, assert_right, balance_service, hold_item, reason_of
from tests.support.servers import Servers
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]


def environment(**settings: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}", **settings}


def balance(verb: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "balance_svc", *verb.split()],
        env=environment(**settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("verb", ["", "dance", "serve now"])
def test_a_wrong_verb_shows_the_usage(verb: str) -> None:
    done = balance(verb)
    assert (done.returncode, done.stderr) == (2, "usage: python -m balance_svc migrate|serve\n")


@pytest.mark.parametrize(
    ("settings", "named"),
    [({}, "BALANCE_DATABASE_URL"), ({"BALANCE_DATABASE_URL": "x", "BALANCE_HOLD_TTL_S": "0"}, "BALANCE_HOLD_TTL_S")],
)
def test_a_wrong_setting_stops_the_process_and_is_named(settings: dict[str, str], named: str) -> None:
    done = balance("serve", **settings)
    assert done.returncode == 2
    assert done.stderr.startswith(f"settings: {named}")


async def test_an_unmigrated_database_is_not_served(servers: Servers) -> None:
    settings = Settings(database_url=servers.new_database("balance"), listen="127.0.0.1:0")
    with pytest.raises(SettingsError, match="lacks migration 0001"):
        async with running(settings):
            pass


def test_migrating_twice_changes_nothing(servers: Servers) -> None:
    url = servers.new_database("balance")
    for applied in ('["0001_books"]', "[]"):
        done = balance("migrate", BALANCE_DATABASE_URL=url)
        assert done.returncode == 0
        assert f'"applied": {applied}' in done.stdout


async def test_a_failing_expirer_ends_the_process(servers: Servers) -> None:
    """Holds that never lapse lock money away for ever: better no process, which its supervisor notices, than half of
    one."""
    url = servers.new_database("balance")
    assert balance("migrate", BALANCE_DATABASE_URL=url).returncode == 0
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "balance_svc", "serve",
        env=environment(BALANCE_DATABASE_URL=url, BALANCE_LISTEN="127.0.0.1:0", BALANCE_EXPIRY_INTERVAL_S="0.05"),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(30):
        while b'"serving"' not in await process.stdout.readline():
            pass
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("ALTER TABLE holds RENAME TO elsewhere")
        rest = await process.stdout.read()
        assert await process.wait() == 1
    assert b'"task": "expirer"' in rest


async def test_a_killed_postgres_loses_no_acknowledged_hold(servers: Servers) -> None:
    url = servers.migrated_database("balance")
    async with balance_service(url, expiry_interval_s=0.1) as bank:
        users = await bank.fund(10_000, users=20)
        held: list[str] = []
        stop = asyncio.Event()

        async def buy() -> None:
            while not stop.is_set():
                items = [hold_item(user, 1) for user in users]
                # One id for the whole outage: whether the first try was committed or not, the answer is the same.
                while await reason_of(bank.place(*items)):
                    await asyncio.sleep(0.05)
                held.extend(item.hold_id for item in items)

        buyers = [asyncio.ensure_future(buy()) for _ in range(3)]
        await eventually(lambda: at_least(held, 200))
        await asyncio.to_thread(servers.kill, "postgres")
        before = len(held)
        await eventually(lambda: at_least(held, before + 200))
        stop.set()
        await asyncio.gather(*buyers)
        assert await captured(bank, held) == len(held)
        assert_right(await bank.check())
        assert sum([10_000 - (await bank.money(user))[0] for user in users]) == len(held)
        assert sum([(await bank.money(user))[1] for user in users]) == 0


async def at_least(held: list[str], count: int) -> bool:
    return len(held) >= count


async def captured(bank: BalanceClient, hold_ids: list[str]) -> int:
    count = 0
    for start in range(0, len(hold_ids), 1_000):
        answers = await bank.capture(*hold_ids[start : start + 1_000])
        count += answers.count(("", "CAPTURED"))
    return count


async def test_an_absent_database_is_unavailable_and_recovers_by_itself(servers: Servers) -> None:
    url = servers.migrated_database("balance")
    async with balance_service(url, expiry_interval_s=0.05) as bank:
        [user] = await bank.fund(100)
        item = hold_item(user, 10)
        await asyncio.to_thread(servers.stop, "postgres")
        try:
            assert await reason_of(bank.place(item)) == "UNAVAILABLE"
            assert await reason_of(bank.money(user)) == "UNAVAILABLE"
            assert await reason_of(bank.check()) == "UNAVAILABLE"
        finally:
            await asyncio.to_thread(servers.start, "postgres")

        async def placed() -> bool:
            return not await reason_of(bank.place(item))

        await eventually(placed)
        assert await bank.money(user) == (100, 10)
