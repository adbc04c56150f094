"""Purchases in SQL: inserting, reading, cancelling, counting. Every statement may be repeated without harm."""

import uuid
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from flashsale.common.v1.error_reason_pb2 import ErrorReason
from psycopg.rows import TupleRow

from mesh import tracing
from mesh.errors import DomainError
from mesh.postgres import Pool, Queries, run_statement
from purchase_svc.purchase import Purchase, PurchaseState, Wish

SQL_FOLDER = Path(__file__).parent / "sql"
MIGRATIONS_FOLDER = SQL_FOLDER / "migrations"

SMALLEST_ID = uuid.UUID(int=0)
_STATES = {state.value: state for state in PurchaseState}
_RESERVED, _WAITLISTED = PurchaseState.RESERVED, PurchaseState.WAITLISTED
_UNSETTLED = frozenset({PurchaseState.RESERVED, PurchaseState.SETTLING})


@dataclass(frozen=True, slots=True)
class Terms:
    """What one unit of a sale costs."""

    price_minor: int
    currency_code: str


@dataclass(frozen=True, slots=True)
class Inserted:
    """The purchases that one INSERT made, by id, and the number of their batch; those in line are of no batch."""

    purchases: dict[uuid.UUID, Purchase]
    batch_id: int


@dataclass(frozen=True, slots=True)
class PurchaseCount:
    """How many purchases of a sale are in a state for a reason, and their units together."""

    state: PurchaseState
    reason: int
    purchases: int
    units: int
    #: What they cost together, minor units.
    amount_minor: int


@dataclass(frozen=True, slots=True)
class SaleSummary:
    """Counts of a sale's purchases at one moment."""

    counts: tuple[PurchaseCount, ...]
    first_claim_time: datetime | None
    last_final_time: datetime | None
    #: Since when the oldest that is RESERVED or SETTLING has had its units.
    oldest_unsettled_time: datetime | None


@dataclass(frozen=True, slots=True)
class PurchaseFilter:
    """Which purchases a list is about; None: any."""

    sale_id: uuid.UUID | None = None
    user_id: str | None = None
    state: PurchaseState | None = None


def purchase_from_row(row: TupleRow) -> Purchase:
    """The purchase in a row of the columns that the queries ``get_...``, ``list_...`` and ``cancel_...`` return."""
    return Purchase._make((*row[:8], _STATES[row[8]], row[9], tuple(row[10]), *row[11:]))


