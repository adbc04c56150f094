"""What tests of the line do with an inventory service."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from flashsale.inventory.v1 import inventory_service_pb2 as pb

from inventory_svc.gate_moves import GateMoves
from inventory_svc.grant_proofs import GrantProofs
from inventory_svc.promoter import Promoter
from inventory_svc.reservation_book import ReservationBook
from inventory_svc.sale import Wish
from inventory_svc.sale_book import SaleBook
from inventory_svc.stock_gate import StockGate
from inventory_svc.waitlist_book import WaitlistBook
from mesh.postgres import open_pool
from mesh.redis_pool import open_redis
from tests.support.inventory_rig import OK, InventoryRig, item
from tests.support.waiting import eventually

WAITS = "waits"


def joining(sale_id: str, user: str, request: str = "r1", quantity: int = 1) -> pb.ReserveItem:
    """A wish that joins the line if need be."""
    wish = item(sale_id, user, request, quantity)
    wish.join_waitlist = True
    return wish


def ids_of(items: Iterable[pb.ReserveItem] | Iterable[pb.WaitlistEntry]) -> list[str]:
    """Their reservation ids."""
    return [one.reservation_id for one in items]


def wish_of(one: pb.ReserveItem) -> Wish:
    """The wish of an item, as the service has it."""
    return Wish(one.reservation_id, one.sale_id, one.user_id, one.request_id, one.quantity, one.join_waitlist)


async def ask(rig: InventoryRig, items: Sequence[pb.ReserveItem]) -> list[int | str]:
    """The answer to each item: a reason, or "waits 3" with its place."""
    response = await rig.inventory.BatchReserveShares(pb.BatchReserveSharesRequest(items=items), timeout=20)
    answers: list[int | str] = []
    for outcome in response.outcomes:
        assert outcome.waiting == (outcome.waitlist_position > 0)
        assert not (outcome.waiting and outcome.reason)
        answers.append(f"{WAITS} {outcome.waitlist_position}" if outcome.waiting else outcome.reason)
    return answers


async def sold_out_sale(rig: InventoryRig, total: int = 1, **given: Any) -> tuple[str, list[str]]:
    """An open sale of which every unit is reserved, each by a user of its own; its id and theirs."""
    sale_id = await rig.open_sale(total, **given)
    holders = [item(sale_id, f"holder{number}") for number in range(total)]
    assert await rig.reserve(holders) == [OK] * total
    return sale_id, ids_of(holders)


async def states(rig: InventoryRig, ids: Sequence[str]) -> list[str]:
    """RESERVED, SOLD, RELEASED or WAITING of each id; "" for one that is not there."""
    response = await rig.inventory.BatchGetReservations(pb.BatchGetReservationsRequest(reservation_ids=ids), timeout=10)
    found = {
        one.reservation_id: pb.ReservationState.Name(one.state).removeprefix("RESERVATION_STATE_")
        for one in response.reservations
    }
    return [found.get(key, "") for key in ids]


async def places(rig: InventoryRig, ids: Sequence[str]) -> list[tuple[int, int]]:
    """Place and units ahead of each id."""
    request = pb.BatchGetWaitlistPositionsRequest(reservation_ids=ids)
    response = await rig.inventory.BatchGetWaitlistPositions(request, timeout=10)
    assert [place.reservation_id for place in response.positions] == list(ids)
    return [(place.position, place.units_ahead) for place in response.positions]


async def leave(rig: InventoryRig, ids: Sequence[str]) -> list[int]:
    """The reason for each id."""
    response = await rig.inventory.BatchLeaveWaitlist(pb.BatchLeaveWaitlistRequest(reservation_ids=ids), timeout=10)
    return [outcome.reason for outcome in response.outcomes]


async def entries(rig: InventoryRig, sale_id: str, *, state: int = 0, page_size: int = 0) -> list[pb.WaitlistEntry]:
    """Everybody who joined the line, in order of their tickets."""
    found: list[pb.WaitlistEntry] = []
    token = ""
    while True:
        request = pb.ListWaitlistRequest(sale_id=sale_id, state=state, page_size=page_size, page_token=token)  # type: ignore[arg-type]
        page = await rig.inventory.ListWaitlist(request, timeout=20)
        found += page.entries
        token = page.next_page_token
        if not token:
            return found


async def promoted_in_order(rig: InventoryRig, sale_id: str) -> list[str]:
    """Ids of those promoted, in the order in which that was decided."""
    found = await entries(rig, sale_id, state=pb.WaitlistState.WAITLIST_STATE_PROMOTED)
    return ids_of(sorted(found, key=lambda entry: entry.decision_number))


async def waiting(rig: InventoryRig, sale_id: str, *, book: bool = False) -> int:
    """How many wait, by the gate or by the book."""
    source = pb.StockSource.STOCK_SOURCE_BOOK if book else pb.StockSource.STOCK_SOURCE_GATE
    return int(
        (await rig.inventory.GetStock(pb.GetStockRequest(sale_id=sale_id, source=source), timeout=10)).stock.waiting
    )


async def at_rest(rig: InventoryRig, sale_id: str) -> tuple[tuple[int, int, int], int]:
    """Waits until Redis equals SQL, the line included; the stock and how many wait."""

    async def equal() -> bool:
        try:
            gate = await rig.stock(sale_id), await waiting(rig, sale_id)
            book = await rig.stock(sale_id, book=True), await waiting(rig, sale_id, book=True)
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise
            return False
        left = await rig.sql("SELECT count(*) FROM gate_moves WHERE sale_id = %s", sale_id)
        return gate == book and left == [(0,)]

    await eventually(equal, within_s=30)
    # The counters of the line against its rows.
    counted = await rig.sql(
        "SELECT count(*), coalesce(sum(quantity), 0) FROM waitlist WHERE sale_id = %s AND state = 'WAITING'", sale_id
    )
    blocks = await rig.sql(
        "SELECT coalesce(sum(waiting), 0), coalesce(sum(waiting_units), 0) FROM waitlist_blocks WHERE sale_id = %s",
        sale_id,
    )
    assert await rig.sql("SELECT waiting, waiting_units FROM sale_lines WHERE sale_id = %s", sale_id) == counted
    assert blocks == counted
    return await rig.stock(sale_id), await waiting(rig, sale_id)


@dataclass
class LineParts:
    """The service's parts on the same servers, to do half of what it does, as a process does that dies in it."""

    gate: StockGate
    sales: SaleBook
    book: ReservationBook
    waitlist: WaitlistBook
    moves: GateMoves
    promoter: Promoter


@asynccontextmanager
async def line_parts(rig: InventoryRig) -> AsyncIterator[LineParts]:
    """The parts, without their background tasks."""

    def ignore(*_: object) -> None:
        return None

    async with (
        open_pool(rig.settings.database_url, name="test", size=2) as pool,
        open_redis(rig.settings.redis_url) as redis,
    ):
        gate, sales, book, waitlist = StockGate(redis), SaleBook(pool), ReservationBook(pool), WaitlistBook(pool)
        moves = GateMoves(gate, sales, book, changed=ignore, stale=ignore)
        yield LineParts(gate, sales, book, waitlist, moves, Promoter(gate, waitlist, moves, GrantProofs(gate)))
