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

    RESERVED = "RESERVED"
    SETTLING = "SETTLING"
    CONFIRMED = "CONFIRMED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    PARKED = "PARKED"

    @property
    def final(self) -> bool:
        """Whether the purchase never changes again."""
        return self in FINAL_STATES


FINAL_STATES = frozenset({PurchaseState.CONFIRMED, PurchaseState.FAILED, PurchaseState.CANCELLED})
#: States that the sweeper drives on.
UNFINISHED_STATES = frozenset({PurchaseState.RESERVED, PurchaseState.SETTLING})

_S = PurchaseState
#: A cancel wins only before a worker has claimed the purchase. SETTLING to itself is a worker that takes over after a
#: crash. PARKED is left by an operator: replayed, or failed once its hold is closed. A replay does not go back to
#: RESERVED, where a cancel could still win over money that a worker has captured.
_STEPS: dict[PurchaseState, frozenset[PurchaseState]] = {
    _S.RESERVED: frozenset({_S.SETTLING, _S.CANCELLED}),
    _S.SETTLING: frozenset({_S.SETTLING, _S.CONFIRMED, _S.FAILED, _S.PARKED}),
    _S.PARKED: frozenset({_S.SETTLING, _S.FAILED}),
    _S.CONFIRMED: frozenset(),
    _S.FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
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
    #: Ascending; empty unless CONFIRMED.
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


class Outcome(NamedTuple):
    """The answer to one wish: the purchase as it is now, or why there is none. Made by ``bought`` and ``refused``."""

    purchase_id: uuid.UUID
    #: ErrorReason; 0 when there is a purchase.
    reason: int = ErrorReason.ERROR_REASON_UNSPECIFIED
    purchase: Purchase | None = None


def bought(purchase: Purchase) -> Outcome:
    """The purchase is the answer, whatever its state."""
    return Outcome(purchase.purchase_id, purchase=purchase)


def refused(wish: Wish, reason: int) -> Outcome:
    """There is no purchase, for this ErrorReason."""
    assert reason
    return Outcome(wish.purchase_id, reason)


def decided_by_row(wish: Wish, row: Purchase) -> Outcome:
    """The answer when a purchase of this id exists, whatever anybody else says: a winner is never told it lost."""
    if not row.same_contents(wish):
        return refused(wish, ErrorReason.ERROR_REASON_REQUEST_ID_REUSED)
    return bought(row)
