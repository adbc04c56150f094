"""What a request that is traced tells the services behind the gateway."""

import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from gateway.local_tokens import issue
from mesh import tracing
from mesh.errors import DomainError
from mesh.identity import purchase_id
from mesh.span_recorder import SpanRecorder
from tests.contract.gateway_harness import SALE, SECRET, Harness, harness
from tests.support.collector import Collector, Span


class Seen:
    """A gateway that is traced, with services whose servers are in the same process, and what was exported of it."""

    def __init__(self, h: Harness, collector: Collector, recorder: SpanRecorder) -> None:
        self.harness = h
        self._collector = collector
        self._recorder = recorder

    def trace(self, key: str) -> list[Span]:
        """The spans of a purchase, all of which have ended."""
        self._recorder.shut_down()
        return self._collector.traces().get(uuid.UUID(key).hex, [])


@pytest_asyncio.fixture
async def seen() -> AsyncIterator[Seen]:
    with Collector() as collector:
        recorder = SpanRecorder("test", f"{collector.endpoint}/v1/traces")
        tracing.turn_on(recorder, 1.0)
        try:
            async with harness() as h:
                yield Seen(h, collector, recorder)
        finally:
            tracing.turn_off()
            recorder.shut_down()


async def test_the_call_that_buys_is_under_the_request_and_its_server_under_the_call(seen: Seen) -> None:
    reply = await seen.harness.buy("key")
    spans = {(span.kind, span.name.rpartition("/")[2]): span for span in seen.trace(reply.json["purchase_id"])}
    server, client = 2, 3
    request = spans[server, "purchases"]
    calling, called = spans[client, "BatchCreatePurchases"], spans[server, "BatchCreatePurchases"]
    assert (request.parent_id, calling.parent_id, called.parent_id) == ("", request.span_id, calling.span_id)
    assert request.start_ns <= calling.start_ns <= called.start_ns <= called.end_ns <= calling.end_ns <= request.end_ns


async def test_a_call_that_fails_is_told_by_its_reason(seen: Seen) -> None:
    bought = (await seen.harness.buy("key")).json["purchase_id"]
    seen.harness.purchases.failure = DomainError(ErrorReason.ERROR_REASON_STOCK_RECALIBRATING, "secret words")
    assert (await seen.harness.buy("key")).status == 503
    failed = [span for span in seen.trace(bought) if span.failed]
    # Those of the call: the caller knows its status, and the server the reason; the request was answered.
    assert {(span.kind, span.attributes["error.type"]) for span in failed} == {
        (3, "UNAVAILABLE"),
        (2, "STOCK_RECALIBRATING"),
    }
    assert any(span.attributes.get("flashsale.reason") == "STOCK_RECALIBRATING" for span in seen.trace(bought))


@pytest.mark.parametrize(
    ("method", "rest", "rpc"), [("DELETE", "", "CancelPurchase"), ("POST", "/refund", "RefundPurchase")]
)
async def test_what_is_done_with_a_purchase_later_is_in_its_trace(seen: Seen, method: str, rest: str, rpc: str) -> None:
    h, key = seen.harness, str(purchase_id("rich", SALE, "1"))
    h.purchases.purchases[key] = purchase.Purchase(
        purchase_id=key, user_id="rich", sale_id=SALE, quantity=1, state=purchase.PURCHASE_STATE_CONFIRMED
    )
    token = {"authorization": f"Bearer {issue(SECRET, 'rich')}", "traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}
    assert (await h.request(method, f"/v1/purchases/{key}{rest}", token)).status in (200, 202)
    request, calling, called = seen.trace(key)
    assert request.name.startswith(f"{method} /v1/purchases/")
    assert calling.name == called.name == f"flashsale.purchase.v1.PurchaseService/{rpc}"
    # A trace that the client names is not looked at.
    assert (request.parent_id, calling.parent_id, called.parent_id) == ("", request.span_id, calling.span_id)


async def test_who_has_no_token_leaves_nothing_in_a_purchases_trace(seen: Seen) -> None:
    key = str(purchase_id("rich", SALE, "1"))
    assert (await seen.harness.request("DELETE", f"/v1/purchases/{key}")).status == 401
    assert seen.trace(key) == []
