"""Queues purchases for settlement right after they are committed, without making the buyer wait for RabbitMQ."""

import asyncio
import uuid
from collections.abc import Iterable

from mesh import failpoints
from mesh.errors import DomainError
from mesh.logs import get_logger
from purchase_svc.purchase import PARTITIONS, Purchase
from purchase_svc.purchase_book import PurchaseBook
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
    which finds it by its missing queue time. ``run`` must be running for anything to happen.
    """

    def __init__(self, book: PurchaseBook, publisher: SettlementPublisher, *, unqueued_max: int) -> None:
        self._book = book
        self._publisher = publisher
        self._unqueued_max = unqueued_max
        self._busy = False
        self._waiting: dict[int, list[uuid.UUID]] = {}
        self._waiting_count = 0
        self._left_out = 0
        self._wake = asyncio.Event()
        self._ending = False

    @property
    def waiting(self) -> int:
        """Purchases that wait to be published."""
        return self._waiting_count

    def add(self, purchases: Iterable[Purchase]) -> None:
        """Takes committed purchases over. Never waits and never fails."""
        for purchase in purchases:
            if self._waiting_count >= self._unqueued_max:
                self._left_out += 1
                continue
            self._waiting.setdefault(purchase.partition, []).append(purchase.purchase_id)
            self._waiting_count += 1
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
        taken, self._waiting, self._waiting_count = self._waiting, {}, 0
        if self._left_out:
            log.warning("purchases left to the sweeper", purchases=self._left_out)
            self._left_out = 0
        messages = [
            (partition, ids[start : start + _IDS_PER_MESSAGE])
            for partition, ids in taken.items()
            for start in range(0, len(ids), _IDS_PER_MESSAGE)
        ]
        if not messages:
            return
        failpoints.hit("purchase.publishing")
        confirmed = await asyncio.gather(*(self._publish(partition, ids) for partition, ids in messages))
        queued = [each for ids in confirmed for each in ids]
        failpoints.hit("purchase.published")
        missing = sum(len(ids) for _, ids in messages) - len(queued)
        if missing:
            log.warning("the message broker is away, purchases left to the sweeper", purchases=missing)
        for start in range(0, len(queued), _IDS_PER_NOTE):
            await self._note(queued[start : start + _IDS_PER_NOTE])

    async def _note(self, queued: list[uuid.UUID]) -> None:
        try:
            await self._book.mark_queued(queued)
        except DomainError as error:
            # The sweeper publishes them once more, which does no harm.
            log.warning("queued purchases could not be noted", purchases=len(queued), reason=error.reason_name)

    async def _publish(self, partition: int, ids: list[uuid.UUID]) -> list[uuid.UUID]:
        try:
            await self._publisher.publish(partition, ids)
        except DomainError:
            return []
        return ids
