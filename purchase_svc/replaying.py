"""Sends a dead letter's purchases to their partitions again."""

import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass

from purchase_svc.dead_letter import DeadLetter
from purchase_svc.dead_letter_box import DeadLetterBox
from purchase_svc.purchase_book import PurchaseBook
from purchase_svc.settlement_book import SettlementBook
from purchase_svc.settlement_publisher import SettlementPublisher
from purchase_svc.settlement_queue import decode


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of a letter."""

    #: How many of its purchases are queued again.
    purchases: int
    #: Why it, or what is left of it, is still a dead letter; empty when it is none any more.
    why_stays: str = ""
    #: Whether the letter itself is to be removed.
    settled: bool = True


class Replaying:
    """Replays letters one at a time. Raises UNAVAILABLE; the letter is then to stay, and may be replayed again."""

    def __init__(self, purchases: PurchaseBook, settlement: SettlementBook, publisher: SettlementPublisher) -> None:
        self._purchases = purchases
        self._settlement = settlement
        self._publisher = publisher

    async def replay_from(self, box: DeadLetterBox, most: int) -> AsyncIterator[tuple[DeadLetter, Replayed]]:
        """Replays up to ``most`` letters, the oldest first, each once, and removes those that are settled."""
        async for letter, taken in box.letters(most):
            outcome = await self.replay(letter)
            if outcome.settled:
                await box.remove(taken)
            yield letter, outcome

    async def replay(self, letter: DeadLetter) -> Replayed:
        """Queues those of its purchases that have a row, by the row's partition, whatever the letter says.

        What has no row stays a dead letter: by itself when other purchases of the letter were queued.
        """
        try:
            message = decode(letter.body)
        except ValueError as error:
            return Replayed(0, str(error), settled=False)
        rows = await self._purchases.get_many(message.purchase_ids)
        unknown = [each for each in dict.fromkeys(message.purchase_ids) if each not in rows]
        why = _why_unknown(unknown) if unknown else ""
        if not rows:
            return Replayed(0, why, settled=False)
        groups: dict[int, list[uuid.UUID]] = defaultdict(list)
        for each in rows.values():
            groups[each.partition].append(each.purchase_id)
        for partition, ids in groups.items():
            await self._publisher.publish(partition, ids)
            await self._settlement.mark_requeued(ids)
        if unknown:
            # First the new letter, then the old one goes: broken off between the two, there are both.
            await self._publisher.put_aside(letter.left_with(message.partition, unknown))
        return Replayed(len(rows), why)


def _why_unknown(unknown: list[uuid.UUID]) -> str:
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    return f"unknown purchase {unknown[0]}{more}"
