"""Follows a sale while it runs: the load generator's progress, the stock stream, and the counts of purchases."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from bench.audit.data import Stock
from bench.audit.fetch import read_gate, stock_of
from bench.clients import Clients, call
from bench.load.plan import Progress
from bench.load.process import LoadError, LoadProcess
from mesh.errors import reason_name

_SUMMARY_S = 0.2
_RECONNECT_S = 0.2
_UNFINISHED = (
    purchase.PURCHASE_STATE_RESERVED,
    purchase.PURCHASE_STATE_SETTLING,
    purchase.PURCHASE_STATE_REFUNDING,
)
#: What ends a purchase without shares, other than a reason of its own.
_ENDED_AS: dict[int, str] = {
    purchase.PURCHASE_STATE_CANCELLED: "CANCELLED",
    purchase.PURCHASE_STATE_PARKED: "PARKED",
}


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
    waiting: int = 0


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
    settle_over: bool = False
    """Whether everything was settled once: what becomes final later (refunds, the line's end) is not settlement."""
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
        """Purchases that wait for settlement, are in it, or are being refunded."""
        return self.in_state(*_UNFINISHED)

    @property
    def in_line(self) -> int:
        """Purchases that wait for a share."""
        return self.in_state(purchase.PURCHASE_STATE_WAITLISTED)

    @property
    def refunded(self) -> int:
        """Purchases whose money was booked back."""
        return self.in_state(purchase.PURCHASE_STATE_REFUNDED)

    @property
    def settled(self) -> int:
        """Purchases that are final."""
        others = self.unfinished + self.in_line + self.in_state(purchase.PURCHASE_STATE_PARKED)
        return self.purchases - others

    def failed_by_reason(self) -> dict[str, int]:
        """Purchases that ended without ever having shares, by reason; CANCELLED and PARKED ones under these names."""
        found: dict[str, int] = {}
        for (state, reason), count in sorted(self.counts.items()):
            if state == purchase.PURCHASE_STATE_FAILED:
                name = reason_name(reason)
            elif state in _ENDED_AS:
                name = _ENDED_AS[state]
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
                stock.waiting,
            )
        )


async def follow_progress(load: LoadProcess, now: Following, on_change: Callable[[], None]) -> None:
    """Takes in the generator's lines until it ends."""
    async for progress in load.progress():
        now.progress = progress
        now.sample()
        on_change()


async def follow_stock(clients: Clients, sale_id: str, load: LoadProcess, now: Following, by_hand: bool) -> None:
    """Takes in stock readings; ``by_hand``, tells the generator when stock returns. Starts the stream anew when it
    ends."""
    request = inventory.WatchStockRequest(sale_id=sale_id)
    while True:
        try:
            async for message in clients.inventory.WatchStock(request):
                if not message.HasField("stock"):
                    continue
                now.stock = stock_of(message.stock)
                if by_hand and now.progress.first_wave_over and now.progress.hoping and now.stock.available > 0:
                    await load.tell("stock", now.stock.available)
        except grpc.aio.AioRpcError:
            # The service was restarted or is away; the sale's time limit bounds how long this goes on.
            await asyncio.sleep(_RECONNECT_S)


async def read_summary(clients: Clients, sale_id: str, now: Following) -> None:
    """Takes in the counts of purchases. Raises DomainError when the Purchase Service stays away."""
    answer = await call(clients.purchase.SummarizeSale, purchase.SummarizeSaleRequest(sale_id=sale_id))
    now.counts = {(item.state, item.reason): item.purchases for item in answer.counts}
    now.queued_messages, now.dead_letters = answer.queued_messages, answer.dead_letters
    if answer.HasField("first_claim_time") and answer.HasField("last_final_time") and not now.settle_over:
        nanos = answer.last_final_time.ToNanoseconds() - answer.first_claim_time.ToNanoseconds()
        now.settle_wall_s = max(0.0, nanos / 1e9)


async def follow_to_the_end(
    clients: Clients, sale_id: str, now: Following, limit_s: float, *, by_hand: bool = True
) -> str:
    """Returns when every purchase is final or waits in line, and the stock is gone or nobody is left who wants it:
    nobody in line, and ``by_hand`` nobody who was refused.

    Returns "" then, or after ``limit_s`` seconds what was still missing. Raises DomainError when a service stays away.
    """
    deadline = time.monotonic() + limit_s
    over_since: Progress | None = None
    while True:
        await asyncio.sleep(_SUMMARY_S)
        await read_summary(clients, sale_id, now)
        missing = await _missing(clients, sale_id, now, by_hand)
        if missing and time.monotonic() > deadline:
            return f"not over after {limit_s:.0f} s: {missing}"
        if missing:
            over_since = None
        elif over_since is None:
            over_since = now.progress
        elif now.progress.at > over_since.at:
            # Still over by a later line of the generator: nothing was on its way.
            return ""


async def _missing(clients: Clients, sale_id: str, now: Following, by_hand: bool) -> str:
    """What keeps the sale from being over, or "". The stock is read after the counts: a purchase gives its unit back
    before it becomes final, and whoever is promoted leaves the line before the purchase is told."""
    if not now.progress.first_wave_over:
        return f"{now.progress.answered} buyers answered"
    if now.progress.in_flight:
        return f"{now.progress.in_flight} requests under way"
    told = now.progress.accepted + now.progress.waitlisted
    if now.unfinished or now.purchases < told:
        return f"{now.settled} of {told} purchases final, {now.in_line} in line"
    parked = now.in_state(purchase.PURCHASE_STATE_PARKED)
    stock = await read_gate(clients, sale_id)
    if stock is None:
        return "the gate gives no reading"
    now.stock = stock
    if stock.reserved > parked:
        return f"{stock.reserved} units still reserved"
    if now.in_line > stock.waiting:
        return f"{now.in_line - stock.waiting} have been promoted and not told"
    if stock.available and stock.waiting:
        return f"{stock.available} units still on sale and {stock.waiting} in line for them"
    if stock.available and by_hand and now.progress.hoping:
        return f"{stock.available} units still on sale and {now.progress.hoping} buyers who want them"
    return ""


async def follow(
    clients: Clients,
    sale_id: str,
    load: LoadProcess,
    now: Following,
    *,
    limit_s: float,
    by_hand: bool,
    afterwards: Callable[[], Awaitable[None]] | None = None,
    on_change: Callable[[], None],
) -> str:
    """Follows a sale from the start of its burst to its end; "" or what was missing when the time was up.

    ``by_hand``: whoever was refused tries again when stock returns. ``afterwards`` is done when everything is settled,
    and the sale is followed to its end once more. Raises LoadError when the generator dies, DomainError when a service
    stays away, and what ``afterwards`` raises.
    """

    async def to_its_end() -> str:
        missing = await follow_to_the_end(clients, sale_id, now, limit_s, by_hand=by_hand)
        now.settle_over = True
        if not missing and afterwards is not None:
            await afterwards()
            missing = await follow_to_the_end(clients, sale_id, now, limit_s, by_hand=by_hand)
        return missing

    to_the_end = asyncio.create_task(to_its_end())
    others = [
        asyncio.create_task(follow_progress(load, now, on_change)),
        asyncio.create_task(follow_stock(clients, sale_id, load, now, by_hand)),
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
