"""The HTTP contract is what the gateway in front of the real services does: no less, and no more."""

import asyncio
import copy
import http.client
import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema_rs
import pytest
import schemathesis
from flashsale.balance.v1 import balance_service_pb2 as balance
from flashsale.balance.v1.balance_service_pb2_grpc import BalanceServiceStub
from flashsale.common.v1.money_pb2 import Money
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub

from gateway.local_tokens import issue
from gateway.openapi.document import openapi_document
from stack.peers import open_peer_channel
from tests.support import http_contract
from tests.support.servers import MeshStack, metrics_text

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = openapi_document()
OPERATIONS = [
    (path, method, operation) for path, methods in DOCUMENT["paths"].items() for method, operation in methods.items()
]
#: Requests that anything fits into.
PRICE = 100


@pytest.fixture(scope="module")
def shop() -> Iterator[MeshStack]:
    """The whole system, in which no user is too quick and no stream lasts."""
    with MeshStack(GATEWAY_USER_RATE_PER_S="100000", GATEWAY_USER_BURST="100000", GATEWAY_STREAM_S="0.2") as running:
        yield running


async def new_sale(shop: MeshStack, user: str, *, total: int = 100_000) -> str:
    """An open sale, and money for a user."""
    async with open_peer_channel(shop.environment, "balance") as channel:
        accounts = BalanceServiceStub(channel)
        await accounts.CreateAccount(balance.CreateAccountRequest(user_id=user, currency_code="EUR"))
        money = Money(amount_minor=50 * PRICE, currency_code="EUR")
        await accounts.Deposit(balance.DepositRequest(request_id=uuid.uuid4().hex, user_id=user, amount=money))
    async with open_peer_channel(shop.environment, "inventory") as channel:
        sales = InventoryServiceStub(channel)
        made = await sales.CreateSale(
            inventory.CreateSaleRequest(
                request_id=uuid.uuid4().hex,
                display_name="Fund",
                unit_price=Money(amount_minor=PRICE, currency_code="EUR"),
                total=total,
                per_user_limit=100_000,
                per_purchase_limit=min(total, 1000),
            )
        )
        await sales.OpenSale(inventory.OpenSaleRequest(sale_id=made.sale.sale_id))
    return str(made.sale.sale_id)


@dataclass
class Reply:
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def send(shop: MeshStack, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> Reply:
    """One request on a connection of its own. Blocks."""
    address = urlsplit(shop.gateway_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=40)
    try:
        connection.request(method.upper(), path, body, headers)
        reply = connection.getresponse()
        octets = reply.read()
        return Reply(reply.status, {name.lower(): value for name, value in reply.getheaders()}, octets)
    finally:
        connection.close()


def test_the_document_is_valid_openapi() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    ids = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(ids)) == len(ids)
    known = {f"#/components/{kind}/{name}" for kind, named in DOCUMENT["components"].items() for name in named}
    used = set(re.findall(r'"\$ref": "(.*?)"', json.dumps(DOCUMENT)))
    assert used <= known


async def test_the_gateway_serves_it(shop: MeshStack) -> None:
    reply = await asyncio.to_thread(send, shop, "GET", "/openapi.json", {})
    assert (reply.status, reply.headers["content-type"], reply.json) == (200, "application/json", DOCUMENT)


async def test_every_route_is_in_it_and_everything_in_it_is_a_route(shop: MeshStack) -> None:
    source = "".join((ROOT / "gateway" / f"{name}.py").read_text() for name in _ROUTE_FILES)
    named = set(re.findall(r'return f?"([a-z_]+(?:\{verb\})?)", self\.', source)) - {"page"}
    routes = {each.replace("{verb}", verb) for each in named for verb in ("open", "pause", "close")}
    token = {"authorization": f"Bearer {issue(shop.jwt_secret, 'olga', operator=True)}"}
    for path, method, _ in OPERATIONS:
        filled = re.sub(r"\{\w+\}", str(uuid.uuid4()), path)
        reply = await asyncio.to_thread(send, shop, method, filled, token)
        assert b"there is nothing here" not in reply.body, path
        assert reply.status != 405, (path, method)
        other = next(each for each in ("PUT", "PATCH") if each.lower() not in DOCUMENT["paths"][path])
        refused = await asyncio.to_thread(send, shop, other, filled, token)
        allowed = {each.strip().lower() for each in refused.headers["allow"].split(",")}
        assert (refused.status, allowed) == (405, set(DOCUMENT["paths"][path]))
    text = await asyncio.to_thread(metrics_text, shop, "gateway")
    assert routes <= set(re.findall(r'gateway_answers_total\{.*?route="(\w+)"', text))


_ROUTE_FILES = ("routes", "purchase_routes", "sale_routes", "operator_routes")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("examples", [8, pytest.param(60, marks=pytest.mark.slow)])
async def test_whatever_is_sent_the_answer_is_as_the_contract_says(
    shop: MeshStack, tmp_path: Path, examples: int
) -> None:
    user = f"buyer-{uuid.uuid4().hex[:8]}"
    token = issue(shop.jwt_secret, user, operator=True)
    # Of any sale, which mostly is not there, and of one that is.
    sales: dict[str, dict[str, str]] = {"any": {}, "known": {"path.sale_id": await new_sale(shop, user)}}
    for name in sales:
        (tmp_path / name).mkdir()
    told = await asyncio.gather(
        *(
            http_contract.check(shop.gateway_url, token, tmp_path / name, examples=examples, parameters=given)
            for name, given in sales.items()
        )
    )
    for each in told:
        assert not each, each[-20_000:]


