"""One class for each reason of flashsale/common/v1/error_reason.proto, in its order and its words.

The contract tells more: the gRPC status of each, and what its metadata holds.
"""

from flashsale_client.errors import FlashsaleError, Refused, TryAgain


class Overloaded(TryAgain, reason="OVERLOADED"):
    """Refused before any work because more is waiting than can be answered in time."""


class UserRateLimited(TryAgain, reason="USER_RATE_LIMITED"):
    """This user sends more often than allowed."""


class SoldOut(Refused, reason="SOLD_OUT"):
    """Fewer units are available than were asked for."""


class SaleNotOpen(Refused, reason="SALE_NOT_OPEN"):
    """The sale is a draft, paused or closed."""


class UserLimitReached(Refused, reason="USER_LIMIT_REACHED"):
    """The user would own or wait for more units of this sale than its limit."""


class PurchaseLimitExceeded(Refused, reason="PURCHASE_LIMIT_EXCEEDED"):
    """The quantity is above what this sale sells in one purchase."""


class ReservationReleased(Refused, reason="RESERVATION_RELEASED"):
    """The reservation was given back earlier; this request id is spent."""


class ReservationSold(Refused, reason="RESERVATION_SOLD"):
    """The reservation is already sold, so the step asked for no longer applies."""


class SaleStateConflict(Refused, reason="SALE_STATE_CONFLICT"):
    """The transition asked for is not legal from the sale's present state."""


class SaleClosed(Refused, reason="SALE_CLOSED"):
    """The sale was closed before this purchase's turn in line came."""


class NotEligible(Refused, reason="NOT_ELIGIBLE"):
    """The sale is for certain users only, and this one is not among them."""


class WaitlistFull(Refused, reason="WAITLIST_FULL"):
    """As many wait in this sale's line as may."""


class InsufficientFunds(Refused, reason="INSUFFICIENT_FUNDS"):
    """Balance minus held money is less than the amount."""


class AccountNotFound(Refused, reason="ACCOUNT_NOT_FOUND"):
    """The user has no account in this currency."""


class HoldCaptured(Refused, reason="HOLD_CAPTURED"):
    """The hold has been captured already."""


class HoldReleased(Refused, reason="HOLD_RELEASED"):
    """The hold has been released already."""


class HoldExpired(Refused, reason="HOLD_EXPIRED"):
    """The hold's time ran out before it was captured."""


class HoldNotFound(Refused, reason="HOLD_NOT_FOUND"):
    """No such hold."""


class HoldRefused(Refused, reason="HOLD_REFUSED"):
    """The hold was refused when it was asked for, and that decision stands."""


class HoldReversed(Refused, reason="HOLD_REVERSED"):
    """The hold's money has been captured and given back."""


class HoldNotCaptured(Refused, reason="HOLD_NOT_CAPTURED"):
    """The hold's money has not been captured, so there is nothing to give back."""


class RequestIdReused(Refused, reason="REQUEST_ID_REUSED"):
    """The same request id was used earlier with other contents."""


class SaleNotFound(Refused, reason="SALE_NOT_FOUND"):
    """No such sale."""


class PurchaseNotFound(Refused, reason="PURCHASE_NOT_FOUND"):
    """No such purchase, or not this user's: both look the same."""


class ReservationNotFound(Refused, reason="RESERVATION_NOT_FOUND"):
    """No such reservation."""


class PurchaseNotCancellable(Refused, reason="PURCHASE_NOT_CANCELLABLE"):
    """The purchase can no longer be cancelled, because a worker has claimed it or it is final."""


class PurchaseNotRefundable(Refused, reason="PURCHASE_NOT_REFUNDABLE"):
    """The purchase has nothing to refund, because it is not confirmed."""


class RefundWindowOver(Refused, reason="REFUND_WINDOW_OVER"):
    """Longer ago than refunds are given."""


class PurchaseNotParked(Refused, reason="PURCHASE_NOT_PARKED"):
    """The purchase does not wait for an operator."""


class ReservationPromoted(Refused, reason="RESERVATION_PROMOTED"):
    """The request has left the line because it was given its units."""


class InvalidArgument(Refused, reason="INVALID_ARGUMENT"):
    """A field is missing, malformed or out of range."""


class Unauthenticated(Refused, reason="UNAUTHENTICATED"):
    """No token, or one that does not verify."""


class PermissionDenied(Refused, reason="PERMISSION_DENIED"):
    """The caller may not do this."""


class Unavailable(TryAgain, reason="UNAVAILABLE"):
    """A backing server is away."""


class StockRecalibrating(TryAgain, reason="STOCK_RECALIBRATING"):
    """Stock is being rebuilt from SQL."""


class DeadlineExceeded(TryAgain, reason="DEADLINE_EXCEEDED"):
    """The caller's deadline ran out; the outcome is unknown, so repeat with the same request id."""


class Internal(FlashsaleError, reason="INTERNAL"):
    """A fault of this system, logged under the id in the metadata."""


class Abandoned(Refused, reason="ABANDONED"):
    """A buyer's connection broke off after the reservation and before the purchase was recorded; the sweeper ended
    it."""


class FailedByOperator(Refused, reason="FAILED_BY_OPERATOR"):
    """An operator ended a parked purchase, after its hold and its units had been given back."""
