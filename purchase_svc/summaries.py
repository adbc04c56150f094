"""What a sale has come to, for people who look at it while it runs: counted at most a few times a second."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from mesh.errors import DomainError
from purchase_svc.purchase_book import PurchaseBook, SaleSummary
from purchase_svc.settlement_publisher import SettlementPublisher

#: How old counts, and depths of queues, may be, seconds. The depths cost a question for each of the partitions.
_AGE_S_MAX, _DEPTHS_AGE_S_MAX = 0.3, 1.0
#: Sales whose counts are kept.
_SALES_MAX = 64

Value = TypeVar("Value")


class _Cached(Generic[Value]):
    """One value that is read anew when it is asked for and too old; callers who ask meanwhile share the reading."""

    def __init__(self, read: Callable[[], Awaitable[Value]], age_s_max: float) -> None:
        self._read = read
        self._age_s_max = age_s_max
        self._lock = asyncio.Lock()
        self._value: tuple[float, Value] | None = None

    async def get(self) -> Value:
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if self._value is None or now - self._value[0] > self._age_s_max:
                self._value = (now, await self._read())
            return self._value[1]


class Summaries:
    """Counts of sales, at most 0.3 s old, and depths of the settlement queue, at most 1 s old."""

    def __init__(self, book: PurchaseBook, publisher: SettlementPublisher) -> None:
        self._book = book
        self._publisher = publisher
        self._sales: dict[uuid.UUID, _Cached[SaleSummary]] = {}
        self._depths = _Cached(self._read_depths, _DEPTHS_AGE_S_MAX)

    async def of_sale(self, sale_id: uuid.UUID) -> SaleSummary:
        """Counts of one sale. Raises UNAVAILABLE."""
        cached = self._sales.get(sale_id)
        if cached is None:
            if len(self._sales) >= _SALES_MAX:
                del self._sales[next(iter(self._sales))]
            cached = self._sales[sale_id] = _Cached(lambda: self._book.summarize(sale_id), _AGE_S_MAX)
        return await cached.get()

    async def depths(self) -> tuple[int, int]:
        """Messages queued, and dead letters; (-1, -1) when RabbitMQ is away."""
        return await self._depths.get()

    async def _read_depths(self) -> tuple[int, int]:
        try:
            return await self._publisher.depths()
        except DomainError:
            return -1, -1
