"""The client for programs without asyncio. It may be used from several threads."""

import threading
import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Protocol, Self, TypeVar, cast

import grpc
from flashsale.balance.v1 import balance_service_pb2 as balance_pb
from flashsale.balance.v1.balance_service_pb2_grpc import BalanceServiceStub
from flashsale.inventory.v1 import inventory_service_pb2 as inventory_pb
from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub
from flashsale.purchase.v1 import purchase_service_pb2 as pb
from flashsale.purchase.v1.purchase_service_pb2_grpc import PurchaseServiceStub

from flashsale_client.certificates import Certificates, Material
from flashsale_client.connection import Target, Tls, options_of, require_private, target_of
from flashsale_client.deadlines import WithDeadlines
from flashsale_client.errors import FlashsaleError, error_of_call
from flashsale_client.following import Following
from flashsale_client.policy import Policy
from flashsale_client.reasons import DeadlineExceeded
from flashsale_client.repeating import pause_of_call_s
from flashsale_client.services import BALANCE, INVENTORY, PURCHASE, missing
from flashsale_client.sync_channel import RenewingChannel
from flashsale_client.wishes import Answer, Rounds, Wish, batch_of

Request = TypeVar("Request", contravariant=True)
Response = TypeVar("Response", covariant=True)


class Method(Protocol[Request, Response]):
    """A unary method of a stub."""

    def __call__(self, request: Request, /, timeout: float | None = None) -> Response:
        """Calls it."""


