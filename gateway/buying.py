"""Sends purchases on in batches, as many as can be answered in time."""

import asyncio
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from gateway.problems import known_reason
from gateway.queue_limit import QueueLimit
from gateway.settings import Settings
from gateway.sold_out import SaleStock
from mesh import tracing
from mesh.batcher import Batcher
from mesh.errors import DomainError, from_rpc_error, reason_name
from mesh.identity import purchase_id
from mesh.logs import get_logger, named

if TYPE_CHECKING:
    from flashsale.purchase.v1.purchase_service_pb2_grpc import PurchaseServiceAsyncStub

log = get_logger(__name__)

# Looked up once: an enum's attributes are found by a search each time.
_SOLD_OUT = ErrorReason.ERROR_REASON_SOLD_OUT
#: Refusals that leave a request without anything: no unit, and no place in line.
_GOT_NOTHING = frozenset({_SOLD_OUT, ErrorReason.ERROR_REASON_WAITLIST_FULL})

_BUY = f"{purchase.DESCRIPTOR.services_by_name['PurchaseService'].full_name}/BatchCreatePurchases"
#: Of the span of a request.
_HTTP = {"http.request.method": "POST", "http.route": "/v1/sales/{sale_id}/purchases"}

#: How often requests that have waited too long are looked for, s.
_OVERDUE_CHECK_S = 0.05
#: A request waits at most so many times as long as promised before it is refused after all.
_OVERDUE_FACTOR = 2.0

#: What is told to whoever is shed.
OVERLOADED_WORDS = "more is waiting than can be answered in time; send the same request again after the delay"

Clock = Callable[[], float]


@dataclass(slots=True)
class _Buy:
    """One request that waits. ``mark`` is its fingerprint; ``stock`` what is known of its sale, if it is followed."""

    request: purchase.CreatePurchaseRequest
    stock: SaleStock | None
    mark: int
    queued_at: float
    #: When the request began to be looked at.
    began: float
    sent: bool = False

    @property
    def purchase_id(self) -> uuid.UUID:
        return purchase_id(self.request.user_id, self.request.sale_id, self.request.request_id)


