"""Follows a sale while it runs: the load generator's progress, the stock stream, and the counts of purchases."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from bench.audit.data import Stock
from bench.audit.fetch import read_gate
from bench.clients import Clients, call
from bench.load.plan import Progress
from bench.load.process import LoadError, LoadProcess
from mesh.errors import reason_name

_SUMMARY_S = 0.2
_RECONNECT_S = 0.2
_UNFINISHED = (purchase.PURCHASE_STATE_RESERVED, purchase.PURCHASE_STATE_SETTLING)


class Sample(NamedTuple):
    """A moment of the sale; ``at_s`` is seconds since the start of the burst."""

    at_s: float
    answered: int
    accepted: int
    sold_out: int
    shed_429: int
    available: int
    reserved: int
    sold: int
    settled: int
    queued_messages: int


@dataclass
class Following:
    """What is known of the sale at this moment, and how it came to be."""

    progress: Progress = field(default_factory=lambda: Progress(at=0.0))
    stock: Stock | None = None
    counts: dict[tuple[int, int], int] = field(default_factory=dict)
    """Purchases by (state, reason)."""
    queued_messages: int = 0
    dead_letters: int = 0
    settle_wall_s: float = 0.0
    started_at: float = 0.0
    samples: list[Sample] = field(default_factory=list)

    def in_state(self, *states: int) -> int:
        """Purchases in one of these states."""
        return sum(count for (state, _), count in self.counts.items() if state in states)

    @property
    def purchases(self) -> int:
        """Purchases in all."""
        return sum(self.counts.values())

    @property
    def confirmed(self) -> int:
        """Purchases that ended with shares and a capture."""
        return self.in_state(purchase.PURCHASE_STATE_CONFIRMED)

    @property
    def unfinished(self) -> int:
        """Purchases that wait for settlement or are in it."""
        return self.in_state(*_UNFINISHED)

    @property
    def settled(self) -> int:
        """Purchases that are final."""
        return self.purchases - self.unfinished - self.in_state(purchase.PURCHASE_STATE_PARKED)

    def failed_by_reason(self) -> dict[str, int]:
        """Purchases that ended without shares, by reason; CANCELLED and PARKED ones under these names."""
        found: dict[str, int] = {}
        for (state, reason), count in sorted(self.counts.items()):
            if state == purchase.PURCHASE_STATE_FAILED:
                name = reason_name(reason)
            elif state in (purchase.PURCHASE_STATE_CANCELLED, purchase.PURCHASE_STATE_PARKED):
                name = "CANCELLED" if state == purchase.PURCHASE_STATE_CANCELLED else "PARKED"
            else:
                continue
            found[name] = found.get(name, 0) + count
        return found

    def sample(self) -> None:
        """Notes this moment for the picture."""
        stock = self.stock or Stock(0, 0, 0, 0)
        self.samples.append(
            Sample(
                time.monotonic() - self.started_at,
                self.progress.answered,
                self.progress.accepted,
                self.progress.sold_out,
                self.progress.shed_429,
                stock.available,
                stock.reserved,
                stock.sold,
                self.settled,
                self.queued_messages,
            )
        )


async def follow_progress(load: LoadProcess, now: Following, on_change: Callable[[], None]) -> None:
    """Takes in the generator's lines until it ends."""
    async for progress in load.progress():
        now.progress = progress
        now.sample()
        on_change()


async def follow_stock(clients: Clients, sale_id: str, load: LoadProcess, now: Following) -> None:
    """Takes in stock readings and tells the generator when stock returns. Starts the stream anew when it ends."""
    request = inventory.WatchStockRequest(sale_id=sale_id)
    while True:
        try:
            async for message in clients.inventory.WatchStock(request):
                if not message.HasField("stock"):
                    continue
                reading = message.stock
                now.stock = Stock(reading.available, reading.reserved, reading.sold, reading.total, reading.open)
                if now.progress.first_wave_over and now.progress.hoping and reading.available > 0:
                    await load.tell("stock", reading.available)
        except grpc.aio.AioRpcError:
            # The service was restarted or is away; the sale's time limit bounds how long this goes on.
            await asyncio.sleep(_RECONNECT_S)


async def read_summary(clients: Clients, sale_id: str, now: Following) -> None:
    """Takes in the counts of purchases. Raises DomainError when the Purchase Service stays away."""
    answer = await call(clients.purchase.SummarizeSale, purchase.SummarizeSaleRequest(sale_id=sale_id))
    now.counts = {(item.state, item.reason): item.purchases for item in answer.counts}
    now.queued_messages, now.dead_letters = answer.queued_messages, answer.dead_letters
    if answer.HasField("first_claim_time") and answer.HasField("last_final_time"):
        nanos = answer.last_final_time.ToNanoseconds() - answer.first_claim_time.ToNanoseconds()
        now.settle_wall_s = max(0.0, nanos / 1e9)


async def follow_to_the_end(clients: Clients, sale_id: str, now: Following, limit_s: float) -> str:
    """Returns when every purchase is final and the stock is gone, or nobody is left who wants it.

    Returns "" then, or after ``limit_s`` seconds what was still missing. Raises DomainError when a service stays away.
    """
    deadline = time.monotonic() + limit_s
    over_since: Progress | None = None
    while True:
        await asyncio.sleep(_SUMMARY_S)
        await read_summary(clients, sale_id, now)
        missing = await _missing(clients, sale_id, now)
        if missing and time.monotonic() > deadline:
            return f"not over after {limit_s:.0f} s: {missing}"
        if missing:
            over_since = None
        elif over_since is None:
            over_since = now.progress
        elif now.progress.at > over_since.at:
            # Still over by a later line of the generator: nothing was on its way.
            return ""


async def _missing(clients: Clients, sale_id: str, now: Following) -> str:
    """What keeps the sale from being over, or "". The stock is read after the counts: a purchase gives its unit back
    before it becomes final."""
    if not now.progress.first_wave_over:
        return f"{now.progress.answered} buyers answered"
    if now.progress.in_flight:
        return f"{now.progress.in_flight} requests under way"
    if now.unfinished or now.purchases < now.progress.accepted:
        return f"{now.settled} of {now.progress.accepted} purchases final"
    parked = now.in_state(purchase.PURCHASE_STATE_PARKED)
    stock = await read_gate(clients, sale_id)
    if stock is None:
        return "the gate gives no reading"
    now.stock = stock
    if stock.reserved > parked:
        return f"{stock.reserved} units still reserved"
    if stock.available and now.progress.hoping:
        return f"{stock.available} units still on sale and {now.progress.hoping} buyers who want them"
    return ""


async def follow(
    clients: Clients, sale_id: str, load: LoadProcess, now: Following, *, limit_s: float, on_change: Callable[[], None]
) -> str:
    """Follows a sale from the start of its burst to its end; "" or what was missing when the time was up.

    Raises LoadError when the generator dies, DomainError when a service stays away.
    """
    to_the_end = asyncio.create_task(follow_to_the_end(clients, sale_id, now, limit_s))
    others = [
        asyncio.create_task(follow_progress(load, now, on_change)),
        asyncio.create_task(follow_stock(clients, sale_id, load, now)),
    ]
    try:
        done, _ = await asyncio.wait([to_the_end, *others], return_when=asyncio.FIRST_COMPLETED)
        for task in others:
            if task in done:
                task.result()
        if to_the_end in done:
            return to_the_end.result()
        raise LoadError("the load generator has died")
    finally:
        for each in (to_the_end, *others):
            each.cancel()
        await asyncio.gather(to_the_end, *others, return_exceptions=True)
