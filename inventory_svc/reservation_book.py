"""Reservations in SQL: the record that makes a grant of the gate count, and their transitions.

Lock order, everywhere: reservations by id, then share pools by sale id, then what sale_line.py locks. An INSERT of
reservations locks the sale's epoch and then ids in order.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from inventory_svc import releasing, share_numbers
from inventory_svc.outbox import Move, record_move
from inventory_svc.sale import Reservation, ReservationState, Stock, Wish, reason_of_stored, sale_not_found
from inventory_svc.sale_book import SQL
from mesh import failpoints, tracing
from mesh.postgres import Connection, Pool, connection, in_transaction

_FETCHED_AT_ONCE = 2_000


@dataclass(frozen=True)
class Confirmation:
    """What confirming one reservation gave: a reason, or its share numbers."""

    reason: int
    share_numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Locked:
    sale_id: str
    quantity: int
    state: ReservationState


def wish_columns(wishes: Sequence[Wish]) -> dict[str, list[Any]]:
    """Wishes as the columns that a statement unnests, in their order."""
    return {
        "ids": [wish.reservation_id for wish in wishes],
        "users": [wish.user_id for wish in wishes],
        "requests": [wish.request_id for wish in wishes],
        "quantities": [wish.quantity for wish in wishes],
    }


def _columns_by_id(wishes: Sequence[Wish]) -> dict[str, list[Any]]:
    # So that two statements that insert the same ids cannot wait for each other in a circle.
    return wish_columns(sorted(wishes, key=lambda wish: wish.reservation_id))


class ReservationBook:
    """The reservations of this service's database. Methods raise UNAVAILABLE when it is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def insert(self, sale_id: str, epoch: int, wishes: Sequence[Wish]) -> dict[str, int] | None:
        """Makes grants of one sale and epoch durable; the reason for each id, 0 when it is durable. Ids are distinct.

        An id that has a row already is decided by that row. None when the sale's epoch has moved on: then the grants
        count for nothing and no row was written.
        """
        parameters = {"sale_id": sale_id, "epoch": epoch} | _columns_by_id(wishes)
        async with connection(self._pool) as conn:
            row = await (await conn.execute(SQL.insert_reservations, parameters)).fetchone()
            assert row is not None
            fenced, inserted = row
            if not fenced:
                return None
            reasons = dict.fromkeys((wish.reservation_id for wish in wishes), int(ErrorReason.ERROR_REASON_UNSPECIFIED))
            if inserted < len(wishes):
                stored = await stored_of(conn, [wish.reservation_id for wish in wishes])
                for wish in wishes:
                    reasons[wish.reservation_id] = reason_of_stored(wish, *stored[wish.reservation_id])
            return reasons

    async def bury(self, sale_id: str, epoch: int, wishes: Sequence[Wish]) -> dict[str, int]:
        """Writes a RELEASED row (tombstone) for each grant that has no row and does not wait in line; then the reason
        for each id: 0 when its row makes the grant durable after all, or when it waits; RESERVATION_RELEASED or
        REQUEST_ID_REUSED when it never will be.
        """
        parameters = {"sale_id": sale_id, "epoch": epoch} | _columns_by_id(wishes)

        async def work(conn: Connection) -> dict[str, tuple[Wish, ReservationState]]:
            await conn.execute(SQL.lock_line, {"sale_id": sale_id})
            await conn.execute(SQL.insert_tombstones, parameters)
            return await stored_of(conn, [wish.reservation_id for wish in wishes])

        stored = await in_transaction(self._pool, work)
        return {
            wish.reservation_id: reason_of_stored(wish, *stored[wish.reservation_id])
            if wish.reservation_id in stored
            else int(ErrorReason.ERROR_REASON_UNSPECIFIED)
            for wish in wishes
        }

    async def releases_to_follow(self, sale_id: str, reservation_ids: Sequence[str]) -> set[str]:
        """Of ids that were found RELEASED, those whose move the gate has yet to make: it may pass their units on."""
        async with connection(self._pool) as conn:
            cursor = await conn.execute(SQL.releases_to_follow, {"sale_id": sale_id, "ids": list(reservation_ids)})
            return {key for (key,) in await cursor.fetchall()}

    async def confirm(self, reservation_ids: Sequence[str]) -> tuple[dict[str, Confirmation], list[Move]]:
        """Sells reservations: RESERVED -> SOLD with share numbers, all in one transaction; and the moves to follow.

        One that is SOLD already keeps its numbers. Reasons: RESERVATION_RELEASED, RESERVATION_NOT_FOUND.
        """

        async def work(conn: Connection) -> tuple[dict[str, Confirmation], list[Move]]:
            locked = await _lock(conn, reservation_ids)
            # In the order asked for, so that who comes first gets the lower number.
            wanted = list(dict.fromkeys(reservation_ids))
            fresh: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
            for reservation_id in wanted:
                found = locked.get(reservation_id)
                if found is not None and found.state == ReservationState.RESERVED:
                    fresh[found.sale_id].append((reservation_id, found.quantity))
            numbers: dict[str, tuple[int, ...]] = {}
            pools = await share_numbers.lock_pools(conn, list(fresh)) if fresh else {}
            for sale_id, quantities in fresh.items():
                numbers |= await share_numbers.assign_numbers(conn, pools[sale_id], quantities)
            moves = []
            if fresh:
                ids = [key for pairs in fresh.values() for key, _ in pairs]
                await conn.execute(SQL.set_reservation_states, {"state": ReservationState.SOLD.value, "ids": ids})
            for sale_id, pairs in fresh.items():
                moves.append(await record_move(conn, sale_id, ReservationState.SOLD, [key for key, _ in pairs]))
            earlier = [key for key, found in locked.items() if found.state == ReservationState.SOLD]
            if earlier:
                numbers |= await share_numbers.numbers_of(conn, earlier)
            return {key: _confirmation(locked.get(key), numbers.get(key, ())) for key in wanted}, moves

        with tracing.sql("confirm reservations", reservation_ids):
            done = await in_transaction(self._pool, work)
        failpoints.hit("inventory.confirmed")
        return done

    async def release(self, reservation_ids: Sequence[str], *, revoke_sold: bool) -> tuple[dict[str, int], list[Move]]:
        """Gives units back, to whoever is first in line if anybody waits: RESERVED (with ``revoke_sold`` also SOLD)
        -> RELEASED, numbers freed; WAITING -> out of the line; and the moves.

        Reasons: 0 when released or out of the line, now or earlier; RESERVATION_SOLD, RESERVATION_NOT_FOUND.
        """
        with tracing.sql("release reservations", reservation_ids):
            done = await releasing.until_settled(
                self._pool, lambda conn: releasing.release(conn, reservation_ids, revoke_sold=revoke_sold)
            )
        failpoints.hit("inventory.released")
        return done

    async def moves_left(self, *, min_age_ms: int, after_id: int, most: int) -> list[Move]:
        """The oldest moves beyond ``after_id`` that are at least so old by the database's clock."""
        parameters = {"min_age_ms": min_age_ms, "after_id": after_id, "most": most}
        async with connection(self._pool) as conn:
            rows = await (await conn.execute(SQL.moves_left, parameters)).fetchall()
        return [
            Move(move_id, sale_id, ReservationState(kind), tuple(ids), tuple(promoted_ids))
            for move_id, sale_id, kind, ids, promoted_ids in rows
        ]

    async def delete_moves(self, move_ids: Sequence[int]) -> None:
        """Forgets moves that the gate has followed."""
        async with connection(self._pool) as conn:
            await conn.execute(SQL.delete_moves, {"move_ids": list(move_ids)})

    async def stock(self, sale_id: str) -> Stock:
        """The stock as the rows have it, in one statement. Raises SALE_NOT_FOUND.

        Reserved is counted from reservations, sold from owned share numbers, and available is what recalibration would
        load, so the three sum to the total only if reservations and share numbers agree.
        """
        async with connection(self._pool) as conn:
            row = await (await conn.execute(SQL.book_stock, {"sale_id": sale_id})).fetchone()
        if row is None:
            raise sale_not_found(sale_id)
        available, reserved, sold, total, epoch, is_open, waiting = row
        return Stock(sale_id, available, reserved, sold, total, epoch, is_open, waiting=waiting)

    async def page(
        self,
        sale_id: str,
        *,
        state: ReservationState | None,
        min_age_ms: int,
        size: int,
        after: tuple[datetime, str] | None,
    ) -> list[Reservation]:
        """Up to ``size`` reservations of a sale, oldest first, from after one of this time and id on."""
        parameters = {
            "sale_id": sale_id,
            "state": state.value if state else None,
            "min_age_ms": min_age_ms,
            "size": size,
            "after_time": after[0] if after else None,
            "after_id": after[1] if after else None,
        }
        async with connection(self._pool) as conn:
            rows = await (await conn.execute(SQL.reservations_page, parameters)).fetchall()
        return [_reservation(row) for row in rows]

    async def by_id(self, reservation_ids: Sequence[str]) -> dict[str, Reservation]:
        """Those of these reservations that exist, and those that wait in line, by id."""
        async with connection(self._pool) as conn:
            rows = await (await conn.execute(SQL.reservations_by_id, {"ids": list(reservation_ids)})).fetchall()
        return {row[0]: _reservation(row) for row in rows}


