"""A sale's line inside a transaction: locking it, who is first, and ending somebody's wait.

Lock order, everywhere: reservations by id, share pools by sale, epochs by sale (shared), lines by sale, waitlist rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from inventory_svc.sale import ReservationState
from inventory_svc.sale_book import SQL
from inventory_svc.waitlist import SERVING_STATES, UNITS_MAX, Waiter, WaitlistState, served_by
from mesh.postgres import Connection


@dataclass(frozen=True)
class LockedLine:
    """A line whose lock and whose sale's epoch this transaction holds: what is read of them stays so until its end."""

    sale_id: str
    epoch: int
    waiting: int
    sale_state: str
    overtaking_allowed: bool

    @property
    def moves(self) -> bool:
        """Whether units that become free go to those who wait."""
        return self.waiting > 0 and self.sale_state in SERVING_STATES


async def lock_lines(conn: Connection, sale_ids: Sequence[str]) -> dict[str, LockedLine]:
    """Fences and locks the lines of these sales, whatever their epochs are."""
    parameters = {"sale_ids": list(sale_ids)}
    epochs: dict[str, int] = dict(await (await conn.execute(SQL.share_epochs, parameters)).fetchall())
    rows = await (await conn.execute(SQL.lock_lines, parameters)).fetchall()
    return {row[0]: LockedLine(row[0], epochs[row[0]], *row[1:]) for row in rows}


async def lock_line_of_epoch(conn: Connection, sale_id: str, epoch: int) -> bool | None:
    """Fences and locks a sale's line for what was granted under an epoch; whether overtaking is allowed, or None when
    the epoch has moved on: then the grant counts for nothing."""
    row = await (await conn.execute(SQL.lock_line_of_epoch, {"sale_id": sale_id, "epoch": epoch})).fetchone()
    return None if row is None else bool(row[0])


async def first_in_line(
    conn: Connection, sale_id: str, *, units: int, overtaking_allowed: bool, most: int
) -> list[Waiter]:
    """Whom so many units serve, at most ``most`` of them, in order of the line."""
    chosen: list[Waiter] = []
    after_ticket = 0
    while units > 0 and len(chosen) < most:
        size = min(units, most - len(chosen))
        parameters = {
            "sale_id": sale_id,
            "after_ticket": after_ticket,
            "quantity_max": units if overtaking_allowed else UNITS_MAX,
            "most": size,
        }
        rows = await (await conn.execute(SQL.first_in_line, parameters)).fetchall()
        served, units, stopped = served_by(units, [Waiter(*row) for row in rows], overtaking_allowed=overtaking_allowed)
        chosen += served
        if stopped or len(rows) < size:
            break
        after_ticket = rows[-1][2]
    return chosen


async def end_waiting(
    conn: Connection, sale_id: str, epoch: int, reservation_ids: Sequence[str], state: WaitlistState
) -> None:
    """Takes ids that wait out of the line, decided in this order: PROMOTED with a RESERVED reservation of this epoch,
    otherwise with a RELEASED one, which spends the id. The line must be locked."""
    reservation_state = ReservationState.RESERVED if state == WaitlistState.PROMOTED else ReservationState.RELEASED
    parameters = {
        "sale_id": sale_id,
        "epoch": epoch,
        "ids": list(reservation_ids),
        "state": state.value,
        "reservation_state": reservation_state.value,
    }
    ended = await conn.execute(SQL.end_waiting, parameters)
    # Under the lock nobody else can have ended it. If somebody has, two may have been promised the same unit.
    assert ended.rowcount == len(reservation_ids), f"{len(reservation_ids) - ended.rowcount} ids do not wait"
