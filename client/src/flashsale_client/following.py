"""Following a purchase over lost connections: what is news, and when to ask again. No I/O."""

import random

from flashsale.purchase.v1 import purchase_service_pb2 as pb

from flashsale_client.errors import FlashsaleError
from flashsale_client.repeating import BUSY, may_come_again

#: States from which nothing follows by itself. (A CONFIRMED purchase can still be refunded, if somebody asks.)
FINAL = frozenset(
    {
        pb.PURCHASE_STATE_CONFIRMED,
        pb.PURCHASE_STATE_FAILED,
        pb.PURCHASE_STATE_CANCELLED,
        pb.PURCHASE_STATE_REFUNDED,
    }
)
_PREFIX = "PURCHASE_STATE_"
_PAUSE_MIN_S, _PAUSE_MAX_S = 0.05, 2.0


def state_name(purchase: pb.Purchase) -> str:
    """The state of a purchase in a word: "RESERVED", "CONFIRMED", "FAILED" ..."""
    known = purchase.state in pb.PurchaseState.values()
    return pb.PurchaseState.Name(purchase.state).removeprefix(_PREFIX) if known else f"STATE_{purchase.state}"


class Following:
    """What has been seen of one purchase. A stream tells the present state first: one that takes a lost one's place
    begins by repeating what is known, and misses only states that were over by then."""

    def __init__(self) -> None:
        self._seen: pb.PurchaseState.ValueType = pb.PURCHASE_STATE_UNSPECIFIED
        self._failures = 0
        #: Whether the present stream has told anything.
        self._accepted = False

    def is_news(self, purchase: pb.Purchase) -> bool:
        """Takes in a message; whether it says something new."""
        news = purchase.state != self._seen
        if news:
            # Only then: streams that break off after what is known already are begun anew more and more seldom.
            self._failures = 0
        self._seen = purchase.state
        self._accepted = True
        return news

    @property
    def ended(self) -> bool:
        """Whether there is no more to come."""
        return self._seen in FINAL

    def pause_s(self, error: FlashsaleError | None, left_s: float) -> float | None:
        """How long to wait before the stream is begun anew that ended with ``error`` (None: by itself); None when it is
        not, because the error is final or the time is up."""
        # Who was accepted and is not any more has outlived a certificate; a newer one may have a connection by now.
        outlived = self._accepted and error is not None and error.reason == "UNAUTHENTICATED"
        self._accepted = False
        if error is not None and not may_come_again(error) and not outlived:
            return None
        self._failures += 1
        backoff_s = min(_PAUSE_MAX_S, _PAUSE_MIN_S * 2 ** min(self._failures, 10))
        pause_s = random.uniform(_PAUSE_MIN_S, backoff_s)  # noqa: S311 (no secret)
        if error is not None and error.reason in BUSY:
            # Of all replicas; what is UNAVAILABLE on one may be had from another at once.
            pause_s = max(pause_s, error.retry_after_s or 0.0)
        return pause_s if pause_s < left_s else None
