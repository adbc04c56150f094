"""The three services' public RPCs, as somebody outside calls them: every call repeated while a service is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from flashsale.balance.v1.balance_service_pb2_grpc import BalanceServiceStub
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub
from flashsale.purchase.v1.purchase_service_pb2_grpc import PurchaseServiceStub

from mesh.errors import DomainError, from_rpc_error
from stack.peers import open_peer_channel

if TYPE_CHECKING:
    from flashsale.balance.v1.balance_service_pb2_grpc import BalanceServiceAsyncStub
    from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceAsyncStub
    from flashsale.purchase.v1.purchase_service_pb2_grpc import PurchaseServiceAsyncStub

#: Rows of one page: the most that every list of the mesh gives.
PAGE_SIZE = 10_000
_OPTIONS = [
    # A page of 10,000 purchases of many shares each is larger than what services send each other.
    ("grpc.max_receive_message_length", 256 * 1024 * 1024),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.max_reconnect_backoff_ms", 500),
]
_CALL_S_MAX = 30.0
_RETRY_S = 0.2
_TRANSIENT = frozenset(
    (
        ErrorReason.ERROR_REASON_UNAVAILABLE,
        ErrorReason.ERROR_REASON_STOCK_RECALIBRATING,
        ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED,
        ErrorReason.ERROR_REASON_OVERLOADED,
    )
)


@dataclass(frozen=True)
class Clients:
    """A stub of each service."""

    inventory: InventoryServiceAsyncStub
    balance: BalanceServiceAsyncStub
    purchase: PurchaseServiceAsyncStub


@asynccontextmanager
async def open_clients(environment: Mapping[str, str]) -> AsyncIterator[Clients]:
    """Clients of the services named by INVENTORY_TARGET, BALANCE_TARGET and PURCHASE_TARGET, who may do what operators,
    the treasury and other teams' services may."""
    inventory, balance, purchase = (
        open_peer_channel(environment, service, options=_OPTIONS) for service in ("inventory", "balance", "purchase")
    )
    async with inventory, balance, purchase:
        yield Clients(InventoryServiceStub(inventory), BalanceServiceStub(balance), PurchaseServiceStub(purchase))


async def call(method: Any, request: Any, *, patience_s: float = 15.0) -> Any:
    """Calls a unary RPC; repeats it for up to ``patience_s`` seconds while the service is away. Raises DomainError.

    Every call of the mesh is idempotent, so a repetition is always allowed.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return await method(request, timeout=_CALL_S_MAX)
        except grpc.aio.AioRpcError as error:
            domain_error = from_rpc_error(error)
            if domain_error.reason not in _TRANSIENT or time.monotonic() >= deadline:
                raise domain_error from error
        await asyncio.sleep(_RETRY_S)


async def pages(method: Any, request: Any) -> AsyncIterator[Any]:
    """Every page of a list RPC, in order. Raises DomainError."""
    request.page_size = PAGE_SIZE
    while True:
        page = await call(method, request)
        yield page
        if not page.next_page_token:
            return
        if page.next_page_token == request.page_token:
            raise DomainError(ErrorReason.ERROR_REASON_INTERNAL, "a list's page token leads back to the same page")
        request.page_token = page.next_page_token
