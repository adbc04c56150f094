"""A lane: takes the messages of some partitions, and settles their purchases in batches, one batch at a time."""

import asyncio
import uuid
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial

from mesh import failpoints, tracing
from mesh.errors import DomainError
from mesh.logs import get_logger, named
from purchase_svc.dead_letter import UNKNOWN_PURCHASE, put_aside
from purchase_svc.settlement import Settlement
from purchase_svc.settlement_book import SettlementBook
from purchase_svc.settlement_publisher import SettlementPublisher
from purchase_svc.settlement_queue import IDS_MAX, MESSAGE_TYPE, encode
from purchase_svc.settlement_rules import Retry

log = get_logger(__name__)

#: Pauses after a batch that failed as a whole, seconds: the shortest, doubled up to the longest.
_PAUSE_MIN_S, _PAUSE_MAX_S = 1.0, 5.0


class Delivery:
    """A message given to this worker, with those of its purchases that are not settled yet."""

    def __init__(
        self,
        partition: int,
        ids: Iterable[uuid.UUID],
        ack: Callable[[], Awaitable[None]],
        traced: tracing.Parents | None = None,
    ) -> None:
        self.partition = partition
        #: The spans in which traced purchases of it were published.
        self.traced = traced or {}
        #: Purchases that no batch has taken yet.
        self.waiting = deque(ids)
        self._open = len(self.waiting)
        self._ack = ack

    async def settled(self, purchases: int) -> None:
        """Notes that so many purchases need this message no more; acks it after the last."""
        self._open -= purchases
        assert self._open >= 0
        if self._open == 0:
            await self._ack()