class Client:
    """As ``AsyncClient``, which see, with calls that block; used as a context manager."""

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
        self._channels: dict[str, grpc.Channel] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections; calls under way are cancelled."""
        with self._lock:
            channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()

    def _channel(self, service: str) -> grpc.Channel:
        with self._lock:
            channel = self._channels.get(service)
            if channel is None:
                if service not in self._targets:
                    raise missing(service)
                target, options = self._targets[service], options_of(service, self.policy, self._tls)
                if self._tls is None:
                    channel = grpc.insecure_channel(target, options)
                else:
                    self._certificates = self._certificates or Certificates(self._tls)

                    def open_(material: Material) -> grpc.Channel:
                        return grpc.secure_channel(target, material.credentials(), options)

                    # Not derived from the class: that would mean to pass on by hand what no stub uses.
                    channel = cast("grpc.Channel", RenewingChannel(self._certificates, open_))
                self._channels[service] = channel
            return channel

    def _bounded(self, service: str) -> grpc.Channel:
        channel = self._channel(service)
        bounded = WithDeadlines(channel, timeout_s=self.policy.timeout_s, stream_s=self.policy.watch_timeout_s)
        # Not derived from the class: that would mean to pass on by hand what no stub uses.
        return cast("grpc.Channel", bounded)

    @cached_property
    def purchases(self) -> PurchaseServiceStub:
        """Every method of the Purchase Service, for ``call``. Raises ValueError if its target was not given."""
        return PurchaseServiceStub(self._bounded(PURCHASE))

    @cached_property
    def inventory(self) -> InventoryServiceStub:
        """Every method of the Inventory Service, for ``call``. Raises ValueError if its target was not given."""
        return InventoryServiceStub(self._bounded(INVENTORY))

    @cached_property
    def balances(self) -> BalanceServiceStub:
        """Every method of the Balance Service, for ``call``. Raises ValueError if its target was not given."""
        return BalanceServiceStub(self._bounded(BALANCE))

    def call(self, method: Method[Request, Response], request: Request, *, timeout_s: float | None = None) -> Response:
        """Calls a unary method by the policy: within ``timeout_s`` seconds, again where it was told to come again."""
        deadline = time.monotonic() + (self.policy.timeout_s if timeout_s is None else timeout_s)
        repetitions = 0
        while True:
            try:
                return method(request, timeout=max(0.0, deadline - time.monotonic()))
            except grpc.RpcError as failure:
                error = error_of_call(failure)
                pause_s = pause_of_call_s(error, repetitions, deadline - time.monotonic(), self.policy)
                if pause_s is None:
                    raise error from failure
            repetitions += 1
            time.sleep(pause_s)

    def buy(
        self,
        sale_id: str,
        user_id: str,
        quantity: int = 1,
        *,
        waitlist: bool = False,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> pb.Purchase:
        """Buys for a user; see ``AsyncClient.buy``."""
        wish = Wish(sale_id, user_id, quantity, waitlist, **({"request_id": request_id} if request_id else {}))
        timeout_s = self.policy.buy_timeout_s if timeout_s is None else timeout_s
        try:
            return self.call(self.purchases.CreatePurchase, wish.message(), timeout_s=timeout_s).purchase
        except FlashsaleError as error:
            error.request_id = wish.request_id
            raise

    def buy_many(self, wishes: Iterable[Wish], *, timeout_s: float | None = None) -> list[Answer]:
        """Buys for many users in batches, one after the other; see ``AsyncClient.buy_many``."""
        deadline = time.monotonic() + (self.policy.buy_timeout_s if timeout_s is None else timeout_s)
        rounds = Rounds(list(wishes), self.policy)
        while batches := rounds.batches():
            for places in batches:
                request = batch_of(rounds.wishes_of(places))
                try:
                    left_s = max(0.0, deadline - time.monotonic())
                    response = self.call(self.purchases.BatchCreatePurchases, request, timeout_s=left_s)
                except FlashsaleError as error:
                    rounds.failed(places, error)
                else:
                    rounds.answered(places, response.outcomes)
            time.sleep(rounds.end_round(deadline - time.monotonic()))
        return rounds.answers()

    def watch(self, purchase_id: str, user_id: str = "", *, timeout_s: float | None = None) -> Iterator[pb.Purchase]:
        """The purchase as it is now, then each change, up to its final state; see ``AsyncClient.watch``."""
        deadline = time.monotonic() + (self.policy.watch_timeout_s if timeout_s is None else timeout_s)
        request = pb.WatchPurchaseRequest(purchase_id=purchase_id, user_id=user_id)
        following = Following()
        while True:
            error: FlashsaleError | None = None
            stream = self.purchases.WatchPurchase(request, timeout=max(0.0, deadline - time.monotonic()))
            try:
                for message in stream:
                    if following.is_news(message.purchase):
                        yield message.purchase
                    if following.ended:
                        return
            except grpc.RpcError as failure:
                error = error_of_call(failure)
                error.__cause__ = failure
            finally:
                stream.cancel()
            pause_s = following.pause_s(error, deadline - time.monotonic())
            if pause_s is None:
                raise error or DeadlineExceeded("the purchase was not final in time")
            time.sleep(pause_s)

    def outcome(self, purchase_id: str, user_id: str = "", *, timeout_s: float | None = None) -> pb.Purchase:
        """The purchase once it is final. Raises as ``watch`` does."""
        last = pb.Purchase()
        for purchase in self.watch(purchase_id, user_id, timeout_s=timeout_s):
            last = purchase
        return last

    def purchase(self, purchase_id: str, user_id: str = "") -> pb.Purchase:
        """The purchase as it is now; with ``user_id`` only if it is this user's. Raises PurchaseNotFound."""
        request = pb.GetPurchaseRequest(purchase_id=purchase_id, user_id=user_id)
        return self.call(self.purchases.GetPurchase, request).purchase

    def list_purchases(self, *, sale_id: str = "", user_id: str = "") -> Iterator[pb.Purchase]:
        """Every purchase of a sale, of a user, or of both, in order of purchase id; fetched page by page."""
        request = pb.ListPurchasesRequest(sale_id=sale_id, user_id=user_id)
        while True:
            page = self.call(self.purchases.ListPurchases, request)
            yield from page.purchases
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def cancel(self, purchase_id: str, user_id: str = "") -> pb.Purchase:
        """Cancels it, if no worker has begun to settle it. Raises PurchaseNotFound, PurchaseNotCancellable."""
        request = pb.CancelPurchaseRequest(purchase_id=purchase_id, user_id=user_id)
        return self.call(self.purchases.CancelPurchase, request).purchase

    def refund(self, purchase_id: str, user_id: str = "") -> pb.Purchase:
        """Asks for its money back. Raises PurchaseNotFound, PurchaseNotRefundable, RefundWindowOver."""
        request = pb.RefundPurchaseRequest(purchase_id=purchase_id, user_id=user_id)
        return self.call(self.purchases.RefundPurchase, request).purchase

    def receipt(self, purchase_id: str, user_id: str = "") -> pb.GetReceiptResponse:
        """Everything about it. Raises PurchaseNotFound."""
        request = pb.GetReceiptRequest(purchase_id=purchase_id, user_id=user_id)
        return self.call(self.purchases.GetReceipt, request)

    def stock(self, sale_id: str) -> inventory_pb.Stock:
        """What is available, reserved and sold. Raises SaleNotFound."""
        return self.call(self.inventory.GetStock, inventory_pb.GetStockRequest(sale_id=sale_id)).stock

    def balance(self, user_id: str, currency_code: str) -> balance_pb.Account:
        """A user's money in one currency; see ``AsyncClient.balance``. Raises AccountNotFound, PermissionDenied."""
        request = balance_pb.GetBalanceRequest(user_id=user_id, currency_code=currency_code)
        return self.call(self.balances.GetBalance, request).account
