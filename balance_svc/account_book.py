"""Accounts in SQL: opening and reading them. Their balances change only with a hold or a transfer."""

from collections.abc import Sequence

from balance_svc import bookkeeping
from balance_svc.account import Account, AccountKey
from mesh.postgres import Connection, Pool, Queries, connection, in_transaction


class AccountBook:
    """The accounts. All methods raise UNAVAILABLE when PostgreSQL is away."""

    def __init__(self, pool: Pool, queries: Queries) -> None:
        self._pool = pool
        self._queries = queries

    async def create(self, keys: Sequence[AccountKey]) -> int:
        """Opens those accounts that do not exist, with nothing on them; returns how many were new."""

        async def work(conn: Connection) -> int:
            return await bookkeeping.create_accounts(conn, self._queries, keys)

        return await in_transaction(self._pool, work)

    async def read(self, keys: Sequence[AccountKey]) -> list[Account | None]:
        """The account of each key, None where there is none; all of one moment."""
        async with connection(self._pool) as conn:
            found = {account.key: account for account in await bookkeeping.read_accounts(conn, self._queries, keys)}
        return [found.get(key) for key in keys]