class PurchaseBook:
    """The purchases' table. Every method raises UNAVAILABLE when PostgreSQL is away or too slow; the outcome of a
    change is then unknown, and repeating it is safe."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._queries = Queries(SQL_FOLDER)

    async def insert(
        self, wishes: Sequence[Wish], terms: Mapping[str, Terms], waiting: Container[uuid.UUID] = ()
    ) -> Inserted:
        """Makes purchases in state RESERVED, or WAITLISTED if their id is among ``waiting``, in one statement; returns
        those that are new.

        ``wishes`` have distinct ids; ``terms`` has every sale of theirs.
        """
        ids = [str(wish.purchase_id) for wish in wishes]
        costs = [terms[wish.sale_id] for wish in wishes]
        partitions = [wish.partition for wish in wishes]
        parameters = {
            "purchase_ids": ids,
            "user_ids": [wish.user_id for wish in wishes],
            "sale_ids": [wish.sale_id for wish in wishes],
            "request_ids": [wish.request_id for wish in wishes],
            "quantities": [wish.quantity for wish in wishes],
            "amounts_minor": [wish.quantity * cost.price_minor for wish, cost in zip(wishes, costs, strict=True)],
            "currency_codes": [cost.currency_code for cost in costs],
            "partitions": partitions,
            "waitlisted": [wish.purchase_id in waiting for wish in wishes],
        }
        with tracing.sql("insert_purchases", ids):
            rows = await run_statement(self._pool, self._queries.insert_purchases, parameters)
        times: dict[str, datetime] = {row[0]: row[1] for row in rows}
        sales = {sale_id: uuid.UUID(sale_id) for sale_id in terms}
        new: dict[uuid.UUID, Purchase] = {}
        for purchase_id, wish, cost, partition in zip(ids, wishes, costs, partitions, strict=True):
            moment = times.get(purchase_id)
            if moment is not None:
                new[wish.purchase_id] = Purchase(
                    purchase_id=wish.purchase_id,
                    user_id=wish.user_id,
                    sale_id=sales[wish.sale_id],
                    request_id=wish.request_id,
                    quantity=wish.quantity,
                    amount_minor=wish.quantity * cost.price_minor,
                    currency_code=cost.currency_code,
                    partition=partition,
                    state=_WAITLISTED if wish.purchase_id in waiting else _RESERVED,
                    reason=0,
                    share_numbers=(),
                    attempts=0,
                    cleanup_pending=False,
                    create_time=moment,
                    update_time=moment,
                )
        return Inserted(new, max((row[2] for row in rows), default=0))

    async def get_many(self, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Purchase]:
        """The purchases that exist, by id."""
        rows = await run_statement(self._pool, self._queries.get_purchases, {"purchase_ids": list(map(str, ids))})
        return {row[0]: purchase_from_row(row) for row in rows}

    async def get(self, purchase_id: uuid.UUID, user_id: str = "") -> Purchase:
        """One purchase. Raises PURCHASE_NOT_FOUND, also when ``user_id`` is given and it is another user's."""
        purchase = (await self.get_many([purchase_id])).get(purchase_id)
        if purchase is None or user_id not in ("", purchase.user_id):
            raise DomainError(ErrorReason.ERROR_REASON_PURCHASE_NOT_FOUND)
        return purchase

    async def get_changed(self, seen: Mapping[uuid.UUID, PurchaseState]) -> list[Purchase]:
        """Of the purchases named, those whose state is not the one given with them."""
        parameters = {"purchase_ids": list(map(str, seen)), "states": [state.value for state in seen.values()]}
        return [
            purchase_from_row(row)
            for row in await run_statement(self._pool, self._queries.get_changed_purchases, parameters)
        ]

    async def list_page(self, wanted: PurchaseFilter, after: uuid.UUID | None, limit: int) -> list[Purchase]:
        """Up to ``limit`` purchases in order of id, those above ``after``."""
        query = self._queries.list_purchases
        if wanted.user_id is not None:
            query = self._queries.list_purchases_of_user
        elif wanted.sale_id is not None:
            query = self._queries.list_purchases_of_sale
        parameters = {
            "sale_id": wanted.sale_id,
            "user_id": wanted.user_id,
            "state": wanted.state.value if wanted.state else None,
            "after": after or SMALLEST_ID,
            "limit": limit,
        }
        return [purchase_from_row(row) for row in await run_statement(self._pool, query, parameters)]

    async def cancel(self, purchase_id: uuid.UUID, user_id: str) -> Purchase:
        """WAITLISTED or RESERVED -> CANCELLED with cleanup pending; one that is CANCELLED already is returned as it is.

        Raises PURCHASE_NOT_FOUND, or PURCHASE_NOT_CANCELLABLE from every other state.
        """
        parameters = {"purchase_id": purchase_id, "user_id": user_id}
        with tracing.sql("cancel_purchase", (purchase_id,)):
            rows = await run_statement(self._pool, self._queries.cancel_purchase, parameters)
        if rows:
            return purchase_from_row(rows[0])
        purchase = await self.get(purchase_id, user_id)
        if purchase.state is not PurchaseState.CANCELLED:
            raise DomainError(
                ErrorReason.ERROR_REASON_PURCHASE_NOT_CANCELLABLE, metadata={"state": purchase.state.value}
            )
        return purchase

    async def finish_cancel_cleanup(self, purchase_id: uuid.UUID) -> None:
        """Notes that a cancelled purchase's reservation has been given back."""
        await run_statement(self._pool, self._queries.finish_cancel_cleanup, {"purchase_id": purchase_id})

    async def mark_queued(self, ids: Sequence[uuid.UUID]) -> None:
        """Notes that messages with these purchases have been confirmed by the broker."""
        await run_statement(self._pool, self._queries.mark_queued, {"purchase_ids": list(map(str, ids))})

    async def mark_batches_queued(self, batch_ids: Sequence[int]) -> None:
        """Notes that messages with every purchase of these batches have been confirmed by the broker."""
        await run_statement(self._pool, self._queries.mark_batches_queued, {"batch_ids": list(batch_ids)})

    async def summarize(self, sale_id: uuid.UUID) -> SaleSummary:
        """Counts a sale's purchases by state and reason."""
        rows = await run_statement(self._pool, self._queries.summarize_sale, {"sale_id": sale_id})
        return SaleSummary(
            counts=tuple(PurchaseCount(PurchaseState(row[0]), *row[1:5]) for row in rows),
            first_claim_time=min((row[5] for row in rows if row[5] is not None), default=None),
            last_final_time=max((row[6] for row in rows if row[6] is not None), default=None),
            oldest_unsettled_time=min((row[7] for row in rows if row[0] in _UNSETTLED), default=None),
        )
