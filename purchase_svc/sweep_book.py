"""Purchases in SQL as the sweeper sees them: what is unfinished, what is left to clean up, what is missing."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.postgres import Pool, Queries, run_statement
from purchase_svc.leased_rounds import Lease
from purchase_svc.purchase import Wish
from purchase_svc.purchase_book import SQL_FOLDER, Terms


@dataclass(frozen=True, slots=True)
class Waiting:
    """Purchases that are not settled yet, and refunds that are not done yet."""

    purchases: int
    #: Age of the oldest, seconds; 0 without any.
    oldest_s: float
    #: Purchases that wait for an operator.
    parked: int
    refunding: int
    #: How long ago the oldest of these was asked for, seconds; 0 without any.
    oldest_refund_s: float


class SweepBook:
    """The sweeper's view of purchases. Every method raises UNAVAILABLE when PostgreSQL is away; repeating is safe."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._queries = Queries(SQL_FOLDER)
        #: Who has it is the one that sweeps.
        self.lease = Lease(pool, "sweep")

    async def waiting(self) -> Waiting:
        """What is not settled or not refunded yet."""
        (row,) = await run_statement(self._pool, self._queries.count_waiting, {})
        return Waiting(*row)

    async def note_busy(self, partitions: Sequence[int]) -> None:
        """Notes that this process has messages of these partitions in hand."""
        await run_statement(self._pool, self._queries.note_busy, {"partitions": list(partitions)})

    async def list_unqueued(self, *, age_s: float, limit: int) -> list[tuple[uuid.UUID, int]]:
        """Purchases, with their partitions, that are ``age_s`` seconds old and not known to have been queued."""
        return await run_statement(self._pool, self._queries.list_unqueued, {"age_s": age_s, "limit": limit})

    async def list_silent_partitions(self, *, stale_s: float) -> list[int]:
        """Partitions with a purchase without a sign of life for ``stale_s`` seconds, and without a worker at work."""
        return [
            row[0]
            for row in await run_statement(self._pool, self._queries.list_silent_partitions, {"stale_s": stale_s})
        ]

    async def list_lost(
        self, *, stale_s: float, empty_partitions: Sequence[int], limit: int
    ) -> list[tuple[uuid.UUID, int]]:
        """Purchases, with their partitions, that are in no queue any more.

        ``empty_partitions`` are silent ones in whose queue no message waits.
        """
        parameters = {"stale_s": stale_s, "empty_partitions": list(empty_partitions), "limit": limit}
        return await run_statement(self._pool, self._queries.list_lost, parameters)

    async def list_cleanups(self, *, age_s: float, limit: int) -> list[uuid.UUID]:
        """Purchases that ended ``age_s`` seconds ago, whose reservation or hold may still be open; oldest first."""
        return [
            row[0]
            for row in await run_statement(self._pool, self._queries.list_cleanups, {"age_s": age_s, "limit": limit})
        ]

    async def finish_cleanups(self, ids: Sequence[uuid.UUID]) -> None:
        """Notes that nothing of these is open any more."""
        await run_statement(self._pool, self._queries.finish_cleanups, {"purchase_ids": list(map(str, ids))})

    async def postpone_cleanups(self, ids: Sequence[uuid.UUID]) -> None:
        """Puts these at the end of the line."""
        await run_statement(self._pool, self._queries.postpone_cleanups, {"purchase_ids": list(map(str, ids))})

    async def list_missing(self, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Of these ids, those that no purchase has."""
        return {
            row[0]
            for row in await run_statement(
                self._pool, self._queries.list_missing, {"purchase_ids": list(map(str, ids))}
            )
        }

    async def list_joined_without_purchase(
        self, joined: Mapping[uuid.UUID, datetime], *, age_s: float
    ) -> dict[uuid.UUID, bool]:
        """Of those who joined a line, each with the time by the Inventory Service's database, those that no purchase
        has: whether they joined more than ``age_s`` seconds ago, by this database's clock."""
        parameters = {"purchase_ids": list(map(str, joined)), "join_times": list(joined.values()), "age_s": age_s}
        return dict(await run_statement(self._pool, self._queries.list_joined_without_purchase, parameters))

    async def insert_abandoned(self, wishes: Sequence[Wish], terms: Terms) -> int:
        """Records purchases that were never recorded as FAILED for ABANDONED, with cleanup pending.

        All are of one sale. One that has been recorded meanwhile is left as it is. Returns how many are new.
        """
        parameters = {
            "purchase_ids": [str(wish.purchase_id) for wish in wishes],
            "user_ids": [wish.user_id for wish in wishes],
            "sale_ids": [wish.sale_id for wish in wishes],
            "request_ids": [wish.request_id for wish in wishes],
            "quantities": [wish.quantity for wish in wishes],
            "amounts_minor": [wish.quantity * terms.price_minor for wish in wishes],
            "currency_codes": [terms.currency_code] * len(wishes),
            "partitions": [wish.partition for wish in wishes],
            "reason": ErrorReason.ERROR_REASON_ABANDONED,
        }
        return len(await run_statement(self._pool, self._queries.insert_abandoned, parameters))
