"""What a purchase has been through: the states it was in, each with its time. No I/O."""

from datetime import datetime
from typing import NamedTuple

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from purchase_svc.purchase import Purchase, PurchaseState

_S = PurchaseState


class Step(NamedTuple):
    """A state, and when the purchase came to be in it."""

    state: PurchaseState
    time: datetime


class History(NamedTuple):
    """A purchase with every time that its row holds, by the database's clock; None: it never came to that."""

    purchase: Purchase
    #: When it joined the line, and when it came to its units from there.
    waitlist_time: datetime | None
    promote_time: datetime | None
    #: When a worker claimed it first.
    first_claim_time: datetime | None
    #: When its attempts were exhausted last.
    park_time: datetime | None
    #: When it became CONFIRMED, FAILED or CANCELLED.
    final_time: datetime | None
    #: When it became REFUNDING, and REFUNDED.
    refund_time: datetime | None
    refunded_time: datetime | None

    def steps(self) -> list[Step]:
        """The states it was in, in the order of their times."""
        purchase = self.purchase
        # What its buyer left behind was recorded when it was over.
        abandoned = purchase.reason == ErrorReason.ERROR_REASON_ABANDONED
        reserved = self.promote_time if self.waitlist_time or abandoned else purchase.create_time
        ending = _S.CONFIRMED if self.refund_time else purchase.state
        times = [
            (_S.WAITLISTED, self.waitlist_time),
            (_S.RESERVED, reserved),
            (_S.SETTLING, self.first_claim_time),
            (_S.PARKED, self.park_time),
            (ending, self.final_time),
            (_S.REFUNDING, self.refund_time),
            (_S.REFUNDED, self.refunded_time),
        ]
        return sorted((Step(state, time) for state, time in times if time is not None), key=lambda step: step.time)
