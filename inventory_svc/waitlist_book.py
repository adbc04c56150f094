"""The line in SQL, where its order survives everything: joining, places, promotion, leaving, outcomes."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from inventory_svc import releasing
from inventory_svc.outbox import Move, record_move
from inventory_svc.reservation_book import stored_of, wish_columns
from inventory_svc.sale import ReservationState, Wish, reason_of_stored
from inventory_svc.sale_book import SQL
from inventory_svc.sale_line import end_waiting, first_in_line, lock_line_of_epoch, lock_lines
from inventory_svc.waitlist import UNITS_MAX, Line, Place, Waiter, WaitlistEntry, WaitlistState
from mesh import failpoints, tracing
from mesh.postgres import Connection, Pool, connection, in_transaction


@dataclass(frozen=True)
class Joined:
    """What joining the line gave one id: a reason, or a place; place 0 when it has its units already."""

    reason: int
    position: int = 0


@dataclass(frozen=True)
class Promotion:
    """Of ids that the gate gave units: those promoted now, and all that wait no more, whatever ended it."""

    promoted: list[str]
    decided: list[str]


class WaitlistBook:
    """The lines of this service's database. Methods raise UNAVAILABLE when it is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        # One join of a sale at a time in this process: more would hold connections to wait for the line's lock.
        self._joining: dict[str, asyncio.Lock] = {}

    async def join(self, sale_id: str, epoch: int, wishes: Sequence[Wish]) -> dict[str, Joined] | None:
        """Puts wishes of one sale in line, in their order, as the gate of an epoch has let them; what each id got.
        Ids are distinct. One that has a row already is decided by that row.

        None when the sale's epoch has moved on: then the gate's word counts for nothing and no row was written.
        """

        async def work(conn: Connection) -> dict[str, Joined] | None:
            if await lock_line_of_epoch(conn, sale_id, epoch) is None:
                return None
            parameters = {"sale_id": sale_id} | wish_columns(wishes)
            fresh: dict[str, int] = dict(await (await conn.execute(SQL.join_line, parameters)).fetchall())
            joined = {key: Joined(ErrorReason.ERROR_REASON_UNSPECIFIED, place) for key, place in fresh.items()}
            known = [wish for wish in wishes if wish.reservation_id not in fresh]
            return joined | (await _known(conn, known) if known else {})

        async with self._joining.setdefault(sale_id, asyncio.Lock()):
            return await in_transaction(self._pool, work)

    async def promote(self, sale_id: str, epoch: int, reservation_ids: Sequence[str]) -> Promotion | None:
        """Makes promotions durable for which the gate of an epoch took units: WAITING -> PROMOTED, and RESERVED.

        Strictly in order of the line: unless overtaking is allowed, one before whom somebody else waits stays. None
        when the sale's epoch has moved on: then the units count for nothing.
        """

        async def work(conn: Connection) -> Promotion | None:
            overtaking_allowed = await lock_line_of_epoch(conn, sale_id, epoch)
            if overtaking_allowed is None:
                return None
            parameters = {"sale_id": sale_id, "ids": list(reservation_ids)}
            waiting = await (await conn.execute(SQL.waiting_among, parameters)).fetchall()
            promoted = [key for key, is_behind in waiting if overtaking_allowed or not is_behind]
            if promoted:
                await end_waiting(conn, sale_id, epoch, promoted, WaitlistState.PROMOTED)
            stay = {key for key, _ in waiting}.difference(promoted)
            return Promotion(promoted, [key for key in reservation_ids if key not in stay])

        with tracing.sql("promote waiters", reservation_ids):
            return await in_transaction(self._pool, work)

    async def leave(self, reservation_ids: Sequence[str]) -> tuple[dict[str, int], list[Move]]:
        """Takes ids out of the line for good; reasons and moves as ``releasing.leave`` gives them."""
        with tracing.sql("leave waitlist", reservation_ids):
            done = await releasing.until_settled(self._pool, lambda conn: releasing.leave(conn, reservation_ids))
        failpoints.hit("inventory.left")
        return done

    async def close_some(self, sale_id: str, most: int) -> list[Move]:
        """Ends the wait of the first so many in line of a sale that is CLOSED; the moves, none when nobody waits."""

        async def work(conn: Connection) -> list[Move]:
            line = (await lock_lines(conn, [sale_id]))[sale_id]
            if line.sale_state != "CLOSED" or not line.waiting:
                return []
            parameters = {"sale_id": sale_id, "after_ticket": 0, "quantity_max": UNITS_MAX, "most": most}
            rows = await (await conn.execute(SQL.first_in_line, parameters)).fetchall()
            ids = [row[0] for row in rows]
            await end_waiting(conn, sale_id, line.epoch, ids, WaitlistState.CLOSED)
            return [await record_move(conn, sale_id, ReservationState.RELEASED, ids)]

        return await in_transaction(self._pool, work)

    async def first(self, line: Line, *, units: int, most: int) -> list[Waiter]:
        """Whom so many units would serve now, at most ``most``, in order of the line."""
        async with connection(self._pool) as conn:
            return await first_in_line(
                conn, line.sale_id, units=units, overtaking_allowed=line.overtaking_allowed, most=most
            )

    async def line(self, sale_id: str) -> Line | None:
        """A line that can move by itself: somebody waits, and the sale goes on or is over."""
        async with connection(self._pool) as conn:
            row = await (await conn.execute(SQL.line_of, {"sale_id": sale_id})).fetchone()
        return Line(*row) if row else None

    async def lines(self) -> list[Line]:
        """Every such line."""
        async with connection(self._pool) as conn:
            return [Line(*row) for row in await (await conn.execute(SQL.lines_to_serve)).fetchall()]

    async def places(self, reservation_ids: Sequence[str]) -> dict[str, Place]:
        """The places of those ids that wait."""
        async with connection(self._pool) as conn:
            return await _places(conn, reservation_ids)

    async def page(
        self, sale_id: str, *, state: WaitlistState | None, size: int, after_ticket: int
    ) -> list[WaitlistEntry]:
        """Up to ``size`` requests that joined a sale's line, whatever became of them, in order of their tickets."""
        parameters = {
            "sale_id": sale_id,
            "state": state.value if state else None,
            "size": size,
            "after_ticket": after_ticket,
        }
        async with connection(self._pool) as conn:
            return [_entry(row) for row in await (await conn.execute(SQL.waitlist_page, parameters)).fetchall()]

    async def untold(self, size: int) -> list[WaitlistEntry]:
        """The oldest outcomes that have not been acknowledged, of any sale, in the order in which they were decided."""
        async with connection(self._pool) as conn:
            rows = await (await conn.execute(SQL.untold_outcomes, {"size": size})).fetchall()
        return [_entry(row) for row in rows]

    async def acknowledge(self, reservation_ids: Sequence[str]) -> None:
        """Notes that these outcomes have been taken in."""
        async with connection(self._pool) as conn:
            await conn.execute(SQL.acknowledge_outcomes, {"ids": list(reservation_ids)})


