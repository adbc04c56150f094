"""Refunds in SQL: CONFIRMED -> REFUNDING -> REFUNDED."""

import uuid
from collections.abc import Sequence

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh import tracing
from mesh.errors import DomainError
from mesh.postgres import Pool, Queries, run_statement
from purchase_svc.purchase import Purchase, PurchaseState
from purchase_svc.purchase_book import SQL_FOLDER, PurchaseBook, purchase_from_row

_S = PurchaseState
#: A purchase that is confirmed between the change and the look at why there was none is tried once more.
_TRIES = 2


class RefundBook:
    """Every method raises UNAVAILABLE when PostgreSQL is away; repeating is safe."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._queries = Queries(SQL_FOLDER)
        self._purchases = PurchaseBook(pool)

    async def begin(self, purchase_id: uuid.UUID, user_id: str, *, window_s: int) -> Purchase:
        """CONFIRMED -> REFUNDING if it became CONFIRMED less than ``window_s`` seconds ago; one that is REFUNDING or
        REFUNDED already is returned as it is.

        Raises PURCHASE_NOT_FOUND, REFUND_WINDOW_OVER, or PURCHASE_NOT_REFUNDABLE from every other state.
        """
        parameters = {"purchase_id": purchase_id, "user_id": user_id, "window_s": window_s}
        for _ in range(_TRIES):
            with tracing.sql("begin_refund", (purchase_id,)):
                rows = await run_statement(self._pool, self._queries.begin_refund, parameters)
            if rows:
                return purchase_from_row(rows[0])
            purchase = await self._purchases.get(purchase_id, user_id)
            if purchase.state in (_S.REFUNDING, _S.REFUNDED):
                return purchase
            if purchase.state is not _S.CONFIRMED:
                metadata = {"state": purchase.state.value}
                raise DomainError(ErrorReason.ERROR_REASON_PURCHASE_NOT_REFUNDABLE, metadata=metadata)
        raise DomainError(ErrorReason.ERROR_REASON_REFUND_WINDOW_OVER, metadata={"window_s": str(window_s)})

    async def list_pending(self, limit: int) -> list[uuid.UUID]:
        """Purchases that are REFUNDING, those that were touched least lately first."""
        return [row[0] for row in await run_statement(self._pool, self._queries.list_refunds, {"limit": limit})]

    async def finish(self, ids: Sequence[uuid.UUID]) -> int:
        """REFUNDING -> REFUNDED; how many. Their money must be booked back and their shares given back."""
        parameters = {"purchase_ids": list(map(str, ids))}
        with tracing.sql("finish_refunds", ids):
            return len(await run_statement(self._pool, self._queries.finish_refunds, parameters))

    async def postpone(self, ids: Sequence[uuid.UUID]) -> None:
        """Puts these at the end of the line."""
        await run_statement(self._pool, self._queries.postpone_refunds, {"purchase_ids": list(map(str, ids))})
