"""Who owns which share number, inside a transaction of the reservation book."""

from collections import defaultdict
from collections.abc import Sequence

from inventory_svc.sale_book import SQL
from mesh.postgres import Connection


async def lock_pools(conn: Connection, sale_ids: Sequence[str]) -> None:
    """Locks the pools of these sales in order of sale id. Reservations must be locked before."""
    await conn.execute(SQL.lock_pools, {"sale_ids": list(sale_ids)})


async def assign_numbers(conn: Connection, sale_id: str, quantities: Sequence[tuple[str, int]]) -> None:
    """Gives each reservation as many numbers as its quantity: freed ones lowest first, then fresh ones.

    The pool must be locked. Violates a CHECK, and so ends the transaction, when a number would exceed the sale's total.
    """
    ids = [reservation_id for reservation_id, _ in quantities]
    units = [quantity for _, quantity in quantities]
    await conn.execute(SQL.assign_numbers, {"sale_id": sale_id, "ids": ids, "quantities": units})


async def numbers_of(conn: Connection, reservation_ids: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The numbers of each reservation that owns any, ascending."""
    owned: defaultdict[str, list[int]] = defaultdict(list)
    rows = await (await conn.execute(SQL.numbers_of, {"ids": list(reservation_ids)})).fetchall()
    for reservation_id, number in rows:
        owned[reservation_id].append(number)
    return {reservation_id: tuple(sorted(numbers)) for reservation_id, numbers in owned.items()}


async def free_numbers(conn: Connection, reservation_ids: Sequence[str]) -> None:
    """Takes the numbers back from their owners. The pools must be locked."""
    await conn.execute(SQL.free_numbers, {"ids": list(reservation_ids)})
