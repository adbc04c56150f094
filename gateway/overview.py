"""All sales at one look, for operators: read by one reader, however many of them look, and only while one does."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import msgspec
from flashsale.balance.v1 import balance_service_pb2 as balance
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from gateway.audit_glance import AuditGlance, SaleReadings, books_finding, sale_findings
from gateway.json_forms import count_json, operated_sale_json, stock_json
from gateway.metrics import GatewayMetrics
from gateway.progress import Rates, SettlementProgress
from mesh.errors import DomainError

if TYPE_CHECKING:
    from flashsale.balance.v1.balance_service_pb2_grpc import BalanceServiceAsyncStub
    from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceAsyncStub
    from flashsale.purchase.v1.purchase_service_pb2_grpc import PurchaseServiceAsyncStub

T = TypeVar("T")

#: Shortest time between two readings, s; and how long it goes on after the last who looked.
_PERIOD_S, _LOOKED_S = 1.0, 5.0
#: A reading older than this is made anew for whoever asks, who waits for it so long; the first one may take longer, s.
_AGE_S_MAX, _WAIT_S, _FIRST_WAIT_S = 2.0, 2.0, 8.0
#: Sales shown, those read in one round, and calls at once.
_SALES_MAX, _READ_MAX, _CALLS_MAX = 50, 16, 4
#: How old the counts of a sale may be of which nothing is under way, s.
_QUIET_S = 15.0
#: How often a sale is audited, and the books are, s; and sales audited in one round: each is counted in SQL.
_AUDIT_S, _AUDITS_MAX = 10.0, 2
#: Deadline of a call, s.
_TIMEOUT_S = 2.0

_LIVELY_SALES = frozenset({inventory.SALE_STATE_OPEN, inventory.SALE_STATE_PAUSED, inventory.SALE_STATE_SOLD_OUT})
_UNDER_WAY = frozenset(
    {
        purchase.PURCHASE_STATE_RESERVED,
        purchase.PURCHASE_STATE_SETTLING,
        purchase.PURCHASE_STATE_WAITLISTED,
        purchase.PURCHASE_STATE_REFUNDING,
    }
)
_BOOKS = "books"


@dataclass
class _Sale:
    """What is known of one sale. Times are seconds of the loop's clock."""

    sale: inventory.Sale
    stock: inventory.Stock | None = None
    summary: purchase.SummarizeSaleResponse | None = None
    read_at: float = float("-inf")
    audited_at: float = float("-inf")
    progress: SettlementProgress = field(default_factory=SettlementProgress)
    settlement: dict[str, Any] | None = None

    def is_due(self, now: float) -> bool:
        """Whether it is to be read: at once where anything can happen, else every now and then."""
        under_way = self.summary is None or any(each.state in _UNDER_WAY for each in self.summary.counts)
        return self.sale.state in _LIVELY_SALES or under_way or now - self.read_at > _QUIET_S

    def shown(self) -> dict[str, Any]:
        """The sale as the overview shows it; nulls for what could not be read."""
        return {
            **operated_sale_json(self.sale),
            "stock": stock_json(self.stock) if self.stock is not None else None,
            "counts": [count_json(each) for each in self.summary.counts] if self.summary is not None else None,
            "settlement": self.settlement,
        }