class Buying:
    """The queue in front of the Purchase Service. ``clock`` is the loop's, seconds.

    A request is let in only while the queue is short enough for it to be answered in time, is looked at once more just
    before it is sent (the last unit may have gone while it waited; who would wait in line is sent all the same), and is
    refused if it has waited too long because the service stopped answering. What has been sent is never refused: its
    outcome is awaited up to the deadline.
    """

    def __init__(self, stub: "PurchaseServiceAsyncStub", settings: Settings, limit: QueueLimit, clock: Clock) -> None:
        self._stub = stub
        self._timeout_s = settings.purchase_timeout_ms / 1000
        self._overdue_s = settings.queue_wait_ms / 1000 * _OVERDUE_FACTOR
        self._clock = clock
        self.limit = limit
        self._batcher: Batcher[_Buy, purchase.CreatePurchaseOutcome] = Batcher(
            self._send,
            batch_max=settings.batch_max,
            in_flight_max=settings.in_flight_max,
            queue_max=settings.queue_max,
        )
        self._in_flight_max = settings.in_flight_max
        self._sent = 0
        self._waiting: deque[tuple[_Buy, asyncio.Future[purchase.CreatePurchaseOutcome]]] = deque()

    @property
    def queued(self) -> int:
        """Requests that wait to be sent."""
        return self._batcher.queued

    @property
    def in_flight(self) -> int:
        """Calls to the Purchase Service under way."""
        return self._batcher.in_flight

    @property
    def is_full(self) -> bool:
        """Whether more are on their way than can be answered in time."""
        return self._on_their_way >= self.limit.length_max

    def return_after_ms(self, now: float) -> int:
        """When somebody who is refused now should return, milliseconds."""
        return self.limit.return_after_ms(self._on_their_way, now)

    def check_room(self, now: float) -> None:
        """Raises OVERLOADED, with a time to return, when more wait than can be answered in time."""
        if self.is_full:
            raise self.overloaded(now)

    def overloaded(self, now: float) -> DomainError:
        """The refusal of a request that cannot be answered in time, with a time to return."""
        waiting = self._on_their_way
        return DomainError(
            ErrorReason.ERROR_REASON_OVERLOADED,
            OVERLOADED_WORDS,
            metadata={"queued": str(waiting)},
            retry_after_ms=self.return_after_ms(now),
        )

    @property
    def _on_their_way(self) -> int:
        """Requests that wait to be sent or have been sent, and are not answered yet."""
        return self._batcher.queued + self._sent

    async def buy(
        self, request: purchase.CreatePurchaseRequest, stock: SaleStock | None, mark: int, began: float
    ) -> purchase.CreatePurchaseOutcome:
        """Buys, together with others; the request came at ``began``. Raises OVERLOADED when there is no room, or it
        waited too long; that and UNAVAILABLE and DEADLINE_EXCEEDED leave the same request free to be sent again."""
        item = _Buy(request, stock, mark, self._clock(), began)
        future = self._batcher.enqueue(item)
        self._waiting.append((item, future))
        return await future

    async def _send(self, items: Sequence[_Buy]) -> list[purchase.CreatePurchaseOutcome]:
        """Sends what is not sold out by now; an outcome for every item, in order."""
        now = self._clock()
        self._sent += len(items)
        try:
            return await self._sent_on(items, now)
        finally:
            self._sent -= len(items)

    async def _sent_on(self, items: Sequence[_Buy], now: float) -> list[purchase.CreatePurchaseOutcome]:
        outcomes: list[purchase.CreatePurchaseOutcome | None] = []  # None: to be sent
        wanted: list[_Buy] = []
        for item in items:
            item.sent = True
            if (
                item.stock is not None
                and item.stock.is_surely_sold_out_for(item.mark, now)
                and not item.request.waitlist
            ):
                outcomes.append(purchase.CreatePurchaseOutcome(reason=_SOLD_OUT))
                continue
            outcomes.append(None)
            wanted.append(item)
        # Noted after all were looked at, so that the same request twice in one batch is answered twice alike.
        for item in wanted:
            if item.stock is not None:
                item.stock.note_sent(item.mark, now)
        answered = await self._call(wanted) if wanted else ()
        for item, outcome in zip(wanted, answered, strict=True):
            if item.stock is not None and outcome.reason in _GOT_NOTHING:
                item.stock.note_refused(item.mark)
        if wanted:
            # What was refused above cost nothing, and says nothing of what the service can do.
            ended = self._clock()
            # Where every call that may be under way is, others wait too, if only inside the service.
            others = self._sent - len(items) if self._batcher.in_flight >= self._in_flight_max else 0
            self.limit.answered(len(wanted), self._batcher.queued + others, ended, ended - now)
        answers = iter(answered)
        return [next(answers) if outcome is None else outcome for outcome in outcomes]

    async def _call(self, items: Sequence[_Buy]) -> Sequence[purchase.CreatePurchaseOutcome]:
        if not tracing.is_on():
            return await self._answered(items, ())
        now, ids = self._clock(), [item.purchase_id for item in items]
        ages = ((key, now - item.began) for key, item in zip(ids, items, strict=True))
        with tracing.requests("POST /v1/sales/{sale_id}/purchases", ages, _HTTP) as requests:
            outcomes = await self._answered(items, ids)
            if requests is not None:
                for key, outcome in zip(ids, outcomes, strict=True):
                    if outcome.reason:
                        requests.set(key, "flashsale.reason", reason_name(known_reason(outcome.reason)))
            return outcomes

    async def _answered(
        self, items: Sequence[_Buy], ids: Sequence[uuid.UUID]
    ) -> Sequence[purchase.CreatePurchaseOutcome]:
        request = purchase.BatchCreatePurchasesRequest(requests=[item.request for item in items])
        try:
            with tracing.calling(_BUY, ids) as calling:
                response = await self._stub.BatchCreatePurchases(
                    request, timeout=self._timeout_s, metadata=tracing.metadata_of(calling)
                )
        except grpc.aio.AioRpcError as rpc_error:
            error = from_rpc_error(rpc_error)
            who = named(item.purchase_id for item in items)
            log.warning("purchases not answered", purchases=len(items), purchase_ids=who, reason=error.reason_name)
            return [
                purchase.CreatePurchaseOutcome(reason=error.reason, retry_after_ms=error.retry_after_ms)  # type: ignore[arg-type]
            ] * len(items)
        if len(response.outcomes) != len(items):
            raise RuntimeError(f"{len(items)} purchases got {len(response.outcomes)} outcomes")
        return response.outcomes

    async def refuse_overdue(self) -> None:
        """Refuses what has waited too long, for ever; run in the background."""
        while True:
            await asyncio.sleep(_OVERDUE_CHECK_S)
            now = self._clock()
            while self._waiting:
                item, future = self._waiting[0]
                if not (item.sent or future.done()):
                    if now < item.queued_at + self._overdue_s:
                        break
                    future.set_exception(self.overloaded(now))
                    # Whoever asked may be gone by now.
                    future.exception()
                self._waiting.popleft()

    async def drain(self) -> None:
        """Waits until everything that was let in is answered."""
        await self._batcher.drain()
