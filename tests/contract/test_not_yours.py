"""Another's purchase is answered as one that does not exist: the same words, after the same work, in the same time."""

import asyncio
import http.client
import statistics
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
from flashsale.purchase.v1 import purchase_service_pb2 as pb

from gateway.local_tokens import issue
from mesh import postgres
from tests.contract.test_gateway_real import Client, new_sale
from tests.support.purchase_rig import PurchaseRig, purchase_rig
from tests.support.servers import MeshStack, Servers

ROUTES = [
    ("GET", "/v1/purchases/{}"),
    ("GET", "/v1/purchases/{}?wait=1"),
    ("GET", "/v1/purchases/{}/receipt"),
    ("DELETE", "/v1/purchases/{}"),
    ("POST", "/v1/purchases/{}/refund"),
]
#: Pairs of requests whose times are compared, and by how much the medians of the two kinds may differ.
PAIRS, TIMES_MAX = 150, 1.3
#: Answers that come with every request or may change from one to the next.
_CHANGING = {"date"}


class Asker:
    """Sends requests on one connection, all of one user, or each of another stranger: what is left of a user's rate is
    told, and used up. Blocks."""

    def __init__(self, stack: MeshStack, user: str = "", *, operator: bool = False) -> None:
        address = urlsplit(stack.gateway_url)
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=40)
        self._secret, self._user, self._operator = stack.jwt_secret, user, operator

    def ask(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        self._send(method, path)
        reply = self._connection.getresponse()
        headers = {name.lower(): value for name, value in reply.getheaders() if name.lower() not in _CHANGING}
        return reply.status, headers, reply.read()

    def took_s(self, method: str, path: str) -> float:
        """How long it takes to be told that there is no such purchase."""
        began = time.perf_counter()
        self._send(method, path)
        reply = self._connection.getresponse()
        took_s = time.perf_counter() - began
        reply.read()
        assert reply.status == 404
        return took_s

    def _send(self, method: str, path: str) -> None:
        user = self._user or f"mallory-{uuid.uuid4().hex}"
        token = issue(self._secret, user, operator=self._operator)
        self._connection.request(method, path, headers={"authorization": f"Bearer {token}"})

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


@pytest.fixture(scope="module")
async def purchases(mesh_stack: MeshStack) -> dict[str, tuple[str, str]]:
    """By what has become of it: somebody's purchase and whose it is."""
    client, run = Client(mesh_stack), uuid.uuid4().hex[:8]
    rich = [f"{run}-{number}" for number in range(21)]
    sale = await new_sale(mesh_stack, rich)
    failed = f"{run}-no-account"
    bought = {user: await client.buy(sale, user) for user in (failed, *rich[:2])}
    for user, (status, purchase) in bought.items():
        assert status == 202
        await client.send("GET", f"/v1/purchases/{purchase['purchase_id']}?wait=30", user)
    await asyncio.gather(*(client.buy(sale, user) for user in rich[2:20]))
    status, waits = await client.buy(sale, rich[20], waitlist=True)
    assert (status, waits["state"]) == (202, "WAITLISTED")
    return {
        "CONFIRMED": (bought[rich[0]][1]["purchase_id"], rich[0]),
        "FAILED": (bought[failed][1]["purchase_id"], failed),
        "WAITLISTED": (waits["purchase_id"], rich[20]),
    }


@pytest.mark.parametrize("state", ["CONFIRMED", "FAILED", "WAITLISTED"])
@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("operator", [False, True])
async def test_another_s_purchase_is_answered_as_one_that_is_not_there(
    mesh_stack: MeshStack,
    purchases: dict[str, tuple[str, str]],
    state: str,
    method: str,
    path: str,
    operator: bool,
) -> None:
    purchase_id, owner = purchases[state]
    with closing(Asker(mesh_stack, operator=operator)) as stranger, closing(Asker(mesh_stack, owner)) as own:
        theirs = await asyncio.to_thread(stranger.ask, method, path.format(purchase_id))
        none = await asyncio.to_thread(stranger.ask, method, path.format(uuid.uuid4()))
        assert theirs == none
        assert theirs[0] == 404
        assert b"PURCHASE_NOT_FOUND" in theirs[2]
        status, _, body = await asyncio.to_thread(own.ask, "GET", f"/v1/purchases/{purchase_id}")
        assert status == 200
        assert state.encode() in body, "a stranger has changed it"


async def test_a_list_and_a_balance_are_of_whoever_asks_whatever_the_request_says(
    mesh_stack: MeshStack, purchases: dict[str, tuple[str, str]]
) -> None:
    purchase_id, owner = purchases["CONFIRMED"]
    with closing(Asker(mesh_stack, "mallory")) as stranger, closing(Asker(mesh_stack, owner)) as own:
        for query in ("", f"?user_id={owner}", f"?user={owner}", f"?sub={owner}"):
            status, _, body = await asyncio.to_thread(stranger.ask, "GET", f"/v1/purchases{query}")
            assert (status, purchase_id.encode() in body) == (200, False)
            assert (await asyncio.to_thread(stranger.ask, "GET", f"/v1/balance{query}"))[0] == 404
        assert purchase_id.encode() in (await asyncio.to_thread(own.ask, "GET", "/v1/purchases"))[2]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_and_in_the_same_time(
    mesh_stack: MeshStack, purchases: dict[str, tuple[str, str]], method: str, path: str
) -> None:
    purchase_id, _ = purchases["CONFIRMED"]

    def measure() -> tuple[float, float]:
        times: tuple[list[float], list[float]] = ([], [])
        with closing(Asker(mesh_stack)) as stranger:
            for _ in range(PAIRS):
                times[0].append(stranger.took_s(method, path.format(purchase_id)))
                times[1].append(stranger.took_s(method, path.format(uuid.uuid4())))
        return statistics.median(times[0]), statistics.median(times[1])

    theirs_s, none_s = await asyncio.to_thread(measure)
    assert max(theirs_s, none_s) < TIMES_MAX * min(theirs_s, none_s), (theirs_s, none_s)


@pytest.fixture(scope="module")
async def rig(servers: Servers) -> AsyncIterator[PurchaseRig]:
    """The Purchase Service in this event loop."""
    async with purchase_rig(servers) as made:
        yield made


def _calls(rig: PurchaseRig) -> dict[str, tuple[Any, Any]]:
    return {
        "GetPurchase": (rig.purchases.GetPurchase, pb.GetPurchaseRequest),
        "WatchPurchase": (rig.purchases.WatchPurchase, pb.WatchPurchaseRequest),
        "CancelPurchase": (rig.purchases.CancelPurchase, pb.CancelPurchaseRequest),
        "RefundPurchase": (rig.purchases.RefundPurchase, pb.RefundPurchaseRequest),
        "GetReceipt": (rig.purchases.GetReceipt, pb.GetReceiptRequest),
    }


@pytest.mark.parametrize("name", ["GetPurchase", "WatchPurchase", "CancelPurchase", "RefundPurchase", "GetReceipt"])
async def test_after_the_same_statements(rig: PurchaseRig, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sale = await rig.new_sale()
    bought = await rig.buy(sale, "alice", request=name)
    statements: list[str] = []
    execute = postgres.Connection.execute

    async def recorded(self: postgres.Connection, query: Any, *arguments: Any, **options: Any) -> Any:
        statements.append(str(query))
        return await execute(self, query, *arguments, **options)

    async def told(purchase_id: str) -> tuple[str, list[str]]:
        call, request = _calls(rig)[name]
        statements.clear()
        made = call(request(purchase_id=purchase_id, user_id="mallory"), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await (made.read() if name == "WatchPurchase" else made)
        # What others do meanwhile is not of this purchase.
        return refused.value.details() or "", [text for text in statements if "purchase_id" in text]

    monkeypatch.setattr(postgres.Connection, "execute", recorded)
    theirs = await told(bought.purchase_id)
    assert theirs == await told(str(uuid.uuid4()))
    assert theirs[1], "nothing was recorded"
