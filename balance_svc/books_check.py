"""The audit of the books: sums and every rule of money, read at one moment."""

from dataclasses import dataclass
from datetime import datetime

from balance_svc.account import Account
from mesh.postgres import Connection, Pool, Queries, in_transaction, patience

#: Most wrong accounts and most wrong transfers reported.
WRONG_MAX = 100


@dataclass(frozen=True, slots=True)
class CurrencyTotals:
    """Sums of one currency, minor units. Right books: the first is 0, 2nd = 3rd, 4th = 5th."""

    currency_code: str
    entries_sum_minor: int
    balances_sum_minor: int
    customer_entries_sum_minor: int
    held_sum_minor: int
    open_holds_sum_minor: int


@dataclass(frozen=True, slots=True)
class HoldPace:
    """How many holds were decided for a beneficiary, the most within any one second, the first and the last time."""

    holds_decided: int
    holds_per_s_max: int
    first_hold_time: datetime | None
    last_hold_time: datetime | None


@dataclass(frozen=True)
class BooksCheck:
    """What the check found."""

    totals: list[CurrencyTotals]
    wrong_accounts: list[Account]
    wrong_transfers: list[str]
    pace: HoldPace


#: Longest that one of the statements may take, seconds: each reads everything there is.
_CHECK_S_MAX = 60


class BooksChecker:
    """Checks the books. Reads everything, so it is for audits: 100,000 accounts and holds take 1 to 2 s."""

    def __init__(self, pool: Pool, queries: Queries) -> None:
        self._pool = pool
        self._queries = queries

    async def check(self, beneficiary: str) -> BooksCheck:
        """The state of the books at one moment, with the pace of ``beneficiary``'s holds (empty: none)."""

        async def work(conn: Connection) -> BooksCheck:
            await conn.execute(self._queries.begin_check)
            async with patience(conn, _CHECK_S_MAX):
                return await read(conn)

        async def read(conn: Connection) -> BooksCheck:
            await conn.execute(self._queries.allow_memory)
            limit = {"rows_max": WRONG_MAX}
            totals = await (await conn.execute(self._queries.check_totals)).fetchall()
            accounts = await (await conn.execute(self._queries.check_accounts, limit)).fetchall()
            transfers = await (await conn.execute(self._queries.check_transfers, limit)).fetchall()
            return BooksCheck(
                [CurrencyTotals(*row) for row in totals],
                [Account(*row) for row in accounts],
                [row[0] for row in transfers],
                await self._pace(conn, beneficiary),
            )

        return await in_transaction(self._pool, work)

    async def _pace(self, conn: Connection, beneficiary: str) -> HoldPace:
        if not beneficiary:
            return HoldPace(0, 0, None, None)
        row = await (await conn.execute(self._queries.check_pace, {"beneficiary": beneficiary})).fetchone()
        assert row is not None
        return HoldPace(*row)
