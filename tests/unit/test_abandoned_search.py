"""Which sales are searched for reservations without a purchase, and when."""

import uuid
from collections.abc import Sequence
from typing import Any

from flashsale.inventory.v1 import inventory_service_pb2 as pb

from purchase_svc.abandoned import AbandonedSearch
from purchase_svc.purchase import Wish


class Sales:
    """Inventory and purchase book in one: every sale has one old reservation, and none has a purchase."""

    def __init__(self) -> None:
        self.sales: list[pb.Sale] = []
        self.recorded: list[str] = []

    def add(self, state: "pb.SaleState.ValueType") -> str:
        sale = pb.Sale(sale_id=str(uuid.uuid4()), state=state)
        self.sales.insert(0, sale)
        return sale.sale_id

    async def list_sales(self, page_size: int, page_token: str) -> pb.ListSalesResponse:
        return pb.ListSalesResponse(sales=self.sales)

    async def list_reserved(
        self, sale_id: str, *, min_age_ms: int, page_size: int, page_token: str
    ) -> pb.ListReservationsResponse:
        if sale_id in self.recorded:
            return pb.ListReservationsResponse()
        reservation = pb.Reservation(reservation_id=str(uuid.uuid4()), sale_id=sale_id, user_id="u", request_id="r")
        return pb.ListReservationsResponse(reservations=[reservation])

    async def list_waiting(self, sale_id: str, *, page_size: int, page_token: str) -> pb.ListWaitlistResponse:
        return pb.ListWaitlistResponse()

    async def list_missing(self, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        return set(ids)

    async def insert_abandoned(self, wishes: Sequence[Wish], terms: Any) -> int:
        self.recorded += [str(wish.sale_id) for wish in wishes]
        return len(wishes)


async def test_a_thousand_closed_sales_do_not_keep_the_search_from_a_new_one() -> None:
    sales = Sales()
    closed = [sales.add(pb.SALE_STATE_CLOSED) for _ in range(1000)]
    search = AbandonedSearch(sales, sales, min_age_ms=0)  # type: ignore[arg-type]
    assert await search.search(5) == 1, "a closed one"
    opened = sales.add(pb.SALE_STATE_OPEN)
    assert await search.search(5) == 2
    assert opened in sales.recorded
    for _ in range(998):
        await search.search(5)
    assert set(closed) <= set(sales.recorded), "and in time they have all been looked at"