class Lane:
    """Settles what ``add`` gives it, taking turns between its partitions, so that none waits behind another's queue.

    What a lane holds is bounded by the consumer's prefetch.
    """

    def __init__(self, settlement: Settlement, book: SettlementBook, publisher: SettlementPublisher) -> None:
        self._settlement = settlement
        self._book = book
        self._publisher = publisher
        self._deliveries: dict[int, deque[Delivery]] = {}
        self._batch: dict[uuid.UUID, list[Delivery]] = {}
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()

    @property
    def partitions(self) -> set[int]:
        """Partitions whose messages are in hand."""
        return {*self._deliveries, *(each.partition for carried in self._batch.values() for each in carried)}

    def add(self, delivery: Delivery) -> None:
        """Takes a message over."""
        self._deliveries.setdefault(delivery.partition, deque()).append(delivery)
        self._wake.set()

    def stop(self) -> None:
        """Ends ``run`` after the batch under way. What is not settled stays unacked and is delivered again."""
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Settles until stopped."""
        pause_s = _PAUSE_MIN_S
        while True:
            await self._wake.wait()
            if self._stopping.is_set():
                return
            self._batch = self._next_batch()
            if not self._batch:
                self._wake.clear()
                continue
            with tracing.under(_traced(self._batch)), tracing.consuming("settle", self._batch):
                settled = await self._settle(self._batch)
            if settled:
                pause_s = _PAUSE_MIN_S
            else:
                # Whoever is away is away for the next batch too; going on would only use up attempts.
                await self._pause(pause_s)
                pause_s = min(_PAUSE_MAX_S, 2 * pause_s)

    def _next_batch(self) -> dict[uuid.UUID, list[Delivery]]:
        """Up to a batch of purchases, each with the messages that carry it, from the partitions in turn."""
        batch: dict[uuid.UUID, list[Delivery]] = {}
        for partition in list(self._deliveries):
            # Whoever gives now is the last to be asked next time.
            deliveries = self._deliveries.pop(partition)
            while deliveries and len(batch) < self._settlement.batch_max:
                delivery = deliveries[0]
                batch.setdefault(delivery.waiting.popleft(), []).append(delivery)
                if not delivery.waiting:
                    deliveries.popleft()
            if deliveries:
                self._deliveries[partition] = deliveries
            if len(batch) >= self._settlement.batch_max:
                break
        return batch

    async def _settle(self, batch: dict[uuid.UUID, list[Delivery]]) -> bool:
        """Settles a batch to where its messages may be acked; false when everything in it must be tried again."""
        pause_s = _PAUSE_MIN_S
        while True:
            try:
                settled = await self._settlement.settle(list(batch))
                break
            except DomainError as error:
                log.warning("a batch waits", purchases=len(batch), purchase_ids=named(batch), reason=error.reason_name)
            if not await self._pause(pause_s):
                return True
            pause_s = min(_PAUSE_MAX_S, 2 * pause_s)
        if not await self._requeue(settled.retries) or not await self._put_aside(settled.missing, batch):
            return True
        counts: dict[Delivery, int] = defaultdict(int)
        for deliveries in batch.values():
            for delivery in deliveries:
                counts[delivery] += 1
        for delivery, purchases in counts.items():
            await delivery.settled(purchases)
        return not settled.retries or bool(settled.endings)

    async def _requeue(self, retries: Iterable[Retry]) -> bool:
        """Publishes what is to be tried again, until the broker has confirmed it; false when stopped before."""
        groups: dict[tuple[int, int], list[uuid.UUID]] = defaultdict(list)
        for retry in retries:
            groups[retry.partition, retry.delay_s].append(retry.purchase_id)
        for (partition, delay_s), ids in groups.items():
            assert len(ids) <= IDS_MAX
            publish = partial(self._publisher.publish_retry, partition, ids, delay_s)
            if not await self._until_confirmed(publish, "retries wait", ids):
                return False
            failpoints.hit("settlement.requeued")
            await self._note_requeued(ids, delay_s)
        return True

    async def _put_aside(self, missing: Iterable[uuid.UUID], batch: dict[uuid.UUID, list[Delivery]]) -> bool:
        """Makes dead letters of ids without a purchase, until the broker has confirmed; false when stopped before."""
        groups: dict[int, list[uuid.UUID]] = defaultdict(list)
        for purchase_id in missing:
            groups[batch[purchase_id][0].partition].append(purchase_id)
        for partition, ids in groups.items():
            body = encode(partition, ids)
            letter = put_aside(body, UNKNOWN_PURCHASE, partition, datetime.now(UTC), kind=MESSAGE_TYPE)
            publish = partial(self._publisher.put_aside, letter)
            if not await self._until_confirmed(publish, "a dead letter waits", ids):
                return False
        return True

    async def _until_confirmed(
        self, publish: Callable[[], Awaitable[None]], waiting: str, ids: Sequence[uuid.UUID]
    ) -> bool:
        """Publishes again and again until the broker has confirmed; false when stopped before."""
        while True:
            try:
                await publish()
            except DomainError as error:
                log.warning(waiting, purchases=len(ids), purchase_ids=named(ids), reason=error.reason_name)
            else:
                return True
            if not await self._pause(_PAUSE_MIN_S):
                return False

    async def _note_requeued(self, ids: list[uuid.UUID], delay_s: int) -> None:
        try:
            await self._book.mark_requeued(ids, delay_s)
        except DomainError as error:
            # At worst the sweeper queues them a second time.
            log.warning(
                "retries could not be noted", purchases=len(ids), purchase_ids=named(ids), reason=error.reason_name
            )

    async def _pause(self, seconds: float) -> bool:
        """Waits; false at once when the lane is to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return True
        return False


def _traced(batch: dict[uuid.UUID, list[Delivery]]) -> tracing.Parents:
    """The spans in which traced purchases of a batch were published last."""
    if not tracing.is_on():
        return {}
    return {
        trace_id: delivery.traced[trace_id]
        for trace_id, deliveries in ((tracing.trace_id_of(key), each) for key, each in batch.items())
        for delivery in deliveries
        if trace_id in delivery.traced
    }
