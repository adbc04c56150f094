"""Queues purchases for settlement right after they are committed, without making the buyer wait for RabbitMQ."""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Iterable

from mesh import failpoints, tracing
from mesh.errors import DomainError
from mesh.logs import get_logger, named
from purchase_svc.purchase import PARTITIONS
from purchase_svc.purchase_book import Inserted, PurchaseBook
from purchase_svc.settlement_publisher import SettlementPublisher

log = get_logger(__name__)

#: Purchases in one message. Half of what a message may carry: a worker's batch is smaller still.
_IDS_PER_MESSAGE = 250
#: How long purchases are gathered, seconds, and how many at once count as a rush: a few for each partition.
_LINGER_S, _LINGER_BUSY_S, _BUSY_MIN = 0.01, 0.1, 4 * PARTITIONS
#: Purchases noted as queued in one statement.
_IDS_PER_NOTE = 5_000
#: Longest that the last purchases get to be published when the process ends.
_END_TIMEOUT_S = 3.0


class QueueWriter:
    """Gathers purchases for a moment, publishes them by partition, and notes in SQL what the broker confirmed.

    The moment is 10 ms, and 100 ms while many come: a message costs the same whether it carries 5 purchases or 100, and
    in a rush settlement is far behind anyway.
    At most ``unqueued_max`` purchases are kept. What does not fit, or could not be published, is left to the sweeper,
    which finds it by its missing note. A batch of which everything is queued is noted as such, else its purchases are
    one by one. ``run`` must be running for anything to happen.
    """

    def __init__(self, book: PurchaseBook, publisher: SettlementPublisher, *, unqueued_max: int) -> None:
        self._book = book
        self._publisher = publisher
        self._unqueued_max = unqueued_max
        self._busy = False
        self._waiting: list[Inserted] = []
        self._waiting_count = 0
        #: The spans under which traced purchases of theirs were bought.
        self._traced: dict[int, int] = {}
        self._left_out = 0
        self._wake = asyncio.Event()
        self._ending = False

    @property
    def waiting(self) -> int:
        """Purchases that wait to be published."""
        return self._waiting_count

    def add(self, batch: Inserted) -> None:
        """Takes committed purchases over. Never waits and never fails."""
        if self._waiting_count + len(batch.purchases) > self._unqueued_max:
            self._left_out += len(batch.purchases)
        elif batch.purchases:
            self._waiting.append(batch)
            self._waiting_count += len(batch.purchases)
            if tracing.is_on():
                self._traced.update(tracing.open_spans(batch.purchases))
        self._wake.set()

    async def run(self) -> None:
        """Publishes what comes until ``end`` is called."""
        while not (self._ending and self._waiting_count == 0):
            await self._wake.wait()
            if not self._ending:
                await asyncio.sleep(_LINGER_BUSY_S if self._busy else _LINGER_S)
            self._wake.clear()
            await self._write_all()
            if self._ending:
                self._wake.set()

    async def end(self, running: "asyncio.Task[None]") -> None:
        """Lets ``running``, the task of ``run``, publish what is left, for at most 3 seconds, and stops it."""
        self._ending = True
        self._wake.set()
        _, late = await asyncio.wait([running], timeout=_END_TIMEOUT_S)
        if late:
            log.warning("purchases left to the sweeper", purchases=self._waiting_count)
            running.cancel()
            await asyncio.wait([running])

    async def _write_all(self) -> None:
        self._busy = self._waiting_count > _BUSY_MIN
        batches, self._waiting, self._waiting_count = self._waiting, [], 0
        traced, self._traced = self._traced, {}
        if self._left_out:
            log.warning("purchases left to the sweeper", purchases=self._left_out)
            self._left_out = 0
        if not batches:
            return
        failpoints.hit("purchase.publishing")
        with tracing.under(traced):
            queued = await self._publish_all(batches)
        failpoints.hit("purchase.published")
        whole = [batch.batch_id for batch in batches if queued.issuperset(batch.purchases)]
        await self._note(self._book.mark_batches_queued(whole), len(whole))
        missing = sum(len(batch.purchases) for batch in batches) - len(queued)
        if missing:
            left = (each for batch in batches for each in batch.purchases if each not in queued)
            log.warning(
                "the message broker is away, purchases left to the sweeper", purchases=missing, purchase_ids=named(left)
            )
            noted = set(whole)
            rest = [
                each for batch in batches if batch.batch_id not in noted for each in queued & batch.purchases.keys()
            ]
            for start in range(0, len(rest), _IDS_PER_NOTE):
                await self._note(self._book.mark_queued(rest[start : start + _IDS_PER_NOTE]), len(rest))

    async def _publish_all(self, batches: Iterable[Inserted]) -> set[uuid.UUID]:
        """Publishes the batches' purchases by partition; those that the broker has confirmed."""
        by_partition: defaultdict[int, list[uuid.UUID]] = defaultdict(list)
        for batch in batches:
            for purchase in batch.purchases.values():
                by_partition[purchase.partition].append(purchase.purchase_id)
        messages = [
            (partition, ids[start : start + _IDS_PER_MESSAGE])
            for partition, ids in by_partition.items()
            for start in range(0, len(ids), _IDS_PER_MESSAGE)
        ]
        confirmed = await asyncio.gather(*(self._publish(partition, ids) for partition, ids in messages))
        return {each for ids in confirmed for each in ids}

    async def _note(self, noting: Awaitable[None], count: int) -> None:
        try:
            await noting
        except DomainError as error:
            # The sweeper publishes them once more, which does no harm.
            log.warning("queued purchases could not be noted", count=count, reason=error.reason_name)

    async def _publish(self, partition: int, ids: list[uuid.UUID]) -> list[uuid.UUID]:
        try:
            await self._publisher.publish(partition, ids)
        except DomainError:
            return []
        return ids
