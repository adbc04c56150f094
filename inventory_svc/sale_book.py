"""Sales in SQL: terms, state and what changed it, the epoch that fences the count, and who is recalibrating."""

import uuid
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from inventory_svc.sale import (
    Sale,
    SaleChange,
    SaleState,
    SaleTerms,
    Times,
    changes_state,
    concerns_gate,
    due_change,
    raises_total,
    require_legal,
    rescheduled,
    sale_not_found,
)
from mesh.errors import DomainError
from mesh.postgres import Connection, Pool, Queries, connection, in_transaction

SQL = Queries(Path(__file__).parent / "sql")
MIGRATIONS = Path(__file__).parent / "sql" / "migrations"
GRANTS = Path(__file__).parent / "sql" / "grants.sql"

#: Terms kept in memory; a sale beyond is read again.
_TERMS_KEPT_MAX = 10_000
#: Changes by themselves that are looked for at once.
_DUE_MAX = 1_000


@dataclass(frozen=True)
class WatchedSale:
    """A sale whose gate must be current: its epoch in SQL, and whether somebody is recalibrating it."""

    sale_id: str
    epoch: int
    under_way: bool


@dataclass(frozen=True)
class DueSale:
    """A sale that may have to change by itself; ``ends`` when that shuts a gate at which people buy."""

    sale_id: str
    ends: bool


def sale_of_row(row: Sequence[Any]) -> Sale:
    """A sale as the queries that begin with its id select it."""
    sale_id, *terms = row[:9]
    state, create_time, open_time, close_time, state_time, state_actor = row[9:]
    times = Times(open_time, close_time)
    return Sale(sale_id, SaleTerms(*terms), SaleState(state), create_time, times, state_time, state_actor)


