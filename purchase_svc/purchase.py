"""A purchase: its states, the legal steps between them, and what makes two requests the same. No I/O.

What exists once per buyer is a NamedTuple: as immutable as a frozen dataclass, and made five times as fast.
"""

import uuid
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.identity import partition_of

#: Settlement partitions. Changing it moves users to other partitions while messages of theirs are under way.
PARTITIONS = 16
#: Most requests in one call, and most units of one request that are passed on: the contract's bounds.
REQUESTS_MAX = 1_000
QUANTITY_MAX = 1_000


class PurchaseState(StrEnum):
    """Where a purchase is in its life; the value is how SQL stores it and what the contract's enum ends in."""

    WAITLISTED = "WAITLISTED"
    RESERVED = "RESERVED"
    SETTLING = "SETTLING"
    CONFIRMED = "CONFIRMED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    PARKED = "PARKED"
    REFUNDING = "REFUNDING"
    REFUNDED = "REFUNDED"

    @property
    def final(self) -> bool:
        """Whether the purchase never changes again by itself: CONFIRMED does when its buyer asks for a refund."""
        return self in FINAL_STATES


_S = PurchaseState
FINAL_STATES = frozenset({_S.CONFIRMED, _S.FAILED, _S.CANCELLED, _S.REFUNDED})
#: States that somebody drives on: the sweeper, the waitlist follower or the refunder.
UNFINISHED_STATES = frozenset({_S.WAITLISTED, _S.RESERVED, _S.SETTLING, _S.REFUNDING})
#: States in which a purchase owns no shares and has cost nothing in the end, for good.
NON_WINS = frozenset({_S.FAILED, _S.CANCELLED, _S.REFUNDED})

#: Who waits in line is promoted, leaves, or fails because the sale is closed; whoever is cancelled there is never
#: promoted. A cancel wins only before a worker has claimed the purchase. SETTLING to itself is a worker that takes over
#: after a crash. PARKED is left by an operator: replayed, or failed once its hold is closed. A replay does not go back
#: to RESERVED, where a cancel could still win over money that a worker has captured.
_STEPS: dict[PurchaseState, frozenset[PurchaseState]] = {
    _S.WAITLISTED: frozenset({_S.RESERVED, _S.CANCELLED, _S.FAILED}),
    _S.RESERVED: frozenset({_S.SETTLING, _S.CANCELLED}),
    _S.SETTLING: frozenset({_S.SETTLING, _S.CONFIRMED, _S.FAILED, _S.PARKED}),
    _S.PARKED: frozenset({_S.SETTLING, _S.FAILED}),
    _S.CONFIRMED: frozenset({_S.REFUNDING}),
    _S.REFUNDING: frozenset({_S.REFUNDED}),
    _S.FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
    _S.REFUNDED: frozenset(),
}


def may_become(present: PurchaseState, following: PurchaseState) -> bool:
    """Whether the step is legal. Every conditional UPDATE of a purchase's state is one of these steps."""
    return following in _STEPS[present]


class Wish(NamedTuple):
    """What a buyer asks for. ``sale_id`` is canonical UUID text; ``purchase_id`` follows from the other three names."""

    purchase_id: uuid.UUID
    user_id: str
    sale_id: str
    request_id: str
    quantity: int
    #: Whether to wait in line if there are too few units; no part of what makes two requests the same.
    waitlist: bool = False

    @property
    def partition(self) -> int:
        """The settlement partition, 0 to 15, which depends on the user only."""
        return partition_of(self.user_id, PARTITIONS)


class Purchase(NamedTuple):
    """One purchase as its row holds it. Times are aware and by the database's clock."""

    purchase_id: uuid.UUID
    user_id: str
    sale_id: uuid.UUID
    request_id: str
    quantity: int
    #: What all units cost together, minor units.
    amount_minor: int
    currency_code: str
    partition: int
    state: PurchaseState
    #: ErrorReason of a FAILED or PARKED purchase, otherwise 0.
    reason: int
    #: Ascending; empty unless CONFIRMED, or REFUNDING: then they may be somebody else's already.
    share_numbers: tuple[int, ...]
    #: Times a worker has claimed it.
    attempts: int
    #: FAILED or CANCELLED, and its reservation or hold may still be open.
    cleanup_pending: bool
    create_time: datetime
    update_time: datetime

    def same_contents(self, wish: Wish) -> bool:
        """Whether ``wish``, which has this purchase's id, asks for the same as the request that made it.

        The id covers user, sale and request id; they are compared because it is no more than a hash of them.
        """
        return (self.quantity, self.user_id, str(self.sale_id), self.request_id) == (
            wish.quantity,
            wish.user_id,
            wish.sale_id,
            wish.request_id,
        )


class Place(NamedTuple):
    """A place in line as the contract tells it."""

    #: 1 for the next to be served; 0: it does not wait, or its place is not known.
    position: int = 0
    #: When its turn may come, seconds from now; 0 without a place.
    estimated_wait_s: int = 0


NO_PLACE = Place()


class Outcome(NamedTuple):
    """The answer to one wish: the purchase as it is now, or why there is none. Made by ``bought`` and ``refused``."""

    purchase_id: uuid.UUID
    #: ErrorReason; 0 when there is a purchase.
    reason: int = ErrorReason.ERROR_REASON_UNSPECIFIED
    purchase: Purchase | None = None
    #: Place in line, from 1 on; 0 when it does not wait or its place is not known.
    place: int = 0


def bought(purchase: Purchase, place: int = 0) -> Outcome:
    """The purchase is the answer, whatever its state; ``place`` counts only while it waits."""
    return Outcome(purchase.purchase_id, purchase=purchase, place=place if purchase.state is _S.WAITLISTED else 0)


def refused(wish: Wish, reason: int) -> Outcome:
    """There is no purchase, for this ErrorReason."""
    assert reason
    return Outcome(wish.purchase_id, reason)


def decided_by_row(wish: Wish, row: Purchase, place: int = 0) -> Outcome:
    """The answer when a purchase of this id exists, whatever anybody else says: a winner is never told it lost."""
    if not row.same_contents(wish):
        return refused(wish, ErrorReason.ERROR_REASON_REQUEST_ID_REUSED)
    return bought(row, place)
