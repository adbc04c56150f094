"""Purchases in SQL as receipts and statements tell of them."""

import uuid
from datetime import datetime
from typing import NamedTuple

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.errors import DomainError
from mesh.postgres import Pool, Queries, run_statement
from purchase_svc.history import History
from purchase_svc.purchase import PurchaseState
from purchase_svc.purchase_book import SMALLEST_ID, SQL_FOLDER, purchase_from_row

_PURCHASE_COLUMNS = 15


class NonWin(NamedTuple):
    """A purchase that is over and has won nothing."""

    purchase_id: uuid.UUID
    user_id: str
    quantity: int
    state: PurchaseState
    #: ErrorReason of one that FAILED, otherwise 0.
    reason: int
    end_time: datetime


class HistoryBook:
    """Both methods raise UNAVAILABLE when PostgreSQL is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._queries = Queries(SQL_FOLDER)

    async def get(self, purchase_id: uuid.UUID, user_id: str = "") -> History:
        """One purchase. Raises PURCHASE_NOT_FOUND, also when ``user_id`` is given and it is another user's."""
        parameters = {"purchase_id": purchase_id, "user_id": user_id}
        rows = await run_statement(self._pool, self._queries.get_history, parameters)
        if not rows:
            raise DomainError(ErrorReason.ERROR_REASON_PURCHASE_NOT_FOUND)
        (row,) = rows
        return History(purchase_from_row(row[:_PURCHASE_COLUMNS]), *row[_PURCHASE_COLUMNS:])

    async def list_non_wins(self, sale_id: uuid.UUID, after: uuid.UUID | None, limit: int) -> list[NonWin]:
        """Up to ``limit`` of a sale's purchases that are FAILED, CANCELLED or REFUNDED, in order of id, above
        ``after``."""
        parameters = {"sale_id": sale_id, "after": after or SMALLEST_ID, "limit": limit}
        rows = await run_statement(self._pool, self._queries.list_non_wins, parameters)
        return [NonWin._make((*row[:3], PurchaseState(row[3]), *row[4:])) for row in rows]
