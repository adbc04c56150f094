"""Makes sure, before a request is refused as sold out, that its buyer got nothing at another gateway meanwhile."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import grpc
from flashsale.inventory.v1 import inventory_service_pb2 as inventory

from gateway.sold_out import SaleStock, is_spoken_for
from mesh.background import Background

if TYPE_CHECKING:
    from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceAsyncStub

#: Longest wait for a reading, and then for the stream to come as far, seconds.
_READ_S_MAX, _STREAM_S_MAX = 0.5, 0.3
#: Time between two looks, seconds: so many are what refusals cost behind the gateway, however many they are.
_PAUSE_S = 0.01


class SecondLook:
    """Asks the Inventory Service once for all who wait, with a reading that is made after they came.

    The stream's last reading is older than the request. Whoever was granted a unit since, through another gateway, is
    missing from it; a reading made after the request came that still shows none, and a stream that has come as far,
    prove that the request holds none. At most ``waiting_max`` wait; who finds no room, or no answer, is not refused
    here but goes through normal admission. ``changed`` waits for the next message of the stream.
    """

    def __init__(
        self,
        stub: "InventoryServiceAsyncStub",
        stock: SaleStock,
        changed: Callable[[], Awaitable[None]],
        background: Background,
        *,
        waiting_max: int,
    ) -> None:
        self._stub = stub
        self._stock = stock
        self._changed = changed
        self._background = background
        self._waiting_max = waiting_max
        self._waiting: list[tuple[int, asyncio.Future[bool]]] = []
        self._looking = False

    async def confirms(self, mark: int) -> bool:
        """Whether the request of this fingerprint can be refused, by a reading made from now on."""
        if len(self._waiting) >= self._waiting_max:
            return False
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((mark, future))
        if not self._looking:
            self._looking = True
            self._background.start(self._look(), f"second look {self._stock.sale_id}")
        return await future

    async def _look(self) -> None:
        try:
            while self._waiting:
                asked, self._waiting = self._waiting, []
                empty = False
                try:
                    empty = await self._is_empty()
                finally:
                    now = asyncio.get_running_loop().time()
                    for mark, future in asked:
                        if not future.done():
                            future.set_result(empty and self._stock.is_sold_out_for(mark, now))
                await asyncio.sleep(_PAUSE_S)
        finally:
            self._looking = False

    async def _is_empty(self) -> bool:
        """Whether a newcomer can have nothing, by a reading made from now on, with whose holders the stream has caught
        up."""
        request = inventory.GetStockRequest(sale_id=self._stock.sale_id, source=inventory.STOCK_SOURCE_GATE)
        try:
            later = (await self._stub.GetStock(request, timeout=_READ_S_MAX)).stock
        except grpc.aio.AioRpcError:
            return False
        if not is_spoken_for(later):
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STREAM_S_MAX):
                while not self._has_come_to(later):
                    await self._changed()
                return True
        return False

    def _has_come_to(self, later: inventory.Stock) -> bool:
        known = self._stock.stock
        return known is not None and (known.epoch, known.holder_changes) >= (later.epoch, later.holder_changes)
