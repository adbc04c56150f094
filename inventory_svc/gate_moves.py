"""Moves: transitions committed in SQL that the gate then follows. Giving back is SQL first, then Redis, until done."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from inventory_svc.outbox import Move
from inventory_svc.reservation_book import ReservationBook
from inventory_svc.sale import ReservationState
from inventory_svc.sale_book import SaleBook
from inventory_svc.stock_gate import SCRIPT_ITEMS_MAX, StockGate
from mesh import failpoints
from mesh.errors import DomainError
from mesh.logs import get_logger

log = get_logger(__name__)

#: Moves read at once when they are repeated.
_PAGE_MAX = 200


class GateMoves:
    """Lets the gates follow, at once after a commit and again later when that did not work.

    ``changed`` is told a sale, its available units and how many wait after each move; ``stale`` a sale whose gate is
    not current.
    """

    def __init__(
        self,
        gate: StockGate,
        sales: SaleBook,
        book: ReservationBook,
        *,
        changed: Callable[[str, int, int], None],
        stale: Callable[[str], None],
    ) -> None:
        self._gate = gate
        self._sales = sales
        self._book = book
        self._changed = changed
        self._stale = stale
        self._again = asyncio.Event()

    async def follow(self, moves: Sequence[Move]) -> None:
        """Applies moves that were just committed and forgets those that took. Never raises for a server that is away:
        the moves are on record, and ``repeat`` ends them."""
        if not moves:
            return
        try:
            await self._follow(moves)
        except DomainError as error:
            log.warning("the gate follows later", moves=len(moves), reason=error.reason_name)

    async def _follow(self, moves: Sequence[Move]) -> None:
        # Read after the commit: a recalibration with a later epoch counts after it and needs no move.
        epochs = await self._sales.epochs(list({move.sale_id for move in moves}))
        done = [move.move_id for move in moves if await self._apply(move, epochs[move.sale_id])]
        failpoints.hit("inventory.moved")
        if done:
            await self._book.delete_moves(done)

    async def _apply(self, move: Move, epoch_min: int) -> bool:
        sold = move.state == ReservationState.SOLD
        # One that passes units on is of one part (outbox.Move).
        for first in range(0, len(move.reservation_ids), SCRIPT_ITEMS_MAX):
            ids = move.reservation_ids[first : first + SCRIPT_ITEMS_MAX]
            try:
                level = await self._gate.move(
                    move.sale_id,
                    sold=sold,
                    epoch_min=epoch_min,
                    reservation_ids=ids,
                    promoted_ids=move.promoted_ids,
                )
            except DomainError as error:
                if error.reason != ErrorReason.ERROR_REASON_STOCK_RECALIBRATING:
                    raise
                self._stale(move.sale_id)
                return False
            self._changed(move.sale_id, *level)
        return True

    def soon(self) -> None:
        """Repeats what is left now rather than at the next round: a gate has just come into service."""
        self._again.set()

    async def repeat(self, *, period_ms: int) -> None:
        """Repeats moves that are left over, oldest first, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(period_ms / 1000):
                    await self._again.wait()
            # A younger move is its own call's to apply; after a recalibration all that are left are due.
            min_age_ms = 0 if self._again.is_set() else period_ms
            self._again.clear()
            try:
                await self.repeat_all(min_age_ms)
            except DomainError as error:
                log.warning("moves cannot be repeated", reason=error.reason_name)

    async def repeat_all(self, min_age_ms: int) -> None:
        # Page by page, so that moves of a sale that cannot follow yet do not stand in the way of the others'.
        last_id = 0
        while moves := await self._book.moves_left(min_age_ms=min_age_ms, after_id=last_id, most=_PAGE_MAX):
            await self._follow(moves)
            last_id = moves[-1].move_id
