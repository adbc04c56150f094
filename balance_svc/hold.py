"""A hold's life and the decisions about one: HELD -> CAPTURED | RELEASED | EXPIRED, or REFUSED at once; CAPTURED ->
REVERSED. Pure functions; what they decide takes effect in hold_batch.py and hold_book.py.

A hold that is HELD past its expire time has expired, whoever looks first: the expirer is only the one who looks when
nobody else does.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from balance_svc.account import AccountKey

OK = ErrorReason.ERROR_REASON_UNSPECIFIED
_R = ErrorReason


class HoldState(StrEnum):
    """Where a hold is in its life."""

    HELD = "HELD"
    CAPTURED = "CAPTURED"
    RELEASED = "RELEASED"
    EXPIRED = "EXPIRED"
    REFUSED = "REFUSED"
    REVERSED = "REVERSED"


_S = HoldState


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """What is asked for: so much of the user's money set aside for the beneficiary. ``hold_id`` is a canonical UUID."""

    hold_id: str
    user_id: str
    currency_code: str
    amount_minor: int
    beneficiary: str

    @property
    def account_key(self) -> AccountKey:
        """Whose money."""
        return (self.user_id, self.currency_code)


@dataclass(frozen=True, slots=True)
class Hold:
    """A decided hold. ``refusal_reason`` is an ErrorReason, OK unless REFUSED; ``expire_time`` is None when REFUSED;
    ``end_time``, when it left HELD, is None while HELD."""

    request: HoldRequest
    state: HoldState
    refusal_reason: int
    create_time: datetime
    expire_time: datetime | None
    end_time: datetime | None

    @property
    def hold_id(self) -> str:
        """The hold's id, a canonical UUID."""
        return self.request.hold_id

    @property
    def held_minor(self) -> int:
        """What it sets aside now."""
        return self.request.amount_minor if self.state is _S.HELD else 0

    @property
    def paid_minor(self) -> int:
        """What it has taken off its account for good, as of now."""
        return self.request.amount_minor if self.state is _S.CAPTURED else 0


class Decision(NamedTuple):
    """The hold as it is after a decision (None: there is none) and the ErrorReason told to the caller (OK: none)."""

    hold: Hold | None
    reason: int


def ended(hold: Hold, state: HoldState, now: datetime) -> Hold:
    """The hold, moved to ``state`` at ``now``."""
    return replace(hold, state=state, end_time=now)


def lapsed(hold: Hold, now: datetime) -> Hold:
    """The hold as it is at ``now``: EXPIRED when it was HELD and its time has run out, else unchanged."""
    if hold.state is _S.HELD and hold.expire_time is not None and now >= hold.expire_time:
        return ended(hold, _S.EXPIRED, now)
    return hold


_PLACE_REASONS: dict[HoldState, int] = {
    _S.HELD: OK,
    _S.CAPTURED: OK,
    _S.RELEASED: _R.ERROR_REASON_HOLD_RELEASED,
    _S.EXPIRED: _R.ERROR_REASON_HOLD_EXPIRED,
    _S.REVERSED: _R.ERROR_REASON_HOLD_REVERSED,
}
_CAPTURE_REASONS: dict[HoldState, int] = {
    _S.CAPTURED: OK,
    _S.RELEASED: _R.ERROR_REASON_HOLD_RELEASED,
    _S.EXPIRED: _R.ERROR_REASON_HOLD_EXPIRED,
    _S.REFUSED: _R.ERROR_REASON_HOLD_REFUSED,
    _S.REVERSED: _R.ERROR_REASON_HOLD_REVERSED,
}
_RELEASE_REASONS: dict[HoldState, int] = {
    _S.RELEASED: OK,
    _S.EXPIRED: OK,
    _S.REFUSED: OK,
    _S.CAPTURED: _R.ERROR_REASON_HOLD_CAPTURED,
    _S.REVERSED: _R.ERROR_REASON_HOLD_REVERSED,
}
_REVERSE_REASONS: dict[HoldState, int] = {
    _S.REVERSED: OK,
    _S.HELD: _R.ERROR_REASON_HOLD_NOT_CAPTURED,
    _S.RELEASED: _R.ERROR_REASON_HOLD_RELEASED,
    _S.EXPIRED: _R.ERROR_REASON_HOLD_EXPIRED,
    _S.REFUSED: _R.ERROR_REASON_HOLD_REFUSED,
}


def decide_first_place(
    request: HoldRequest, available_minor: int | None, now: datetime, expire_time: datetime
) -> Decision:
    """Decides an id seen for the first time: HELD if the money is there, else REFUSED, for ever.

    ``available_minor`` is what the account has left, None when there is no account.
    """
    if available_minor is None:
        reason = _R.ERROR_REASON_ACCOUNT_NOT_FOUND
    elif available_minor < request.amount_minor:
        reason = _R.ERROR_REASON_INSUFFICIENT_FUNDS
    else:
        return Decision(Hold(request, _S.HELD, OK, now, expire_time, None), OK)
    return Decision(Hold(request, _S.REFUSED, reason, now, None, now), reason)


def decide_repeated_place(existing: Hold, request: HoldRequest, now: datetime) -> Decision:
    """Answers an id seen before from the decision made then. Other contents change nothing, not even a lapsed hold."""
    if existing.request != request:
        return Decision(existing, _R.ERROR_REASON_REQUEST_ID_REUSED)
    hold = lapsed(existing, now)
    return Decision(hold, hold.refusal_reason if hold.state is _S.REFUSED else _PLACE_REASONS[hold.state])


def decide_capture(existing: Hold, now: datetime) -> Decision:
    """HELD becomes CAPTURED."""
    hold = lapsed(existing, now)
    if hold.state is _S.HELD:
        hold = ended(hold, _S.CAPTURED, now)
    return Decision(hold, _CAPTURE_REASONS[hold.state])


def decide_release(existing: Hold, now: datetime) -> Decision:
    """HELD becomes RELEASED."""
    hold = lapsed(existing, now)
    if hold.state is _S.HELD:
        hold = ended(hold, _S.RELEASED, now)
    return Decision(hold, _RELEASE_REASONS[hold.state])


def decide_reverse(existing: Hold, now: datetime) -> Decision:
    """CAPTURED becomes REVERSED. The end time stays: it tells when the hold left HELD."""
    hold = lapsed(existing, now)
    if hold.state is _S.CAPTURED:
        hold = replace(hold, state=_S.REVERSED)
    return Decision(hold, _REVERSE_REASONS[hold.state])


def decide_expiry(existing: Hold, now: datetime) -> Decision:
    """HELD past its time becomes EXPIRED; anything else stays."""
    return Decision(lapsed(existing, now), OK)
