"""Follows the stock of the sales that are asked for, one WatchStock stream each."""

import asyncio
import random
from collections import OrderedDict
from typing import TYPE_CHECKING

import grpc
from flashsale.inventory.v1 import inventory_service_pb2 as inventory

from gateway.second_look import SecondLook
from gateway.sold_out import SaleStock
from gateway.stock_turns import StockTurns
from gateway.user_rate import UserRate
from mesh.background import Background
from mesh.logs import get_logger

if TYPE_CHECKING:
    from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceAsyncStub

log = get_logger(__name__)

#: A stream that says nothing for so long is opened anew, s. It has long lapsed by then (sold_out.READING_S_MAX).
_SILENCE_S_MAX = 2.0
#: Pause before a stream that failed is opened anew, s, doubled up to the most.
_PAUSE_S, _PAUSE_S_MAX = 0.1, 1.0
#: How long "no such sale" is believed, s, and of how many sales.
_MISSING_S, _MISSING_MAX = 1.0, 4096
#: Sales whose first message is still awaited, at once.
_PENDING_MAX = 16
#: A sale that nobody has asked for in this time may make room for another, s.
_IDLE_S = 10.0
#: How often requests that have waited too long for a turn are looked for, s.
_OVERDUE_CHECK_S = 0.05
#: How often sales that nobody asks for any more are looked for, s.
_UNASKED_CHECK_S = 1.0
#: New sales/s that requests without a token may make us follow.
_ANONYMOUS_PER_S = 20.0


class Followed:
    """A sale that is being followed."""

    def __init__(
        self,
        stub: "InventoryServiceAsyncStub",
        background: Background,
        stock: SaleStock,
        turns: StockTurns,
        *,
        waiting_max: int,
        now: float,
        heard: asyncio.Event,
    ) -> None:
        self.stock = stock
        self._heard = heard
        self.turns = turns
        self.second_look = SecondLook(stub, stock, self.changed, background, waiting_max=waiting_max)
        self.asked_at = now
        #: Streams that show it to somebody now.
        self.viewers = 0
        #: Set once anything is known: a first message, a failure, or that there is no such sale.
        self.settled = asyncio.Event()
        self.missing = False
        self.task: asyncio.Task[None] | None = None
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(self) -> None:
        """Tells everybody who waits in ``changed``, or for a turn, to look again."""
        if not self._changed.done():
            self._changed.set_result(None)
        self._changed = asyncio.get_running_loop().create_future()
        self._heard.set()
        self.turns.look_again()

    async def changed(self) -> None:
        """Waits until the reading has changed."""
        await asyncio.shield(self._changed)


