"""The rules of admission: shapes, and the rate of one user."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission import (
    BODY_BYTES_MAX,
    LENGTHS_WITHOUT_WISH,
    body_length,
    check_content_type,
    idempotency_key,
    purchase_of,
)
from gateway.problems import HttpError, domain_problem, http_problem
from gateway.user_rate import UserRate
from mesh.errors import DomainError


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
    status = status_of(lambda: purchase_of(body))
    assert status == 400 or (status == 200 and 1 <= purchase_of(body).quantity <= 1000)


def test_a_body_says_how_many_and_whether_to_wait_in_line() -> None:
    assert (purchase_of(b"").quantity, purchase_of(b"").waitlist) == (1, False)
    assert (purchase_of(b"{}").quantity, purchase_of(b"{}").waitlist) == (1, False)
    wanted = purchase_of(b'{"quantity":3,"waitlist":true}')
    assert (wanted.quantity, wanted.waitlist) == (3, True)
    assert not purchase_of(b'{"waitlist":false}').waitlist


_PIECES = ["{", "}", '"waitlist"', '"waitlis\\u0074"', '"quantity"', ":", ",", "true", "false", "1", " ", "\n"]


@given(st.lists(st.sampled_from(_PIECES), max_size=12).map("".join))
def test_no_body_that_asks_for_the_waitlist_is_too_short_to_be_looked_at(text: str) -> None:
    body = text.encode()
    if status_of(lambda: purchase_of(body)) == 200 and purchase_of(body).waitlist:
        assert str(len(body)) not in LENGTHS_WITHOUT_WISH


def test_the_shortest_wish_is_looked_at_and_an_ordinary_purchase_is_not() -> None:
    assert purchase_of(b'{"waitlist":true}').waitlist
    assert str(len(b'{"waitlist":true}')) not in LENGTHS_WITHOUT_WISH
    assert {str(len(body)) for body in (b"", b"{}", b'{"quantity":1}', b'{"quantity": 10}')} <= LENGTHS_WITHOUT_WISH


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
