"""The saga: takes a batch of purchases from claimed to shares and one capture, or to neither.

claim -> hold the money -> assign the shares -> capture the money -> CONFIRMED. Shares come before money, because shares
can be taken back without loss and captured money cannot. FAILED is written only after everything that the purchase had
was given back, so that whoever reads it may buy again at once. Every step is idempotent by purchase id: a batch that
breaks off anywhere is run again from the start.
"""

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh import failpoints
from mesh.errors import DomainError, reason_name
from mesh.logs import get_logger
from purchase_svc.pacing import TokenBucket
from purchase_svc.purchase import PurchaseState
from purchase_svc.settlement_book import SettlementBook
from purchase_svc.settlement_rules import Answer, Claimed, Ending, Retry, after_unknown_outcome, exhausted
from purchase_svc.settlement_services import Answers, SettlementServices

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a batch. Purchases in none of the lists had been settled before, or are parked."""

    endings: tuple[Ending, ...]
    retries: tuple[Retry, ...]
    #: Ids that no purchase has.
    missing: tuple[uuid.UUID, ...] = ()


@dataclass(slots=True)
class _Batch:
    """The batch while it is worked on: what has been decided so far."""

    claimed: list[Claimed]
    endings: dict[uuid.UUID, Ending] = field(default_factory=dict)
    unknown: dict[uuid.UUID, int] = field(default_factory=dict)

    def sort(self, answers: Answers, is_refusal: Callable[[Answer], bool]) -> tuple[Answers, Answers]:
        """Those that were done, and those that were refused for good; the rest is noted as unknown."""
        done = {key: answer for key, answer in answers.items() if answer.done}
        refused = {key: answer for key, answer in answers.items() if is_refusal(answer)}
        for key in answers.keys() - done.keys() - refused.keys():
            self._puzzle(key, answers[key])
        return done, refused

    def fail(self, refused: Answers, released: Answers, is_gone: Callable[[Answer], bool]) -> None:
        """Lets those fail that were refused and whose release left nothing behind; the rest is noted as unknown."""
        for key, answer in released.items():
            if is_gone(answer):
                self.endings[key] = Ending(key, PurchaseState.FAILED, refused[key].reason)
            else:
                self._puzzle(key, answer)

    def _puzzle(self, purchase_id: uuid.UUID, answer: Answer) -> None:
        """Notes an outcome that is not known, or that should not be possible and must not decide anything."""
        self.unknown[purchase_id] = answer.reason or ErrorReason.ERROR_REASON_INTERNAL
        if answer.known:
            log.error("an unexpected answer", purchase_id=str(purchase_id), reason=reason_name(answer.reason))


class Settlement:
    """Settles batches of purchases. Any number of them may run at once, also on the same purchases."""

    def __init__(
        self, book: SettlementBook, services: SettlementServices, bucket: TokenBucket, *, attempts_max: int
    ) -> None:
        self._book = book
        self._services = services
        self._bucket = bucket
        self._attempts_max = attempts_max
        #: Purchases settled by this object, by state and reason, with the tries that ended unknown.
        self.tally: Counter[str] = Counter()

    @property
    def batch_max(self) -> int:
        """Most purchases that ``settle`` takes."""
        return self._bucket.pace.batch_max

    async def settle(self, ids: Sequence[uuid.UUID]) -> Settled:
        """Settles 1 to ``batch_max`` purchases as far as possible now.

        Raises UNAVAILABLE when the purchase database is away; the batch is then to be given again.
        """
        batch = _Batch(await self._book.claim(ids))
        failpoints.hit("settlement.claimed")
        missing = await self._find_missing(ids, batch.claimed)
        for purchase in batch.claimed:
            if exhausted(purchase, self._attempts_max):
                reason = ErrorReason.ERROR_REASON_INTERNAL
                batch.endings[purchase.purchase_id] = Ending(purchase.purchase_id, PurchaseState.PARKED, reason)
        held = await self._hold(batch, [each for each in batch.claimed if each.purchase_id not in batch.endings])
        failpoints.hit("settlement.held")
        owned = await self._assign(batch, held)
        failpoints.hit("settlement.assigned")
        await self._capture(batch, owned)
        failpoints.hit("settlement.captured")
        retries = self._give_up_or_retry(batch)
        await self._book.finish(list(batch.endings.values()))
        failpoints.hit("settlement.finished")
        settled = Settled(tuple(batch.endings.values()), tuple(retries), missing)
        self._note(len(ids), settled)
        return settled

    async def _find_missing(self, ids: Sequence[uuid.UUID], claimed: Sequence[Claimed]) -> tuple[uuid.UUID, ...]:
        """Of the ids that could not be claimed, those that no purchase has. Costs nothing when all were claimed.

        One look is enough: a purchase is committed before it is published.
        """
        rest = set(ids).difference(each.purchase_id for each in claimed)
        return tuple(await self._book.list_missing(list(rest))) if rest else ()

    async def _hold(self, batch: _Batch, purchases: Sequence[Claimed]) -> list[Claimed]:
        """Places the holds, at the common pace; returns the purchases whose money is held or was captured earlier."""
        if not purchases:
            return []
        try:
            async with self._bucket.turn(len(purchases)):
                answers = await self._services.place_holds(purchases)
        except DomainError as error:
            # No tokens, nothing sent.
            answers = dict.fromkeys((each.purchase_id for each in purchases), Answer(error.reason, known=False))
        done, refused = batch.sort(answers, lambda answer: answer.no_money)
        # No money will ever be taken for these, so shares that an earlier try may have assigned go back as well.
        await self._give_back_units(batch, refused)
        return [each for each in purchases if each.purchase_id in done]

    async def _assign(self, batch: _Batch, held: Sequence[Claimed]) -> Answers:
        """Assigns share numbers; returns the answers of the purchases that own their shares."""
        answers = await self._services.confirm_reservations([each.purchase_id for each in held])
        for each in held:
            answer = answers[each.purchase_id]
            if answer.done and len(answer.share_numbers) != each.quantity:
                log.error("a wrong number of shares", purchase_id=str(each.purchase_id), expected=each.quantity)
                answers[each.purchase_id] = Answer(ErrorReason.ERROR_REASON_INTERNAL, known=False)
        done, refused = batch.sort(answers, lambda answer: answer.no_shares)
        released = await self._services.release_holds(list(refused))
        batch.fail(refused, released, lambda answer: answer.nothing_held)
        return done

    async def _capture(self, batch: _Batch, owned: Answers) -> None:
        """Takes the money of purchases that own their shares, and takes back the shares where that is impossible."""
        answers = await self._services.capture_holds(list(owned))
        done, refused = batch.sort(answers, lambda answer: answer.no_money)
        await self._give_back_units(batch, refused)
        for key in done:
            batch.endings[key] = Ending(key, PurchaseState.CONFIRMED, share_numbers=owned[key].share_numbers)

    async def _give_back_units(self, batch: _Batch, refused: Answers) -> None:
        """Gives back the units of purchases for which no money is taken, and only then lets them fail."""
        released = await self._services.release_reservations(list(refused), revoke_sold=True)
        batch.fail(refused, released, lambda answer: answer.nothing_reserved)

    def _give_up_or_retry(self, batch: _Batch) -> list[Retry]:
        retries: list[Retry] = []
        for purchase in batch.claimed:
            reason = batch.unknown.get(purchase.purchase_id)
            if reason is None:
                continue
            following = after_unknown_outcome(purchase, reason, self._attempts_max)
            if isinstance(following, Retry):
                retries.append(following)
            else:
                batch.endings[purchase.purchase_id] = following
        assert len(batch.claimed) == len(batch.endings) + len(retries)
        return retries

    def _note(self, size: int, settled: Settled) -> None:
        for ending in settled.endings:
            if ending.state is PurchaseState.PARKED:
                log.error("parked", purchase_id=str(ending.purchase_id), reason=reason_name(ending.reason))
            self.tally[
                ending.state.value if ending.reason == 0 else f"{ending.state} {reason_name(ending.reason)}"
            ] += 1
        for retry in settled.retries:
            self.tally[f"RETRY {reason_name(retry.reason)}"] += 1
        self.tally.update({"UNKNOWN PURCHASE": len(settled.missing)} if settled.missing else {})
        log.debug("batch settled", purchases=size, ended=len(settled.endings), retries=len(settled.retries))
