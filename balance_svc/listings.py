"""Pages of accounts, holds and ledger entries. Keyset pagination: a page costs the same wherever it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from balance_svc.account import Account
from balance_svc.hold import Hold
from balance_svc.hold_book import hold_from_row
from balance_svc.ledger import EntryKind
from mesh import page_token
from mesh.pages import Listed
from mesh.postgres import Pool, Queries, connection

_BIGINT_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class BookedEntry:
    """A ledger entry as it stands in the ledger."""

    entry_id: int
    transfer_id: str
    account: str
    amount_minor: int
    currency_code: str
    kind: EntryKind
    create_time: datetime


def _entry_from_row(row: Sequence[Any]) -> BookedEntry:
    entry_id, transfer_id, account, amount_minor, currency_code, kind, create_time = row
    return BookedEntry(entry_id, transfer_id, account, amount_minor, currency_code, EntryKind(kind), create_time)


class Listings:
    """The lists. Raise INVALID_ARGUMENT for a wrong page size or token, UNAVAILABLE when PostgreSQL is away.

    Each page is of its own moment. An entry that is being booked while its neighbours are read may get a smaller number
    than one already seen, so an audit of a system at work uses CheckBooks, which reads one moment.
    """

    def __init__(self, pool: Pool, queries: Queries) -> None:
        self._pool = pool
        self._queries = queries

    async def accounts(self, size: int, token: str) -> Listed[Account]:
        """Accounts by user id and currency."""
        listing, size = ["accounts"], page_token.page_size(size)
        user_id, currency_code = page_token.decode(token, listing, 2) or ["", ""]
        params = {"after_user_id": user_id, "after_currency_code": currency_code, "rows_max": size + 1}
        rows = await self._read(self._queries.list_accounts, params)
        accounts = [Account(*row) for row in rows]
        return Listed(accounts, size, lambda last: page_token.encode(listing, last.key))

    async def holds(self, beneficiary: str, state: str, size: int, token: str) -> Listed[Hold]:
        """Holds by hold id, only those of ``beneficiary`` and in ``state`` unless these are empty."""
        listing, size = ["holds", beneficiary, state], page_token.page_size(size)
        params = {
            "after_hold_id": page_token.decode_id(token, listing),
            "beneficiary": beneficiary,
            "state": state,
            "rows_max": size + 1,
        }
        rows = await self._read(self._queries.list_holds, params)
        holds = [hold_from_row(row) for row in rows]
        return Listed(holds, size, lambda last: page_token.encode(listing, [last.hold_id]))

    async def entries(self, account: str, size: int, token: str) -> Listed[BookedEntry]:
        """Ledger entries in the order of booking, only those of ``account`` unless it is empty."""
        listing, size = ["entries", account], page_token.page_size(size)
        last = page_token.decode(token, listing, 1)
        if last is not None and not (last[0].isascii() and last[0].isdigit() and len(last[0]) <= 19):
            raise page_token.wrong_token()
        after = min(int(last[0]), _BIGINT_MAX) if last else 0
        query = self._queries.list_entries_of_account if account else self._queries.list_entries
        params = {"account": account, "after_entry_id": after, "rows_max": size + 1}
        rows = await self._read(query, params)
        entries = [_entry_from_row(row) for row in rows]
        return Listed(entries, size, lambda last: page_token.encode(listing, [str(last.entry_id)]))

    async def _read(self, query: Any, params: dict[str, Any]) -> Sequence[Any]:
        async with connection(self._pool) as conn:
            return await (await conn.execute(query, params)).fetchall()