async def _known(conn: Connection, wishes: Sequence[Wish]) -> dict[str, Joined]:
    """What the rows that are there make of wishes, under the line's lock."""
    ids = [wish.reservation_id for wish in wishes]
    stored = await stored_of(conn, ids)
    in_line = {
        key: Wish(key, sale_id, user_id, request_id, quantity)
        for key, sale_id, user_id, request_id, quantity, state in await (
            await conn.execute(SQL.waitlist_rows, {"ids": ids})
        ).fetchall()
        if state == WaitlistState.WAITING
    }
    places = await _places(conn, list(in_line)) if in_line else {}
    joined = {}
    for wish in wishes:
        key = wish.reservation_id
        if key in stored:
            joined[key] = Joined(reason_of_stored(wish, *stored[key]))
        elif in_line[key] != wish:
            joined[key] = Joined(ErrorReason.ERROR_REASON_REQUEST_ID_REUSED)
        else:
            joined[key] = Joined(ErrorReason.ERROR_REASON_UNSPECIFIED, places[key].position)
    return joined


async def _places(conn: Connection, reservation_ids: Sequence[str]) -> dict[str, Place]:
    rows = await (await conn.execute(SQL.positions, {"ids": list(reservation_ids)})).fetchall()
    return {key: Place(position, units_ahead) for key, position, units_ahead in rows}


def _entry(row: Sequence[Any]) -> WaitlistEntry:
    key, sale_id, user_id, request_id, quantity, ticket, state, join_time, end_time, decision_number = row
    return WaitlistEntry(
        key, sale_id, user_id, request_id, quantity, ticket, WaitlistState(state), join_time, end_time, decision_number
    )
