"""What every writing transaction does to the books: lock accounts, read the clock, write accounts and entries.

The order of locks is the same everywhere: accounts by (user, currency), then holds by id, then new rows by id. So two
batches wait for each other and never deadlock.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import TypeVar

from flashsale.common.v1.error_reason_pb2 import ErrorReason
from psycopg.errors import UniqueViolation

from balance_svc.account import Account, AccountKey
from balance_svc.ledger import Entry
from mesh.errors import DomainError, reason_name
from mesh.postgres import Connection, Pool, Queries, in_transaction

T = TypeVar("T")

#: Tries of a batch whose new ids another batch writes at the same moment.
_ATTEMPTS_MAX = 5
_NEW_ID_CONSTRAINTS = ("holds_pkey", "transfers_pkey")


_REFUSALS = {
    reason_name(reason): int(reason)
    for reason in (ErrorReason.ERROR_REASON_INSUFFICIENT_FUNDS, ErrorReason.ERROR_REASON_ACCOUNT_NOT_FOUND)
}


def refusal_name(reason: int) -> str | None:
    """A refusal's ErrorReason as its column has it; None for no refusal."""
    return reason_name(reason) if reason else None


def refusal_of(name: str | None) -> int:
    """The reverse of ``refusal_name``."""
    return ErrorReason.ERROR_REASON_UNSPECIFIED if name is None else _REFUSALS[name]


async def decide_in_transaction(pool: Pool, work: Callable[[Connection], Awaitable[T]]) -> T:
    """``mesh.postgres.in_transaction``, repeated when a concurrent batch was the first to write one of the ids.

    That batch has committed by then, so the repetition finds its row and answers from it. Raises UNAVAILABLE after
    5 tries.
    """
    for _ in range(_ATTEMPTS_MAX):
        try:
            return await in_transaction(pool, work)
        except UniqueViolation as error:
            if error.diag.constraint_name not in _NEW_ID_CONSTRAINTS:
                raise
    raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "too many concurrent changes")


def _key_columns(keys: Iterable[AccountKey]) -> dict[str, list[str]]:
    pairs = list(keys)
    return {"user_ids": [user_id for user_id, _ in pairs], "currency_codes": [code for _, code in pairs]}


async def create_accounts(conn: Connection, queries: Queries, keys: Iterable[AccountKey]) -> int:
    """Opens those accounts that do not exist; returns how many were new."""
    return (await conn.execute(queries.create_accounts, _key_columns(set(keys)))).rowcount


async def read_accounts(conn: Connection, queries: Queries, keys: Iterable[AccountKey]) -> list[Account]:
    """Those accounts that exist, unlocked."""
    rows = await (await conn.execute(queries.read_accounts, _key_columns(set(keys)))).fetchall()
    return [Account(*row) for row in rows]


async def lock_accounts(conn: Connection, queries: Queries, keys: Iterable[AccountKey]) -> list[Account]:
    """Locks, in the one order, and reads those accounts that exist."""
    rows = await (await conn.execute(queries.lock_accounts, _key_columns(set(keys)))).fetchall()
    return [Account(*row) for row in rows]


async def read_clock(conn: Connection, queries: Queries) -> datetime:
    """The database's time. Read it after all locks are taken: a batch that waited must not decide in the past."""
    row = await (await conn.execute(queries.read_clock)).fetchone()
    assert row is not None
    now: datetime = row[0]
    return now


async def write_accounts(conn: Connection, queries: Queries, accounts: Sequence[Account]) -> None:
    """Writes locked accounts as they become."""
    if accounts:
        columns = {
            **_key_columns(account.key for account in accounts),
            "balances": [account.balance_minor for account in accounts],
            "helds": [account.held_minor for account in accounts],
        }
        require_rows(await conn.execute(queries.update_accounts, columns), len(accounts))


async def write_entries(conn: Connection, queries: Queries, entries: Sequence[Entry], now: datetime) -> None:
    """Appends entries to the ledger."""
    if entries:
        assert sum(entry.amount_minor for entry in entries) == 0, "a booking does not sum to zero"
        columns = {
            "transfer_ids": [entry.transfer_id for entry in entries],
            "accounts": [entry.account for entry in entries],
            "amounts": [entry.amount_minor for entry in entries],
            "currency_codes": [entry.currency_code for entry in entries],
            "kinds": [entry.kind.value for entry in entries],
            "create_time": now,
        }
        require_rows(await conn.execute(queries.insert_entries, columns), len(entries))


def require_rows(result: object, expected: int) -> None:
    """Ends the transaction, by raising, when a statement did not change exactly the rows the decision was about."""
    count = getattr(result, "rowcount", None)
    if count != expected:
        raise RuntimeError(f"{count} rows were written, not {expected}: the transaction is rolled back")