async def calibration_rows(conn: Connection, sale_id: str) -> AsyncIterator[list[tuple[str, str, str, int, str]]]:
    """All reservations of a sale, and all that wait in its line, as of one moment, in chunks: id, user, request id,
    quantity, state."""
    async with conn.cursor(name="calibration_rows") as cursor:
        await cursor.execute(SQL.calibration_rows, {"sale_id": sale_id})
        while rows := await cursor.fetchmany(_FETCHED_AT_ONCE):
            yield rows


async def stored_of(conn: Connection, reservation_ids: Sequence[str]) -> dict[str, tuple[Wish, ReservationState]]:
    """Contents and state of those of these reservations that have a row."""
    rows = await (await conn.execute(SQL.stored_reservations, {"ids": list(reservation_ids)})).fetchall()
    return {
        reservation_id: (Wish(reservation_id, sale_id, user_id, request_id, quantity), ReservationState(state))
        for reservation_id, sale_id, user_id, request_id, quantity, state in rows
    }


async def _lock(conn: Connection, reservation_ids: Sequence[str]) -> dict[str, _Locked]:
    rows = await (await conn.execute(SQL.lock_reservations, {"ids": list(set(reservation_ids))})).fetchall()
    return {key: _Locked(sale_id, quantity, ReservationState(state)) for key, sale_id, quantity, state in rows}


def _confirmation(found: _Locked | None, numbers: tuple[int, ...]) -> Confirmation:
    if found is None:
        return Confirmation(ErrorReason.ERROR_REASON_RESERVATION_NOT_FOUND)
    if found.state == ReservationState.RELEASED:
        return Confirmation(ErrorReason.ERROR_REASON_RESERVATION_RELEASED)
    assert len(numbers) == found.quantity
    return Confirmation(ErrorReason.ERROR_REASON_UNSPECIFIED, numbers)


def _reservation(row: Sequence[Any]) -> Reservation:
    key, sale_id, user_id, request_id, quantity, state, numbers, create_time, update_time = row
    return Reservation(
        key,
        sale_id,
        user_id,
        request_id,
        quantity,
        ReservationState(state),
        tuple(numbers),
        create_time,
        update_time,
    )
