"""The outbox: transitions that are committed in SQL and that the gate has yet to follow."""

from collections.abc import Sequence
from dataclasses import dataclass

from inventory_svc.sale import ReservationState
from inventory_svc.sale_book import SQL
from mesh.postgres import Connection


@dataclass(frozen=True)
class Move:
    """A committed transition; an entry of the outbox. RELEASED is also that of an id that left the line.

    ``promoted_ids`` were given the units of the released ones in the same transaction; then there are at most 250 of
    either, and one script does all.
    """

    move_id: int
    sale_id: str
    state: ReservationState
    reservation_ids: tuple[str, ...]
    promoted_ids: tuple[str, ...] = ()


async def record_move(
    conn: Connection, sale_id: str, state: ReservationState, ids: Sequence[str], promoted_ids: Sequence[str] = ()
) -> Move:
    """Notes, in the transaction of the transition, that the sale's gate must follow."""
    parameters = {"sale_id": sale_id, "kind": state.value, "ids": list(ids), "promoted_ids": list(promoted_ids)}
    row = await (await conn.execute(SQL.record_move, parameters)).fetchone()
    assert row is not None
    return Move(row[0], sale_id, state, tuple(ids), tuple(promoted_ids))
