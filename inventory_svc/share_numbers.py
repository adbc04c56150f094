"""Who owns which share number, inside a transaction of the reservation book."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice

from inventory_svc.sale_book import SQL
from mesh.postgres import Connection


@dataclass(frozen=True)
class Pool:
    """What a sale still has: fresh numbers run from ``next_number`` to ``total``."""

    sale_id: str
    next_number: int
    total: int


def share_out(
    quantities: Sequence[tuple[str, int]], freed: Sequence[int], next_number: int
) -> tuple[dict[str, tuple[int, ...]], int]:
    """Gives each reservation as many numbers as its quantity, in order: freed ones (ascending) first, then fresh ones.

    Returns the numbers of each reservation, ascending, and the next fresh number.
    """
    units = sum(quantity for _, quantity in quantities)
    used = min(units, len(freed))
    after = next_number + units - used
    numbers = chain(freed[:used], range(next_number, after))
    return {key: tuple(islice(numbers, quantity)) for key, quantity in quantities}, after


async def lock_pools(conn: Connection, sale_ids: Sequence[str]) -> dict[str, Pool]:
    """Locks the pools of these sales in order of sale id. Reservations must be locked before."""
    rows = await (await conn.execute(SQL.lock_pools, {"sale_ids": list(sale_ids)})).fetchall()
    return {sale_id: Pool(sale_id, next_number, total) for sale_id, next_number, total in rows}


async def assign_numbers(
    conn: Connection, pool: Pool, quantities: Sequence[tuple[str, int]]
) -> dict[str, tuple[int, ...]]:
    """Gives each reservation its numbers: freed ones lowest first, then fresh ones. The pool must be locked.

    Violates a CHECK, and so ends the transaction, when a number would exceed the sale's total.
    """
    units = sum(quantity for _, quantity in quantities)
    cursor = await conn.execute(SQL.freed_numbers, {"sale_id": pool.sale_id, "most": units})
    freed = [number for (number,) in await cursor.fetchall()]
    shared, next_number = share_out(quantities, freed, pool.next_number)
    parameters = {
        "sale_id": pool.sale_id,
        "total": pool.total,
        "next_number": next_number,
        "numbers": [number for numbers in shared.values() for number in numbers],
        "ids": [key for key, numbers in shared.items() for _ in numbers],
    }
    taken = await conn.execute(SQL.take_numbers, parameters)
    # Nobody can own a number that is free while its pool is locked; if somebody does, nothing may be sold.
    assert taken.rowcount == units, f"{units - taken.rowcount} share numbers have an owner already"
    return shared


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
