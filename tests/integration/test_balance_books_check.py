"""The audit finds every kind of wrong row, and an innocent row is never among what it reports."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import psycopg
import pytest
import pytest_asyncio

from tests.support.balance_service import SALE, BalanceClient, assert_right, balance_service, fresh, hold_item
from tests.support.servers import Servers


@dataclass(frozen=True)
class Scene:
    """A customer with 1,000 deposited, 100 captured, 50 captured and reversed, 30 held."""

    user: str
    captured: str
    reversed: str
    held: str
    deposit: str


Admin = psycopg.Connection[tuple[object, ...]]


@pytest_asyncio.fixture(scope="module")
async def database_url(servers: Servers) -> str:
    return servers.migrated_database("balance")


@pytest_asyncio.fixture(scope="module")
async def bank(database_url: str) -> AsyncIterator[BalanceClient]:
    async with balance_service(database_url) as client:
        yield client


@pytest.fixture
def admin(servers: Servers, bank: BalanceClient, database_url: str) -> Iterator[Admin]:
    """The superuser, with triggers off and the accounts' own check gone: nothing but the audit is left to notice."""
    with psycopg.connect(servers.admin_url_of(database_url), autocommit=True) as conn:
        conn.execute("SET session_replication_role = replica")
        conn.execute("ALTER TABLE accounts DROP CONSTRAINT IF EXISTS accounts_held_within_balance")
        yield conn


@pytest_asyncio.fixture
async def scene(bank: BalanceClient) -> Scene:
    [user] = await bank.fund(0)
    deposit = fresh("deposit")
    await bank.deposit(user, 1_000, deposit)
    items = [hold_item(user, amount) for amount in (100, 50, 30)]
    await bank.place(*items)
    await bank.capture(items[0].hold_id, items[1].hold_id)
    await bank.reverse(items[1].hold_id)
    assert await bank.money(user) == (900, 30)
    return Scene(user, items[0].hold_id, items[1].hold_id, items[2].hold_id, deposit)


def entry(transfer_id: str, account: str, amount: int, kind: str = "CAPTURE", code: str = "EUR") -> str:
    """SQL that books one entry past every rule."""
    return (
        "INSERT INTO ledger_entries (transfer_id, account, amount_minor, currency_code, kind, create_time)"
        f" VALUES ('{transfer_id}', '{account}', {amount}, '{code}', '{kind}', now())"
    )


def of_account(change: str) -> Callable[[Scene], str]:
    """SQL that changes the scene's account."""
    return lambda s: f"UPDATE accounts SET {change} WHERE user_id = '{s.user}'"


WRONG_ACCOUNTS: dict[str, Callable[[Scene], str]] = {
    "a balance above its entries": of_account("balance_minor = balance_minor + 1"),
    "a balance below its entries": of_account("balance_minor = balance_minor - 1"),
    "more held than its open holds": of_account("held_minor = held_minor + 1"),
    "less held than its open holds": of_account("held_minor = 0"),
    "held below zero": of_account("held_minor = -1"),
    "held above the balance": of_account("held_minor = 901"),
    "a hold ended without its money": lambda s: (
        f"UPDATE holds SET state = 'RELEASED', end_time = now() WHERE hold_id = '{s.held}'"
    ),
    "an account that is gone": lambda s: f"DELETE FROM accounts WHERE user_id = '{s.user}'",
    "an account of another currency in the ledger": lambda s: entry("x-" + s.user, f"user:{s.user}", 5, code="USD"),
}


@pytest.mark.parametrize("wrong", WRONG_ACCOUNTS)
async def test_every_wrong_account_is_reported(bank: BalanceClient, admin: Admin, scene: Scene, wrong: str) -> None:
    before = {account.user_id for account in (await bank.check()).wrong_accounts}
    admin.execute(WRONG_ACCOUNTS[wrong](scene).encode())
    after = {account.user_id for account in (await bank.check()).wrong_accounts}
    assert after - before == {scene.user}


