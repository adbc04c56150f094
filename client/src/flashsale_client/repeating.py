"""When a call is sent again that the services have asked to send again. No I/O."""

from flashsale_client.errors import FlashsaleError, TryAgain
from flashsale_client.policy import Policy

#: Reasons that come with RESOURCE_EXHAUSTED: refused before any work.
BUSY = frozenset({"OVERLOADED", "USER_RATE_LIMITED"})
#: Shortest pause between two tries of something that failed for another reason, seconds.
_PAUSE_MIN_S = 0.05


def pause_of_call_s(error: FlashsaleError, repetitions: int, left_s: float, policy: Policy) -> float | None:
    """How long to wait before a call is sent again that has been sent again ``repetitions`` times; None: not at all.

    Only what was told to come again does, when it was told to, while there is time. What is UNAVAILABLE has been
    repeated by gRPC already.
    """
    if error.reason not in BUSY or error.retry_after_s is None:
        return None
    return _within(error.retry_after_s, repetitions, left_s, policy)


def pause_of_item_s(error: FlashsaleError, repetitions: int, left_s: float, policy: Policy) -> float | None:
    """The same of an item of a batch. gRPC sees only that the batch was answered, so what is UNAVAILABLE counts too."""
    if not may_come_again(error):
        return None
    return _within(max(_PAUSE_MIN_S, error.retry_after_s or 0.0), repetitions, left_s, policy)


def may_come_again(error: FlashsaleError) -> bool:
    """Whether the services have left it open, and have not refused it as too much without saying for how long."""
    return isinstance(error, TryAgain) and not (error.reason in BUSY and error.retry_after_s is None)


def _within(pause_s: float, repetitions: int, left_s: float, policy: Policy) -> float | None:
    return pause_s if repetitions < policy.repetitions_max and pause_s < left_s else None
