"""The rules of a line, without a server: whom some units serve, what a calibration counts, page tokens."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inventory_svc.recalibration import Count
from inventory_svc.sale import Sale, SaleState, SaleTerms, Wish
from inventory_svc.waitlist import Waiter, WaitlistState, served_by
from inventory_svc.waitlist_messages import state_of_filter, ticket_of
from mesh import page_token
from mesh.errors import DomainError

LISTING = ["waitlist", "sale", ""]
QUANTITIES = st.lists(st.integers(1, 5), max_size=8)


def line_of(quantities: list[int]) -> list[Waiter]:
    return [Waiter(f"id{number}", quantity, number + 1) for number, quantity in enumerate(quantities)]


@given(quantities=QUANTITIES, units=st.integers(0, 20))
def test_without_overtaking_a_beginning_of_the_line_is_served(quantities: list[int], units: int) -> None:
    line = line_of(quantities)
    served, left, stopped = served_by(units, line, overtaking_allowed=False)
    assert served == line[: len(served)]
    assert left == units - sum(quantities[: len(served)]) >= 0
    assert stopped == (len(served) < len(line))
    assert not stopped or line[len(served)].quantity > left


@given(quantities=QUANTITIES, units=st.integers(0, 20))
def test_with_overtaking_nobody_is_left_whom_the_units_would_have_served(quantities: list[int], units: int) -> None:
    line = line_of(quantities)
    served, left, stopped = served_by(units, line, overtaking_allowed=True)
    assert not stopped
    assert [waiter.ticket for waiter in served] == sorted(waiter.ticket for waiter in served)
    assert left == units - sum(waiter.quantity for waiter in served) >= 0
    assert all(waiter.quantity > left for waiter in line if waiter not in served)


def test_a_calibration_counts_waiters_for_their_users_and_not_as_units() -> None:
    sale = Sale("sale", SaleTerms("Fund", 100, "EUR", 5, 2, 1), SaleState.OPEN, datetime.now(UTC))
    count = Count(sale, epoch=3)
    count.add([("id1", "alice", "r1", 2, "RESERVED"), ("id2", "alice", "r2", 3, "WAITING")])
    assert (count.reserved, count.sold, count.waiting, count.users) == (2, 0, 1, {"alice": 5})
    assert count.records == [{"id1": "R2\nalice\nr1", "id2": "W3\nalice\nr2"}]
    assert (count.counts.available, count.counts.waiting) == (3, 1)


def test_whether_it_joins_is_no_part_of_a_wishs_contents() -> None:
    assert Wish("id", "sale", "alice", "r1", 1, joins=True) == Wish("id", "sale", "alice", "r1", 1)


def test_a_page_begins_after_the_ticket_of_its_token() -> None:
    assert ticket_of("", LISTING) == 0
    assert ticket_of(page_token.encode(LISTING, ["12"]), LISTING) == 12


@pytest.mark.parametrize("last", ["", "-1", "1.5", "x", "\u0661", "9" * 40])
def test_a_token_of_no_ticket_is_refused(last: str) -> None:
    with pytest.raises(DomainError):
        ticket_of(page_token.encode(LISTING, [last]), LISTING)


def test_a_filter_is_any_state_of_a_line_and_no_other() -> None:
    assert [state_of_filter(number) for number in range(5)] == [None, *WaitlistState]
    with pytest.raises(DomainError):
        state_of_filter(5)