# What is planted, and the transfer that must be reported.
WRONG_TRANSFERS: dict[str, tuple[Callable[[Scene], str], Callable[[Scene], str]]] = {
    "one side only": (lambda s: entry("lone-" + s.user, "sale:x", 5), lambda s: "lone-" + s.user),
    "sides that do not sum to zero": (
        lambda s: (
            f"UPDATE ledger_entries SET amount_minor = 99 WHERE transfer_id = '{s.captured}' AND amount_minor > 0"
        ),
        lambda s: s.captured,
    ),
    "a capture of another amount than its hold": (
        lambda s: (
            f"UPDATE ledger_entries SET amount_minor = sign(amount_minor) * 99 WHERE transfer_id = '{s.captured}'"
        ),
        lambda s: s.captured,
    ),
    "a capture for another beneficiary than its hold": (
        lambda s: (
            f"UPDATE ledger_entries SET account = 'sale:x' WHERE transfer_id = '{s.captured}' AND amount_minor > 0"
        ),
        lambda s: s.captured,
    ),
    "a capture of another user's money than its hold": (
        lambda s: (
            f"UPDATE ledger_entries SET account = 'user:x' WHERE transfer_id = '{s.captured}' AND amount_minor < 0"
        ),
        lambda s: s.captured,
    ),
    "a capture of a hold that is still held": (
        lambda s: f"{entry(s.held, f'user:{s.user}', -30)}; {entry(s.held, f'sale:{SALE}', 30)}",
        lambda s: s.held,
    ),
    "a capture of no hold": (
        lambda s: f"{entry('no-' + s.user, f'user:{s.user}', -30)}; {entry('no-' + s.user, f'sale:{SALE}', 30)}",
        lambda s: "no-" + s.user,
    ),
    "a captured hold that was never booked": (
        lambda s: f"UPDATE holds SET state = 'CAPTURED', end_time = now() WHERE hold_id = '{s.held}'",
        lambda s: s.held,
    ),
    "a capture that lost its entries": (
        lambda s: f"DELETE FROM ledger_entries WHERE transfer_id = '{s.captured}'",
        lambda s: s.captured,
    ),
    "a capture booked twice": (
        lambda s: (
            "DROP INDEX IF EXISTS ledger_entries_once;"
            f"{entry(s.captured, f'user:{s.user}', -100)}; {entry(s.captured, f'sale:{SALE}', 100)}"
        ),
        lambda s: s.captured,
    ),
    "a reversal that lost its entries": (
        lambda s: f"DELETE FROM ledger_entries WHERE transfer_id = 'reversal:{s.reversed}'",
        lambda s: f"reversal:{s.reversed}",
    ),
    "a reversal of a hold that is not reversed": (
        lambda s: f"UPDATE holds SET state = 'CAPTURED' WHERE hold_id = '{s.reversed}'",
        lambda s: f"reversal:{s.reversed}",
    ),
    "a deposit that lost its entries": (
        lambda s: f"DELETE FROM ledger_entries WHERE transfer_id = 'deposit:{s.deposit}'",
        lambda s: f"deposit:{s.deposit}",
    ),
    "a deposit nobody asked for": (
        lambda s: (
            f"{entry('deposit:no-' + s.user, 'world', -5, 'DEPOSIT')};"
            f"{entry('deposit:no-' + s.user, f'user:{s.user}', 5, 'DEPOSIT')}"
        ),
        lambda s: "deposit:no-" + s.user,
    ),
}


@pytest.mark.parametrize("wrong", WRONG_TRANSFERS)
async def test_every_wrong_transfer_is_reported(bank: BalanceClient, admin: Admin, scene: Scene, wrong: str) -> None:
    plant, reported = WRONG_TRANSFERS[wrong]
    before = set((await bank.check()).wrong_transfers)
    admin.execute(plant(scene).encode())
    after = set((await bank.check()).wrong_transfers)
    assert after - before == {reported(scene)}


async def test_totals_show_what_is_wrong(servers: Servers) -> None:
    url = servers.migrated_database("balance")
    async with balance_service(url) as bank:
        [user] = await bank.fund(100)
        await bank.place(hold_item(user, 60))
        check = await bank.check()
        assert_right(check)
        [totals] = check.totals
        assert (totals.currency_code, totals.balances_sum_minor, totals.held_sum_minor) == ("EUR", 100, 60)
        with psycopg.connect(servers.admin_url_of(url), autocommit=True) as conn:
            conn.execute("UPDATE accounts SET balance_minor = 101, held_minor = 61")
            conn.execute(entry("x", "sale:x", 7).encode())
        [totals] = (await bank.check()).totals
        assert totals.entries_sum_minor == 7
        assert (totals.balances_sum_minor, totals.customer_entries_sum_minor) == (101, 100)
        assert (totals.held_sum_minor, totals.open_holds_sum_minor) == (61, 60)


async def test_at_most_a_hundred_of_each_are_reported(servers: Servers) -> None:
    url = servers.migrated_database("balance")
    async with balance_service(url) as bank:
        await bank.fund(100, users=150)
        with psycopg.connect(servers.admin_url_of(url), autocommit=True) as conn:
            conn.execute("UPDATE accounts SET balance_minor = 101")
            conn.execute("SET session_replication_role = replica")
            conn.execute("DELETE FROM ledger_entries WHERE account = 'world'")
        check = await bank.check()
        assert len(check.wrong_accounts) == len(check.wrong_transfers) == 100


async def test_the_busiest_second_slides_and_leaves_out_its_far_edge(servers: Servers) -> None:
    url = servers.migrated_database("balance")
    async with balance_service(url) as bank:
        with psycopg.connect(url, autocommit=True) as conn:
            # Holds at 0.0 (2), 0.6 (3), 1.0 (4), 1.6 (2): [0.6, 1.6) has 7, and 1.6 is just outside it.
            conn.execute(
                "INSERT INTO holds SELECT gen_random_uuid(), 'u', 'EUR', 1, 'paced',"
                " CASE WHEN at = 0.6 THEN 'REFUSED' ELSE 'HELD' END,"
                " CASE WHEN at = 0.6 THEN 'ACCOUNT_NOT_FOUND' END,"
                " timestamptz '2026-01-01 00:00:00Z' + at * interval '1 second',"
                " CASE WHEN at = 0.6 THEN NULL ELSE timestamptz '2027-01-01 00:00:00Z' END,"
                " CASE WHEN at = 0.6 THEN now() END"
                " FROM (VALUES (0.0, 2), (0.6, 3), (1.0, 4), (1.6, 2)) AS v (at, n), generate_series(1, n)"
            )
        check = await bank.check("paced")
        assert (check.holds_decided, check.holds_per_s_max) == (11, 7)
        assert check.first_hold_time.ToJsonString() == "2026-01-01T00:00:00Z"
        assert check.last_hold_time.ToJsonString() == "2026-01-01T00:00:01.600Z"
        for beneficiary in ("", "nobody"):
            check = await bank.check(beneficiary)
            assert (check.holds_decided, check.holds_per_s_max) == (0, 0)
            assert not check.HasField("first_hold_time")
