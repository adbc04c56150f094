"""Giving units back in SQL: whoever is first in line has them in the same transaction, so that no newcomer can snatch
them and no crash can lose them. An id that waits leaves the line instead."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from inventory_svc import share_numbers
from inventory_svc.outbox import Move, record_move
from inventory_svc.sale import ReservationState
from inventory_svc.sale_book import SQL
from inventory_svc.sale_line import LockedLine, end_waiting, first_in_line, lock_lines
from inventory_svc.waitlist import WaitlistState
from mesh.errors import DomainError
from mesh.postgres import Connection, Pool, in_transaction

#: Most ids in a move that passes units on, of either kind: one script makes it.
_SWAPPED_MAX = 250
#: Tries of a transaction while which somebody's wait ends.
_ATTEMPTS_MAX = 5


class WaitEnded(Exception):
    """An id that was without a reservation when the transaction looked for it has one by now: the transaction must
    begin again, to lock that first."""


@dataclass
class _Freed:
    """What a transaction frees of one sale: units by reservation, and who leaves the line."""

    units: dict[str, int] = field(default_factory=dict)
    leaving: list[str] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        return [*self.units, *self.leaving]


async def until_settled(
    pool: Pool, work: Callable[[Connection], Awaitable[tuple[dict[str, int], list[Move]]]]
) -> tuple[dict[str, int], list[Move]]:
    """Runs a release or a leave in a transaction, again when somebody's wait ended while it ran. Raises UNAVAILABLE."""
    for _ in range(_ATTEMPTS_MAX):
        try:
            return await in_transaction(pool, work)
        except WaitEnded:
            continue
    raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "too many concurrent changes")


async def release(
    conn: Connection, reservation_ids: Sequence[str], *, revoke_sold: bool
) -> tuple[dict[str, int], list[Move]]:
    """RESERVED (with ``revoke_sold`` also SOLD) -> RELEASED, numbers freed; WAITING -> LEFT; and the moves.

    Reasons: 0 when released or out of the line, now or earlier; RESERVATION_SOLD, RESERVATION_NOT_FOUND. Raises
    WaitEnded.
    """
    freeable = {ReservationState.RESERVED} | ({ReservationState.SOLD} if revoke_sold else set())
    rows = await (await conn.execute(SQL.lock_reservations, {"ids": list(set(reservation_ids))})).fetchall()
    reasons = dict.fromkeys(reservation_ids, int(ErrorReason.ERROR_REASON_RESERVATION_NOT_FOUND))
    freed: defaultdict[str, _Freed] = defaultdict(_Freed)
    revoked: dict[str, str] = {}
    for reservation_id, sale_id, quantity, state in rows:
        reasons[reservation_id] = ErrorReason.ERROR_REASON_UNSPECIFIED
        if state in freeable:
            freed[sale_id].units[reservation_id] = quantity
            if state == ReservationState.SOLD:
                revoked[reservation_id] = sale_id
        elif state == ReservationState.SOLD:
            reasons[reservation_id] = ErrorReason.ERROR_REASON_RESERVATION_SOLD
    missing = [key for key, reason in reasons.items() if reason == ErrorReason.ERROR_REASON_RESERVATION_NOT_FOUND]
    for reservation_id, sale_id in (await waiting_of(conn, missing)).items():
        reasons[reservation_id] = ErrorReason.ERROR_REASON_UNSPECIFIED
        freed[sale_id].leaving.append(reservation_id)
    if revoked:
        await share_numbers.lock_pools(conn, list(set(revoked.values())))
        await share_numbers.free_numbers(conn, list(revoked))
    return reasons, await _free(conn, freed)


