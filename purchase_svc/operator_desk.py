"""What an operator does about dead letters and parked purchases, as the serving process does it for them; the commands
in operations.py do the same from a terminal."""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.postgres import Pool
from purchase_svc.dead_letter import DeadLetter
from purchase_svc.dead_letter_box import open_dead_letters
from purchase_svc.parked import replay_parked
from purchase_svc.parked_book import ParkedBook
from purchase_svc.purchase_book import PurchaseBook
from purchase_svc.replaying import Replaying
from purchase_svc.settlement_book import SettlementBook
from purchase_svc.settlement_publisher import SettlementPublisher

_R = ErrorReason


@dataclass(frozen=True, slots=True)
class LettersReplayed:
    """What became of dead letters."""

    #: Purchases queued again.
    purchases: int
    #: Of each letter that is still there, or of which something is: why.
    why_left: tuple[str, ...]


class OperatorDesk:
    """Every method raises UNAVAILABLE when the broker or the database is away; what was begun may be repeated."""

    def __init__(self, pool: Pool, publisher: SettlementPublisher, amqp_url: str) -> None:
        self._purchases = PurchaseBook(pool)
        self._settlement = SettlementBook(pool)
        self._parked = ParkedBook(pool)
        self._publisher = publisher
        self._amqp_url = amqp_url
        #: A letter that one look has taken is not seen by another, so they come one after the other.
        self._letters = asyncio.Lock()

    async def dead_letters(self, most: int) -> tuple[list[DeadLetter], int]:
        """Up to ``most`` of the oldest dead letters, which stay where they are, and how many there are in all."""
        async with self._letters, open_dead_letters(self._amqp_url) as box:
            letters = [letter async for letter, _ in box.letters(most)]
            return letters, max(box.count, len(letters))

    async def replay_dead_letters(self, most: int) -> LettersReplayed:
        """Sends up to ``most`` of the oldest dead letters to their partitions again, each once."""
        replaying = Replaying(self._purchases, self._settlement, self._publisher)
        async with self._letters, open_dead_letters(self._amqp_url) as box:
            outcomes = [outcome async for _, outcome in replaying.replay_from(box, most)]
        return LettersReplayed(
            sum(outcome.purchases for outcome in outcomes),
            tuple(outcome.why_stays for outcome in outcomes if outcome.why_stays),
        )

    async def replay_parked(self, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, int]:
        """Lets the workers try these again. The ErrorReason of each: 0, PURCHASE_NOT_FOUND or PURCHASE_NOT_PARKED.

        What the broker does not take now is queued by the sweeper.
        """
        replayed, _ = await replay_parked(self._parked, self._settlement, self._publisher, ids)
        rest = [each for each in ids if each not in replayed]
        rows = await self._purchases.get_many(rest) if rest else {}
        reasons: dict[uuid.UUID, int] = dict.fromkeys(replayed, _R.ERROR_REASON_UNSPECIFIED)
        for each in rest:
            reasons[each] = _R.ERROR_REASON_PURCHASE_NOT_PARKED if each in rows else _R.ERROR_REASON_PURCHASE_NOT_FOUND
        return reasons