class StockFollowers:
    """The sales that are followed, at most ``sales_max``; one that nobody has asked for lately makes room for another,
    and after ``unasked_s`` seconds it is not followed any more: whatever is known of its holders is given back here and
    in the Inventory Service.

    At most ``waiting_max`` requests wait for a turn at each, for ``wait_s_max`` seconds. ``sole`` says that no other
    gateway sells the same sales. Where there is no room a sale
    is not followed, and its purchases all go through normal admission.
    """

    def __init__(
        self,
        stub: "InventoryServiceAsyncStub",
        background: Background,
        *,
        sales_max: int,
        unasked_s: float,
        fingerprints_max: int,
        sent_s: float,
        waiting_max: int,
        wait_s_max: float,
        sole: bool,
    ) -> None:
        self._stub = stub
        self._background = background
        self._sales_max = sales_max
        self._unasked_s = unasked_s
        self._fingerprints_max = fingerprints_max
        self._sent_s = sent_s
        self._waiting_max = waiting_max
        self._wait_s_max = wait_s_max
        self._sole = sole
        self._followed: dict[str, Followed] = {}
        self._missing: OrderedDict[str, float] = OrderedDict()
        self._anonymous = UserRate(_ANONYMOUS_PER_S, int(_ANONYMOUS_PER_S), 1)
        #: The path to buy of each followed sale: the shortest way from a request to its stock.
        self.by_path: dict[str, Followed] = {}
        #: Set whenever the reading of any sale has changed; whoever acts upon it clears it.
        self.heard = asyncio.Event()

    def __len__(self) -> int:
        return len(self._followed)

    def stocks(self) -> list[SaleStock]:
        """What is known of every followed sale."""
        return [followed.stock for followed in self._followed.values()]

    @property
    def waiting(self) -> int:
        """Requests that wait for a turn, over all sales."""
        return sum(followed.turns.waiting for followed in self._followed.values())

    def is_missing(self, sale_id: str, now: float) -> bool:
        """Whether the Inventory Service said a moment ago that there is no such sale."""
        return bool(self._missing) and self._missing.get(sale_id, float("-inf")) > now

    def find(self, sale_id: str) -> Followed | None:
        """The sale, if it is followed. ``sale_id`` is canonical."""
        return self._followed.get(sale_id)

    def known(self, sale_id: str) -> SaleStock | None:
        """What is known of a sale, if it is followed."""
        followed = self._followed.get(sale_id)
        return followed.stock if followed is not None else None

    def follow(self, sale_id: str, now: float, *, anonymous: bool = False) -> Followed | None:
        """Follows a sale from now on; None where there is no room, or too many are new. ``sale_id`` is canonical."""
        followed = self._followed.get(sale_id)
        if followed is not None:
            followed.asked_at = now
            return followed
        if anonymous and self._anonymous.take("", now):
            return None
        if sum(not other.settled.is_set() for other in self._followed.values()) >= _PENDING_MAX:
            return None
        if len(self._followed) >= self._sales_max and not self._make_room(now):
            return None
        stock = SaleStock(sale_id, self._fingerprints_max, self._sent_s, sole=self._sole)
        clock = asyncio.get_running_loop().time
        turns = StockTurns(stock, waiting_max=self._waiting_max, wait_s_max=self._wait_s_max, clock=clock)
        followed = Followed(
            self._stub, self._background, stock, turns, waiting_max=self._waiting_max, now=now, heard=self.heard
        )
        self._followed[sale_id] = followed
        self.by_path[f"/v1/sales/{sale_id}/purchases"] = followed
        followed.task = self._background.start(self._run(followed), f"follow {sale_id}")
        return followed

    def _make_room(self, now: float) -> bool:
        idle = self._unasked(now - _IDLE_S)
        if not idle:
            return False
        self._give_up(min(idle, key=lambda each: each.asked_at))
        return True

    def _unasked(self, since: float) -> list[Followed]:
        return [each for each in self._followed.values() if each.viewers == 0 and each.asked_at <= since]

    def _give_up(self, followed: Followed) -> None:
        self._drop(followed.stock.sale_id)
        if followed.task is not None:
            followed.task.cancel()

    async def give_up_unasked(self) -> None:
        """Gives up the sales that nobody asks for any more, for ever; run in the background."""
        while True:
            await asyncio.sleep(_UNASKED_CHECK_S)
            for followed in self._unasked(asyncio.get_running_loop().time() - self._unasked_s):
                self._give_up(followed)

    def _drop(self, sale_id: str) -> None:
        followed = self._followed.pop(sale_id)
        del self.by_path[f"/v1/sales/{sale_id}/purchases"]
        followed.stock.lapse()
        followed.settled.set()
        followed.wake()

    async def refuse_overdue(self) -> None:
        """Refuses who has waited too long for a turn, for ever; run in the background."""
        while True:
            await asyncio.sleep(_OVERDUE_CHECK_S)
            for followed in self._followed.values():
                followed.turns.refuse_overdue()

    async def _run(self, followed: Followed) -> None:
        sale_id, pause_s = followed.stock.sale_id, _PAUSE_S
        while True:
            heard = followed.stock.read_at
            try:
                await self._follow_once(followed)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    self._note_missing(followed)
                    return
                log.warning("stock stream ended", sale_id=sale_id, code=error.code().name)
            except TimeoutError:
                log.warning("stock stream fell silent", sale_id=sale_id)
            pause_s = _PAUSE_S if followed.stock.read_at != heard else min(2 * pause_s, _PAUSE_S_MAX)
            followed.stock.lapse()
            followed.settled.set()
            followed.wake()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, not a secret)

    async def _follow_once(self, followed: Followed) -> None:
        """Reads one stream to its end. Raises AioRpcError when it fails, TimeoutError when it falls silent."""
        loop = asyncio.get_running_loop()
        stock = followed.stock
        call = self._stub.WatchStock(
            inventory.WatchStockRequest(sale_id=stock.sale_id, include_fingerprints=True),
        )
        try:
            while True:
                async with asyncio.timeout(_SILENCE_S_MAX):
                    message = await call.read()
                if not isinstance(message, inventory.WatchStockResponse):
                    return
                version = stock.version
                stock.apply(message, loop.time())
                followed.settled.set()
                if stock.version != version:
                    followed.wake()
        finally:
            call.cancel()

    def _note_missing(self, followed: Followed) -> None:
        now = asyncio.get_running_loop().time()
        followed.missing = True
        self._missing[followed.stock.sale_id] = now + _MISSING_S
        self._missing.move_to_end(followed.stock.sale_id)
        if len(self._missing) > _MISSING_MAX:
            self._missing.popitem(last=False)
        if self._followed.get(followed.stock.sale_id) is followed:
            self._drop(followed.stock.sale_id)
