"""Drives what is unfinished to its end, whatever has broken off: one sweeper at a time over all workers.

A message is published again only for a purchase that is in no queue any more, so that a long queue is never flooded:

- never known to be queued, and older than ``unqueued_after``; or
- without a sign of life (queued or claimed) for ``stale_after``, and either overtaken in its partition, whose queue is
  first in, first out, by a purchase queued that much later, or in a partition that has been silent for as long (nothing
  claimed, no worker with messages of it in hand) and in whose queue no message waits.

A needless message does no harm: what is final is skipped when it is claimed. PARKED is left alone, and so is whoever
waits in line: the waitlist follower drives those on.
"""

import asyncio
import contextlib
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mesh import failpoints, tracing
from mesh.errors import DomainError, reason_name
from mesh.logs import get_logger, named
from purchase_svc.abandoned import AbandonedSearch
from purchase_svc.settlement_book import SettlementBook
from purchase_svc.settlement_publisher import SettlementPublisher
from purchase_svc.settlement_services import SettlementServices
from purchase_svc.sweep_book import SweepBook

log = get_logger(__name__)

#: Purchases queued again, and cleaned up, in one sweep.
_QUEUED_MAX = 5_000
_CLEANUPS_MAX = 500
_IDS_PER_MESSAGE = 250
#: Pages of a thousand reservations looked at in one sweep.
_PAGES_MAX = 5
#: Time that the process that ended a purchase has to clean up by itself, seconds.
_CLEANUP_AGE_S = 2.0
_LEASE_S = 10.0
#: A sweep may use one part in so many of the time, so that it never weighs on a sale with a long queue; more while it
#: finds something, so that what is to be sold again soon is.
_SHARE, _SHARE_FOUND = 10, 3
_PAUSE_MAX_S = 5.0


@dataclass(frozen=True, slots=True)
class SweepTimes:
    """When something counts as left behind, seconds."""

    interval_s: float
    unqueued_after_s: float
    stale_after_s: float


class Broker(Protocol):
    """What the sweeper asks about the queues."""

    def partitions_in_hand(self) -> list[int]:
        """Partitions of which this process has messages that are not acked yet."""

    async def ready_messages(self, partitions: Sequence[int]) -> dict[int, int]:
        """Messages that wait in the partitions' queues and are given to nobody. Raises UNAVAILABLE."""


class Sweeper:
    """Sweeps at every ``interval_s`` until stopped, at once for the first time."""

    def __init__(
        self,
        book: SettlementBook,
        sweep_book: SweepBook,
        services: SettlementServices,
        publisher: SettlementPublisher,
        abandoned: AbandonedSearch,
        broker: Broker,
        times: SweepTimes,
    ) -> None:
        self._book = book
        self._sweep_book = sweep_book
        self._services = services
        self._publisher = publisher
        self._abandoned = abandoned
        self._broker = broker
        self._times = times
        self._stopping = asyncio.Event()
        #: Whether the last sweep had anything to do, and whether it has recorded purchases as ABANDONED itself.
        self._found = self._recorded = False

    def stop(self) -> None:
        """Ends ``run`` after the sweep under way."""
        self._stopping.set()

    async def run(self) -> None:
        """Sweeps until stopped, whenever no other process does."""
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            begun = loop.time()
            await self._guard("busy", self._note_busy)
            await self._guard("lease", self._sweep_if_it_is_us)
            share = _SHARE_FOUND if self._found else _SHARE
            pause_s = min(_PAUSE_MAX_S, max(self._times.interval_s, share * (loop.time() - begun)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
        await self._guard("lease", self._sweep_book.lease.give_back)

    async def _note_busy(self) -> None:
        partitions = self._broker.partitions_in_hand()
        if partitions:
            await self._sweep_book.note_busy(partitions)

    async def _sweep_if_it_is_us(self) -> None:
        if await self._sweep_book.lease.take(_LEASE_S):
            await self.sweep()

    async def sweep(self) -> None:
        """One sweep. What cannot be done now is left to the next."""
        self._found = self._recorded = False
        await self._guard("unqueued", self._queue_unqueued)
        await self._guard("lost", self._queue_lost)
        await self._guard("abandoned", self._record_abandoned)
        await self._guard("cleanup", self._clean_up)

    async def _guard(self, part: str, work: Callable[[], Awaitable[None]]) -> None:
        """One part failing, because something is away, leaves the others to be done."""
        try:
            await work()
        except DomainError as error:
            log.warning("a sweep is left to the next", part=part, reason=error.reason_name)

    async def _queue_unqueued(self) -> None:
        found = await self._sweep_book.list_unqueued(age_s=self._times.unqueued_after_s, limit=_QUEUED_MAX)
        await self._queue(found, "never queued")

    async def _queue_lost(self) -> None:
        stale_s = self._times.stale_after_s
        silent = await self._sweep_book.list_silent_partitions(stale_s=stale_s)
        ready = await self._broker.ready_messages(silent) if silent else {}
        empty = [partition for partition in silent if ready[partition] == 0]
        found = await self._sweep_book.list_lost(stale_s=stale_s, empty_partitions=empty, limit=_QUEUED_MAX)
        await self._queue(found, "lost by the broker")

    async def _queue(self, found: Iterable[tuple[uuid.UUID, int]], why: str) -> None:
        groups: dict[int, list[uuid.UUID]] = defaultdict(list)
        for purchase_id, partition in found:
            self._found = True
            groups[partition].append(purchase_id)
        for partition, ids in groups.items():
            for start in range(0, len(ids), _IDS_PER_MESSAGE):
                some = ids[start : start + _IDS_PER_MESSAGE]
                await self._publisher.publish(partition, some)
                failpoints.hit("sweeper.published")
                await self._book.mark_requeued(some)
                log.warning(
                    "queued by the sweeper",
                    purchases=len(some),
                    purchase_ids=named(some),
                    partition=partition,
                    why=why,
                )

    async def _record_abandoned(self) -> None:
        found = await self._abandoned.search(_PAGES_MAX)
        if found:
            self._found = self._recorded = True
            failpoints.hit("sweeper.recorded")
            log.warning("reservations without a purchase", purchases=found)

    async def _clean_up(self) -> None:
        """Gives back what FAILED and CANCELLED purchases may still have: the hold first, then the units.

        Such a purchase was never claimed, so its units cannot be sold: one that is captured or sold after all is left
        as it is and shouted about.
        """
        # What this sweep has ended itself, nobody else cleans up.
        age_s = 0.0 if self._recorded else _CLEANUP_AGE_S
        ids = await self._sweep_book.list_cleanups(age_s=age_s, limit=_CLEANUPS_MAX)
        if not ids:
            return
        self._found = True
        with tracing.spans("clean up", ids):
            await self._give_back(ids)

    async def _give_back(self, ids: Sequence[uuid.UUID]) -> None:
        holds = await self._services.release_holds(ids)
        failpoints.hit("sweeper.unheld")
        free = [key for key, answer in holds.items() if answer.nothing_held]
        units = await self._services.release_reservations(free, revoke_sold=False)
        clean = [key for key, answer in units.items() if answer.nothing_reserved]
        failpoints.hit("sweeper.released")
        await self._sweep_book.finish_cleanups(clean)
        left = set(ids).difference(clean)
        for key in left:
            answer = units.get(key) or holds[key]
            if answer.known:
                log.error("cannot be cleaned up", purchase_id=str(key), reason=reason_name(answer.reason))
        if left:
            await self._sweep_book.postpone_cleanups(list(left))
        log.info("cleaned up", purchases=len(clean), left=len(left))
