"""A gateway in the test's own loop in front of real gRPC servers whose answers a test decides.

Meant for what the real services cannot be made to do at will: be slow, be overloaded, fall silent, bring stock back.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from flashsale.balance.v1 import balance_service_pb2_grpc as balance_grpc
from flashsale.inventory.v1 import inventory_service_pb2_grpc as inventory_grpc
from flashsale.purchase.v1 import purchase_service_pb2_grpc as purchase_grpc

from gateway.local_tokens import issue
from gateway.process import Running, running
from gateway.settings import Settings
from mesh.server import GrpcServer
from tests.contract.gateway_services import OTHER_SALE, SALE, Balances, Inventories, Purchases, reading

__all__ = ["OTHER_SALE", "SALE", "SECRET", "Harness", "Reply", "harness", "reading", "until"]

SECRET = "s" * 40


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
        if not reader.at_eof() and reply.headers.get("connection") != "close":
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

    async def operate(self, method: str, path: str, body: bytes | None = None, *, actor: str = "olga") -> Reply:
        """A request under /v1/operator by somebody who has the role."""
        token = issue(SECRET, actor, operator=True)
        return await self.request(method, f"/v1/operator/{path}", {"authorization": f"Bearer {token}"}, body)

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
