"""The rules of admission: shapes, the length of the queue, the rate of one user."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission import (
    BODY_BYTES_MAX,
    QueueBounds,
    QueueLimit,
    body_length,
    check_content_type,
    idempotency_key,
    quantity_of,
)
from gateway.problems import HttpError, domain_problem, http_problem
from gateway.user_rate import UserRate
from mesh.errors import DomainError

BOUNDS = QueueBounds(least=100, most=5000, wait_s=0.5, rate_initial_per_s=8000.0)


def status_of(check: Callable[[], Any]) -> int:
    """200, or the status of the refusal."""
    try:
        check()
    except HttpError as error:
        return http_problem(error).status
    except DomainError as error:
        return domain_problem(error).status
    return 200


@given(st.binary(max_size=200))
def test_any_body_gives_a_quantity_within_range_or_400(body: bytes) -> None:
    status = status_of(lambda: quantity_of(body))
    assert status == 400 or (status == 200 and 1 <= quantity_of(body) <= 1000)


@given(st.text(max_size=200))
def test_any_header_gives_a_length_and_a_key_within_range_or_a_refusal(text: str) -> None:
    status = status_of(lambda: body_length(text))
    assert status in (400, 413) or 0 <= (body_length(text) or 0) <= BODY_BYTES_MAX
    status = status_of(lambda: idempotency_key(text))
    assert status == 400 or (1 <= len(text) <= 128 and text.isascii())


def test_json_is_taken_with_parameters_or_without_a_type() -> None:
    check_content_type(None)
    check_content_type("application/json; charset=utf-8")
    with pytest.raises(HttpError):
        check_content_type("application/json-patch+json")


def _served(limit: QueueLimit, rate_per_s: float, seconds: float, *, start: float = 100.0, queued: int = 50) -> float:
    now = start
    while now < start + seconds:
        now += 0.01
        limit.answered(round(rate_per_s / 100), queued, now)
    return now


def test_the_queue_may_be_as_long_as_can_be_answered_in_the_time_promised() -> None:
    limit = QueueLimit(BOUNDS)
    assert limit.length_max == 4000
    _served(limit, 2000, 1.0)
    assert limit.rate_per_s == pytest.approx(2000, rel=0.05)
    assert limit.length_max == pytest.approx(1000, rel=0.05)
    _served(limit, 100_000, 1.0, start=200.0)
    assert limit.length_max == 5000
    _served(limit, 10, 20.0, start=300.0)
    assert limit.length_max == 100


def test_a_service_with_nothing_to_do_is_not_taken_for_a_slow_one() -> None:
    limit = QueueLimit(BOUNDS)
    _served(limit, 100, 5.0, queued=0)
    assert limit.rate_per_s == 8000.0


def test_a_refused_crowd_is_told_to_return_at_the_rate_of_service() -> None:
    limit = QueueLimit(BOUNDS)
    delays = [limit.return_after_ms(4000, 100.0) for _ in range(4000)]
    assert delays == sorted(delays)
    assert 200 <= delays[0] <= 300, "half the queue is answered by then"
    assert delays[-1] - delays[0] == pytest.approx(500, rel=0.02), "4,000 at 8,000/s"
    assert max(limit.return_after_ms(4000, 100.0) for _ in range(100_000)) == QueueLimit.RETRY_MS_MAX
    assert limit.return_after_ms(0, 200.0) == QueueLimit.RETRY_MS_MIN, "and a crowd of long ago is forgotten"


def test_burst_and_one_more_at_once_is_refused_exactly_once() -> None:
    rate = UserRate(rate_per_s=5, burst=10, users_max=100)
    waits = [rate.take("u", 50.0) for _ in range(11)]
    assert waits == [0] * 10 + [200]
    assert rate.take("v", 50.0) == 0
    assert rate.take("u", 50.19) > 0
    assert rate.take("u", 50.21) == 0


def test_users_remembered_are_bounded_and_a_clock_that_stands_still_gives_nothing() -> None:
    rate = UserRate(rate_per_s=5, burst=1, users_max=100)
    for i in range(1000):
        assert rate.take(f"u{i}", 1.0) == 0
    assert len(rate) == 100
    assert rate.take("u999", 1.0) == 200
    assert rate.take("u999", 0.5) == 200, "nor one that runs back"
