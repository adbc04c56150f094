"""Finds reservations, and places in line, without a purchase, a bounded number at a time: their buyer broke off between
the two."""

import uuid
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC

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
    """A sale, and where in its reservations, or then in its line, to go on."""

    sale: pb.Sale
    in_line: bool = False
    page_token: str = ""

    def go_on(self, next_page_token: str) -> bool:
        """Moves on behind a page; false when there is nothing more to look at."""
        self.page_token = next_page_token
        if next_page_token:
            return True
        # The line of a sale that is closed empties by itself.
        to_the_line = not self.in_line and self.sale.state != pb.SALE_STATE_CLOSED
        self.in_line = True
        return to_the_line


class AbandonedSearch:
    """Goes round the sales that are on, and round each one's old reservations and its line, a few pages at each call;
    beside them, and more slowly, round the closed ones."""

    def __init__(self, book: SweepBook, services: SettlementServices, *, min_age_ms: int) -> None:
        self._book = book
        self._services = services
        self._min_age_ms = min_age_ms
        self._on: deque[_Place] = deque()
        self._closed: deque[_Place] = deque()

    async def search(self, pages_max: int) -> int:
        """Looks at up to ``pages_max`` pages of reservations, and of the lines, of sales that are on, in one round, and
        at one page of reservations of those that are closed; returns how many were recorded as ABANDONED.

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
                recorded, more = await self._look(place)
            except DomainError:
                # To the end, so that one sale that cannot be read does not keep the search from the others.
                places.append(place)
                raise
            found += recorded
            if more:
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

    async def _look(self, place: _Place) -> tuple[int, bool]:
        """Looks at one page: how many were recorded, and whether there is more to look at of the sale."""
        look = self._look_in_line if place.in_line else self._look_at_reservations
        missing, next_page_token = await look(place.sale.sale_id, place.page_token)
        more = place.go_on(next_page_token)
        if not missing:
            return 0, more
        price = place.sale.unit_price
        return await self._book.insert_abandoned(missing, Terms(price.amount_minor, price.currency_code)), more

    async def _look_at_reservations(self, sale_id: str, page_token: str) -> tuple[list[Wish], str]:
        page = await self._services.list_reserved(
            sale_id, min_age_ms=self._min_age_ms, page_size=_PAGE_SIZE, page_token=page_token
        )
        wishes = {wish.purchase_id: wish for wish in map(wish_of, page.reservations)}
        missing = await self._book.list_missing(list(wishes)) if wishes else ()
        return [wishes[key] for key in missing], page.next_page_token

    async def _look_in_line(self, sale_id: str, page_token: str) -> tuple[list[Wish], str]:
        page = await self._services.list_waiting(sale_id, page_size=_PAGE_SIZE, page_token=page_token)
        wishes = {wish.purchase_id: wish for wish in map(wish_of, page.entries)}
        joined = {uuid.UUID(each.reservation_id): each.join_time.ToDatetime(UTC) for each in page.entries}
        age_s = self._min_age_ms / 1000
        missing = await self._book.list_joined_without_purchase(joined, age_s=age_s) if joined else {}
        return [wishes[key] for key, old in missing.items() if old], page.next_page_token


def wish_of(found: pb.Reservation | pb.WaitlistEntry) -> Wish:
    """What the buyer had asked for."""
    return Wish(uuid.UUID(found.reservation_id), found.user_id, found.sale_id, found.request_id, found.quantity)
