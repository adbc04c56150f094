"""One trace for each purchase, through all processes, as an OTLP collector gets it."""

import asyncio
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from mesh.identity import purchase_id
from tests.contract.test_gateway_real import Client, new_sale
from tests.support.collector import Collector, Span
from tests.support.servers import MeshStack
from tests.support.waiting import eventually

#: From the gateway to the capture: each span under the one before, or under the one that is named.
_STEPS = [
    ("gateway", "POST /v1/sales/{sale_id}/purchases", None),
    ("gateway", "flashsale.purchase.v1.PurchaseService/BatchCreatePurchases", "POST /v1/sales/{sale_id}/purchases"),
    ("purchase", "flashsale.purchase.v1.PurchaseService/BatchCreatePurchases", "BatchCreatePurchases"),
    ("purchase", "buy", "BatchCreatePurchases"),
    ("purchase", "flashsale.inventory.v1.InventoryService/BatchReserveShares", "buy"),
    ("inventory", "flashsale.inventory.v1.InventoryService/BatchReserveShares", "BatchReserveShares"),
    ("inventory", "Redis reserve", "BatchReserveShares"),
    ("inventory", "SQL insert_reservations", "BatchReserveShares"),
    ("purchase", "SQL insert_purchases", "buy"),
    ("purchase", "publish settlement", "buy"),
    ("settlement", "settle", "publish settlement"),
    ("settlement", "SQL claim_purchases", "settle"),
    ("settlement", "flashsale.balance.v1.BalanceService/BatchPlaceHolds", "settle"),
    ("balance", "flashsale.balance.v1.BalanceService/BatchPlaceHolds", "BatchPlaceHolds"),
    ("balance", "SQL place holds", "BatchPlaceHolds"),
    ("settlement", "flashsale.inventory.v1.InventoryService/BatchConfirmReservations", "settle"),
    ("inventory", "SQL confirm reservations", "BatchConfirmReservations"),
    ("settlement", "flashsale.balance.v1.BalanceService/BatchCaptureHolds", "settle"),
    ("balance", "flashsale.balance.v1.BalanceService/BatchCaptureHolds", "BatchCaptureHolds"),
    ("balance", "SQL capture holds", "BatchCaptureHolds"),
    ("settlement", "SQL finish_purchases", "settle"),
]


@dataclass(frozen=True)
class Traced:
    """A whole system that is traced, and where its spans go."""

    stack: MeshStack
    collector: Collector


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    with (
        Collector() as collector,
        MeshStack(MESH_TRACE_RATIO="1", MESH_TRACE_OTLP_ENDPOINT=collector.endpoint) as stack,
    ):
        yield Traced(stack, collector)


async def bought(traced: Traced, users: list[str]) -> dict[str, str]:
    """Buys a share for each of these users, at once; the ids of the purchases, which are settled."""
    sale = await new_sale(traced.stack, users)
    client = Client(traced.stack)
    answers = await asyncio.gather(*(client.buy(sale, user) for user in users))
    ids = {user: answer["purchase_id"] for user, (_, answer) in zip(users, answers, strict=True)}
    for user, each in ids.items():
        status, purchase = await client.send("GET", f"/v1/purchases/{each}?wait=30", user)
        assert (status, purchase["state"]) == (200, "CONFIRMED")
        assert each == str(purchase_id(user, sale, f"{user}-1"))
    return ids