class SaleBook:
    """The sales of this service's database. Methods raise UNAVAILABLE when it is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._terms: OrderedDict[str, SaleTerms] = OrderedDict()

    async def create(self, request_id: str, terms: SaleTerms, times: Times = Times(), *, actor: str = "") -> Sale:  # noqa: B008 (frozen)
        """Creates a sale, SCHEDULED if it has an opening time and a DRAFT if not, or returns the one that the request
        id created earlier.

        Raises REQUEST_ID_REUSED when that one was created with other terms or times.
        """

        async def work(conn: Connection) -> tuple[Sale, bool]:
            state = SaleState.SCHEDULED if times.open_time else SaleState.DRAFT
            parameters = {"sale_id": str(uuid.uuid4()), "request_id": request_id, "state": state.value, "actor": actor}
            await conn.execute(SQL.insert_sale, parameters | asdict(terms) | asdict(times))
            row = await (await conn.execute(SQL.sale_by_request, {"request_id": request_id})).fetchone()
            assert row is not None
            *present, first_total, first_open, first_close = row
            sale = sale_of_row(present)
            return sale, (replace(sale.terms, total=first_total), Times(first_open, first_close)) == (terms, times)

        sale, is_the_same = await in_transaction(self._pool, work)
        if not is_the_same:
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
        """The terms of a sale, from memory when known, so that the total may be one it had earlier; nothing else of
        them ever changes. Raises SALE_NOT_FOUND."""
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

    async def change_state(self, sale_id: str, wanted: SaleState, actor: str = "") -> tuple[Sale, bool]:
        """Moves a sale to a state and bumps its epoch; the sale, and whether anything changed.

        From the commit on the fence refuses every grant made under the state before. A sale that is opened again with
        nothing left to sell is SOLD_OUT. Raises SALE_NOT_FOUND and SALE_STATE_CONFLICT.
        """

        async def work(conn: Connection) -> tuple[Sale, bool]:
            sale, _, all_owned = await _locked(conn, sale_id)
            if not changes_state(sale.state, wanted):
                return sale, False
            state = SaleState.SOLD_OUT if wanted == SaleState.OPEN and all_owned else wanted
            return await _change(conn, sale, replace(sale, state=state), actor), True

        return await in_transaction(self._pool, work)

    async def schedule(self, sale_id: str, times: Times, actor: str) -> Sale:
        """Sets when a sale opens and closes by itself. Raises SALE_NOT_FOUND and SALE_STATE_CONFLICT."""

        async def work(conn: Connection) -> Sale:
            sale, _, _ = await _locked(conn, sale_id)
            state, kept = rescheduled(sale, times)
            if (state, kept) == (sale.state, sale.times):
                return sale
            return await _change(conn, sale, replace(sale, state=state, times=kept), actor)

        return await in_transaction(self._pool, work)

    async def raise_total(self, sale_id: str, total: int, actor: str) -> tuple[Sale, bool]:
        """Raises a sale's total and bumps its epoch; the sale, and whether anything changed.

        Share numbers assigned before keep the total they were judged by. Raises SALE_NOT_FOUND, SALE_STATE_CONFLICT
        and INVALID_ARGUMENT.
        """

        async def work(conn: Connection) -> tuple[Sale, bool]:
            sale, _, _ = await _locked(conn, sale_id)
            if not raises_total(sale, total):
                return sale, False
            await conn.execute(SQL.add_total, {"sale_id": sale_id, "total": total})
            await conn.execute(SQL.raise_pool, {"sale_id": sale_id, "total": total})
            after = replace(sale, terms=replace(sale.terms, total=total))
            return await _change(conn, sale, after, actor), True

        return await in_transaction(self._pool, work)

    async def due(self) -> list[DueSale]:
        """Sales that may have to change by themselves, at most 1,000."""
        async with connection(self._pool) as conn:
            return [DueSale(*row) for row in await (await conn.execute(SQL.due_sales, {"most": _DUE_MAX})).fetchall()]

    async def next_appointment_s(self) -> float | None:
        """Seconds until the next sale opens or closes by itself; None when none is set."""
        async with connection(self._pool) as conn:
            row = await (await conn.execute(SQL.next_appointment)).fetchone()
        assert row is not None
        return None if row[0] is None else float(row[0])

    async def advance(self, sale_id: str) -> tuple[Sale, Sale]:
        """Makes the change that is due by itself, if any; the sale before and after. However many processes see it due,
        it is made and noted once. Raises SALE_NOT_FOUND."""

        async def work(conn: Connection) -> tuple[Sale, Sale]:
            sale, now, all_owned = await _locked(conn, sale_id)
            due = due_change(sale, now, all_owned=all_owned)
            if due is None:
                return sale, sale
            state, actor = due
            return sale, await _change(conn, sale, replace(sale, state=state), actor)

        return await in_transaction(self._pool, work)

    async def changes(self, sale_id: str, *, after_id: int, size: int) -> list[SaleChange]:
        """Up to ``size`` changes of a sale, oldest first, beyond the one with this id."""
        parameters = {"sale_id": sale_id, "after_id": after_id, "size": size}
        async with connection(self._pool) as conn:
            rows = await (await conn.execute(SQL.sale_changes_page, parameters)).fetchall()
        return [
            SaleChange(change_id, time, actor, SaleState(before) if before else None, SaleState(after), total)
            for change_id, time, actor, before, after, total in rows
        ]

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


async def _locked(conn: Connection, sale_id: str) -> tuple[Sale, datetime, bool]:
    """Locks a sale's row; the sale, the database's time and whether every share number has an owner, both read once
    the row is locked. Raises SALE_NOT_FOUND."""
    row = await (await conn.execute(SQL.lock_sale, {"sale_id": sale_id})).fetchone()
    if row is None:
        raise sale_not_found(sale_id)
    found = await (await conn.execute(SQL.now_and_all_owned, {"sale_id": sale_id})).fetchone()
    assert found is not None
    return sale_of_row(row), *found


async def _change(conn: Connection, before: Sale, after: Sale, actor: str) -> Sale:
    """Writes a sale whose row is locked and notes who did it; bumps the epoch if the gate has to follow."""
    if after.state != before.state:
        require_legal(before.state, after.state)
    if concerns_gate(before, after):
        # First, because it waits for INSERTs under way: none of them is later than the time that is noted.
        await conn.execute(SQL.bump_epoch, {"sale_id": after.sale_id})
    parameters = {
        "sale_id": after.sale_id,
        "state": after.state.value,
        "from_state": before.state.value,
        "total": after.terms.total,
        "actor": actor,
    }
    row = await (await conn.execute(SQL.set_state, parameters | asdict(after.times))).fetchone()
    assert row is not None
    state_time, state_actor = row
    return replace(after, state_time=state_time, state_actor=state_actor)