class Overview:
    """The overview as JSON, at most a second or two old. What a service that is away would have told is null, and it is
    named under "away". The answers are those of this gateway."""

    def __init__(
        self,
        purchases: "PurchaseServiceAsyncStub",
        inventories: "InventoryServiceAsyncStub",
        balances: "BalanceServiceAsyncStub",
        metrics: GatewayMetrics,
    ) -> None:
        self._purchases, self._inventories, self._balances = purchases, inventories, balances
        self._metrics = metrics
        self._rates = Rates()
        self._sales: dict[str, _Sale] = {}
        self._audit = AuditGlance()
        self._books_at = float("-inf")
        self._away: set[str] = set()
        self._calls = asyncio.Semaphore(_CALLS_MAX)
        self._asked_at = float("-inf")
        self._made_at = float("-inf")
        self._value: bytes | None = None
        self._wanted = asyncio.Event()
        self._made: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: Readings made so far.
        self.readings = 0

    async def read(self) -> bytes:
        """The overview. Raises UNAVAILABLE when not even the first could be made in time."""
        now = asyncio.get_running_loop().time()
        self._asked_at = now
        if self._value is None or now - self._made_at > _AGE_S_MAX:
            self._wanted.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FIRST_WAIT_S if self._value is None else _WAIT_S):
                    await asyncio.shield(self._made)
        if self._value is None:
            raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "the sales cannot be read now")
        return self._value

    async def keep_current(self) -> None:
        """Reads for ever, while somebody looks; run in the background."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            self._rates.note(self._metrics.answers_by_kind(), began)
            self._wanted.clear()
            if began - self._asked_at < _LOOKED_S:
                await self._make()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, began + _PERIOD_S - loop.time())):
                    await self._wanted.wait()

    async def _make(self) -> None:
        loop = asyncio.get_running_loop()
        self._away = set()
        await self._read_sales()
        due = sorted((each for each in self._sales.values() if each.is_due(loop.time())), key=lambda each: each.read_at)
        await asyncio.gather(*(self._read_sale(each) for each in due[:_READ_MAX]))
        await self._check()
        self._value = msgspec.json.encode(self._shown())
        self._made_at = loop.time()
        self.readings += 1
        self._made.set_result(None)
        self._made = loop.create_future()

    async def _call(self, service: str, call: Callable[[], Awaitable[T]]) -> T | None:
        """What a service answers; None when it is away, upon which it is asked no more in this round."""
        async with self._calls:
            if service in self._away:
                return None
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                # A sale that is not there, or whose stock is being recounted, says nothing of the service.
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    self._away.add(service)
                return None

    async def _read_sales(self) -> None:
        request = inventory.ListSalesRequest(page_size=_SALES_MAX)
        answer = await self._call("inventory", lambda: self._inventories.ListSales(request, timeout=_TIMEOUT_S))
        if answer is None:
            return
        known, self._sales = self._sales, {}
        for sale in answer.sales:
            each = self._sales[sale.sale_id] = known.get(sale.sale_id) or _Sale(sale)
            each.sale = sale
        self._audit.forget_others({*self._sales, _BOOKS})

    async def _stock(self, sale_id: str, source: inventory.StockSource.ValueType) -> inventory.Stock | None:
        request = inventory.GetStockRequest(sale_id=sale_id, source=source)
        answer = await self._call("inventory", lambda: self._inventories.GetStock(request, timeout=_TIMEOUT_S))
        return answer.stock if answer is not None else None

    async def _summary(self, sale_id: str) -> purchase.SummarizeSaleResponse | None:
        request = purchase.SummarizeSaleRequest(sale_id=sale_id)
        return await self._call("purchase", lambda: self._purchases.SummarizeSale(request, timeout=_TIMEOUT_S))

    async def _read_sale(self, each: _Sale) -> None:
        sale_id, now = each.sale.sale_id, asyncio.get_running_loop().time()
        each.read_at = now
        each.stock, each.summary = await asyncio.gather(
            self._stock(sale_id, inventory.STOCK_SOURCE_GATE), self._summary(sale_id)
        )
        each.settlement = None
        if each.summary is not None:
            oldest_age_s = None
            if each.summary.HasField("oldest_unsettled_time"):
                oldest_age_s = time.time() - each.summary.oldest_unsettled_time.ToMilliseconds() / 1000
            each.settlement = each.progress.note(each.summary.counts, oldest_age_s, now)

    async def _check(self) -> None:
        """Audits the sales that are due, a few, and the books."""
        now = asyncio.get_running_loop().time()
        due = sorted(
            (each for each in self._sales.values() if now - each.audited_at > _AUDIT_S),
            key=lambda each: each.audited_at,
        )
        for each in due[:_AUDITS_MAX]:
            each.audited_at = now
            await self._check_sale(each.sale)
        if now - self._books_at > _AUDIT_S:
            self._books_at = now
            request = balance.CheckBooksRequest()
            books = await self._call("balance", lambda: self._balances.CheckBooks(request, timeout=_TIMEOUT_S))
            if books is not None:
                # Of one moment, so that once is enough.
                finding = books_finding(books)
                self._audit.note(_BOOKS, {"I3": finding}, _now_text(), at_once=True)

    async def _check_sale(self, sale: inventory.Sale) -> None:
        # One after another: only what has not changed from the first to the last is of one moment.
        gate = await self._stock(sale.sale_id, inventory.STOCK_SOURCE_GATE)
        book = await self._stock(sale.sale_id, inventory.STOCK_SOURCE_BOOK)
        summary = await self._summary(sale.sale_id)
        gate_after = await self._stock(sale.sale_id, inventory.STOCK_SOURCE_GATE)
        if gate is None or book is None or summary is None or gate_after is None:
            return
        readings = SaleReadings(gate, book, summary.counts, gate_after)
        name = sale.display_name or sale.sale_id
        self._audit.note(sale.sale_id, sale_findings(name, readings), _now_text())

    def _shown(self) -> dict[str, Any]:
        totals, rates = self._metrics.answers_by_kind(), self._rates.per_s()
        return {
            "time": _now_text(),
            "sales": [each.shown() for each in self._sales.values()],
            "answers": {kind: {"total": total, "per_s": rates.get(kind, 0.0)} for kind, total in totals.items()},
            "queue": _queue(self._sales.values()),
            "audit": self._audit.shown(),
            "away": sorted(self._away),
        }


def _queue(sales: Iterable[_Sale]) -> dict[str, Any]:
    """The settlement queue, which all sales share, as the sale that was read last tells of it; nulls: not known."""
    told = [each for each in sales if each.summary is not None]
    newest = max(told, key=lambda each: each.read_at, default=None)
    ages = [each.settlement["oldest_age_s"] for each in told if each.settlement is not None]
    summary = newest.summary if newest is not None else None
    return {
        "messages": _known(summary.queued_messages if summary is not None else -1),
        "dead_letters": _known(summary.dead_letters if summary is not None else -1),
        "oldest_age_s": max((age for age in ages if age is not None), default=None),
    }


def _known(count: int) -> int | None:
    return count if count >= 0 else None


def _now_text() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
