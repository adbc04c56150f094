"""Buying: from wishes to reserved units, or places in line, and durable purchases, in batches.

Order of a batch: reserve units at the Inventory Service, which puts those who find none and want to wait in line, then
insert the purchases in one statement, then let those with units be queued. A crash in between leaves a reservation, or
a place in line, without a purchase: a repetition by the buyer completes it, or the sweeper ends it as FAILED.
"""

import asyncio
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import grpc
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as inventory_pb

from mesh import failpoints, tracing
from mesh.batcher import Batcher
from mesh.errors import DomainError, from_rpc_error, reason_name
from mesh.logs import get_logger, named
from mesh.rate_bound import RateBound
from purchase_svc.purchase import Outcome, Purchase, PurchaseState, Wish, bought, decided_by_row, refused
from purchase_svc.purchase_book import Inserted, PurchaseBook, Terms

if TYPE_CHECKING:
    from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceAsyncStub

log = get_logger(__name__)

_R = ErrorReason
# By name once and not per purchase: ErrorReason looks its attributes up the slow way.
_INVALID_ARGUMENT = _R.ERROR_REASON_INVALID_ARGUMENT
_INTERNAL = _R.ERROR_REASON_INTERNAL
#: Most wishes in one reserve call and one INSERT.
BATCH_MAX = 500
#: Calls with at least so many wishes are a batch by themselves; smaller ones are gathered with other callers'.
DIRECT_MIN = 64

#: Contents of one id that one batch tries before the rest of them is to come again.
_CONTENTS_MAX = 3

_RESERVE = f"{inventory_pb.DESCRIPTOR.services_by_name['InventoryService'].full_name}/BatchReserveShares"

#: What a failed call to the Inventory Service may be passed on as; in all of them a repetition is right.
_PASSED_ON = frozenset({_R.ERROR_REASON_OVERLOADED, _R.ERROR_REASON_UNAVAILABLE, _R.ERROR_REASON_STOCK_RECALIBRATING})


def _reason_of_failed_call(error: DomainError) -> int:
    if error.reason in _PASSED_ON:
        return error.reason
    if error.reason == _R.ERROR_REASON_DEADLINE_EXCEEDED:
        # The outcome is unknown; a repetition finds out, so buyers are told to repeat.
        return _R.ERROR_REASON_UNAVAILABLE
    log.error("the inventory service refused a batch", reason=error.reason_name, message=error.message)
    return _R.ERROR_REASON_INTERNAL


