"""Deposits and withdrawals in SQL, a batch in one transaction."""

from collections.abc import Sequence

from balance_svc import bookkeeping
from balance_svc.account import Account
from balance_svc.transfer import Transfer, TransferBatch, TransferKind, TransferRequest
from mesh.postgres import Connection, Pool, Queries


class TransferBook:
    """Deposits and withdrawals. Raises UNAVAILABLE when PostgreSQL is away; repeating is always right."""

    def __init__(self, pool: Pool, queries: Queries) -> None:
        self._pool = pool
        self._queries = queries

    async def transfer(self, requests: Sequence[TransferRequest]) -> list[tuple[int, Account | None]]:
        """Decides and books the batch. Per request, in order: its ErrorReason (OK: done, now or earlier) and the
        account as it is after the batch, None when there is none."""

        async def work(conn: Connection) -> list[tuple[int, Account | None]]:
            accounts = await bookkeeping.lock_accounts(
                conn, self._queries, {request.account_key for request in requests}
            )
            known = await self._read(conn, list({request.request_id for request in requests}))
            batch = TransferBatch.of(accounts, known)
            reasons = [batch.decide(request) for request in requests]
            await self._write(conn, batch)
            return [
                (reason, batch.accounts.get(request.account_key))
                for reason, request in zip(reasons, requests, strict=True)
            ]

        return await bookkeeping.decide_in_transaction(self._pool, work)

    async def _read(self, conn: Connection, request_ids: list[str]) -> list[Transfer]:
        rows = await (await conn.execute(self._queries.read_transfers, {"request_ids": request_ids})).fetchall()
        return [
            Transfer(
                TransferRequest(request_id, TransferKind(kind), user_id, currency_code, amount),
                bookkeeping.refusal_of(refusal),
            )
            for request_id, kind, user_id, currency_code, amount, refusal in rows
        ]

    async def _write(self, conn: Connection, batch: TransferBatch) -> None:
        if not batch.inserted:
            return
        now = await bookkeeping.read_clock(conn, self._queries)
        requests = [transfer.request for transfer in batch.inserted]
        columns = {
            "request_ids": [request.request_id for request in requests],
            "kinds": [request.kind.value for request in requests],
            "user_ids": [request.user_id for request in requests],
            "currency_codes": [request.currency_code for request in requests],
            "amounts": [request.amount_minor for request in requests],
            "refusal_reasons": [bookkeeping.refusal_name(transfer.refusal_reason) for transfer in batch.inserted],
            "create_time": now,
        }
        bookkeeping.require_rows(await conn.execute(self._queries.insert_transfers, columns), len(requests))
        await bookkeeping.write_entries(conn, self._queries, batch.entries, now)
        await bookkeeping.write_accounts(conn, self._queries, batch.changed())
