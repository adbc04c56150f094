"""People in front of the gateway: a sale of their own, and what they and an operator do with it over HTTP."""

import asyncio
import http.client
import json
import uuid
from typing import Any
from urllib.parse import urlsplit

from flashsale.inventory.v1 import inventory_service_pb2 as inventory

from bench.clients import Clients, call
from bench.seeding import CURRENCY, fund_accounts
from gateway.local_tokens import issue
from tests.support.servers import MeshStack
from tests.support.waiting import eventually

PRICE = 2500
OPERATOR = "olga"
_FINAL = ("CONFIRMED", "FAILED", "CANCELLED", "REFUNDED")


class Web:
    """HTTP by the standard library, each request on a connection of its own, in threads."""

    def __init__(self, stack: MeshStack) -> None:
        self._address = urlsplit(stack.gateway_url)
        self._secret = stack.jwt_secret

    def _send(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self._address.hostname or "", self._address.port, timeout=40)
        try:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())
        finally:
            connection.close()

    async def send(
        self, method: str, path: str, user: str = "", *, key: str = "", body: object = None, operator: bool = False
    ) -> tuple[int, Any]:
        """One request; status and JSON. Sent again while the gateway says to come again, at most 50 times."""
        headers = {"content-type": "application/json"}
        if user:
            headers["authorization"] = f"Bearer {issue(self._secret, user, operator=operator)}"
        if key:
            headers["idempotency-key"] = key
        octets = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        for _ in range(50):
            status, answer = await asyncio.to_thread(self._send, method, path, headers, octets)
            if status not in (429, 503):
                break
            await asyncio.sleep(answer["retry_after_ms"] / 1000)
        return status, answer

    async def operate(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """A request of the operator's under /v1/operator."""
        return await self.send(method, f"/v1/operator/{path}", OPERATOR, body=body, operator=True)


class Sale:
    """A sale, and people who buy in it, each once."""

    def __init__(self, web: Web, clients: Clients, sale_id: str, run: str) -> None:
        self.web, self.clients, self.sale_id, self._run = web, clients, sale_id, run
        self.purchase_ids: dict[str, str] = {}

    def user(self, name: str) -> str:
        """The whole user id of somebody."""
        return f"{self._run}-{name}"

    async def buy(self, name: str, quantity: int = 1, *, waitlist: bool = False) -> tuple[int, Any]:
        """Presses Buy; the answer."""
        body: dict[str, int] = {"quantity": quantity} | ({"waitlist": True} if waitlist else {})
        path = f"/v1/sales/{self.sale_id}/purchases"
        status, answer = await self.web.send("POST", path, self.user(name), key=f"{name}-buy", body=body)
        if status == 202:
            self.purchase_ids[name] = answer["purchase_id"]
        return status, answer

    async def own(self, names: str) -> None:
        """Lets some people, by their initials, buy one share each until it is theirs."""
        for name in names:
            status, answer = await self.buy(name)
            assert (status, answer["state"]) == (202, "RESERVED")
        for name in names:
            assert (await self.end_of(name))["state"] == "CONFIRMED"

    async def of(self, name: str, wait: int = 0) -> Any:
        """Somebody's purchase as it is, or as it changes within ``wait`` seconds."""
        path = f"/v1/purchases/{self.purchase_ids[name]}" + (f"?wait={wait}" if wait else "")
        status, answer = await self.web.send("GET", path, self.user(name))
        assert status == 200
        return answer

    async def end_of(self, name: str) -> Any:
        """Somebody's purchase once it is final."""
        for _ in range(20):
            answer = await self.of(name, wait=5)
            if answer["state"] in _FINAL:
                return answer
        raise AssertionError(f"{name} is {answer['state']}")

    async def act(self, name: str, method: str, what: str = "") -> tuple[int, Any]:
        """Cancels (DELETE), or asks for a refund or the receipt."""
        path = f"/v1/purchases/{self.purchase_ids[name]}" + (f"/{what}" if what else "")
        return await self.web.send(method, path, self.user(name))

    async def balance(self, name: str) -> int:
        """What somebody has, cents, held money included."""
        status, answer = await self.web.send("GET", "/v1/balance", self.user(name))
        assert status == 200
        return int(answer["balance_minor"])

    async def state(self) -> str:
        """The sale's state."""
        answer = await call(self.clients.inventory.GetSale, inventory.GetSaleRequest(sale_id=self.sale_id))
        return inventory.SaleState.Name(answer.sale.state).removeprefix("SALE_STATE_")

    async def until(self, state: str, within_s: float = 20.0) -> None:
        """Waits until the sale is in a state."""

        async def is_so() -> bool:
            return await self.state() == state

        await eventually(is_so, within_s)

    async def changes(self) -> list[tuple[str, str, str, int]]:
        """Actor, state before, state after and total of everything done with it, oldest first."""
        answer = await call(
            self.clients.inventory.ListSaleChanges, inventory.ListSaleChangesRequest(sale_id=self.sale_id)
        )
        times = [item.change_time.ToNanoseconds() for item in answer.changes]
        assert times == sorted(times)

        def name(state: inventory.SaleState.ValueType) -> str:
            return inventory.SaleState.Name(state).removeprefix("SALE_STATE_") if state else ""

        return [(item.actor, name(item.from_state), name(item.to_state), item.total) for item in answer.changes]

    async def statement(self) -> Any:
        """What the operator is told that it has come to, once it is final."""

        async def is_final() -> bool:
            return bool((await self.web.operate("GET", f"sales/{self.sale_id}/statement"))[1]["final"])

        await eventually(is_final)
        return (await self.web.operate("GET", f"sales/{self.sale_id}/statement"))[1]


async def new_sale(web: Web, clients: Clients, people: str, total: int, **fields: Any) -> Sale:
    """A DRAFT, or what ``fields`` of CreateSaleRequest make of it; each of ``people`` has the money for four shares,
    those with a capital for none."""
    run = f"p{uuid.uuid4().hex[:8]}"
    funds = {f"{run}-{name}": PRICE // 2 if name.isupper() else 4 * PRICE for name in people}
    await fund_accounts(clients, funds, run)
    request = inventory.CreateSaleRequest(request_id=run, display_name=f"Sale {run}", total=total, **fields)
    request.unit_price.amount_minor, request.unit_price.currency_code = PRICE, CURRENCY
    sale_id: str = (await call(clients.inventory.CreateSale, request)).sale.sale_id
    return Sale(web, clients, sale_id, run)


async def open_sale(web: Web, clients: Clients, people: str, total: int, **fields: Any) -> Sale:
    """The same, opened by the operator."""
    sale = await new_sale(web, clients, people, total, **fields)
    status, answer = await web.operate("POST", f"sales/{sale.sale_id}/open")
    assert (status, answer["state"]) == (200, "OPEN")
    return sale
