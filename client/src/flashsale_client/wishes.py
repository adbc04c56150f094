"""Buying for many: what is wanted, what became of it, and which of it is sent again when. No I/O."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from flashsale.purchase.v1 import purchase_service_pb2 as pb

from flashsale_client.errors import FlashsaleError, error_of_item
from flashsale_client.policy import Policy
from flashsale_client.repeating import pause_of_item_s


def new_request_id() -> str:
    """A request id that nobody else has. Keep it until the answer is there: sent again with it, a buy is the same
    purchase; with another it is another purchase."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Wish:
    """One user's wish to buy. ``request_id`` is made when none is given; ``waitlist``: whether to wait in line if there
    are too few shares."""

    sale_id: str
    user_id: str
    quantity: int = 1
    waitlist: bool = False
    request_id: str = field(default_factory=new_request_id)

    def message(self) -> pb.CreatePurchaseRequest:
        """As the contract has it."""
        return pb.CreatePurchaseRequest(
            request_id=self.request_id,
            user_id=self.user_id,
            sale_id=self.sale_id,
            quantity=self.quantity,
            waitlist=self.waitlist,
        )


@dataclass(frozen=True)
class Answer:
    """What became of a wish: bought, if ``error`` is None.

    ``purchase_id`` is known unless the wish was malformed or never answered. ``waitlist_position`` and
    ``estimated_wait_s`` are above 0 if it waits in line.
    """

    wish: Wish
    purchase_id: str = ""
    state: "pb.PurchaseState.ValueType" = pb.PURCHASE_STATE_UNSPECIFIED
    error: FlashsaleError | None = None
    waitlist_position: int = 0
    estimated_wait_s: int = 0

    @property
    def bought(self) -> bool:
        """Whether there is a purchase."""
        return self.error is None


def answer_of(wish: Wish, outcome: pb.CreatePurchaseOutcome) -> Answer:
    """What the contract's outcome says."""
    error = None
    if outcome.reason:
        error = error_of_item(outcome.reason, outcome.retry_after_ms).of_request(wish.request_id)
    return Answer(
        wish,
        outcome.purchase_id,
        outcome.state,
        error,
        outcome.waitlist_position,
        outcome.estimated_wait_s,
    )


def batch_of(wishes: Sequence[Wish]) -> pb.BatchCreatePurchasesRequest:
    """One call for all of them."""
    return pb.BatchCreatePurchasesRequest(requests=[wish.message() for wish in wishes])


class Rounds:
    """Buys many wishes in rounds: in each, whatever was told to come again, in batches; then a pause as long as was
    asked. A batch that fails as a call is not in the next round: a call has been repeated as often as it may be.

    Time is the caller's: seconds of any clock, the same in every call.
    """

    def __init__(self, wishes: Sequence[Wish], policy: Policy) -> None:
        self._wishes = list(wishes)
        self._policy = policy
        self._answers: list[Answer | None] = [None] * len(self._wishes)
        self._open = list(range(len(self._wishes)))
        self._ended: set[int] = set()
        self._repetitions = 0

    def batches(self) -> list[list[int]]:
        """The places of the wishes to send in this round, batch by batch; empty when all is decided."""
        size = self._policy.batch_max
        return [self._open[first : first + size] for first in range(0, len(self._open), size)]

    def wishes_of(self, places: Sequence[int]) -> list[Wish]:
        """The wishes at these places."""
        return [self._wishes[place] for place in places]

    def answered(self, places: Sequence[int], outcomes: Sequence[pb.CreatePurchaseOutcome]) -> None:
        """Takes in the answer to a batch. Raises ValueError when it does not fit."""
        for place, outcome in zip(places, outcomes, strict=True):
            self._answers[place] = answer_of(self._wishes[place], outcome)

    def failed(self, places: Sequence[int], error: FlashsaleError) -> None:
        """Takes in that a batch as a whole came to nothing."""
        for place in places:
            wish = self._wishes[place]
            self._answers[place] = Answer(wish, error=error.of_request(wish.request_id))
        self._ended.update(places)

    def end_round(self, left_s: float) -> float:
        """Decides what is sent again; the pause before the next round, seconds, 0 when there is none to come."""
        pauses: dict[int, float] = {}
        for place in self._open:
            answer = self._answers[place]
            if answer is not None and answer.error is not None and place not in self._ended:
                pause_s = pause_of_item_s(answer.error, self._repetitions, left_s, self._policy)
                if pause_s is not None:
                    pauses[place] = pause_s
        self._repetitions += 1
        self._open = list(pauses)
        return max(pauses.values(), default=0.0)

    def answers(self) -> list[Answer]:
        """One answer for each wish, in their order. All rounds must be over."""
        found = [answer for answer in self._answers if answer is not None]
        if len(found) != len(self._wishes):
            raise RuntimeError("a wish was never sent")
        return found
