"""Statements: what a sale has come to, in shares, in money, and for those who won nothing."""

import asyncio
import uuid
from typing import TYPE_CHECKING, NamedTuple

import grpc
from flashsale.inventory.v1 import inventory_service_pb2 as inventory_pb

from mesh.errors import from_rpc_error
from purchase_svc.history_book import HistoryBook, NonWin
from purchase_svc.purchase import NON_WINS, UNFINISHED_STATES, PurchaseState
from purchase_svc.purchase_book import PurchaseBook, PurchaseCount

if TYPE_CHECKING:
    from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceAsyncStub

_S = PurchaseState
TIMEOUT_S = 3.0


class Statement(NamedTuple):
    """A sale's purchases at one moment, and its terms."""

    sale: inventory_pb.Sale
    #: Units that the Inventory Service had set aside, and requests in its line, just before.
    reserved_units: int
    waiting: int
    counts: tuple[PurchaseCount, ...]
    #: A page of those who won nothing, one more than was asked for if there are further ones.
    non_wins: list[NonWin]

    def units(self, *states: PurchaseState) -> int:
        """Units of purchases in one of these states."""
        return sum(count.units for count in self.counts if count.state in states)

    def purchases(self, *states: PurchaseState) -> int:
        """Purchases in one of these states."""
        return sum(count.purchases for count in self.counts if count.state in states)

    def amount_minor(self, *states: PurchaseState) -> int:
        """What purchases in one of these states cost, minor units."""
        return sum(count.amount_minor for count in self.counts if count.state in states)

    @property
    def unfinished(self) -> int:
        """Purchases that are not final yet."""
        return self.purchases(*UNFINISHED_STATES, _S.PARKED)

    @property
    def final(self) -> bool:
        """Whether nothing can change any more, unless a refund is asked for. Units set aside or waited for without a
        purchase are a buyer's who broke off: that will be a purchase too."""
        closed = self.sale.state == inventory_pb.SALE_STATE_CLOSED
        return closed and self.unfinished == self.reserved_units == self.waiting == 0

    @property
    def non_win_counts(self) -> list[PurchaseCount]:
        """How many won nothing, by state and reason."""
        return [count for count in self.counts if count.state in NON_WINS]


class Statements:
    """Makes statements. Counts a whole sale each time: 50,000 purchases take some 20 ms."""

    def __init__(self, book: PurchaseBook, histories: HistoryBook, inventory: "InventoryServiceAsyncStub") -> None:
        self._book = book
        self._histories = histories
        self._inventory = inventory

    async def of_sale(self, sale_id: uuid.UUID, after: uuid.UUID | None, limit: int, timeout_s: float) -> Statement:
        """The statement as of now with ``limit`` of those who won nothing, above ``after``.

        Raises SALE_NOT_FOUND, UNAVAILABLE, DEADLINE_EXCEEDED when the Inventory Service has not answered within
        ``timeout_s`` seconds.
        """
        wanted = str(sale_id)
        stock_request = inventory_pb.GetStockRequest(sale_id=wanted, source=inventory_pb.STOCK_SOURCE_BOOK)
        try:
            # First the stock, then the purchases: what is set aside by nobody any more is counted here.
            sale, stock = await asyncio.gather(
                self._inventory.GetSale(inventory_pb.GetSaleRequest(sale_id=wanted), timeout=timeout_s),
                self._inventory.GetStock(stock_request, timeout=timeout_s),
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        summary = await self._book.summarize(sale_id)
        non_wins = await self._histories.list_non_wins(sale_id, after, limit)
        return Statement(sale.sale, stock.stock.reserved, stock.stock.waiting, summary.counts, non_wins)
