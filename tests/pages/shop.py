"""What happens behind the pages: sales, money, and buyers who use the API."""

import asyncio
import http.client
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from flashsale.balance.v1 import balance_service_pb2 as balance
from flashsale.common.v1.money_pb2 import Money
from flashsale.inventory.v1 import inventory_service_pb2 as inventory

from bench.clients import Clients, call, open_clients
from bench.seeding import CURRENCY, fund_accounts
from gateway.local_tokens import issue
from tests.support.servers import MeshStack

PRICE = 2500


@dataclass
class Shop:
    """A system under pages."""

    stack: MeshStack
    clients: Clients

    def token(self, user: str, *, operator: bool = False) -> str:
        """A token for an hour."""
        return issue(self.stack.jwt_secret, user, operator=operator)

    async def customer(self, name: str, eur: int = 100) -> str:
        """A new user with money; the user's id."""
        user = f"{name}-{uuid.uuid4().hex[:6]}"
        await fund_accounts(self.clients, {user: eur * 100}, uuid.uuid4().hex[:12])
        return user

    async def sale(self, name: str = "Fund", total: int = 10, *, opened: bool = True, **terms: Any) -> str:
        """A new sale; its id."""
        request = inventory.CreateSaleRequest(
            request_id=uuid.uuid4().hex,
            display_name=name,
            unit_price=Money(amount_minor=PRICE, currency_code=CURRENCY),
            total=total,
            actor="test",
            **terms,
        )
        sale_id: str = (await call(self.clients.inventory.CreateSale, request)).sale.sale_id
        if opened:
            await call(self.clients.inventory.OpenSale, inventory.OpenSaleRequest(sale_id=sale_id, actor="test"))
        return sale_id

    async def ask(self, method: str, path: str, user: str, body: Any = None, key: str = "") -> tuple[int, Any]:
        """One request to the API as a user."""
        return await asyncio.to_thread(self._ask, method, path, user, body, key)

    def _ask(self, method: str, path: str, user: str, body: Any, key: str) -> tuple[int, Any]:
        address = urlsplit(self.stack.gateway_url)
        headers = {"authorization": f"Bearer {self.token(user)}", "content-type": "application/json"}
        headers |= {"idempotency-key": key} if key else {}
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=40)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())
        finally:
            connection.close()

    async def bought(self, sale_id: str, user: str, quantity: int = 1) -> str:
        """Buys, and waits until it is paid for; the purchase's id."""
        path = f"/v1/sales/{sale_id}/purchases"
        status, made = await self.ask("POST", path, user, {"quantity": quantity}, uuid.uuid4().hex)
        assert status == 202, made
        _, final = await self.ask("GET", f"/v1/purchases/{made['purchase_id']}?wait=20", user)
        assert final["state"] == "CONFIRMED", final
        return str(made["purchase_id"])

    async def purchases(self, sale_id: str, user: str) -> list[dict[str, Any]]:
        """A user's purchases of a sale, as the API tells them."""
        status, answer = await self.ask("GET", f"/v1/purchases?sale_id={sale_id}", user)
        assert status == 200, answer
        found: list[dict[str, Any]] = answer["purchases"]
        return found

    async def balance(self, user: str) -> int:
        """What is on a user's account, cents."""
        request = balance.GetBalanceRequest(user_id=user, currency_code=CURRENCY)
        return int((await call(self.clients.balance.GetBalance, request)).account.balance_minor)


@asynccontextmanager
async def open_shop(stack: MeshStack) -> AsyncIterator[Shop]:
    """A shop on a running stack."""
    async with open_clients(stack.environment) as clients:
        yield Shop(stack, clients)