def trace_of(traced: Traced, purchase: str) -> list[Span]:
    return traced.collector.traces().get(uuid.UUID(purchase).hex, [])


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what must come true: the processes send their spans every second."""

    async def holds() -> bool:
        return condition()

    await eventually(holds)


async def whole(traced: Traced, purchase: str) -> list[Span]:
    """The trace, once all that is due has come."""
    due = {(service, name) for service, name, _ in _STEPS}
    await until(lambda: due <= {(span.service, span.name) for span in trace_of(traced, purchase)})
    return trace_of(traced, purchase)


async def test_a_purchase_is_one_trace_from_the_gateway_to_the_capture(traced: Traced) -> None:
    [purchase] = (await bought(traced, [f"alice-{uuid.uuid4().hex[:8]}"])).values()
    spans = await whole(traced, purchase)
    by_id = {span.span_id: span for span in spans}
    seen = {(span.service, span.name): span for span in spans}
    for service, name, above in _STEPS:
        span = seen.get((service, name))
        assert span is not None, f"{service}: {name} is missing from {sorted(seen)}"
        parent = by_id.get(span.parent_id)
        if above is None:
            assert span.parent_id == ""
        else:
            assert parent is not None, f"{service}: {name} is under nothing that was exported"
            assert parent.name.endswith(above), f"{service}: {name} is under {parent.name}"
        assert not span.failed
        assert span.attributes["flashsale.purchase_id"] == purchase
    # One tree: everything hangs from the request.
    assert [span.name for span in spans if not span.parent_id] == ["POST /v1/sales/{sale_id}/purchases"]
    assert all(span.parent_id in by_id for span in spans if span.parent_id)
    assert seen["settlement", "SQL finish_purchases"].attributes["flashsale.state"] == "CONFIRMED"


async def test_purchases_that_share_batches_have_traces_of_their_own(traced: Traced) -> None:
    users = [f"{number}-{uuid.uuid4().hex[:8]}" for number in range(20)]
    ids = await bought(traced, users)
    for purchase in ids.values():
        spans = await whole(traced, purchase)
        assert {span.attributes["flashsale.purchase_id"] for span in spans} == {purchase}
        assert {(service, name) for service, name, _ in _STEPS} <= {(span.service, span.name) for span in spans}
        assert sum(not span.parent_id for span in spans) == 1


async def test_a_refusal_and_a_cancel_are_in_the_trace_of_their_purchase(traced: Traced) -> None:
    user = f"late-{uuid.uuid4().hex[:8]}"
    sale = await new_sale(traced.stack, [user])
    client = Client(traced.stack)
    body = b'{"quantity":2}'
    status, _ = await client.send("POST", f"/v1/sales/{sale}/purchases", user, "too many", body)
    assert status == 400
    refused = str(purchase_id(user, sale, "too many"))
    await until(lambda: bool(trace_of(traced, refused)))
    [request] = [span for span in trace_of(traced, refused) if not span.parent_id]
    assert request.attributes["flashsale.reason"] == "PURCHASE_LIMIT_EXCEEDED"

    [bought_id] = (await bought(traced, [f"sorry-{uuid.uuid4().hex[:8]}"])).values()
    _, answer = await client.send("DELETE", f"/v1/purchases/{bought_id}", user)
    assert answer["reason"] == "PURCHASE_NOT_FOUND"
    await until(lambda: any(span.name.startswith("DELETE") for span in trace_of(traced, bought_id)))
    [cancel] = [span for span in trace_of(traced, bought_id) if span.name.startswith("DELETE")]
    assert cancel.failed


async def test_log_lines_name_the_purchase_and_its_trace(traced: Traced) -> None:
    user = f"logged-{uuid.uuid4().hex[:8]}"
    # Without the Balance Service a call of the settlement fails, which is worth a line.
    sale = await new_sale(traced.stack, [user])
    client = Client(traced.stack)
    traced.stack.stack.stop("balance")
    try:
        _, answer = await client.buy(sale, user)
        key = answer["purchase_id"]
        log = traced.stack.stack.folder.log_file("settlement")

        def told() -> list[dict[str, object]]:
            lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
            return [line for line in lines if key in line.get("purchase_ids", [])]

        await until(lambda: bool(told()))
    finally:
        traced.stack.stack.start("balance")
    [line, *_] = told()
    assert line["event"] == "a call failed"
    assert uuid.UUID(key).hex in line["trace_ids"]  # type: ignore[operator]
    status, purchase = await client.send("GET", f"/v1/purchases/{key}?wait=30", user)
    assert (status, purchase["state"]) == (200, "CONFIRMED")
