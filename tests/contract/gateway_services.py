"""Services in place of the real ones behind a gateway, whose answers a test decides, and which count what comes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from flashsale.balance.v1 import balance_service_pb2 as balance
from flashsale.balance.v1 import balance_service_pb2_grpc as balance_grpc
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.common.v1.money_pb2 import Money
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.inventory.v1 import inventory_service_pb2_grpc as inventory_grpc
from flashsale.purchase.v1 import purchase_service_pb2 as purchase
from flashsale.purchase.v1 import purchase_service_pb2_grpc as purchase_grpc

from mesh.errors import DomainError, invalid_argument
from mesh.identity import purchase_id

SALE = "3a6f4c1e-0d1b-4a55-8c7e-5f1f2f1d9b3a"
OTHER_SALE = "3a6f4c1e-0d1b-4a55-8c7e-5f1f2f1d9b3b"

_FINAL = frozenset(
    {
        purchase.PURCHASE_STATE_CONFIRMED,
        purchase.PURCHASE_STATE_FAILED,
        purchase.PURCHASE_STATE_CANCELLED,
        purchase.PURCHASE_STATE_REFUNDED,
    }
)


class Purchases(purchase_grpc.PurchaseServiceServicer):
    """Buys whatever comes, as ``outcome`` says, once ``open`` is set; remembers what came."""

    def __init__(self) -> None:
        self.batches: list[list[purchase.CreatePurchaseRequest]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.outcome = purchase.CreatePurchaseOutcome(state=purchase.PURCHASE_STATE_RESERVED)
        self.failure: DomainError | None = None
        self.purchases: dict[str, purchase.Purchase] = {}
        self.changed = asyncio.Condition()
        self.watching = 0
        #: What SummarizeSale says of any sale, and which were asked for.
        self.counts: list[purchase.PurchaseCount] = []
        self.queued = 3
        self.summaries: list[str] = []
        self.lists: list[purchase.ListPurchasesRequest] = []

    async def BatchCreatePurchases(
        self, request: purchase.BatchCreatePurchasesRequest, context: Any
    ) -> purchase.BatchCreatePurchasesResponse:
        self.batches.append(list(request.requests))
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        outcomes = []
        for each in request.requests:
            outcome = purchase.CreatePurchaseOutcome()
            outcome.CopyFrom(self.outcome)
            outcome.purchase_id = str(purchase_id(each.user_id, each.sale_id, each.request_id))
            outcomes.append(outcome)
        return purchase.BatchCreatePurchasesResponse(outcomes=outcomes)

    def _find(self, request: Any) -> purchase.Purchase:
        found = self.purchases.get(request.purchase_id)
        if found is None or found.user_id != request.user_id:
            raise DomainError(ErrorReason.ERROR_REASON_PURCHASE_NOT_FOUND)
        return found

    async def GetPurchase(self, request: Any, context: Any) -> purchase.GetPurchaseResponse:
        return purchase.GetPurchaseResponse(purchase=self._find(request))

    async def CancelPurchase(self, request: Any, context: Any) -> purchase.CancelPurchaseResponse:
        found = self._find(request)
        found.state = purchase.PURCHASE_STATE_CANCELLED
        return purchase.CancelPurchaseResponse(purchase=found)

    async def WatchPurchase(self, request: Any, context: Any) -> AsyncIterator[purchase.WatchPurchaseResponse]:
        found = self._find(request)
        self.watching += 1
        try:
            while True:
                told = found.state
                yield purchase.WatchPurchaseResponse(purchase=found)
                if told in _FINAL:
                    return
                async with self.changed:
                    await self.changed.wait_for(lambda told=told: found.state != told)  # type: ignore[misc]
        finally:
            self.watching -= 1

    async def change(self, known_id: str, state: int) -> None:
        async with self.changed:
            self.purchases[known_id].state = state  # type: ignore[assignment]
            self.changed.notify_all()

    async def RefundPurchase(self, request: Any, context: Any) -> purchase.RefundPurchaseResponse:
        found = self._find(request)
        if found.state == purchase.PURCHASE_STATE_CONFIRMED:
            found.state = purchase.PURCHASE_STATE_REFUNDING
        if found.state not in (purchase.PURCHASE_STATE_REFUNDING, purchase.PURCHASE_STATE_REFUNDED):
            raise DomainError(ErrorReason.ERROR_REASON_PURCHASE_NOT_REFUNDABLE)
        return purchase.RefundPurchaseResponse(purchase=found)

    async def GetReceipt(self, request: Any, context: Any) -> purchase.GetReceiptResponse:
        found = self._find(request)
        answer = purchase.GetReceiptResponse(purchase=found, words="it is on its way")
        answer.reservation.state, answer.reservation.quantity = "RESERVED", found.quantity
        answer.steps.add(state=found.state, words="set aside").time.FromJsonString("2026-01-01T00:00:00Z")
        return answer

    async def ListPurchases(self, request: Any, context: Any) -> purchase.ListPurchasesResponse:
        self.lists.append(request)
        found = [
            each
            for each in self.purchases.values()
            if request.user_id in ("", each.user_id)
            and request.sale_id in ("", each.sale_id)
            and request.state in (purchase.PURCHASE_STATE_UNSPECIFIED, each.state)
        ]
        return purchase.ListPurchasesResponse(purchases=found[: request.page_size], next_page_token="next")

    async def SummarizeSale(self, request: Any, context: Any) -> purchase.SummarizeSaleResponse:
        self.summaries.append(request.sale_id)
        if self.failure is not None:
            raise self.failure
        return purchase.SummarizeSaleResponse(counts=self.counts, queued_messages=self.queued, dead_letters=2)

    async def GetSaleStatement(self, request: Any, context: Any) -> purchase.GetSaleStatementResponse:
        answer = purchase.GetSaleStatementResponse(sale_id=request.sale_id, final=True, total=5, sold_units=4)
        answer.captured.CopyFrom(Money(amount_minor=10_000, currency_code="EUR"))
        failed, reason = purchase.PURCHASE_STATE_FAILED, ErrorReason.ERROR_REASON_INSUFFICIENT_FUNDS
        answer.non_win_counts.add(state=failed, reason=reason, words="too little money", purchases=1, units=1)
        answer.non_wins.add(purchase_id="p", user_id="poor", quantity=1, state=failed, reason=reason)
        return answer

    async def ListDeadLetters(self, request: Any, context: Any) -> purchase.ListDeadLettersResponse:
        letter = purchase.DeadLetter(partition=-1, body_bytes=7, reason="is no message", purchase_ids=["p"])
        return purchase.ListDeadLettersResponse(letters=[letter][: request.page_size], count=2)

    async def ReplayDeadLetters(self, request: Any, context: Any) -> purchase.ReplayDeadLettersResponse:
        return purchase.ReplayDeadLettersResponse(purchases=request.letters_max, letters_left=1, why=["unreadable"])

    async def BatchReplayParkedPurchases(
        self, request: Any, context: Any
    ) -> purchase.BatchReplayParkedPurchasesResponse:
        return purchase.BatchReplayParkedPurchasesResponse(
            outcomes=[
                purchase.ReplayParkedOutcome(
                    purchase_id=each,
                    reason=ErrorReason.ERROR_REASON_UNSPECIFIED
                    if each in self.purchases
                    else ErrorReason.ERROR_REASON_PURCHASE_NOT_FOUND,
                )
                for each in request.purchase_ids
            ]
        )

    @property
    def bought(self) -> list[str]:
        """Request ids of everything that came, in order."""
        return [each.request_id for batch in self.batches for each in batch]


class Inventories(inventory_grpc.InventoryServiceServicer):
    """Streams what a test pushes, the last message again every ``repeat_s``; knows the sales of ``last``."""

    def __init__(self) -> None:
        self.last: dict[str, inventory.WatchStockResponse] = {SALE: reading(available=5)}
        self.silent = False
        self.repeat_s = 0.2
        self.watches: list[str] = []
        self.reads = 0
        #: What GetStock says of SALE, if not the last message of the stream.
        self.now: inventory.Stock | None = None
        #: What GetStock says of the book, if not the same.
        self.book: inventory.Stock | None = None
        self.sales: list[inventory.Sale] = [_sale(SALE, inventory.SALE_STATE_OPEN)]
        self.lists = 0
        #: What operators asked for: verb, sale, actor.
        self.changes: list[tuple[str, str, str]] = []
        #: Users who were made eligible.
        self.eligible: set[str] = set()
        self._queues: list[tuple[str, asyncio.Queue[inventory.WatchStockResponse | None]]] = []

    @property
    def streams(self) -> int:
        """Streams of stock that are open."""
        return len(self._queues)

    def end_streams(self) -> None:
        """Ends every stream as a service does that stops."""
        for _, queue in self._queues:
            queue.put_nowait(None)

    async def push(self, message: inventory.WatchStockResponse, sale_id: str = SALE) -> None:
        """Sends a message on every stream of a sale; it is also the first of later streams, as a reset."""
        first = inventory.WatchStockResponse()
        first.CopyFrom(message)
        first.fingerprints_reset = True
        self.last[sale_id] = first
        for watched, queue in self._queues:
            if watched == sale_id:
                queue.put_nowait(message)

    async def WatchStock(self, request: Any, context: Any) -> AsyncIterator[inventory.WatchStockResponse]:
        self.watches.append(request.sale_id)
        if request.sale_id not in self.last:
            raise DomainError(ErrorReason.ERROR_REASON_SALE_NOT_FOUND)
        queue: asyncio.Queue[inventory.WatchStockResponse | None] = asyncio.Queue()
        self._queues.append((request.sale_id, queue))
        try:
            yield self.last[request.sale_id]
            while True:
                try:
                    async with asyncio.timeout(self.repeat_s):
                        message = await queue.get()
                    if message is None:
                        raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE)
                except TimeoutError:
                    if self.silent:
                        continue
                    message = inventory.WatchStockResponse()
                    if self.last[request.sale_id].HasField("stock"):
                        message.stock.CopyFrom(self.last[request.sale_id].stock)
                yield message
        finally:
            self._queues.remove((request.sale_id, queue))

    async def GetSale(self, request: Any, context: Any) -> inventory.GetSaleResponse:
        self.reads += 1
        if request.sale_id not in self.last:
            raise DomainError(ErrorReason.ERROR_REASON_SALE_NOT_FOUND)
        return inventory.GetSaleResponse(sale=_sale(request.sale_id, inventory.SALE_STATE_OPEN))

    async def ListSales(self, request: Any, context: Any) -> inventory.ListSalesResponse:
        self.lists += 1
        return inventory.ListSalesResponse(sales=self.sales[: request.page_size])

    def _changed(self, verb: str, request: Any, state: inventory.SaleState.ValueType) -> inventory.Sale:
        if request.sale_id not in self.last:
            raise DomainError(ErrorReason.ERROR_REASON_SALE_NOT_FOUND)
        self.changes.append((verb, request.sale_id, request.actor))
        sale = _sale(request.sale_id, state)
        sale.state_actor = request.actor
        return sale

    async def OpenSale(self, request: Any, context: Any) -> inventory.OpenSaleResponse:
        return inventory.OpenSaleResponse(sale=self._changed("open", request, inventory.SALE_STATE_OPEN))

    async def PauseSale(self, request: Any, context: Any) -> inventory.PauseSaleResponse:
        return inventory.PauseSaleResponse(sale=self._changed("pause", request, inventory.SALE_STATE_PAUSED))

    async def CloseSale(self, request: Any, context: Any) -> inventory.CloseSaleResponse:
        return inventory.CloseSaleResponse(sale=self._changed("close", request, inventory.SALE_STATE_CLOSED))

    async def RaiseSaleTotal(self, request: Any, context: Any) -> inventory.RaiseSaleTotalResponse:
        if request.total < 5:
            raise invalid_argument(("total", "must not shrink"))
        sale = self._changed(f"total {request.total}", request, inventory.SALE_STATE_OPEN)
        sale.total = request.total
        return inventory.RaiseSaleTotalResponse(sale=sale)

    async def ScheduleSale(self, request: Any, context: Any) -> inventory.ScheduleSaleResponse:
        sale = self._changed("schedule", request, inventory.SALE_STATE_SCHEDULED)
        for field in ("open_time", "close_time"):
            if request.HasField(field):
                getattr(sale, field).CopyFrom(getattr(request, field))
        return inventory.ScheduleSaleResponse(sale=sale)

    async def BatchAddEligibleUsers(self, request: Any, context: Any) -> inventory.BatchAddEligibleUsersResponse:
        before = len(self.eligible)
        self.eligible |= set(request.user_ids)
        now = len(self.eligible)
        return inventory.BatchAddEligibleUsersResponse(added=now - before, eligible=now)

    async def ListSaleChanges(self, request: Any, context: Any) -> inventory.ListSaleChangesResponse:
        change = inventory.SaleChange(actor="ann", to_state=inventory.SALE_STATE_DRAFT, total=5)
        return inventory.ListSaleChangesResponse(changes=[change])

    async def GetStock(self, request: Any, context: Any) -> inventory.GetStockResponse:
        self.reads += 1
        if request.sale_id not in self.last:
            raise DomainError(ErrorReason.ERROR_REASON_SALE_NOT_FOUND)
        if request.source == inventory.STOCK_SOURCE_BOOK and self.book is not None:
            return inventory.GetStockResponse(stock=self.book)
        return inventory.GetStockResponse(stock=self.now or self.last[request.sale_id].stock)


class Balances(balance_grpc.BalanceServiceServicer):
    """Knows accounts in EUR: of "rich", and of any "user-12", who has 12. Answers while ``answering`` is set."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.answering = asyncio.Event()
        self.answering.set()
        self.books = balance.CheckBooksResponse()
        self.checks = 0

    async def BatchGetBalances(self, request: Any, context: Any) -> balance.BatchGetBalancesResponse:
        self.calls.append([key.user_id for key in request.accounts])
        await self.answering.wait()
        found = []
        for key in request.accounts:
            if key.currency_code == "EUR" and (key.user_id == "rich" or key.user_id.startswith("user-")):
                own, held = (10_000, 2_500) if key.user_id == "rich" else (int(key.user_id.removeprefix("user-")), 0)
                found.append(
                    balance.Account(user_id=key.user_id, currency_code="EUR", balance_minor=own, held_minor=held)
                )
        return balance.BatchGetBalancesResponse(accounts=found)

    async def CheckBooks(self, request: Any, context: Any) -> balance.CheckBooksResponse:
        self.checks += 1
        return self.books


def _sale(sale_id: str, state: inventory.SaleState.ValueType) -> inventory.Sale:
    sale = inventory.Sale(sale_id=sale_id, display_name="Fund", total=5, state=state)
    sale.unit_price.CopyFrom(Money(amount_minor=2500, currency_code="EUR"))
    return sale


def reading(
    available: int,
    *,
    total: int = 5,
    waiting: int = 0,
    is_open: bool = True,
    added: Sequence[int] = (),
    removed: Sequence[int] = (),
    reset: bool = True,
    changes: int = 0,
) -> inventory.WatchStockResponse:
    """A stock message of SALE, of whose ``total`` shares ``available`` are left and ``waiting`` wait in line."""
    stock = inventory.Stock(
        sale_id=SALE,
        available=available,
        reserved=total - available,
        sold=0,
        total=total,
        epoch=1,
        open=is_open,
        holder_changes=changes,
        waiting=waiting,
    )
    return inventory.WatchStockResponse(
        stock=stock, fingerprints_reset=reset, fingerprints_added=added, fingerprints_removed=removed
    )
