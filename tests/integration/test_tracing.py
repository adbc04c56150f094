"""One trace for each purchase, through all processes, as an OTLP collector gets it."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from mesh.identity import purchase_id
from tests.contract.test_gateway_real import SHARES, Client, new_sale
from tests.support.collector import Collector, Span
from tests.support.servers import MeshStack
from tests.support.waiting import eventually

#: Process, span, and the end of the name of what it is under; None: of nothing.
Steps = list[tuple[str, str, str | None]]

#: From the gateway to the capture.
_STEPS: Steps = [
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


#: A refund, asked for and done.
_REFUND: Steps = [
    ("gateway", "POST /v1/purchases/{purchase_id}/refund", None),
    ("gateway", "flashsale.purchase.v1.PurchaseService/RefundPurchase", "/refund"),
    ("purchase", "flashsale.purchase.v1.PurchaseService/RefundPurchase", "RefundPurchase"),
    ("purchase", "SQL begin_refund", "RefundPurchase"),
    ("settlement", "refund", None),
    ("settlement", "flashsale.balance.v1.BalanceService/BatchReverseCaptures", "refund"),
    ("balance", "SQL reverse captures", "BatchReverseCaptures"),
    ("settlement", "flashsale.inventory.v1.InventoryService/BatchReleaseReservations", "refund"),
    ("inventory", "SQL release reservations", "BatchReleaseReservations"),
    ("settlement", "SQL finish_refunds", "refund"),
]
#: A purchase that waited in line, from there to the capture.
_FROM_THE_LINE: Steps = [
    ("inventory", "SQL join_waitlist", "BatchReserveShares"),
    ("purchase", "SQL insert_purchases", "buy"),
    ("settlement", "follow waitlist", None),
    ("settlement", "SQL end_waiting", "follow waitlist"),
    ("settlement", "publish settlement", "follow waitlist"),
    ("settlement", "settle", "publish settlement"),
    ("balance", "SQL capture holds", "BatchCaptureHolds"),
]
#: A cancel, with what it gives back.
_CANCEL: Steps = [
    ("gateway", "DELETE /v1/purchases/{purchase_id}", None),
    ("gateway", "flashsale.purchase.v1.PurchaseService/CancelPurchase", "DELETE /v1/purchases/{purchase_id}"),
    ("purchase", "flashsale.purchase.v1.PurchaseService/CancelPurchase", "CancelPurchase"),
    ("purchase", "SQL cancel_purchase", "CancelPurchase"),
    ("purchase", "flashsale.inventory.v1.InventoryService/BatchReleaseReservations", "CancelPurchase"),
    ("inventory", "flashsale.inventory.v1.InventoryService/BatchReleaseReservations", "BatchReleaseReservations"),
    ("inventory", "SQL release reservations", "BatchReleaseReservations"),
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


async def bought(traced: Traced, users: list[str], sale: str = "") -> dict[str, str]:
    """Buys a share for each of these users, at once; the ids of the purchases, which are settled."""
    sale = sale or await new_sale(traced.stack, users)
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


async def whole(traced: Traced, purchase: str, steps: Steps = _STEPS) -> list[Span]:
    """The trace, once all that is due has come, each under what it is due under: a span often comes before the one
    above it, which ends later."""

    def missing() -> dict[tuple[str, str], set[str]]:
        """What has not come, or only under others: under which."""
        spans = trace_of(traced, purchase)
        names = {span.span_id: span.name for span in spans} | {"": ""}
        found = {}
        for service, name, above in steps:
            of_step = [span for span in spans if (span.service, span.name) == (service, name)]
            parents = {names.get(span.parent_id, span.parent_id) for span in of_step}
            if not any(parent.endswith(above) if above else not parent for parent in parents):
                found[service, name] = parents
        return found

    with contextlib.suppress(AssertionError):
        await until(lambda: not missing())
    assert missing() == {}
    spans = trace_of(traced, purchase)
    assert {span.attributes["flashsale.purchase_id"] for span in spans} == {purchase}
    return spans


async def test_a_purchase_is_one_trace_from_the_gateway_to_the_capture(traced: Traced) -> None:
    [purchase] = (await bought(traced, [f"alice-{uuid.uuid4().hex[:8]}"])).values()
    spans = await whole(traced, purchase)
    by_id = {span.span_id: span for span in spans}
    seen = {(span.service, span.name): span for span in spans}
    assert not any(span.failed for span in spans)
    # One tree: everything hangs from the request.
    assert [span.name for span in spans if not span.parent_id] == ["POST /v1/sales/{sale_id}/purchases"]
    assert all(span.parent_id in by_id for span in spans if span.parent_id)
    assert seen["settlement", "SQL finish_purchases"].attributes["flashsale.state"] == "CONFIRMED"


async def test_purchases_that_share_batches_have_traces_of_their_own(traced: Traced) -> None:
    users = [f"{number}-{uuid.uuid4().hex[:8]}" for number in range(20)]
    ids = await bought(traced, users)
    for purchase in ids.values():
        spans = await whole(traced, purchase)
        assert sum(not span.parent_id for span in spans) == 1


async def test_a_refund_and_the_turn_of_who_waited_in_line_are_in_the_traces_of_their_purchases(
    traced: Traced,
) -> None:
    run = uuid.uuid4().hex[:8]
    winners, waiter, patient = [f"{run}-{number}" for number in range(SHARES)], f"{run}-waiter", f"{run}-patient"
    sale = await new_sale(traced.stack, [*winners, waiter, patient])
    ids = await bought(traced, winners, sale)
    client = Client(traced.stack)
    for user in (waiter, patient):
        status, answer = await client.buy(sale, user, waitlist=True)
        assert (status, answer["state"]) == (202, "WAITLISTED")
        ids[user] = answer["purchase_id"]
    status, _ = await client.send("POST", f"/v1/purchases/{ids[winners[0]]}/refund", winners[0])
    assert status in (200, 202)
    for user, state in ((winners[0], "REFUNDED"), (waiter, "CONFIRMED")):
        # The poll of one in line ends as soon as it has left it.
        for _ in range(2):
            status, purchase = await client.send("GET", f"/v1/purchases/{ids[user]}?wait=30", user)
        assert (status, purchase["state"]) == (200, state)
    status, purchase = await client.send("DELETE", f"/v1/purchases/{ids[patient]}", patient)
    assert (status, purchase["state"]) == (200, "CANCELLED")
    await whole(traced, ids[winners[0]], [*_STEPS, *_REFUND])
    await whole(traced, ids[waiter], _FROM_THE_LINE)
    await whole(traced, ids[patient], _CANCEL)


async def test_a_refusal_and_a_cancel_are_in_the_trace_of_their_purchase(traced: Traced) -> None:
    user = f"late-{uuid.uuid4().hex[:8]}"
    sale = await new_sale(traced.stack, [user])
    client = Client(traced.stack)
    body = b'{"quantity":2}'
    status, _ = await client.send("POST", f"/v1/sales/{sale}/purchases", user, "too many", body)
    assert status == 400
    refused = str(purchase_id(user, sale, "too many"))
    # The processes send what they have each in their own time.
    await until(lambda: any(not span.parent_id for span in trace_of(traced, refused)))
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
