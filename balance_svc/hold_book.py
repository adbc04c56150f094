"""Holds in SQL: batches placed, captured, released, reversed and expired, one transaction each."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from balance_svc import bookkeeping
from balance_svc.account import AccountKey
from balance_svc.hold import Decision, Hold, HoldRequest, HoldState
from balance_svc.hold_batch import HoldBatch, HoldChanges
from mesh import failpoints, tracing
from mesh.postgres import Connection, Pool, Queries, connection


def hold_from_row(row: Sequence[Any]) -> Hold:
    """A hold from its row, columns in the order of the table."""
    hold_id, user_id, currency_code, amount_minor, beneficiary, state, refusal, create_time, expire_time, end_time = row
    request = HoldRequest(hold_id, user_id, currency_code, amount_minor, beneficiary)
    return Hold(request, HoldState(state), bookkeeping.refusal_of(refusal), create_time, expire_time, end_time)


#: What a transaction does, by the point of it.
_WORK = {
    "balance.captured": "capture holds",
    "balance.released": "release holds",
    "balance.reversed": "reverse captures",
    "balance.expired": "expire holds",
}


class HoldBook:
    """The holds. Every method decides a whole batch in one transaction and returns one decision per item, in order.

    Accounts are locked before holds, everywhere, so that two purchases of one user cannot spend the same money and
    batches cannot deadlock. All raise UNAVAILABLE when PostgreSQL is away; repeating is always right.
    """

    def __init__(self, pool: Pool, queries: Queries, ttl: timedelta) -> None:
        self._pool = pool
        self._queries = queries
        self._ttl = ttl

    async def place(self, requests: Sequence[HoldRequest]) -> list[Decision]:
        """Sets money aside for each request, or remembers that it could not."""

        async def work(conn: Connection) -> list[Decision]:
            keys = {request.account_key for request in requests}
            hold_ids = {request.hold_id for request in requests}
            return await self._decide(
                conn, keys, hold_ids, lambda batch: [batch.place(request, self._ttl) for request in requests]
            )

        with tracing.sql("place holds", (request.hold_id for request in requests)):
            return await self._committed("balance.placed", work)

    async def capture(self, hold_ids: Sequence[str]) -> list[Decision]:
        """Takes the money of each hold and books it to its beneficiary."""
        return await self._change("balance.captured", hold_ids, HoldBatch.capture)

    async def release(self, hold_ids: Sequence[str]) -> list[Decision]:
        """Gives the money of each hold back to its owner's use."""
        return await self._change("balance.released", hold_ids, HoldBatch.release)

    async def reverse(self, hold_ids: Sequence[str]) -> list[Decision]:
        """Books the money of each captured hold back to its owner, once."""
        return await self._change("balance.reversed", hold_ids, HoldBatch.reverse)

    async def read(self, hold_ids: Sequence[str]) -> dict[str, Hold]:
        """The holds that exist, by id, as they are written: one whose time has run out is HELD until somebody acts on
        it."""
        async with connection(self._pool) as conn:
            cursor = await conn.execute(self._queries.read_holds, {"hold_ids": list(set(hold_ids))})
            return {row[0]: hold_from_row(row) for row in await cursor.fetchall()}

    async def expire_overdue(self, rows_max: int) -> int:
        """Ends up to ``rows_max`` holds whose time has run out; returns how many were found."""
        async with connection(self._pool) as conn:
            rows = await (await conn.execute(self._queries.read_overdue_holds, {"rows_max": rows_max})).fetchall()
        if rows:
            # Found without a lock; what they are by now is read again under the locks.
            await self._change("balance.expired", [row[0] for row in rows], HoldBatch.expire)
        return len(rows)

    async def _change(
        self, point: str, hold_ids: Sequence[str], decide: Callable[[HoldBatch, str], Decision]
    ) -> list[Decision]:
        async def work(conn: Connection) -> list[Decision]:
            cursor = await conn.execute(self._queries.read_hold_accounts, {"hold_ids": list(set(hold_ids))})
            owners: dict[str, AccountKey] = {row[0]: (row[1], row[2]) for row in await cursor.fetchall()}
            # An id that is not there yet stays unknown to this batch, whoever places it meanwhile: its account would
            # not be locked.
            return await self._decide(
                conn, set(owners.values()), owners, lambda batch: [decide(batch, hold_id) for hold_id in hold_ids]
            )

        with tracing.sql(_WORK[point], hold_ids):
            return await self._committed(point, work)

    async def _committed(self, point: str, work: Callable[[Connection], Awaitable[list[Decision]]]) -> list[Decision]:
        decisions = await bookkeeping.decide_in_transaction(self._pool, work)
        failpoints.hit(point)
        return decisions

    async def _decide(
        self,
        conn: Connection,
        keys: Iterable[AccountKey],
        hold_ids: Iterable[str],
        decide: Callable[[HoldBatch], list[Decision]],
    ) -> list[Decision]:
        accounts = await bookkeeping.lock_accounts(conn, self._queries, keys)
        rows = await (await conn.execute(self._queries.lock_holds, {"hold_ids": list(hold_ids)})).fetchall()
        now = await bookkeeping.read_clock(conn, self._queries)
        batch = HoldBatch(accounts, map(hold_from_row, rows), now)
        decisions = decide(batch)
        changes = batch.changes()
        await self._write(conn, changes, now)
        await bookkeeping.write_entries(conn, self._queries, changes.entries, now)
        await bookkeeping.write_accounts(conn, self._queries, changes.accounts)
        failpoints.hit("balance.committing")
        return decisions

    async def _write(self, conn: Connection, changes: HoldChanges, now: datetime) -> None:
        if changes.inserted:
            holds = changes.inserted
            columns = {
                "hold_ids": [hold.hold_id for hold in holds],
                "user_ids": [hold.request.user_id for hold in holds],
                "currency_codes": [hold.request.currency_code for hold in holds],
                "amounts": [hold.request.amount_minor for hold in holds],
                "beneficiaries": [hold.request.beneficiary for hold in holds],
                "states": [hold.state.value for hold in holds],
                "refusal_reasons": [bookkeeping.refusal_name(hold.refusal_reason) for hold in holds],
                "now": now,
                "expire_time": now + self._ttl,
            }
            bookkeeping.require_rows(await conn.execute(self._queries.insert_holds, columns), len(holds))
        if changes.updated:
            columns = {
                "hold_ids": [before.hold_id for before, _ in changes.updated],
                "states_before": [before.state.value for before, _ in changes.updated],
                "states": [after.state.value for _, after in changes.updated],
                "now": now,
            }
            bookkeeping.require_rows(await conn.execute(self._queries.update_holds, columns), len(changes.updated))
