"""Reservations in SQL: the record that makes a grant of the gate count, and their transitions.

Lock order, everywhere: reservations by id, then share pools by sale id. An INSERT of reservations locks the sale's
epoch and then ids in order; no transaction that locks reservations ever asks for the epoch.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from inventory_svc import share_numbers
from inventory_svc.sale import Reservation, ReservationState, Stock, Wish, reason_of_stored, sale_not_found
from inventory_svc.sale_book import SQL
from mesh import failpoints
from mesh.postgres import Connection, Pool, connection, in_transaction

_FETCHED_AT_ONCE = 2_000


@dataclass(frozen=True)
class Move:
    """A committed transition that the gate has yet to follow; an entry of the outbox."""

    move_id: int
    sale_id: str
    state: ReservationState
    reservation_ids: tuple[str, ...]


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


def _columns(wishes: Sequence[Wish]) -> dict[str, list[Any]]:
    # In order of id, so that two statements that insert the same ids cannot wait for each other in a circle.
    ordered = sorted(wishes, key=lambda wish: wish.reservation_id)
    return {
        "ids": [wish.reservation_id for wish in ordered],
        "users": [wish.user_id for wish in ordered],
        "requests": [wish.request_id for wish in ordered],
        "quantities": [wish.quantity for wish in ordered],
    }


class ReservationBook:
    """The reservations of this service's database. Methods raise UNAVAILABLE when it is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def insert(self, sale_id: str, epoch: int, wishes: Sequence[Wish]) -> dict[str, int] | None:
        """Makes grants of one sale and epoch durable; the reason for each id, 0 when it is durable. Ids are distinct.

        An id that has a row already is decided by that row. None when the sale's epoch has moved on: then the grants
        count for nothing and no row was written.
        """
        parameters = {"sale_id": sale_id, "epoch": epoch} | _columns(wishes)
        async with connection(self._pool) as conn:
            row = await (await conn.execute(SQL.insert_reservations, parameters)).fetchone()
            assert row is not None
            fenced, inserted = row
            if not fenced:
                return None
            reasons = dict.fromkeys((wish.reservation_id for wish in wishes), int(ErrorReason.ERROR_REASON_UNSPECIFIED))
            if inserted < len(wishes):
                stored = await self._stored(conn, wishes)
                for wish in wishes:
                    reasons[wish.reservation_id] = reason_of_stored(wish, *stored[wish.reservation_id])
            return reasons

    async def bury(self, sale_id: str, epoch: int, wishes: Sequence[Wish]) -> dict[str, int]:
        """Writes a RELEASED row (tombstone) for each grant that has no row; then the reason for each id as its row
        has it: 0 when the grant is durable after all, RESERVATION_RELEASED or REQUEST_ID_REUSED when it never will be.
        """
        parameters = {"sale_id": sale_id, "epoch": epoch} | _columns(wishes)
        async with connection(self._pool) as conn:
            await conn.execute(SQL.insert_tombstones, parameters)
            stored = await self._stored(conn, wishes)
        return {wish.reservation_id: reason_of_stored(wish, *stored[wish.reservation_id]) for wish in wishes}

    @staticmethod
    async def _stored(conn: Connection, wishes: Sequence[Wish]) -> dict[str, tuple[Wish, ReservationState]]:
        ids = [wish.reservation_id for wish in wishes]
        rows = await (await conn.execute(SQL.stored_reservations, {"ids": ids})).fetchall()
        return {
            reservation_id: (Wish(reservation_id, sale_id, user_id, request_id, quantity), ReservationState(state))
            for reservation_id, sale_id, user_id, request_id, quantity, state in rows
        }

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
            moves = await _transition(
                conn, ReservationState.SOLD, {sale_id: [key for key, _ in pairs] for sale_id, pairs in fresh.items()}
            )
            earlier = [key for key, found in locked.items() if found.state == ReservationState.SOLD]
            if earlier:
                numbers |= await share_numbers.numbers_of(conn, earlier)
            return {key: _confirmation(locked.get(key), numbers.get(key, ())) for key in wanted}, moves

        done = await in_transaction(self._pool, work)
        failpoints.hit("inventory.confirmed")
        return done

    async def release(self, reservation_ids: Sequence[str], *, revoke_sold: bool) -> tuple[dict[str, int], list[Move]]:
        """Gives units back: RESERVED (with ``revoke_sold`` also SOLD) -> RELEASED, numbers freed; and the moves.

        Reasons: 0 when released, now or earlier; RESERVATION_SOLD, RESERVATION_NOT_FOUND.
        """
        freeable = {ReservationState.RESERVED} | ({ReservationState.SOLD} if revoke_sold else set())

        async def work(conn: Connection) -> tuple[dict[str, int], list[Move]]:
            locked = await _lock(conn, reservation_ids)
            by_sale: defaultdict[str, list[str]] = defaultdict(list)
            revoked: dict[str, str] = {}
            reasons = dict.fromkeys(reservation_ids, int(ErrorReason.ERROR_REASON_RESERVATION_NOT_FOUND))
            for reservation_id, found in locked.items():
                reasons[reservation_id] = ErrorReason.ERROR_REASON_UNSPECIFIED
                if found.state in freeable:
                    by_sale[found.sale_id].append(reservation_id)
                    if found.state == ReservationState.SOLD:
                        revoked[reservation_id] = found.sale_id
                elif found.state == ReservationState.SOLD:
                    reasons[reservation_id] = ErrorReason.ERROR_REASON_RESERVATION_SOLD
            if revoked:
                await share_numbers.lock_pools(conn, list(set(revoked.values())))
                await share_numbers.free_numbers(conn, list(revoked))
            return reasons, await _transition(conn, ReservationState.RELEASED, by_sale)

        done = await in_transaction(self._pool, work)
        failpoints.hit("inventory.released")
        return done

    async def moves_left(self, *, min_age_ms: int, after_id: int, most: int) -> list[Move]:
        """The oldest moves beyond ``after_id`` that are at least so old by the database's clock."""
        parameters = {"min_age_ms": min_age_ms, "after_id": after_id, "most": most}
        async with connection(self._pool) as conn:
            rows = await (await conn.execute(SQL.moves_left, parameters)).fetchall()
        return [Move(move_id, sale_id, ReservationState(kind), tuple(ids)) for move_id, sale_id, kind, ids in rows]

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
        available, reserved, sold, total, epoch, is_open = row
        return Stock(sale_id, available, reserved, sold, total, epoch, is_open)

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
        return [
            Reservation(key, sale, user, request, quantity, ReservationState(kind), tuple(numbers), create_time)
            for key, sale, user, request, quantity, kind, numbers, create_time in rows
        ]


