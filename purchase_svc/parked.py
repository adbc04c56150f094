"""How an operator ends parked purchases: by another round of attempts, or as FAILED with nothing left behind.

A purchase may fail only when its money can never be taken any more. Its hold is therefore closed first, and for good: a
hold that is RELEASED, EXPIRED, REFUSED or REVERSED stays so, whatever a worker that was held up with an old batch still
sends. A hold that does not exist is no such end, because that worker could still place it. So it is placed here, at the
common pace, and released at once, which leaves a row by which the Balance Service refuses everything later.
"""

import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.errors import DomainError, reason_name
from purchase_svc.pacing import TokenBucket
from purchase_svc.parked_book import ParkedBook
from purchase_svc.purchase import Purchase, PurchaseState
from purchase_svc.purchase_book import PurchaseBook
from purchase_svc.settlement_book import SettlementBook
from purchase_svc.settlement_publisher import SettlementPublisher
from purchase_svc.settlement_rules import Answer, Claimed
from purchase_svc.settlement_services import Answers, SettlementServices

#: What became of each purchase: empty when it was done as asked, otherwise why not.
Verdicts = dict[uuid.UUID, str]


def why_not_parked(purchase: Purchase | None) -> str:
    """Why a purchase is not the operator's to end; empty when it is PARKED."""
    if purchase is None:
        return "there is no such purchase"
    return "" if purchase.state is PurchaseState.PARKED else f"it is {purchase.state}, not PARKED"


def why_open(release: Answer) -> str:
    """Why a hold may still cost its owner money, by the answer to its release; empty when it never will."""
    if release.known and release.reason == ErrorReason.ERROR_REASON_HOLD_CAPTURED:
        return "its money was captured: replay it, which confirms it"
    closed = release.done or (release.known and release.reason == ErrorReason.ERROR_REASON_HOLD_REVERSED)
    return "" if closed else f"its hold could not be released: {reason_name(release.reason)}"


def _never_placed(release: Answer) -> bool:
    return release.known and release.reason == ErrorReason.ERROR_REASON_HOLD_NOT_FOUND


async def replay_parked(
    parked: ParkedBook, settlement: SettlementBook, publisher: SettlementPublisher, ids: Sequence[uuid.UUID]
) -> tuple[set[uuid.UUID], bool]:
    """Lets workers try these again, as if never tried; those of them that were PARKED, and whether all of those are
    queued: what is not, the sweeper queues. Raises UNAVAILABLE when PostgreSQL is away."""
    replayed = await parked.replay(ids)
    groups: dict[int, list[uuid.UUID]] = defaultdict(list)
    for purchase_id, partition in replayed.items():
        groups[partition].append(purchase_id)
    for partition, some in groups.items():
        try:
            await publisher.publish(partition, some)
            await settlement.mark_requeued(some)
        except DomainError:
            return set(replayed), False
    return set(replayed), True


class ParkedPurchases:
    """Ends parked purchases. May run beside the workers and beside itself; all is repeatable.

    Every method raises UNAVAILABLE when PostgreSQL is away; what was begun is finished by repeating it.
    """

    def __init__(
        self,
        parked: ParkedBook,
        purchases: PurchaseBook,
        settlement: SettlementBook,
        services: SettlementServices,
        bucket: TokenBucket,
    ) -> None:
        self._parked = parked
        self._purchases = purchases
        self._settlement = settlement
        self._services = services
        self._bucket = bucket

    async def replay(self, ids: Sequence[uuid.UUID], publisher: SettlementPublisher) -> tuple[Verdicts, bool]:
        """Lets workers try again, as if never tried. Also whether all is queued: what is not, the sweeper queues."""
        replayed, queued = await replay_parked(self._parked, self._settlement, publisher, ids)
        verdicts = dict.fromkeys(replayed, "") | await self._not_parked(set(ids).difference(replayed))
        return verdicts, queued

    async def fail(self, ids: Sequence[uuid.UUID]) -> Verdicts:
        """Ends up to ``pace.batch_max`` purchases as FAILED: hold closed, then units given back, then the state."""
        rows = await self._purchases.get_many(ids)
        verdicts = {each: why_not_parked(rows.get(each)) for each in ids}
        parked = [rows[each] for each in ids if not verdicts[each]]
        holds = await self._close_holds(parked)
        verdicts |= {each: why_open(answer) for each, answer in holds.items()}
        closed = [each for each in holds if not verdicts[each]]
        # Shares that an earlier try was given go back too: no money will ever be taken for them.
        units = await self._services.release_reservations(closed, revoke_sold=True)
        for each, answer in units.items():
            if not answer.nothing_reserved:
                verdicts[each] = f"its units could not be given back: {reason_name(answer.reason)}"
        free = [each for each in closed if not verdicts[each]]
        failed = await self._parked.fail(free)
        for each in set(free).difference(failed):
            verdicts[each] = "it was replayed or failed meanwhile; its hold is closed, so it ends as FAILED"
        return verdicts

    async def _close_holds(self, purchases: Sequence[Purchase]) -> Answers:
        """The last answer to the release of each purchase's hold."""
        answers = await self._services.release_holds([each.purchase_id for each in purchases])
        never_placed = [each for each in purchases if _never_placed(answers[each.purchase_id])]
        if never_placed:
            async with self._bucket.turn(len(never_placed)):
                placed = await self._services.place_holds([_claimed(each) for each in never_placed])
            released = await self._services.release_holds(list(placed))
            # Where there is still no hold, what counts is why it could not be placed.
            answers |= {
                each: replace(placed[each], known=False) if _never_placed(answer) else answer
                for each, answer in released.items()
            }
        return answers

    async def _not_parked(self, ids: Iterable[uuid.UUID]) -> Verdicts:
        ids = list(ids)
        rows = await self._purchases.get_many(ids)
        # One that is PARKED by now was parked a moment ago, by a worker that had it.
        return {each: why_not_parked(rows.get(each)) or "it was parked just now: try again" for each in ids}


def _claimed(purchase: Purchase) -> Claimed:
    """The purchase as a hold is asked for; nothing is claimed."""
    return Claimed(
        purchase.purchase_id,
        purchase.user_id,
        purchase.sale_id,
        purchase.quantity,
        purchase.amount_minor,
        purchase.currency_code,
        purchase.partition,
        purchase.attempts,
    )
