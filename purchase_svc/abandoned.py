"""Finds reservations without a purchase, a bounded number at a time: their buyer broke off between the two."""

import uuid
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from flashsale.inventory.v1 import inventory_service_pb2 as pb

from mesh.errors import DomainError
from purchase_svc.purchase import Wish
from purchase_svc.purchase_book import Terms
from purchase_svc.settlement_services import SettlementServices
from purchase_svc.sweep_book import SweepBook

_PAGE_SIZE = 1_000
#: Sales looked at in one round, the newest: pages of them.
_SALE_PAGES_MAX = 10
#: Pages of closed sales' reservations looked at in one search: they take no new ones, and nobody waits for what they
#: have. There may be thousands of such sales, and they must not keep the search from the open ones.
_CLOSED_PAGES = 1


@dataclass(slots=True)
class _Place:
    """A sale, and where in its reservations to go on."""

    sale: pb.Sale
    page_token: str = ""


class AbandonedSearch:
    """Goes round the sales that are on, and round each one's old reservations, a few pages at each call; beside them,
    and more slowly, round the closed ones."""

    def __init__(self, book: SweepBook, services: SettlementServices, *, min_age_ms: int) -> None:
        self._book = book
        self._services = services
        self._min_age_ms = min_age_ms
        self._on: deque[_Place] = deque()
        self._closed: deque[_Place] = deque()

    async def search(self, pages_max: int) -> int:
        """Looks at up to ``pages_max`` pages of reservations of sales that are on, in one round, and at one of those
        that are closed; returns how many were recorded as ABANDONED.

        Recorded first, released later: a buyer's late insert then finds the purchase ended, and never the reverse.
        Raises UNAVAILABLE.
        """
        if not self._on:
            closed: list[_Place] = []
            async for sale in self._sales():
                (closed if sale.state == pb.SALE_STATE_CLOSED else self._on).append(_Place(sale))
            if not self._closed:
                self._closed.extend(closed)
        found = await self._go_on(self._on, pages_max)
        return found + await self._go_on(self._closed, _CLOSED_PAGES)

    async def _go_on(self, places: deque[_Place], pages_max: int) -> int:
        found = 0
        for _ in range(pages_max):
            if not places:
                break
            place = places.popleft()
            try:
                found += await self._look(place)
            except DomainError:
                # To the end, so that one sale that cannot be read does not keep the search from the others.
                places.append(place)
                raise
            if place.page_token:
                places.appendleft(place)
        return found

    async def _sales(self) -> AsyncIterator[pb.Sale]:
        token = ""
        for _ in range(_SALE_PAGES_MAX):
            page = await self._services.list_sales(_PAGE_SIZE, token)
            for sale in page.sales:
                if sale.state not in (pb.SALE_STATE_DRAFT, pb.SALE_STATE_SCHEDULED):
                    yield sale
            token = page.next_page_token
            if not token:
                break

    async def _look(self, place: _Place) -> int:
        page = await self._services.list_reserved(
            place.sale.sale_id, min_age_ms=self._min_age_ms, page_size=_PAGE_SIZE, page_token=place.page_token
        )
        place.page_token = page.next_page_token
        reservations = {uuid.UUID(each.reservation_id): each for each in page.reservations}
        if not reservations:
            return 0
        missing = await self._book.list_missing(list(reservations))
        if not missing:
            return 0
        wishes = [_wish_of(key, reservations[key]) for key in missing]
        price = place.sale.unit_price
        return await self._book.insert_abandoned(wishes, Terms(price.amount_minor, price.currency_code))


def _wish_of(purchase_id: uuid.UUID, reservation: pb.Reservation) -> Wish:
    return Wish(purchase_id, reservation.user_id, reservation.sale_id, reservation.request_id, reservation.quantity)
