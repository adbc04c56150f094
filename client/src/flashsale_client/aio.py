"""The client for asyncio."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, Self, TypeVar, cast

import grpc
from flashsale.balance.v1 import balance_service_pb2 as balance_pb
from flashsale.balance.v1.balance_service_pb2_grpc import BalanceServiceStub
from flashsale.inventory.v1 import inventory_service_pb2 as inventory_pb
from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub
from flashsale.purchase.v1 import purchase_service_pb2 as pb
from flashsale.purchase.v1.purchase_service_pb2_grpc import PurchaseServiceStub

from flashsale_client.aio_channel import AsyncRenewingChannel
from flashsale_client.certificates import Certificates, Material
from flashsale_client.connection import Target, Tls, options_of, require_private, target_of
from flashsale_client.deadlines import WithDeadlines
from flashsale_client.errors import FlashsaleError, error_of_call
from flashsale_client.following import Following
from flashsale_client.gathering import Gatherer
from flashsale_client.policy import Policy
from flashsale_client.reasons import DeadlineExceeded
from flashsale_client.repeating import pause_of_call_s
from flashsale_client.services import BALANCE, INVENTORY, PURCHASE, missing
from flashsale_client.wishes import Answer, Rounds, Wish, batch_of

if TYPE_CHECKING:
    from flashsale.balance.v1.balance_service_pb2_grpc import BalanceServiceAsyncStub
    from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceAsyncStub
    from flashsale.purchase.v1.purchase_service_pb2_grpc import PurchaseServiceAsyncStub

Request = TypeVar("Request", contravariant=True)
Response = TypeVar("Response", covariant=True)


class Method(Protocol[Request, Response]):
    """A unary method of a stub."""

    def __call__(self, request: Request, /, *, timeout: float | None = None) -> Awaitable[Response]:
        """Calls it."""


class AsyncClient:
    """Buys and reads at the services whose targets it is given; an async context manager, for use in one event loop.

    Every method raises a FlashsaleError, by reason: SoldOut, DeadlineExceeded ... Every call has a deadline, by default
    the policy's. A target is an address, a ``dns:///`` name or a list of replicas; without ``tls`` only on this
    machine, unless ``plaintext`` says otherwise; with it renewed certificate files are used without anything being
    done. Raises ValueError for a target that cannot be meant; a first call for certificate files that cannot be used.
    """

    def __init__(
        self,
        *,
        purchase: Target | None = None,
        inventory: Target | None = None,
        balance: Target | None = None,
        tls: Tls | None = None,
        plaintext: bool = False,
        policy: Policy | None = None,
    ) -> None:
        self.policy = policy or Policy()
        wanted = {PURCHASE: purchase, INVENTORY: inventory, BALANCE: balance}
        self._targets = {name: target_of(target) for name, target in wanted.items() if target is not None}
        if tls is None:
            for target in self._targets.values():
                require_private(target, plaintext=plaintext)
        self._tls = tls
        self._certificates: Certificates | None = None
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connections; calls under way are cancelled."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()

    def _channel(self, service: str) -> grpc.aio.Channel:
        channel = self._channels.get(service)
        if channel is None:
            if service not in self._targets:
                raise missing(service)
            target, options = self._targets[service], options_of(service, self.policy, self._tls)
            if self._tls is None:
                channel = grpc.aio.insecure_channel(target, options)
            else:
                self._certificates = self._certificates or Certificates(self._tls)

                def open_(material: Material) -> grpc.aio.Channel:
                    return grpc.aio.secure_channel(target, material.credentials(), options)

                # Not derived from the class: that would mean to pass on by hand what no stub uses.
                channel = cast("grpc.aio.Channel", AsyncRenewingChannel(self._certificates, open_))
            self._channels[service] = channel
        return channel

    def _bounded(self, service: str) -> grpc.aio.Channel:
        channel = self._channel(service)
        bounded = WithDeadlines(channel, timeout_s=self.policy.timeout_s, stream_s=self.policy.watch_timeout_s)
        # Not derived from the class: that would mean to pass on by hand what no stub uses.
        return cast("grpc.aio.Channel", bounded)

    @cached_property
    def purchases(self) -> "PurchaseServiceAsyncStub":
        """Every method of the Purchase Service, for ``call``. Raises ValueError if its target was not given."""
        return PurchaseServiceStub(self._bounded(PURCHASE))

    @cached_property
    def inventory(self) -> "InventoryServiceAsyncStub":
        """Every method of the Inventory Service, for ``call``. Raises ValueError if its target was not given."""
        return InventoryServiceStub(self._bounded(INVENTORY))

    @cached_property
    def balances(self) -> "BalanceServiceAsyncStub":
        """Every method of the Balance Service, for ``call``. Raises ValueError if its target was not given."""
        return BalanceServiceStub(self._bounded(BALANCE))

    async def call(
        self, method: Method[Request, Response], request: Request, *, timeout_s: float | None = None
    ) -> Response:
        """Calls a unary method by the policy: within ``timeout_s`` seconds, again where it was told to come again.

        >>> answer = await client.call(client.inventory.ListSales, inventory_pb.ListSalesRequest(page_size=10))
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.policy.timeout_s if timeout_s is None else timeout_s)
        repetitions = 0
        while True:
            try:
                return await method(request, timeout=max(0.0, deadline - loop.time()))
            except grpc.aio.AioRpcError as failure:
                error = error_of_call(failure)
                pause_s = pause_of_call_s(error, repetitions, deadline - loop.time(), self.policy)
                if pause_s is None:
                    raise error from failure
            repetitions += 1
            await asyncio.sleep(pause_s)

    async def buy(
        self,
        sale_id: str,
        user_id: str,
        quantity: int = 1,
        *,
        waitlist: bool = False,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> pb.Purchase:
        """Buys for a user; the purchase, RESERVED (or WAITLISTED, if ``waitlist`` lets it wait in line): durable, and
        settled by itself. See ``watch`` for what becomes of it.

        Whoever wants to be able to send it again keeps the ``request_id``; one that was made here is that of the error.
        Raises SoldOut, SaleNotOpen, UserLimitReached ...; after TryAgain it is not known whether it was bought.
        """
        wish = Wish(sale_id, user_id, quantity, waitlist, **({"request_id": request_id} if request_id else {}))
        timeout_s = self.policy.buy_timeout_s if timeout_s is None else timeout_s
        try:
            return (await self.call(self.purchases.CreatePurchase, wish.message(), timeout_s=timeout_s)).purchase
        except FlashsaleError as error:
            error.request_id = wish.request_id
            raise

    async def buy_many(self, wishes: Iterable[Wish], *, timeout_s: float | None = None) -> list[Answer]:
        """Buys for many users in batches; one answer for each wish, in their order. What was told to come again is sent
        again while there is time. Raises nothing that a wish or a batch has come to: that is the answer's ``error``."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.policy.buy_timeout_s if timeout_s is None else timeout_s)
        rounds, at_once = Rounds(list(wishes), self.policy), asyncio.Semaphore(self.policy.batches_at_once)

        async def send(places: list[int]) -> None:
            request = batch_of(rounds.wishes_of(places))
            async with at_once:
                try:
                    left_s = max(0.0, deadline - loop.time())
                    response = await self.call(self.purchases.BatchCreatePurchases, request, timeout_s=left_s)
                except FlashsaleError as error:
                    rounds.failed(places, error)
                    return
            rounds.answered(places, response.outcomes)

        while batches := rounds.batches():
            async with asyncio.TaskGroup() as group:
                for places in batches:
                    group.create_task(send(places))
            await asyncio.sleep(rounds.end_round(deadline - loop.time()))
        return rounds.answers()

    def gatherer(self) -> Gatherer:
        """Gathers single buys of many tasks into batches; used as an async context manager."""
        return Gatherer(self.buy_many, self.policy)

    async def watch(
        self, purchase_id: str, user_id: str = "", *, timeout_s: float | None = None
    ) -> AsyncIterator[pb.Purchase]:
        """The purchase as it is now, then each time its state has changed, up to its final state. A stream that is lost
        is taken up again, at another replica if there is one, without telling a state twice.

        Raises PurchaseNotFound, and DeadlineExceeded when it is not final within ``timeout_s`` seconds.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.policy.watch_timeout_s if timeout_s is None else timeout_s)
        request = pb.WatchPurchaseRequest(purchase_id=purchase_id, user_id=user_id)
        following = Following()
        while True:
            error: FlashsaleError | None = None
            stream = self.purchases.WatchPurchase(request, timeout=max(0.0, deadline - loop.time()))
            try:
                async for message in stream:
                    if following.is_news(message.purchase):
                        yield message.purchase
                    if following.ended:
                        return
            except grpc.aio.AioRpcError as failure:
                error = error_of_call(failure)
                error.__cause__ = failure
            finally:
                stream.cancel()
            pause_s = following.pause_s(error, deadline - loop.time())
            if pause_s is None:
                raise error or DeadlineExceeded("the purchase was not final in time")
            await asyncio.sleep(pause_s)

    async def outcome(self, purchase_id: str, user_id: str = "", *, timeout_s: float | None = None) -> pb.Purchase:
        """The purchase once it is final. Raises as ``watch`` does."""
        last = pb.Purchase()
        async for purchase in self.watch(purchase_id, user_id, timeout_s=timeout_s):
            last = purchase
        return last

    async def purchase(self, purchase_id: str, user_id: str = "") -> pb.Purchase:
        """The purchase as it is now; with ``user_id`` only if it is this user's. Raises PurchaseNotFound."""
        request = pb.GetPurchaseRequest(purchase_id=purchase_id, user_id=user_id)
        return (await self.call(self.purchases.GetPurchase, request)).purchase

    async def list_purchases(self, *, sale_id: str = "", user_id: str = "") -> AsyncIterator[pb.Purchase]:
        """Every purchase of a sale, of a user, or of both, in order of purchase id; fetched page by page."""
        request = pb.ListPurchasesRequest(sale_id=sale_id, user_id=user_id)
        while True:
            page = await self.call(self.purchases.ListPurchases, request)
            for purchase in page.purchases:
                yield purchase
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def cancel(self, purchase_id: str, user_id: str = "") -> pb.Purchase:
        """Cancels it, if no worker has begun to settle it. Raises PurchaseNotFound, PurchaseNotCancellable."""
        request = pb.CancelPurchaseRequest(purchase_id=purchase_id, user_id=user_id)
        return (await self.call(self.purchases.CancelPurchase, request)).purchase

    async def refund(self, purchase_id: str, user_id: str = "") -> pb.Purchase:
        """Asks for its money back. Raises PurchaseNotFound, PurchaseNotRefundable, RefundWindowOver."""
        request = pb.RefundPurchaseRequest(purchase_id=purchase_id, user_id=user_id)
        return (await self.call(self.purchases.RefundPurchase, request)).purchase

    async def receipt(self, purchase_id: str, user_id: str = "") -> pb.GetReceiptResponse:
        """Everything about it. Raises PurchaseNotFound."""
        request = pb.GetReceiptRequest(purchase_id=purchase_id, user_id=user_id)
        return await self.call(self.purchases.GetReceipt, request)

    async def stock(self, sale_id: str) -> inventory_pb.Stock:
        """What is available, reserved and sold. Raises SaleNotFound."""
        request = inventory_pb.GetStockRequest(sale_id=sale_id)
        return (await self.call(self.inventory.GetStock, request)).stock

    async def balance(self, user_id: str, currency_code: str) -> balance_pb.Account:
        """A user's money in one currency. Not for clients: only whoever has an operator's or a treasury's certificate
        may. Raises AccountNotFound, PermissionDenied."""
        request = balance_pb.GetBalanceRequest(user_id=user_id, currency_code=currency_code)
        return (await self.call(self.balances.GetBalance, request)).account
