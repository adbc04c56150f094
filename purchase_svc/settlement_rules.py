"""What a settlement worker decides, from what inventory and balance have answered. No I/O.

A decision belongs to its owner and is remembered there: balance never changes its mind about a hold that is refused,
released, expired or reversed, and inventory never about a reservation that is released. So several workers with the
same purchase reach the same end. Any other refusal, and every call without an answer, is an unknown outcome: nothing
is given back, and the purchase is tried again.
"""

import uuid
from dataclasses import dataclass

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from purchase_svc.purchase import PurchaseState

_R = ErrorReason
DONE = _R.ERROR_REASON_UNSPECIFIED

#: Answers to placing or capturing a hold after which its money is never taken, or has been given back in full.
_NO_MONEY = frozenset(
    {
        _R.ERROR_REASON_INSUFFICIENT_FUNDS,
        _R.ERROR_REASON_ACCOUNT_NOT_FOUND,
        _R.ERROR_REASON_HOLD_REFUSED,
        _R.ERROR_REASON_HOLD_RELEASED,
        _R.ERROR_REASON_HOLD_EXPIRED,
        _R.ERROR_REASON_HOLD_REVERSED,
    }
)
#: Answers to a confirm after which there are no shares and never will be.
_NO_SHARES = frozenset({_R.ERROR_REASON_RESERVATION_RELEASED, _R.ERROR_REASON_RESERVATION_NOT_FOUND})
#: Answers to a release of a hold that say that nothing is held and nothing was kept. HOLD_CAPTURED is not among them.
_NOTHING_HELD = frozenset({DONE, _R.ERROR_REASON_HOLD_NOT_FOUND, _R.ERROR_REASON_HOLD_REVERSED})
#: Answers to a release of a reservation that say that no units are set aside. RESERVATION_SOLD is not among them.
_NOTHING_RESERVED = frozenset({DONE, _R.ERROR_REASON_RESERVATION_NOT_FOUND})

#: Delay of the next try by attempts made, seconds; beyond the end the last.
_RETRY_DELAYS_S = (1, 1, 5, 5, 5, 30)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A purchase that this worker has claimed, with what settling it needs."""

    purchase_id: uuid.UUID
    user_id: str
    sale_id: uuid.UUID
    quantity: int
    amount_minor: int
    currency_code: str
    partition: int
    #: Claims so far, this one included.
    attempts: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the owner of a decision said about one purchase."""

    #: ErrorReason; UNSPECIFIED when done.
    reason: int
    #: False when the call as a whole failed, so that nobody knows what became of the purchase.
    known: bool = True
    #: Of a confirm: the numbers of the shares, ascending.
    share_numbers: tuple[int, ...] = ()

    @property
    def done(self) -> bool:
        """Whether what was asked for is so, now or since earlier."""
        return self.known and self.reason == DONE

    @property
    def no_money(self) -> bool:
        """Of a place or capture: no money is taken, for good."""
        return self.known and self.reason in _NO_MONEY

    @property
    def no_shares(self) -> bool:
        """Of a confirm: no shares, for good."""
        return self.known and self.reason in _NO_SHARES

    @property
    def nothing_held(self) -> bool:
        """Of a hold's release: no money is held or taken."""
        return self.known and self.reason in _NOTHING_HELD

    @property
    def nothing_reserved(self) -> bool:
        """Of a reservation's release: no units are set aside or sold."""
        return self.known and self.reason in _NOTHING_RESERVED


@dataclass(frozen=True, slots=True)
class Ending:
    """How a purchase leaves SETTLING."""

    purchase_id: uuid.UUID
    state: PurchaseState
    reason: int = DONE
    share_numbers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert self.state in (PurchaseState.CONFIRMED, PurchaseState.FAILED, PurchaseState.PARKED)
        assert (self.state is PurchaseState.CONFIRMED) == bool(self.share_numbers)
        assert (self.state is PurchaseState.CONFIRMED) == (self.reason == DONE)


@dataclass(frozen=True, slots=True)
class Retry:
    """A purchase that is to be tried again after ``delay_s`` seconds."""

    purchase_id: uuid.UUID
    partition: int
    delay_s: int
    #: ErrorReason of the unknown outcome.
    reason: int


def exhausted(purchase: Claimed, attempts_max: int) -> bool:
    """Whether the purchase was claimed more often than it may be, which only crashes bring about."""
    return purchase.attempts > attempts_max


def after_unknown_outcome(purchase: Claimed, reason: int, attempts_max: int) -> Retry | Ending:
    """Try again later, or park what has been tried ``attempts_max`` times."""
    assert reason != DONE
    if purchase.attempts >= attempts_max:
        return Ending(purchase.purchase_id, PurchaseState.PARKED, reason)
    return Retry(purchase.purchase_id, purchase.partition, retry_delay_s(purchase.attempts), reason)


def retry_delay_s(attempts: int) -> int:
    """The pause after so many attempts (1 or more), seconds: 1, 5 or 30."""
    assert attempts >= 1
    return _RETRY_DELAYS_S[min(attempts, len(_RETRY_DELAYS_S)) - 1]
