"""Reads on behalf of users: purchases, sales, stock, balances. Bounded, so that asking never outweighs buying."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import msgspec
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from gateway.balances import Balances
from gateway.following import StockFollowers
from gateway.json_forms import purchase_json, receipt_json, sale_json, stock_json
from gateway.settings import Settings
from gateway.shared_value import SharedValue
from mesh import tracing
from mesh.errors import DomainError, from_rpc_error

if TYPE_CHECKING:
    from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceAsyncStub
    from flashsale.purchase.v1.purchase_service_pb2_grpc import PurchaseServiceAsyncStub

T = TypeVar("T")

#: How long a sale's terms and the list of sales are believed, s, and of how many sales: everybody reloads one page.
_SALE_S, _SALES_MAX = 0.5, 256
#: Sales of the list that anybody may see, and how many are looked through for them: drafts are not shown.
_LISTED_MAX, _LOOKED_THROUGH_MAX = 100, 300
#: Purchases of one page.
_OWN_MAX = 100

_SERVICE = purchase.DESCRIPTOR.services_by_name["PurchaseService"].full_name

_FINAL = frozenset(
    {
        purchase.PURCHASE_STATE_CONFIRMED,
        purchase.PURCHASE_STATE_FAILED,
        purchase.PURCHASE_STATE_CANCELLED,
        purchase.PURCHASE_STATE_REFUNDED,
    }
)
_WAITLISTED = purchase.PURCHASE_STATE_WAITLISTED


def _overloaded(what: str, most: int) -> DomainError:
    return DomainError(ErrorReason.ERROR_REASON_OVERLOADED, f"too many {what} at once", metadata={"limit": str(most)})


def _not_found(sale_id: str) -> DomainError:
    return DomainError(ErrorReason.ERROR_REASON_SALE_NOT_FOUND, metadata={"sale_id": sale_id})


class Reading:
    """Answers reads from what is followed, or by at most ``reads_max`` calls at once, ``waits_max`` long polls apart.

    Every method raises the DomainError that the service answered, or OVERLOADED, UNAVAILABLE, DEADLINE_EXCEEDED.
    """

    def __init__(
        self,
        purchases: "PurchaseServiceAsyncStub",
        inventories: "InventoryServiceAsyncStub",
        balances: Balances,
        followers: StockFollowers,
        settings: Settings,
        draining: asyncio.Event,
    ) -> None:
        self._purchases, self._inventories, self._balances = purchases, inventories, balances
        self._followers = followers
        self._settings = settings
        self._timeout_s = settings.read_timeout_ms / 1000
        self._draining = draining
        self._sales: OrderedDict[str, tuple[float, dict[str, Any]]] = OrderedDict()
        self._list = SharedValue(self._read_list, _SALE_S)
        self.reads = 0
        self.waits = 0

    async def _read(self, call: Callable[[], Awaitable[T]]) -> T:
        if self.reads >= self._settings.reads_max:
            raise _overloaded("reads", self._settings.reads_max)
        self.reads += 1
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            self.reads -= 1

    async def purchase_now(self, purchase_id: str, user_id: str) -> dict[str, Any]:
        """A user's purchase as it is now."""
        request = purchase.GetPurchaseRequest(purchase_id=purchase_id, user_id=user_id)
        answer = await self._read(lambda: self._purchases.GetPurchase(request, timeout=self._timeout_s))
        return purchase_json(answer.purchase)

    async def cancelled(self, purchase_id: str, user_id: str) -> dict[str, Any]:
        """A user's purchase after it was cancelled."""
        request = purchase.CancelPurchaseRequest(purchase_id=purchase_id, user_id=user_id)
        with (
            tracing.requests("DELETE /v1/purchases/{purchase_id}", ((purchase_id, 0.0),)),
            tracing.calling(f"{_SERVICE}/CancelPurchase", (purchase_id,)) as traced,
        ):
            metadata = tracing.metadata_of(traced)
            answer = await self._read(
                lambda: self._purchases.CancelPurchase(request, timeout=self._timeout_s, metadata=metadata)
            )
        return purchase_json(answer.purchase)

    async def refunded(self, purchase_id: str, user_id: str) -> dict[str, Any]:
        """A user's purchase after a refund was asked for."""
        request = purchase.RefundPurchaseRequest(purchase_id=purchase_id, user_id=user_id)
        with (
            tracing.requests("POST /v1/purchases/{purchase_id}/refund", ((purchase_id, 0.0),)),
            tracing.calling(f"{_SERVICE}/RefundPurchase", (purchase_id,)) as traced,
        ):
            metadata = tracing.metadata_of(traced)
            answer = await self._read(
                lambda: self._purchases.RefundPurchase(request, timeout=self._timeout_s, metadata=metadata)
            )
        return purchase_json(answer.purchase)

    async def receipt(self, purchase_id: str, user_id: str) -> dict[str, Any]:
        """Everything about a user's purchase."""
        request = purchase.GetReceiptRequest(purchase_id=purchase_id, user_id=user_id)
        answer = await self._read(lambda: self._purchases.GetReceipt(request, timeout=self._timeout_s))
        return receipt_json(answer)

    async def own_purchases(self, user_id: str, sale_id: str, page_token: str) -> dict[str, Any]:
        """A page of a user's purchases, of all sales if ``sale_id`` is empty."""
        request = purchase.ListPurchasesRequest(
            user_id=user_id, sale_id=sale_id, page_size=_OWN_MAX, page_token=page_token
        )
        answer = await self._read(lambda: self._purchases.ListPurchases(request, timeout=self._timeout_s))
        return {
            "purchases": [purchase_json(each) for each in answer.purchases],
            "next_page_token": answer.next_page_token,
        }

    async def awaited_purchase(
        self, purchase_id: str, user_id: str, wait_s: float, gone: "asyncio.Future[Any]"
    ) -> dict[str, Any] | None:
        """A user's purchase once it is final, or has left the line if it waits in one, or as it is when ``wait_s`` has
        passed or the process drains; None when whoever asked has ``gone``. When too many wait already it is answered
        at once as it is now."""
        if self.waits >= self._settings.waits_max or self._draining.is_set():
            return await self.purchase_now(purchase_id, user_id)
        self.waits += 1
        watching = asyncio.ensure_future(self._watched(purchase_id, user_id, wait_s))
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait({watching, draining, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                return None
            value = await watching if watching.done() else None
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            self.waits -= 1
            watching.cancel()
            draining.cancel()
        # The place of one that still waits in line was told when the wait began.
        if value is None or (value.state == _WAITLISTED and self.reads < self._settings.reads_max):
            return await self.purchase_now(purchase_id, user_id)
        return purchase_json(value)

    async def _watched(self, purchase_id: str, user_id: str, wait_s: float) -> purchase.Purchase | None:
        """The last state seen within ``wait_s``; None if none came."""
        request = purchase.WatchPurchaseRequest(purchase_id=purchase_id, user_id=user_id)
        call = self._purchases.WatchPurchase(request)
        last: purchase.Purchase | None = None
        in_line = False
        try:
            async with asyncio.timeout(wait_s):
                while last is None or not (last.state in _FINAL or (in_line and last.state != _WAITLISTED)):
                    message = await call.read()
                    if not isinstance(message, purchase.WatchPurchaseResponse):
                        break
                    last = message.purchase
                    in_line = in_line or last.state == _WAITLISTED
        except TimeoutError:
            pass
        finally:
            call.cancel()
        return last

    async def sales(self) -> bytes:
        """The newest sales as JSON, drafts left out; at most half a second old, and read once for all who ask."""
        return await self._list.get()

    async def _read_list(self) -> bytes:
        request = inventory.ListSalesRequest(page_size=_LOOKED_THROUGH_MAX)
        answer = await self._read(lambda: self._inventories.ListSales(request, timeout=self._timeout_s))
        shown = [sale_json(sale) for sale in answer.sales if sale.state != inventory.SALE_STATE_DRAFT]
        return msgspec.json.encode({"sales": shown[:_LISTED_MAX]})

    async def sale(self, sale_id: str) -> dict[str, Any]:
        """A sale's terms and state, at most half a second old."""
        now = asyncio.get_running_loop().time()
        known = self._sales.get(sale_id)
        if known is not None and now < known[0] + _SALE_S:
            return known[1]
        if self._followers.is_missing(sale_id, now):
            raise _not_found(sale_id)
        request = inventory.GetSaleRequest(sale_id=sale_id)
        answer = await self._read(lambda: self._inventories.GetSale(request, timeout=self._timeout_s))
        shown = sale_json(answer.sale)
        self._sales[sale_id] = (now, shown)
        self._sales.move_to_end(sale_id)
        if len(self._sales) > _SALES_MAX:
            self._sales.popitem(last=False)
        return shown

    async def stock(self, sale_id: str) -> dict[str, Any]:
        """A sale's stock: the last reading of its stream if that is fresh, else asked for."""
        now = asyncio.get_running_loop().time()
        if self._followers.is_missing(sale_id, now):
            raise _not_found(sale_id)
        followed = self._followers.follow(sale_id, now, anonymous=True)
        fresh = followed.stock.fresh_stock(now) if followed is not None else None
        if fresh is not None:
            return stock_json(fresh)
        request = inventory.GetStockRequest(sale_id=sale_id)
        answer = await self._read(lambda: self._inventories.GetStock(request, timeout=self._timeout_s))
        return stock_json(answer.stock)

    async def balance(self, user_id: str, currency_code: str) -> dict[str, Any]:
        """What is on a user's account."""
        account = await self._read(lambda: self._balances.read(user_id, currency_code))
        return {
            "currency_code": account.currency_code,
            "balance_minor": account.balance_minor,
            "held_minor": account.held_minor,
            "available_minor": account.balance_minor - account.held_minor,
        }
