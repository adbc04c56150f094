"""A gateway in the test's own loop in front of real gRPC servers whose answers a test decides.

Meant for what the real services cannot be made to do at will: be slow, be overloaded, fall silent, bring stock back.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from flashsale.balance.v1 import balance_service_pb2 as balance
from flashsale.balance.v1 import balance_service_pb2_grpc as balance_grpc
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.common.v1.money_pb2 import Money
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.inventory.v1 import inventory_service_pb2_grpc as inventory_grpc
from flashsale.purchase.v1 import purchase_service_pb2 as purchase
from flashsale.purchase.v1 import purchase_service_pb2_grpc as purchase_grpc

from gateway.local_tokens import issue
from gateway.process import Running, running
from gateway.settings import Settings
from mesh.errors import DomainError
from mesh.identity import purchase_id
from mesh.server import GrpcServer

SECRET = "s" * 40
SALE = "3a6f4c1e-0d1b-4a55-8c7e-5f1f2f1d9b3a"
OTHER_SALE = "3a6f4c1e-0d1b-4a55-8c7e-5f1f2f1d9b3b"
WATCHED = inventory.WatchStockResponse


class Purchases(purchase_grpc.PurchaseServiceServicer):
    """Buys whatever comes, as ``outcome`` says, once ``open`` is set; remembers what came."""

    def __init__(self) -> None:
        self.batches: list[list[purchase.CreatePurchaseRequest]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.outcome = purchase.CreatePurchaseOutcome(state=purchase.PURCHASE_STATE_RESERVED)
        self.failure: DomainError | None = None
        self.purchases: dict[str, purchase.Purchase] = {}
        self.changed = asyncio.Condition()
        self.watching = 0

    async def BatchCreatePurchases(
        self, request: purchase.BatchCreatePurchasesRequest, context: Any
    ) -> purchase.BatchCreatePurchasesResponse:
        self.batches.append(list(request.requests))
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        outcomes = []
        for each in request.requests:
            outcome = purchase.CreatePurchaseOutcome()
            outcome.CopyFrom(self.outcome)
            outcome.purchase_id = str(purchase_id(each.user_id, each.sale_id, each.request_id))
            outcomes.append(outcome)
        return purchase.BatchCreatePurchasesResponse(outcomes=outcomes)

    def _find(self, request: Any) -> purchase.Purchase:
        found = self.purchases.get(request.purchase_id)
        if found is None or found.user_id != request.user_id:
            raise DomainError(ErrorReason.ERROR_REASON_PURCHASE_NOT_FOUND)
        return found

    async def GetPurchase(self, request: Any, context: Any) -> purchase.GetPurchaseResponse:
        return purchase.GetPurchaseResponse(purchase=self._find(request))

    async def CancelPurchase(self, request: Any, context: Any) -> purchase.CancelPurchaseResponse:
        found = self._find(request)
        found.state = purchase.PURCHASE_STATE_CANCELLED
        return purchase.CancelPurchaseResponse(purchase=found)

    async def WatchPurchase(self, request: Any, context: Any) -> AsyncIterator[purchase.WatchPurchaseResponse]:
        found = self._find(request)
        self.watching += 1
        try:
            while True:
                yield purchase.WatchPurchaseResponse(purchase=found)
                if found.state >= purchase.PURCHASE_STATE_CONFIRMED:
                    return
                async with self.changed:
                    await self.changed.wait()
        finally:
            self.watching -= 1

    async def change(self, known_id: str, state: int) -> None:
        async with self.changed:
            self.purchases[known_id].state = state  # type: ignore[assignment]
            self.changed.notify_all()

    @property
    def bought(self) -> list[str]:
        """Request ids of everything that came, in order."""
        return [each.request_id for batch in self.batches for each in batch]


class Inventories(inventory_grpc.InventoryServiceServicer):
    """Streams what a test pushes, the last message again every ``repeat_s``; knows the sales of ``last``."""

    def __init__(self) -> None:
        self.last: dict[str, inventory.WatchStockResponse] = {SALE: reading(available=5)}
        self.silent = False
        self.repeat_s = 0.2
        self.watches: list[str] = []
        self.reads = 0
        #: What GetStock says of SALE, if not the last message of the stream.
        self.now: inventory.Stock | None = None
        self._queues: list[asyncio.Queue[inventory.WatchStockResponse | None]] = []

    def end_streams(self) -> None:
        """Ends every stream as a service does that stops."""
        for queue in self._queues:
            queue.put_nowait(None)

    async def push(self, message: inventory.WatchStockResponse) -> None:
        """Sends a message on every stream of SALE; it is also the first of later streams, as a reset."""
        first = inventory.WatchStockResponse()
        first.CopyFrom(message)
        first.fingerprints_reset = True
        self.last[SALE] = first
        for queue in self._queues:
            queue.put_nowait(message)

    async def WatchStock(self, request: Any, context: Any) -> AsyncIterator[inventory.WatchStockResponse]:
        self.watches.append(request.sale_id)
        if request.sale_id not in self.last:
            raise DomainError(ErrorReason.ERROR_REASON_SALE_NOT_FOUND)
        queue: asyncio.Queue[inventory.WatchStockResponse | None] = asyncio.Queue()
        self._queues.append(queue)
        try:
            yield self.last[request.sale_id]
            while True:
                try:
                    async with asyncio.timeout(self.repeat_s):
                        message = await queue.get()
                    if message is None:
                        raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE)
                except TimeoutError:
                    if self.silent:
                        continue
                    message = inventory.WatchStockResponse()
                    if self.last[request.sale_id].HasField("stock"):
                        message.stock.CopyFrom(self.last[request.sale_id].stock)
                yield message
        finally:
            self._queues.remove(queue)

    async def GetSale(self, request: Any, context: Any) -> inventory.GetSaleResponse:
        self.reads += 1
        if request.sale_id not in self.last:
            raise DomainError(ErrorReason.ERROR_REASON_SALE_NOT_FOUND)
        sale = inventory.Sale(sale_id=request.sale_id, display_name="Fund", total=5, state=inventory.SALE_STATE_OPEN)
        sale.unit_price.CopyFrom(Money(amount_minor=2500, currency_code="EUR"))
        return inventory.GetSaleResponse(sale=sale)

    async def GetStock(self, request: Any, context: Any) -> inventory.GetStockResponse:
        self.reads += 1
        if request.sale_id not in self.last:
            raise DomainError(ErrorReason.ERROR_REASON_SALE_NOT_FOUND)
        return inventory.GetStockResponse(stock=self.now or self.last[request.sale_id].stock)


class Balances(balance_grpc.BalanceServiceServicer):
    """Knows accounts in EUR: of "rich", and of any "user-12", who has 12. Answers while ``answering`` is set."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.answering = asyncio.Event()
        self.answering.set()

    async def BatchGetBalances(self, request: Any, context: Any) -> balance.BatchGetBalancesResponse:
        self.calls.append([key.user_id for key in request.accounts])
        await self.answering.wait()
        found = []
        for key in request.accounts:
            if key.currency_code == "EUR" and (key.user_id == "rich" or key.user_id.startswith("user-")):
                own, held = (10_000, 2_500) if key.user_id == "rich" else (int(key.user_id.removeprefix("user-")), 0)
                found.append(
                    balance.Account(user_id=key.user_id, currency_code="EUR", balance_minor=own, held_minor=held)
                )
        return balance.BatchGetBalancesResponse(accounts=found)


