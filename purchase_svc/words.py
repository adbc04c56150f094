"""Plain words for where a purchase stands and why: for receipts and statements, readable by buyers and operators."""

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from purchase_svc.purchase import PurchaseState

_R, _S = ErrorReason, PurchaseState

_STATES: dict[PurchaseState, str] = {
    _S.WAITLISTED: "Waits in line for shares to come free.",
    _S.RESERVED: "Shares are set aside; payment comes next.",
    _S.SETTLING: "Payment is being taken.",
    _S.CONFIRMED: "The shares are bought and paid for.",
    _S.FAILED: "No shares were bought and nothing was charged.",
    _S.CANCELLED: "Cancelled by the buyer; no shares were bought and nothing was charged.",
    _S.PARKED: "Could not be finished by itself; an operator is looking into it.",
    _S.REFUNDING: "A refund was asked for; the money and the shares are on their way back.",
    _S.REFUNDED: "Refunded in full; the shares went back on sale.",
}
_STEPS: dict[PurchaseState, str] = {
    _S.WAITLISTED: "Joined the line.",
    _S.RESERVED: "Shares were set aside.",
    _S.SETTLING: "Payment began.",
    _S.CONFIRMED: "Paid; the shares were handed over.",
    _S.FAILED: "Ended without shares and without a charge.",
    _S.CANCELLED: "Cancelled by the buyer.",
    _S.PARKED: "Put aside for an operator, after several tries.",
    _S.REFUNDING: "A refund was asked for.",
    _S.REFUNDED: "The money was paid back and the shares went back on sale.",
}
_REASONS: dict[int, str] = {
    _R.ERROR_REASON_OVERLOADED: "More people wanted to buy at that moment than could be served.",
    _R.ERROR_REASON_USER_RATE_LIMITED: "The buyer sent requests too quickly.",
    _R.ERROR_REASON_SOLD_OUT: "Too few shares were left.",
    _R.ERROR_REASON_SALE_NOT_OPEN: "The sale was not open.",
    _R.ERROR_REASON_USER_LIMIT_REACHED: "The buyer had as many shares of this sale as one person may.",
    _R.ERROR_REASON_PURCHASE_LIMIT_EXCEEDED: "More shares were asked for than one purchase may have.",
    _R.ERROR_REASON_RESERVATION_RELEASED: "The shares set aside had been given back before they were paid for.",
    _R.ERROR_REASON_RESERVATION_SOLD: "The shares had been sold already.",
    _R.ERROR_REASON_SALE_STATE_CONFLICT: "The sale was in a state that did not allow it.",
    _R.ERROR_REASON_SALE_CLOSED: "The sale was closed before its turn in line came.",
    _R.ERROR_REASON_NOT_ELIGIBLE: "The sale was for certain buyers only, and this one was not among them.",
    _R.ERROR_REASON_WAITLIST_FULL: "The line was as long as it may be.",
    _R.ERROR_REASON_INSUFFICIENT_FUNDS: "There was not enough money on the account.",
    _R.ERROR_REASON_ACCOUNT_NOT_FOUND: "The buyer had no account in the sale's currency.",
    _R.ERROR_REASON_HOLD_CAPTURED: "The money had been taken already.",
    _R.ERROR_REASON_HOLD_RELEASED: "The money set aside had been freed before it was taken.",
    _R.ERROR_REASON_HOLD_EXPIRED: "The money was set aside, but payment could not be finished in time.",
    _R.ERROR_REASON_HOLD_NOT_FOUND: "No money had been set aside.",
    _R.ERROR_REASON_HOLD_REFUSED: "Setting the money aside had been refused.",
    _R.ERROR_REASON_HOLD_REVERSED: "The money had been taken and was paid back in full.",
    _R.ERROR_REASON_HOLD_NOT_CAPTURED: "The money had not been taken.",
    _R.ERROR_REASON_REQUEST_ID_REUSED: "The same request had been used for another purchase.",
    _R.ERROR_REASON_SALE_NOT_FOUND: "There was no such sale.",
    _R.ERROR_REASON_PURCHASE_NOT_FOUND: "There was no such purchase.",
    _R.ERROR_REASON_RESERVATION_NOT_FOUND: "No shares had been set aside.",
    _R.ERROR_REASON_PURCHASE_NOT_CANCELLABLE: "It was too late to cancel.",
    _R.ERROR_REASON_PURCHASE_NOT_REFUNDABLE: "There was nothing to refund.",
    _R.ERROR_REASON_REFUND_WINDOW_OVER: "It was too late for a refund.",
    _R.ERROR_REASON_PURCHASE_NOT_PARKED: "It was not waiting for an operator.",
    _R.ERROR_REASON_RESERVATION_PROMOTED: "Its turn in line had come already.",
    _R.ERROR_REASON_INVALID_ARGUMENT: "The request was malformed.",
    _R.ERROR_REASON_UNAUTHENTICATED: "The buyer had not signed in.",
    _R.ERROR_REASON_PERMISSION_DENIED: "The buyer was not allowed to do this.",
    _R.ERROR_REASON_UNAVAILABLE: "A part of the system could not be reached.",
    _R.ERROR_REASON_STOCK_RECALIBRATING: "The stock was being counted anew.",
    _R.ERROR_REASON_DEADLINE_EXCEEDED: "A part of the system did not answer in time.",
    _R.ERROR_REASON_INTERNAL: "Something went wrong on our side.",
    _R.ERROR_REASON_ABANDONED: "The connection broke before the purchase was recorded.",
    _R.ERROR_REASON_FAILED_BY_OPERATOR: "An operator ended it after several tries; nothing was charged.",
}


def of_reason(reason: int) -> str:
    """Why, as a sentence; "" for no reason."""
    return _REASONS[reason] if reason else ""


def of_state(state: PurchaseState, reason: int) -> str:
    """Where a purchase stands and, of one that FAILED or is PARKED, why."""
    return " ".join(filter(None, (of_reason(reason), _STATES[state])))


def of_step(state: PurchaseState) -> str:
    """What happened when a purchase came to be in ``state``."""
    return _STEPS[state]


def of_non_win(state: PurchaseState, reason: int) -> str:
    """Why a purchase that is over has won nothing: the reason alone, and without one what became of it."""
    return of_reason(reason) or _STATES[state]
