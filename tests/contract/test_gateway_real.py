"""The gateway in front of the real services: who wins, who loses, and what each is told afterwards."""

import asyncio
import http.client
import json
import uuid
from typing import Any
from urllib.parse import urlsplit

from flashsale.balance.v1 import balance_service_pb2 as balance
from flashsale.balance.v1.balance_service_pb2_grpc import BalanceServiceStub
from flashsale.common.v1.money_pb2 import Money
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub

from gateway.local_tokens import issue
from stack.peers import open_peer_channel
from tests.support.servers import MeshStack, metrics_text

SHARES, PRICE = 20, 2500


class Client:
    """HTTP by the standard library, each request on a connection of its own, in threads."""

    def __init__(self, stack: MeshStack) -> None:
        self._address = urlsplit(stack.gateway_url)
        self._secret = stack.jwt_secret

    def _send(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self._address.hostname or "", self._address.port, timeout=40)
        try:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            octets = reply.read()
            return reply.status, json.loads(octets) if "json" in reply.headers["content-type"] else octets.decode()
        finally:
            connection.close()

    async def send(
        self, method: str, path: str, user: str | None = None, key: str | None = None, body: bytes | None = None
    ) -> tuple[int, Any]:
        headers = {"authorization": f"Bearer {issue(self._secret, user)}"} if user else {}
        headers |= {"idempotency-key": key} if key else {}
        return await asyncio.to_thread(self._send, method, path, headers, body)

    async def buy(self, sale: str, user: str, *, waitlist: bool = False) -> tuple[int, Any]:
        """Buys a share, or waits in line for one, again after each 429 or 503 as told."""
        body = b'{"quantity":1,"waitlist":true}' if waitlist else b'{"quantity":1}'
        while True:
            status, answer = await self.send("POST", f"/v1/sales/{sale}/purchases", user, f"{user}-1", body)
            if status not in (429, 503):
                return status, answer
            await asyncio.sleep(answer["retry_after_ms"] / 1000)


async def new_sale(
    stack: MeshStack, users: list[str], *, opened: bool = True, eligible_users_only: bool = False
) -> str:
    """A sale of SHARES shares, one for each user, who all have money for four."""
    async with open_peer_channel(stack.environment, "balance") as channel:
        accounts = BalanceServiceStub(channel)
        keys = [balance.AccountKey(user_id=user, currency_code="EUR") for user in users]
        await accounts.BatchCreateAccounts(balance.BatchCreateAccountsRequest(accounts=keys))
        money = Money(amount_minor=4 * PRICE, currency_code="EUR")
        deposits = [balance.DepositItem(request_id=f"d-{user}", user_id=user, amount=money) for user in users]
        await accounts.BatchDeposit(balance.BatchDepositRequest(deposits=deposits))
    async with open_peer_channel(stack.environment, "inventory") as channel:
        sales = InventoryServiceStub(channel)
        made = await sales.CreateSale(
            inventory.CreateSaleRequest(
                request_id=uuid.uuid4().hex,
                display_name="Fund",
                unit_price=Money(amount_minor=PRICE, currency_code="EUR"),
                total=SHARES,
                per_user_limit=1,
                per_purchase_limit=1,
                eligible_users_only=eligible_users_only,
            )
        )
        if opened:
            await sales.OpenSale(inventory.OpenSaleRequest(sale_id=made.sale.sale_id))
    return str(made.sale.sale_id)


async def test_a_unit_that_comes_back_is_sold_again_and_only_losers_are_told_it_is_sold_out(
    mesh_stack: MeshStack,
) -> None:
    run = uuid.uuid4().hex[:8]
    rich = [f"{run}-rich-{i}" for i in range(3 * SHARES)]
    no_account = f"{run}-stranger"
    sale, client = await new_sale(mesh_stack, rich), Client(mesh_stack)

    answers = dict(
        zip(rich, await asyncio.gather(*(client.buy(sale, user) for user in rich[: SHARES - 1])), strict=False)
    )
    # The last unit goes to one who has no account; its purchase will fail and the unit come back.
    status, stranger = await client.buy(sale, no_account)
    assert status == 202
    status, failed = await client.send("GET", f"/v1/purchases/{stranger['purchase_id']}?wait=30", no_account)
    assert (status, failed["state"], failed["reason"]) == (200, "FAILED", "ACCOUNT_NOT_FOUND")
    async with asyncio.timeout(10):
        while (await client.send("GET", f"/v1/sales/{sale}/stock"))[1]["available"] != 1:
            await asyncio.sleep(0.02)

    late = rich[SHARES - 1 :]
    answers |= dict(zip(late, await asyncio.gather(*(client.buy(sale, user) for user in late)), strict=True))
    winners = [user for user, (status, _) in answers.items() if status == 202]
    losers = [user for user, (status, answer) in answers.items() if (status, answer.get("reason")) == (409, "SOLD_OUT")]
    assert len(winners) + len(losers) == len(rich)
    assert len(winners) == SHARES

    for user in winners[:5]:
        assert (await client.buy(sale, user))[1]["purchase_id"] == answers[user][1]["purchase_id"]
    before = await _refused_at_door(mesh_stack)
    assert [(await client.buy(sale, user))[0] for user in losers[:5]] == [409] * 5
    assert await _refused_at_door(mesh_stack) >= before + 5

    for user in winners:
        path = f"/v1/purchases/{answers[user][1]['purchase_id']}"
        status, final = await client.send("GET", f"{path}?wait=30", user)
        assert (status, final["state"], len(final["share_numbers"])) == (200, "CONFIRMED", 1)
        assert (await client.send("GET", path, losers[0]))[0] == 404
    assert (await client.send("DELETE", path, winners[-1]))[1]["reason"] == "PURCHASE_NOT_CANCELLABLE"
    money = (await client.send("GET", "/v1/balance", winners[0]))[1]
    assert (money["balance_minor"], money["held_minor"]) == (3 * PRICE, 0)
    stock = (await client.send("GET", f"/v1/sales/{sale}/stock"))[1]
    assert (stock["available"], stock["reserved"], stock["sold"]) == (0, 0, SHARES)


async def _refused_at_door(stack: MeshStack) -> float:
    text = await asyncio.to_thread(metrics_text, stack, "gateway")
    [line] = [line for line in text.splitlines() if line.startswith('gateway_refused_at_door_total{reason="SOLD_OUT"')]
    return float(line.split()[-1])


async def test_a_sale_nobody_has_opened_is_refused_by_name(mesh_stack: MeshStack) -> None:
    client = Client(mesh_stack)
    assert (await client.send("GET", f"/v1/sales/{uuid.uuid4()}"))[1]["reason"] == "SALE_NOT_FOUND"
    status, answer = await client.buy(str(uuid.uuid4()), "somebody")
    assert (status, answer["reason"]) == (404, "SALE_NOT_FOUND")


async def test_the_gateway_is_healthy_and_knows_it(mesh_stack: MeshStack) -> None:
    client = Client(mesh_stack)
    assert await client.send("GET", "/healthz") == (200, {"state": "serving"})
