"""Sales in SQL: terms, state, the epoch that fences the count, and who is recalibrating."""

import uuid
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from inventory_svc.sale import Sale, SaleState, SaleTerms, changes_state, sale_not_found
from mesh.errors import DomainError
from mesh.postgres import Connection, Pool, Queries, connection, in_transaction

SQL = Queries(Path(__file__).parent / "sql")
MIGRATIONS = Path(__file__).parent / "sql" / "migrations"

#: Terms kept in memory; a sale beyond is read again.
_TERMS_KEPT_MAX = 10_000


@dataclass(frozen=True)
class WatchedSale:
    """A sale whose gate must be current: its epoch in SQL, and whether somebody is recalibrating it."""

    sale_id: str
    epoch: int
    under_way: bool


def sale_of_row(row: Sequence[Any]) -> Sale:
    """A sale as the queries that begin with its id select it."""
    sale_id, name, price, currency, total, per_user, per_purchase, state, create_time = row
    return Sale(sale_id, SaleTerms(name, price, currency, total, per_user, per_purchase), SaleState(state), create_time)


class SaleBook:
    """The sales of this service's database. Methods raise UNAVAILABLE when it is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._terms: OrderedDict[str, SaleTerms] = OrderedDict()

    async def create(self, request_id: str, terms: SaleTerms) -> Sale:
        """Creates a DRAFT sale, or returns the one that the request id created earlier.

        Raises REQUEST_ID_REUSED when that one has other terms.
        """

        async def work(conn: Connection) -> Sale:
            await conn.execute(
                SQL.insert_sale, {"sale_id": str(uuid.uuid4()), "request_id": request_id} | terms.__dict__
            )
            row = await (await conn.execute(SQL.sale_by_request, {"request_id": request_id})).fetchone()
            assert row is not None
            return sale_of_row(row)

        sale = await in_transaction(self._pool, work)
        if sale.terms != terms:
            raise DomainError(ErrorReason.ERROR_REASON_REQUEST_ID_REUSED, "this request id created another sale")
        return sale

    async def get(self, sale_id: str) -> Sale:
        """Reads a sale. Raises SALE_NOT_FOUND."""
        async with connection(self._pool) as conn:
            row = await (await conn.execute(SQL.sale_by_id, {"sale_id": sale_id})).fetchone()
        if row is None:
            raise sale_not_found(sale_id)
        return sale_of_row(row)

    async def terms(self, sale_id: str) -> SaleTerms:
        """The terms of a sale, from memory when known: they never change. Raises SALE_NOT_FOUND."""
        known = self._terms.get(sale_id)
        if known is None:
            known = self._terms[sale_id] = (await self.get(sale_id)).terms
            while len(self._terms) > _TERMS_KEPT_MAX:
                self._terms.popitem(last=False)
        return known

    async def page(self, size: int, after: tuple[datetime, str] | None) -> list[Sale]:
        """Up to ``size`` sales, newest first, older than the one with this create time and id."""
        after_time, after_id = after or (None, None)
        parameters = {"after_time": after_time, "after_id": after_id, "size": size}
        async with connection(self._pool) as conn:
            rows = await (await conn.execute(SQL.sales_page, parameters)).fetchall()
        return [sale_of_row(row) for row in rows]

    async def change_state(self, sale_id: str, wanted: SaleState) -> tuple[Sale, bool]:
        """Moves a sale to a state and bumps its epoch; the sale, and whether anything changed.

        From the commit on the fence refuses every grant made under the state before. Raises SALE_NOT_FOUND and
        SALE_STATE_CONFLICT.
        """

        async def work(conn: Connection) -> tuple[Sale, bool]:
            row = await (await conn.execute(SQL.lock_sale, {"sale_id": sale_id})).fetchone()
            if row is None:
                raise sale_not_found(sale_id)
            sale = sale_of_row(row)
            if not changes_state(sale.state, wanted):
                return sale, False
            await conn.execute(SQL.set_state, {"sale_id": sale_id, "state": wanted.value})
            await conn.execute(SQL.bump_epoch, {"sale_id": sale_id})
            return Sale(sale.sale_id, sale.terms, wanted, sale.create_time), True

        return await in_transaction(self._pool, work)

    async def epochs(self, sale_ids: Sequence[str]) -> dict[str, int]:
        """The present epoch of each sale."""
        async with connection(self._pool) as conn:
            return dict(await (await conn.execute(SQL.epochs_of, {"sale_ids": list(sale_ids)})).fetchall())

    async def watched(self) -> list[WatchedSale]:
        """Every sale whose gate must be current."""
        async with connection(self._pool) as conn:
            return [WatchedSale(*row) for row in await (await conn.execute(SQL.watched_sales)).fetchall()]

    async def calibration(self, sale_id: str) -> WatchedSale:
        """A sale's epoch and whether somebody is recalibrating it. Raises SALE_NOT_FOUND."""
        async with connection(self._pool) as conn:
            row = await (await conn.execute(SQL.calibration_of, {"sale_id": sale_id})).fetchone()
        if row is None:
            raise sale_not_found(sale_id)
        return WatchedSale(sale_id, *row)

    async def renew_lease(self, sale_id: str, epoch: int, lease_ms: int) -> None:
        """Keeps others from recalibrating for so long, unless a newer epoch has taken the lease."""
        async with connection(self._pool) as conn:
            await conn.execute(SQL.renew_lease, {"sale_id": sale_id, "epoch": epoch, "lease_ms": lease_ms})

    async def end_lease(self, sale_id: str, epoch: int) -> None:
        """Lets others recalibrate at once, unless a newer epoch has taken the lease."""
        async with connection(self._pool) as conn:
            await conn.execute(SQL.end_lease, {"sale_id": sale_id, "epoch": epoch})