async def leave(conn: Connection, reservation_ids: Sequence[str]) -> tuple[dict[str, int], list[Move]]:
    """WAITING -> LEFT for good; and the moves.

    Reasons: 0 when out of the line, now or earlier; RESERVATION_PROMOTED, RESERVATION_NOT_FOUND (never in line). Raises
    WaitEnded.
    """
    reasons = dict.fromkeys(reservation_ids, int(ErrorReason.ERROR_REASON_RESERVATION_NOT_FOUND))
    freed: defaultdict[str, _Freed] = defaultdict(_Freed)
    for reservation_id, sale_id, *_, state in await _waitlist_rows(conn, list(reasons)):
        reasons[reservation_id] = ErrorReason.ERROR_REASON_UNSPECIFIED
        if state == WaitlistState.PROMOTED:
            reasons[reservation_id] = ErrorReason.ERROR_REASON_RESERVATION_PROMOTED
        elif state == WaitlistState.WAITING:
            freed[sale_id].leaving.append(reservation_id)
    return reasons, await _free(conn, freed)


async def waiting_of(conn: Connection, reservation_ids: Sequence[str]) -> dict[str, str]:
    """Of ids for which no reservation was found, the sale of each that waits. Raises WaitEnded."""
    if not reservation_ids:
        return {}
    waiting = {}
    for reservation_id, sale_id, *_, state in await _waitlist_rows(conn, reservation_ids):
        if state != WaitlistState.WAITING:
            raise WaitEnded
        waiting[reservation_id] = sale_id
    return waiting


async def _waitlist_rows(conn: Connection, reservation_ids: Sequence[str]) -> list[tuple[str, ...]]:
    rows = await (await conn.execute(SQL.waitlist_rows, {"ids": list(reservation_ids)})).fetchall()
    return [tuple(row) for row in rows]


async def _free(conn: Connection, freed: dict[str, _Freed]) -> list[Move]:
    """Ends what is freed, passes its units on, and records, in the same transaction, that the gates must follow."""
    ids = [key for of_sale in freed.values() for key in of_sale.units]
    lines: dict[str, LockedLine] = {}
    with_waiters = {sale_id for sale_id, of_sale in freed.items() if of_sale.leaving}
    if ids:
        await conn.execute(SQL.set_reservation_states, {"state": ReservationState.RELEASED.value, "ids": ids})
        rows = await (await conn.execute(SQL.lines_with_waiters, {"sale_ids": list(freed)})).fetchall()
        with_waiters |= {sale_id for (sale_id,) in rows}
    if with_waiters:
        lines = await lock_lines(conn, list(with_waiters))
    moves = []
    for sale_id, of_sale in freed.items():
        if sale_id not in lines:
            moves.append(await record_move(conn, sale_id, ReservationState.RELEASED, of_sale.ids))
            continue
        line = lines[sale_id]
        if of_sale.leaving:
            if len(await waiting_of(conn, of_sale.leaving)) < len(of_sale.leaving):
                raise WaitEnded
            await end_waiting(conn, sale_id, line.epoch, of_sale.leaving, WaitlistState.LEFT)
        moves += await _pass_on(conn, line, of_sale)
    return moves


async def _pass_on(conn: Connection, line: LockedLine, freed: _Freed) -> list[Move]:
    """Gives the units of each part to those who are first in line. What a part leaves goes on sale, which the promoter
    sees to: each part's units suffice for whom it promotes, so that its script is complete in itself."""
    moves = []
    ids = freed.ids
    for first in range(0, len(ids), _SWAPPED_MAX):
        part = ids[first : first + _SWAPPED_MAX]
        units = sum(freed.units.get(key, 0) for key in part)
        promoted: list[str] = []
        if line.moves and units:
            served = await first_in_line(
                conn, line.sale_id, units=units, overtaking_allowed=line.overtaking_allowed, most=_SWAPPED_MAX
            )
            promoted = [waiter.reservation_id for waiter in served]
            if promoted:
                await end_waiting(conn, line.sale_id, line.epoch, promoted, WaitlistState.PROMOTED)
        moves.append(await record_move(conn, line.sale_id, ReservationState.RELEASED, part, promoted))
    return moves