def reading(
    available: int,
    *,
    total: int = 5,
    is_open: bool = True,
    added: Sequence[int] = (),
    removed: Sequence[int] = (),
    reset: bool = True,
    changes: int = 0,
) -> inventory.WatchStockResponse:
    """A stock message of SALE, of whose ``total`` shares ``available`` are left."""
    stock = inventory.Stock(
        sale_id=SALE,
        available=available,
        reserved=total - available,
        sold=0,
        total=total,
        epoch=1,
        open=is_open,
        holder_changes=changes,
    )
    return inventory.WatchStockResponse(
        stock=stock, fingerprints_reset=reset, fingerprints_added=added, fingerprints_removed=removed
    )


@dataclass
class Reply:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Harness:
    """The gateway, what is behind it, and a client that speaks HTTP/1.1 over plain sockets."""

    gateway: Running
    purchases: Purchases
    inventories: Inventories
    balances: Balances
    server: GrpcServer
    #: A gateway that crashes fails its test, unless that is what it is about.
    may_crash: bool = False
    _idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)
    _opened: list[asyncio.StreamWriter] = field(default_factory=list)

    async def raw(self, octets: bytes, *, timeout_s: float = 10.0) -> bytes:
        """Sends octets on a connection of their own; everything that comes back until the gateway closes it, or until
        one whole answer has come."""
        reader, writer = await self.connect()
        writer.write(octets)
        async with asyncio.timeout(timeout_s):
            reply = await _read_reply(reader)
        writer.close()
        return b"" if reply is None else f"{reply.status}".encode() + b" " + reply.body

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection, closed at the latest with the harness."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
        self._opened.append(writer)
        return reader, writer

    async def close(self) -> None:
        """Closes every connection."""
        for writer in self._opened:
            writer.close()
        for writer in self._opened:
            # What the gateway has closed already is closed enough.
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def request(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> Reply:
        """One request; connections are kept and used again."""
        reader, writer = self._idle.pop() if self._idle else await self.connect()
        lines = [f"{method} {path} HTTP/1.1", "host: test", *(f"{k}: {v}" for k, v in (headers or {}).items())]
        if body is not None:
            lines.append(f"content-length: {len(body)}")
        writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b""))
        async with asyncio.timeout(40):
            reply = await _read_reply(reader)
        assert reply is not None, "the gateway closed the connection without an answer"
        if not reader.at_eof():
            self._idle.append((reader, writer))
        return reply

    async def buy(
        self,
        key: str,
        *,
        user: str = "rich",
        sale: str = SALE,
        body: bytes | None = b'{"quantity":1}',
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """Buys as ``user`` under Idempotency-Key ``key``."""
        sent = {"authorization": f"Bearer {issue(SECRET, user)}", "idempotency-key": key, **(headers or {})}
        return await self.request("POST", f"/v1/sales/{sale}/purchases", sent, body)

    async def get(self, path: str, user: str | None = None) -> Reply:
        """Reads, with a token of ``user`` if there is one."""
        return await self.request("GET", path, {"authorization": f"Bearer {issue(SECRET, user)}"} if user else {})

    async def followed(self) -> None:
        """Waits until the gateway has a fresh reading of SALE that it knows by one authorised request."""
        gateway = self.gateway
        loop = asyncio.get_running_loop()
        if gateway.parts.followers.known(SALE) is None:
            gateway.parts.followers.follow(SALE, loop.time())
        await until(
            lambda: (
                (known := gateway.parts.followers.known(SALE)) is not None
                and known.fresh_stock(loop.time()) is not None
            )
        )

    async def stock_is(self, available: int) -> None:
        """Waits until the gateway has heard of this reading."""
        loop = asyncio.get_running_loop()

        def heard() -> bool:
            known = self.gateway.parts.followers.known(SALE)
            stock = known.fresh_stock(loop.time()) if known is not None else None
            return stock is not None and stock.available == available

        await until(heard)


async def until(condition: Any, timeout_s: float = 5.0) -> None:
    """Waits until ``condition()`` holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def _read_reply(reader: asyncio.StreamReader) -> Reply | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return None
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Reply(int(head[0].split()[1]), headers, body)


@asynccontextmanager
async def harness(**changes: Any) -> AsyncIterator[Harness]:
    """A gateway with these settings changed, and its services."""
    purchases, inventories, balances = Purchases(), Inventories(), Balances()  # type: ignore[abstract]
    registrations = [
        (
            "flashsale.purchase.v1.PurchaseService",
            lambda server: purchase_grpc.add_PurchaseServiceServicer_to_server(purchases, server),
        ),
        (
            "flashsale.inventory.v1.InventoryService",
            lambda server: inventory_grpc.add_InventoryServiceServicer_to_server(inventories, server),
        ),
        (
            "flashsale.balance.v1.BalanceService",
            lambda server: balance_grpc.add_BalanceServiceServicer_to_server(balances, server),
        ),
    ]
    async with GrpcServer("127.0.0.1:0", registrations, grace_s=0.2) as server:
        await server.serving()
        target = f"127.0.0.1:{server.port}"
        settings = Settings(
            **{
                "purchase_target": target,
                "inventory_target": target,
                "balance_target": target,
                "listen": "127.0.0.1:0",
                "jwt_secret": SECRET,
                "sole": True,
                "grace_s": 2.0,
                **changes,
            }
        )
        async with running(settings) as gateway:
            made = Harness(gateway, purchases, inventories, balances, server)
            try:
                yield made
            finally:
                await made.close()
        if gateway.crashed.done() and not made.may_crash:
            raise gateway.crashed.result()
