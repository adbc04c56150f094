"""Lets no more requests for a sale go on at once than could still get a share."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeGuard

from flashsale.inventory.v1 import inventory_service_pb2 as inventory

from gateway.sold_out import SaleStock, is_spoken_for

#: Requests beyond the available units that may be on their way: some are refused for reasons of their own, and a
#: reading is up to 50 ms old.
_MARGIN = 16

Clock = Callable[[], float]


def _can_tell(stock: inventory.Stock | None) -> TypeGuard[inventory.Stock]:
    """Whether a reading says how many may go on. One of nothing refuses at the door and holds nobody here: who asks to
    wait in line goes on to it."""
    return stock is not None and stock.open and not is_spoken_for(stock)


class StockTurns:
    """The turns of one sale: as many requests inside as there are units, and a few more; the others wait here.

    When units of failed payments trickle back, each of them would otherwise let the whole crowd through to the services
    before the next reading says zero again. Whoever waits is not refused while anything is available, so no unit is
    left that somebody wanted; as soon as nothing is, all of them are told so at the cost of a wake-up.

    At most ``waiting_max`` wait, in the order in which they came, each for ``wait_s_max`` seconds. Who holds
    a unit already need not ask for a turn.
    """

    def __init__(self, stock: SaleStock, *, waiting_max: int, wait_s_max: float, clock: Clock) -> None:
        self._stock = stock
        self._waiting_max = waiting_max
        self._wait_s_max = wait_s_max
        self._clock = clock
        # Kept: asking asyncio for the loop costs a system call each time (Python 3.11).
        self._new_future = asyncio.get_running_loop().create_future
        self._inside = 0
        self._waiting: deque[tuple[float, asyncio.Future[bool]]] = deque()

    @property
    def inside(self) -> int:
        """Requests that were let go on and have not been answered."""
        return self._inside

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn, those that gave up included until they are passed over."""
        return len(self._waiting)

    def _free(self, now: float) -> bool:
        """Whether another may go on. Where the reading cannot tell, all may: normal admission bounds them."""
        stock = self._stock.fresh_stock(now)
        return not _can_tell(stock) or self._inside < stock.available + _MARGIN

    async def enter(self) -> bool:
        """Waits for a place; whoever got one (True) must ``leave``. False when it took too long, and at once when too
        many wait. A place says nothing of the stock: it may be gone by then."""
        now = self._clock()
        if not self._waiting and self._free(now):
            self._inside += 1
            return True
        if len(self._waiting) >= self._waiting_max:
            return False
        turn: asyncio.Future[bool] = self._new_future()
        self._waiting.append((now + self._wait_s_max, turn))
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.result():
                # It was given its place at the very moment at which it gave up.
                self.leave()
            raise

    def leave(self) -> None:
        """Gives the place to the next."""
        self._inside -= 1
        self.look_again()

    def look_again(self) -> None:
        """Wakes those whose turn it is; all of them when the sale is sold out. Call when the reading has changed."""
        if not self._waiting:
            return
        stock = self._stock.fresh_stock(self._clock())
        places = stock.available + _MARGIN - self._inside if _can_tell(stock) else len(self._waiting)
        while self._waiting and places > 0:
            _, turn = self._waiting.popleft()
            if not turn.done():
                # Counted here and not when it runs, so that no place is given twice.
                self._inside += 1
                places -= 1
                turn.set_result(True)

    def refuse_overdue(self) -> None:
        """Refuses those who have waited too long. Call every now and then: a timer for each of a crowd would cost more
        than its refusal."""
        now = self._clock()
        while self._waiting and self._waiting[0][0] <= now:
            _, turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(False)
