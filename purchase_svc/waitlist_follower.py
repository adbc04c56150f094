"""Follows the waitlist: takes in what the Inventory Service has decided about purchases that wait in line.

Promoted: RESERVED, and queued for settlement. Left: CANCELLED. The sale closed: FAILED for SALE_CLOSED. The decision is
the Inventory Service's and stands whether or not anybody has heard of it; it is told again and again until it is
acknowledged, which comes last. So it may be taken in twice, by several processes at once, or broken off anywhere: what
is not queued then is found by the sweeper.
"""

import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC

from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as pb

from mesh import failpoints, tracing
from mesh.errors import DomainError
from mesh.logs import get_logger, named
from purchase_svc.abandoned import wish_of
from purchase_svc.purchase import PurchaseState
from purchase_svc.purchase_book import Terms
from purchase_svc.settlement_book import SettlementBook
from purchase_svc.settlement_publisher import SettlementPublisher
from purchase_svc.settlement_services import SettlementServices
from purchase_svc.sweep_book import SweepBook
from purchase_svc.waitlist_book import Turn, WaitlistBook

log = get_logger(__name__)

#: Outcomes asked for at once: the contract's bound.
_PAGE_SIZE = 1_000
_IDS_PER_MESSAGE = 250


def turn_of(entry: pb.WaitlistEntry) -> Turn:
    """What an outcome makes of the purchase that waited."""
    purchase_id = uuid.UUID(entry.reservation_id)
    if entry.state == pb.WAITLIST_STATE_PROMOTED:
        return Turn(purchase_id, PurchaseState.RESERVED)
    if entry.state == pb.WAITLIST_STATE_LEFT:
        return Turn(purchase_id, PurchaseState.CANCELLED)
    assert entry.state == pb.WAITLIST_STATE_CLOSED, entry.state
    return Turn(purchase_id, PurchaseState.FAILED, ErrorReason.ERROR_REASON_SALE_CLOSED)


class WaitlistFollower:
    """Takes in outcomes, the oldest first, up to a thousand at a time. Any number of them may run at once."""

    def __init__(
        self,
        book: WaitlistBook,
        sweep_book: SweepBook,
        settlement_book: SettlementBook,
        services: SettlementServices,
        publisher: SettlementPublisher,
        *,
        abandoned_after_s: float,
    ) -> None:
        self._book = book
        self._sweep_book = sweep_book
        self._settlement_book = settlement_book
        self._services = services
        self._publisher = publisher
        self._abandoned_after_s = abandoned_after_s

    async def follow(self) -> bool:
        """Takes in what there is; whether there was anything. Raises UNAVAILABLE; what was not done is told again."""
        entries = {uuid.UUID(each.reservation_id): each for each in await self._services.list_outcomes(_PAGE_SIZE)}
        if not entries:
            return False
        # Before anything else: a purchase that is recorded from here on is looked at next time.
        joined = {key: entry.join_time.ToDatetime(UTC) for key, entry in entries.items()}
        without = await self._sweep_book.list_joined_without_purchase(joined, age_s=self._abandoned_after_s)
        known = [key for key in entries if key not in without]
        if known:
            with tracing.spans("follow waitlist", known):
                promoted = await self._book.end_waiting([turn_of(entries[key]) for key in known])
                failpoints.hit("follower.taken_in")
                await self._queue(promoted)
            failpoints.hit("follower.queued")
            await self._services.acknowledge_outcomes(known)
            log.info("taken in from the waitlist", outcomes=len(known), promoted=len(promoted))
        await self._record([entries[key] for key, old in without.items() if old])
        return bool(known)

    async def _queue(self, promoted: Iterable[tuple[uuid.UUID, int]]) -> None:
        groups: dict[int, list[uuid.UUID]] = defaultdict(list)
        for purchase_id, partition in promoted:
            groups[partition].append(purchase_id)
        for partition, ids in groups.items():
            for start in range(0, len(ids), _IDS_PER_MESSAGE):
                some = ids[start : start + _IDS_PER_MESSAGE]
                try:
                    await self._publisher.publish(partition, some)
                    await self._settlement_book.mark_requeued(some)
                except DomainError as error:
                    log.warning(
                        "promoted, and left to the sweeper",
                        purchases=len(some),
                        purchase_ids=named(some),
                        reason=error.reason_name,
                    )

    async def _record(self, entries: Sequence[pb.WaitlistEntry]) -> None:
        """Records purchases that their buyers have left behind in line as FAILED for ABANDONED, with what they may have
        still to be given back. If one is recorded by its buyer meanwhile, that stands. They are acknowledged when they
        are seen the next time."""
        sales: dict[str, list[pb.WaitlistEntry]] = defaultdict(list)
        for entry in entries:
            sales[entry.sale_id].append(entry)
        for sale_id, some in sales.items():
            price = (await self._services.get_sale(sale_id)).unit_price
            wishes = [wish_of(entry) for entry in some]
            found = await self._sweep_book.insert_abandoned(wishes, Terms(price.amount_minor, price.currency_code))
            log.warning("outcomes without a purchase", purchases=found, sale_id=sale_id)
