"""What a refusal looks like on the wire (RFC 9457), and what is counted."""

import json

import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from gateway.metrics import GatewayMetrics
from gateway.problems import HttpError, domain_problem, http_problem, json_answer, known_reason
from mesh.errors import DomainError, invalid_argument
from mesh.metrics import Metrics


@pytest.mark.parametrize("reason", [value for value in ErrorReason.values() if value])
def test_every_reason_becomes_a_problem_that_names_it(reason: int) -> None:
    answer = domain_problem(DomainError(reason))
    body, headers = json.loads(answer.body), dict(answer.headers)
    assert headers["content-type"] == "application/problem+json"
    assert headers["cache-control"] == "no-store"
    assert body["status"] == answer.status
    assert body["type"].endswith(body["reason"])
    assert ErrorReason.Value("ERROR_REASON_" + body["reason"]) == reason
    assert body["title"]
    assert body["detail"]
    if answer.status in (429, 503, 504):
        assert int(headers["retry-after"]) >= 1
        assert body["retry_after_ms"] >= 1
    else:
        assert "retry-after" not in headers
        assert "retry_after_ms" not in body
    assert ("www-authenticate" in headers) == (answer.status == 401)


def test_a_delay_is_precise_in_the_body_and_whole_seconds_in_the_header() -> None:
    for ms, seconds in ((1, "1"), (999, "1"), (1000, "1"), (1001, "2"), (5000, "5")):
        answer = domain_problem(DomainError(ErrorReason.ERROR_REASON_OVERLOADED, retry_after_ms=ms))
        assert dict(answer.headers)["retry-after"] == seconds
        assert json.loads(answer.body)["retry_after_ms"] == ms


def test_violations_name_each_wrong_field() -> None:
    answer = domain_problem(invalid_argument(("quantity", "must be 1 to 10"), ("sale_id", "must be a UUID")))
    assert [each["field"] for each in json.loads(answer.body)["violations"]] == ["quantity", "sale_id"]


def test_what_is_wrong_as_http_keeps_its_status_and_headers() -> None:
    answer = http_problem(HttpError(405, "use POST", [("allow", "POST")]))
    assert (answer.status, dict(answer.headers)["allow"]) == (405, "POST")
    assert json.loads(answer.body)["reason"] == answer.reason == "INVALID_ARGUMENT"


def test_a_reason_of_a_newer_version_is_internal() -> None:
    assert known_reason(4711) == ErrorReason.ERROR_REASON_INTERNAL
    assert known_reason(ErrorReason.ERROR_REASON_SOLD_OUT) == ErrorReason.ERROR_REASON_SOLD_OUT


def test_answers_and_latencies_are_counted_by_route_and_reason() -> None:
    everything = Metrics()
    metrics = GatewayMetrics(everything)
    answer = json_answer(202, {})
    for seconds in (0.0005, 0.003, 0.003, 99.0):
        metrics.answered("buy", answer.status, answer.reason)
        metrics.purchase_took(seconds)
    metrics.sold_out_at_door += 3
    text = everything.text().decode()
    for line in (
        'gateway_answers_total{reason="OK",route="buy",status="202"} 4.0',
        'gateway_refused_at_door_total{reason="SOLD_OUT"} 3.0',
        'gateway_purchase_seconds_bucket{le="0.001"} 1.0',
        'gateway_purchase_seconds_bucket{le="0.005"} 3.0',
        'gateway_purchase_seconds_bucket{le="30.0"} 3.0',
        'gateway_purchase_seconds_bucket{le="+Inf"} 4.0',
    ):
        assert line in text.splitlines()