async def calibration_rows(conn: Connection, sale_id: str) -> AsyncIterator[list[tuple[str, str, str, int, str]]]:
    """All reservations of a sale as of one moment, in chunks: id, user, request id, quantity, state."""
    async with conn.cursor(name="calibration_rows") as cursor:
        await cursor.execute(SQL.calibration_rows, {"sale_id": sale_id})
        while rows := await cursor.fetchmany(_FETCHED_AT_ONCE):
            yield rows


async def _lock(conn: Connection, reservation_ids: Sequence[str]) -> dict[str, _Locked]:
    rows = await (await conn.execute(SQL.lock_reservations, {"ids": list(set(reservation_ids))})).fetchall()
    return {key: _Locked(sale_id, quantity, ReservationState(state)) for key, sale_id, quantity, state in rows}


async def _transition(conn: Connection, state: ReservationState, by_sale: dict[str, list[str]]) -> list[Move]:
    """Sets the state and records, in the same transaction, that the gates must follow."""
    ids = [reservation_id for of_sale in by_sale.values() for reservation_id in of_sale]
    if not ids:
        return []
    await conn.execute(SQL.set_reservation_states, {"state": state.value, "ids": ids})
    moves = []
    for sale_id, of_sale in by_sale.items():
        parameters = {"sale_id": sale_id, "kind": state.value, "ids": of_sale}
        row = await (await conn.execute(SQL.record_move, parameters)).fetchone()
        assert row is not None
        moves.append(Move(row[0], sale_id, state, tuple(of_sale)))
    return moves


def _confirmation(found: _Locked | None, numbers: tuple[int, ...]) -> Confirmation:
    if found is None:
        return Confirmation(ErrorReason.ERROR_REASON_RESERVATION_NOT_FOUND)
    if found.state == ReservationState.RELEASED:
        return Confirmation(ErrorReason.ERROR_REASON_RESERVATION_RELEASED)
    assert len(numbers) == found.quantity
    return Confirmation(ErrorReason.ERROR_REASON_UNSPECIFIED, numbers)