def strict(schema: Any) -> Any:
    """The schema without the leave for later versions to tell more."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(each) for name, each in schema.items()}
    if made.get("type") == "object" and isinstance(made.get("properties"), dict):
        made.setdefault("additionalProperties", False)
    return made


def judge(path: str, method: str, reply: Reply) -> None:
    """Asserts that an answer is one of an operation's, to the last field and header."""
    operation = DOCUMENT["paths"][path][method]
    answer = operation["responses"][str(reply.status)]
    if "$ref" in answer:
        answer = DOCUMENT["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    for name, header in answer.get("headers", {}).items():
        assert name.lower() in reply.headers or not header.get("required"), (path, name)
    if "content" not in answer:
        assert reply.body == b""
        return
    schema = answer["content"][reply.headers["content-type"]]["schema"]
    components = strict(copy.deepcopy(DOCUMENT["components"]))
    whole = {**strict(schema), "components": components}
    errors = [str(error) for error in jsonschema_rs.Draft202012Validator(whole).iter_errors(reply.json)]
    assert errors == [], (path, method, reply.json)


async def test_every_operation_that_does_its_work_answers_to_the_last_field(shop: MeshStack) -> None:
    user = f"buyer-{uuid.uuid4().hex[:8]}"
    sale = await new_sale(shop, user, total=3)
    bearer = {"authorization": f"Bearer {issue(shop.jwt_secret, user, operator=True)}"}
    judged: set[tuple[str, str]] = set()

    async def call(method: str, path: str, status: int, body: bytes | None = None, **values: str) -> Reply:
        query = values.pop("query", "")
        headers = bearer | ({"idempotency-key": values.pop("key")} if "key" in values else {})
        reply = await asyncio.to_thread(send, shop, method, path.format(**values) + query, headers, body)
        assert reply.status == status, (path, reply.body)
        judge(path, method, reply)
        judged.add((path, method))
        return reply

    buy, one = "/v1/sales/{sale_id}/purchases", "/v1/purchases/{purchase_id}"
    # Before it is sold out: then nothing looks at what is wanted.
    await call("post", buy, 400, b'{"quantity":0}', sale_id=sale, key="wrong")
    won = (await call("post", buy, 202, b'{"quantity":2}', sale_id=sale, key="won")).json["purchase_id"]
    assert (await call("get", one, 200, purchase_id=won, query="?wait=30")).json["state"] == "CONFIRMED"
    assert (await call("post", buy, 202, sale_id=sale, key="last")).json["state"] == "RESERVED"
    await call("post", buy, 409, b'{"quantity":1}', sale_id=sale, key="late")
    waits = await call("post", buy, 202, b'{"waitlist":true}', sale_id=sale, key="waits")
    assert waits.json["waitlist_position"] == 1
    await call("get", one, 200, purchase_id=waits.json["purchase_id"])
    await call("delete", one, 200, purchase_id=waits.json["purchase_id"])
    await call("get", "/v1/purchases/{purchase_id}/receipt", 200, purchase_id=won)
    await call("post", "/v1/purchases/{purchase_id}/refund", 202, purchase_id=won)
    await call("get", "/v1/purchases/{purchase_id}/receipt", 200, purchase_id=won)
    await call("get", "/v1/purchases", 200, query=f"?sale_id={sale}")
    await call("get", "/v1/balance", 200)
    await call("get", "/v1/sales", 200)
    await call("get", "/v1/sales/{sale_id}", 200, sale_id=sale)
    await call("get", "/v1/sales/{sale_id}/stock", 200, sale_id=sale)
    await call("get", "/healthz", 200)
    await call("get", "/v1/sales/{sale_id}", 404, sale_id=str(uuid.uuid4()))
    operator = "/v1/operator"
    await call("get", f"{operator}/overview", 200)
    await call("post", f"{operator}/sales/{{sale_id}}/total", 200, b'{"total":5}', sale_id=sale)
    await call("post", f"{operator}/sales/{{sale_id}}/eligible-users", 200, b'{"user_ids":["ann"]}', sale_id=sale)
    closing = b'{"open_time":null,"close_time":"2099-01-01T00:00:00Z"}'
    await call("post", f"{operator}/sales/{{sale_id}}/schedule", 200, closing, sale_id=sale)
    for verb in ("pause", "open", "close"):
        await call("post", f"{operator}/sales/{{sale_id}}/{verb}", 200, sale_id=sale)
    await call("get", f"{operator}/sales/{{sale_id}}/statement", 200, sale_id=sale)
    await call("get", f"{operator}/sales/{{sale_id}}/changes", 200, sale_id=sale)
    await call("get", f"{operator}/dead-letters", 200)
    await call("post", f"{operator}/dead-letters/replay", 200, b'{"most":1}')
    await call("get", f"{operator}/parked", 200)
    ids = json.dumps({"purchase_ids": [won]}).encode()
    await call("post", f"{operator}/parked/replay", 200, ids)
    # Of the two others one is a stream, and one answers with the document itself.
    left = {(path, method) for path, method, _ in OPERATIONS} - judged
    assert left == {("/v1/sales/{sale_id}/stock/stream", "get"), ("/openapi.json", "get")}