class Buying:
    """Turns wishes into purchases. ``on_new`` is called with the purchases of each batch that have their units, once
    they are committed, and must not wait or fail.

    At most ``in_flight_max`` batches are under way, of at most ``rate_max_per_s`` wishes a second (0: as fast as can
    be); at most ``waiting_max`` wishes wait or are under way, beyond that wishes are answered OVERLOADED, and so are
    those that could not be begun within their time. What has been begun is completed even if the caller goes away
    meanwhile.
    """

    def __init__(
        self,
        book: PurchaseBook,
        inventory: "InventoryServiceAsyncStub",
        on_new: Callable[[Inserted], None],
        *,
        in_flight_max: int,
        waiting_max: int,
        rate_max_per_s: float = 0.0,
    ) -> None:
        self._book = book
        self._inventory = inventory
        self._on_new = on_new
        self._slots = asyncio.Semaphore(in_flight_max)
        self._rate = RateBound(rate_max_per_s)
        self._waiting_max = waiting_max
        self._direct = 0
        self._tasks: set[asyncio.Task[list[Outcome]]] = set()
        self._batcher: Batcher[tuple[Wish, float], Outcome] = Batcher(
            # One batch at a time: so the next one is large, and each of its wishes half as dear (measured).
            self._buy_gathered,
            batch_max=BATCH_MAX,
            in_flight_max=1,
            queue_max=waiting_max,
        )

    async def buy(self, wishes: Sequence[Wish], timeout_s: float) -> list[Outcome]:
        """One outcome per wish, in order, within about ``timeout_s`` seconds. At most 1,000 wishes.

        Wishes of the same id and contents get the same outcome; with contents other than its purchase's an id gets
        REQUEST_ID_REUSED. Reasons: those of BatchReserveShares, and OVERLOADED, UNAVAILABLE or INTERNAL when a wish
        could not be decided.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        if self.waiting + len(wishes) > self._waiting_max:
            return [refused(wish, _R.ERROR_REASON_OVERLOADED) for wish in wishes]
        if len(wishes) == 1:
            return [await self._gathered(wishes[0], deadline)]
        if len(wishes) < DIRECT_MIN:
            return list(await asyncio.gather(*(self._gathered(wish, deadline) for wish in wishes)))
        chunks = [wishes[start : start + BATCH_MAX] for start in range(0, len(wishes), BATCH_MAX)]
        parts = await asyncio.gather(*(self._begin(chunk, deadline) for chunk in chunks))
        return [outcome for part in parts for outcome in part]

    @property
    def waiting(self) -> int:
        """Wishes that wait or are under way."""
        return self._direct + self._batcher.queued

    async def drain(self) -> None:
        """Waits until nothing is under way. New wishes must have stopped coming."""
        await self._batcher.drain()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _gathered(self, wish: Wish, deadline: float) -> Outcome:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._batcher.submit((wish, deadline))
        except TimeoutError:
            return refused(wish, _R.ERROR_REASON_UNAVAILABLE)
        except DomainError as error:
            return refused(wish, error.reason)

    async def _buy_gathered(self, items: Sequence[tuple[Wish, float]]) -> list[Outcome]:
        # Whose time is up has gone already: nothing is reserved for it.
        now = asyncio.get_running_loop().time()
        in_time = [(wish, deadline) for wish, deadline in items if deadline > now]
        if not in_time:
            return [refused(wish, _R.ERROR_REASON_OVERLOADED) for wish, _ in items]
        # The latest deadline: whose own runs out earlier leaves alone, and its purchase is there when it repeats.
        outcomes = iter(await self._buy_batch([wish for wish, _ in in_time], max(each for _, each in in_time)))
        return [
            next(outcomes) if deadline > now else refused(wish, _R.ERROR_REASON_OVERLOADED) for wish, deadline in items
        ]

    async def _begin(self, wishes: Sequence[Wish], deadline: float) -> list[Outcome]:
        task = asyncio.get_running_loop().create_task(self._buy_batch(wishes, deadline))
        self._tasks.add(task)
        self._direct += len(wishes)

        def ended(task: "asyncio.Task[list[Outcome]]") -> None:
            # Counted by the work and not by the call: callers who give up must not make room for more.
            self._direct -= len(wishes)
            self._tasks.discard(task)

        task.add_done_callback(ended)
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(task)
        except TimeoutError:
            return [refused(wish, _R.ERROR_REASON_UNAVAILABLE) for wish in wishes]

    async def _buy_batch(self, wishes: Sequence[Wish], deadline: float) -> list[Outcome]:
        try:
            async with asyncio.timeout_at(deadline):
                await self._slots.acquire()
        except TimeoutError:
            return [refused(wish, _R.ERROR_REASON_OVERLOADED) for wish in wishes]
        try:
            if not await self._rate.turn(len(wishes), deadline):
                return [refused(wish, _R.ERROR_REASON_OVERLOADED) for wish in wishes]
            outcomes = await self._decide_all(wishes, deadline)
        finally:
            self._slots.release()
        return [outcomes[wish.purchase_id, wish.quantity] for wish in wishes]

    async def _decide_all(self, wishes: Sequence[Wish], deadline: float) -> dict[tuple[uuid.UUID, int], Outcome]:
        """The outcome by id and quantity.

        An id may come with several contents, perhaps from several callers. Only the purchase tells which of them is the
        repetition, so those it cannot decide yet are decided one after the other.
        """
        if len({wish.purchase_id for wish in wishes}) == len(wishes):
            decided, _ = await self._decide(wishes, deadline)
            return {(wish.purchase_id, wish.quantity): decided[wish.purchase_id] for wish in wishes}
        outcomes: dict[tuple[uuid.UUID, int], Outcome] = {}
        undecided: dict[tuple[uuid.UUID, int], Wish] = {}
        for wish in wishes:
            # Waiting is no part of the contents: if one of two that are alike would wait, their purchase may.
            if wish.waitlist or (wish.purchase_id, wish.quantity) not in undecided:
                undecided[wish.purchase_id, wish.quantity] = wish
        for _ in range(_CONTENTS_MAX):
            # In the order in which they came: those who join the line stand in it in this order.
            first: dict[uuid.UUID, Wish] = {}
            for wish in undecided.values():
                first.setdefault(wish.purchase_id, wish)
            decided, known = await self._decide(list(first.values()), deadline)
            for wish in first.values():
                outcomes[wish.purchase_id, wish.quantity] = decided[wish.purchase_id]
            undecided = {key: wish for key, wish in undecided.items() if key not in outcomes}
            for key, wish in undecided.items():
                if wish.purchase_id in known:
                    outcomes[key] = decided_by_row(wish, known[wish.purchase_id])
            undecided = {key: wish for key, wish in undecided.items() if key not in outcomes}
            if not undecided:
                break
        for key, wish in undecided.items():
            outcomes[key] = refused(wish, _R.ERROR_REASON_UNAVAILABLE)
        return outcomes

    async def _decide(
        self, wishes: Sequence[Wish], deadline: float
    ) -> tuple[dict[uuid.UUID, Outcome], dict[uuid.UUID, Purchase]]:
        """The outcome of each wish, all of distinct ids, and the purchases that are known to exist."""
        with tracing.spans("buy", (wish.purchase_id for wish in wishes)) as traced:
            outcomes, known = await self._decide_traced(wishes, deadline)
            if traced is not None:
                for key, outcome in outcomes.items():
                    traced.set(key, "flashsale.outcome", _told(outcome))
        return outcomes, known

    async def _decide_traced(
        self, wishes: Sequence[Wish], deadline: float
    ) -> tuple[dict[uuid.UUID, Outcome], dict[uuid.UUID, Purchase]]:
        reasons, terms, places = await self._reserve(wishes, deadline)
        failpoints.hit("purchase.reserved")
        reserved = [wish for wish, reason in zip(wishes, reasons, strict=True) if not reason]
        new: dict[uuid.UUID, Purchase] = {}
        try:
            if reserved:
                inserted = await self._book.insert(reserved, terms, places)
                failpoints.hit("purchase.recorded")
                self._on_new(_with_units(inserted) if places else inserted)
                new = inserted.purchases
            # Whoever was refused may be a winner who repeats: if there is a purchase, it decides.
            in_doubt = [
                wish.purchase_id
                for wish, reason in zip(wishes, reasons, strict=True)
                if reason != _INVALID_ARGUMENT and wish.purchase_id not in new
            ]
            rows = await self._book.get_many(in_doubt) if in_doubt else {}
        except DomainError as error:
            ids = named(wish.purchase_id for wish in wishes)
            log.warning(
                "purchases could not be recorded", purchases=len(wishes), purchase_ids=ids, reason=error.reason_name
            )
            rows = None
        outcomes = {
            wish.purchase_id: self._outcome(
                wish, reason, new.get(wish.purchase_id), rows, places.get(wish.purchase_id, 0)
            )
            for wish, reason in zip(wishes, reasons, strict=True)
        }
        return outcomes, new | (rows or {})

    @staticmethod
    def _outcome(
        wish: Wish, reason: int, new: Purchase | None, rows: dict[uuid.UUID, Purchase] | None, place: int
    ) -> Outcome:
        if new is not None:
            return bought(new, place)
        if reason == _INVALID_ARGUMENT:
            return refused(wish, reason)
        if rows is None:
            # Neither "bought" nor "lost" may be said while the book cannot be read.
            return refused(wish, _R.ERROR_REASON_UNAVAILABLE)
        row = rows.get(wish.purchase_id)
        if row is not None:
            return decided_by_row(wish, row, place)
        # Reserved, not inserted and not there: nothing deletes purchases, so this is a fault of the database.
        return refused(wish, reason or _INTERNAL)

    async def _reserve(
        self, wishes: Sequence[Wish], deadline: float
    ) -> tuple[list[int], dict[str, Terms], dict[uuid.UUID, int]]:
        """One ErrorReason per wish, 0 where units are reserved or it waits in line; the terms of these sales; and the
        places of those that wait."""
        request = inventory_pb.BatchReserveSharesRequest(
            items=[
                inventory_pb.ReserveItem(
                    reservation_id=str(wish.purchase_id),
                    sale_id=wish.sale_id,
                    user_id=wish.user_id,
                    request_id=wish.request_id,
                    quantity=wish.quantity,
                    join_waitlist=wish.waitlist,
                )
                for wish in wishes
            ]
        )
        left_s = max(0.001, deadline - asyncio.get_running_loop().time())
        try:
            with tracing.calling(_RESERVE, (wish.purchase_id for wish in wishes)) as traced:
                response = await self._inventory.BatchReserveShares(
                    request, timeout=left_s, metadata=tracing.metadata_of(traced)
                )
        except grpc.aio.AioRpcError as error:
            ids = named(wish.purchase_id for wish in wishes)
            log.warning("a reserve call failed", wishes=len(wishes), purchase_ids=ids, code=error.code().name)
            return [_reason_of_failed_call(from_rpc_error(error))] * len(wishes), {}, {}
        asked = [item.reservation_id for item in request.items]
        if [outcome.reservation_id for outcome in response.outcomes] != asked:
            log.error("the inventory service answered other reservations than were asked for")
            return [_R.ERROR_REASON_INTERNAL] * len(wishes), {}, {}
        terms = {
            each.sale_id: Terms(each.unit_price.amount_minor, each.unit_price.currency_code)
            for each in response.sale_terms
        }
        reasons: list[int] = [
            outcome.reason if outcome.reason or wish.sale_id in terms else _INTERNAL
            for wish, outcome in zip(wishes, response.outcomes, strict=True)
        ]
        places = {
            wish.purchase_id: outcome.waitlist_position
            for wish, outcome in zip(wishes, response.outcomes, strict=True)
            if outcome.waiting
        }
        return reasons, terms, places


def _with_units(inserted: Inserted) -> Inserted:
    """Without those that wait in line: there is nothing to settle of them yet."""
    return Inserted(
        {key: each for key, each in inserted.purchases.items() if each.state is PurchaseState.RESERVED},
        inserted.batch_id,
    )


def _told(outcome: Outcome) -> str:
    """An outcome as a trace tells it: the state of the purchase, or why there is none."""
    return outcome.purchase.state.value if outcome.purchase is not None else reason_name(outcome.reason)
