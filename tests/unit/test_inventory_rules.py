"""The rules of a sale, without a server: transitions, defaults, what a stored row makes of a wish, tokens, limits."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from hypothesis import given
from hypothesis import strategies as st

from inventory_svc.conversion import SALES, place_of, token_after
from inventory_svc.recalibration import Count
from inventory_svc.reserving import INSERT_S_MAX
from inventory_svc.sale import (
    ReservationState,
    Sale,
    SaleState,
    SaleTerms,
    Times,
    Wish,
    changes_state,
    concerns_gate,
    due_change,
    raises_total,
    reason_of_stored,
    require_legal,
    rescheduled,
    with_defaults,
)
from inventory_svc.settings import Settings
from inventory_svc.share_numbers import share_out
from inventory_svc.stock_gate import record_of, wish_of
from mesh import page_token
from mesh.errors import DomainError

TERMS = SaleTerms("Fund", 100, "EUR", 5, 2, 1)
SALE_ID = "6f0d1b52-3f6e-5c0e-9a55-7c1f2f1d9b3a"
WISH = Wish("0e984725-c51c-4bf4-9960-e1c80e27aba0", SALE_ID, "alice", "r1", 2)
LEGAL = {
    ("DRAFT", "SCHEDULED"),
    ("DRAFT", "OPEN"),
    ("SCHEDULED", "DRAFT"),
    ("SCHEDULED", "OPEN"),
    ("OPEN", "PAUSED"),
    ("OPEN", "SOLD_OUT"),
    ("PAUSED", "OPEN"),
    ("PAUSED", "SOLD_OUT"),
    ("SOLD_OUT", "OPEN"),
    ("SOLD_OUT", "PAUSED"),
    ("DRAFT", "CLOSED"),
    ("SCHEDULED", "CLOSED"),
    ("OPEN", "CLOSED"),
    ("PAUSED", "CLOSED"),
    ("SOLD_OUT", "CLOSED"),
}


@pytest.mark.parametrize("wanted", list(SaleState))
@pytest.mark.parametrize("present", list(SaleState))
def test_only_legal_transitions_change_a_sale(present: SaleState, wanted: SaleState) -> None:
    if (present.value, wanted.value) in LEGAL:
        require_legal(present, wanted)
        # Whoever asks for it to be open has it so already.
        assert changes_state(present, wanted) == ((present, wanted) != (SaleState.SOLD_OUT, SaleState.OPEN))
    else:
        with pytest.raises(DomainError) as caught:
            require_legal(present, wanted)
        assert caught.value.reason == ErrorReason.ERROR_REASON_SALE_STATE_CONFLICT
        assert caught.value.metadata == {"state": present.value}
        if present == wanted:
            assert not changes_state(present, wanted)
        else:
            with pytest.raises(DomainError):
                changes_state(present, wanted)


NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
BEFORE, AFTER = NOW - timedelta(microseconds=1), NOW + timedelta(microseconds=1)


def sale_in(state: SaleState, opens: datetime | None = None, closes: datetime | None = None) -> Sale:
    return Sale(SALE_ID, TERMS, state, datetime(2026, 10, 1, tzinfo=UTC), Times(opens, closes))


def test_a_sale_opens_and_closes_at_its_times_and_not_before() -> None:
    for opens in (BEFORE, NOW):
        due = due_change(sale_in(SaleState.SCHEDULED, opens), NOW, all_owned=False)
        assert due == (SaleState.OPEN, "schedule")
    assert due_change(sale_in(SaleState.SCHEDULED, AFTER), NOW, all_owned=False) is None
    for state in set(SaleState) - {SaleState.CLOSED}:
        for closes in (BEFORE, NOW):
            due = due_change(sale_in(state, BEFORE, closes), NOW, all_owned=state == SaleState.SOLD_OUT)
            assert due == (SaleState.CLOSED, "schedule")
        if state != SaleState.SCHEDULED:
            assert due_change(sale_in(state, BEFORE, AFTER), NOW, all_owned=state == SaleState.SOLD_OUT) is None
    assert due_change(sale_in(SaleState.CLOSED, BEFORE, NOW), NOW, all_owned=True) is None


def test_only_an_open_sale_follows_its_stock() -> None:
    assert due_change(sale_in(SaleState.OPEN), NOW, all_owned=True) == (SaleState.SOLD_OUT, "stock")
    assert due_change(sale_in(SaleState.SOLD_OUT), NOW, all_owned=False) == (SaleState.OPEN, "stock")
    for state in set(SaleState) - {SaleState.OPEN, SaleState.SOLD_OUT}:
        assert due_change(sale_in(state), NOW, all_owned=True) is None
        assert due_change(sale_in(state), NOW, all_owned=False) is None


@pytest.mark.parametrize("state", list(SaleState))
def test_scheduling_moves_only_a_sale_that_has_not_been_opened(state: SaleState) -> None:
    sale, both, end = sale_in(state, BEFORE), Times(AFTER, AFTER + timedelta(1)), Times(None, AFTER)
    if state in (SaleState.DRAFT, SaleState.SCHEDULED):
        assert rescheduled(sale, both) == (SaleState.SCHEDULED, both)
        assert rescheduled(sale, end) == (SaleState.DRAFT, end)
        return
    with pytest.raises(DomainError) as caught:
        rescheduled(sale, both)
    assert caught.value.reason == ErrorReason.ERROR_REASON_SALE_STATE_CONFLICT
    if state == SaleState.CLOSED:
        assert rescheduled(sale, Times()) == (state, sale.times)
        with pytest.raises(DomainError):
            rescheduled(sale, end)
    else:
        assert rescheduled(sale, end) == (state, Times(BEFORE, AFTER))
        assert rescheduled(sale, Times(BEFORE, AFTER)) == (state, Times(BEFORE, AFTER))
        assert rescheduled(sale, Times()) == (state, Times(BEFORE, None))


@pytest.mark.parametrize("state", list(SaleState))
def test_a_total_only_grows_and_not_after_the_end(state: SaleState) -> None:
    sale = sale_in(state)
    assert not raises_total(sale, TERMS.total)
    with pytest.raises(DomainError) as caught:
        raises_total(sale, TERMS.total - 1)
    assert caught.value.violations[0][0] == "total"
    if state == SaleState.CLOSED:
        with pytest.raises(DomainError) as caught:
            raises_total(sale, TERMS.total + 1)
        assert caught.value.reason == ErrorReason.ERROR_REASON_SALE_STATE_CONFLICT
    else:
        assert raises_total(sale, TERMS.total + 1)


def test_the_gate_follows_whom_it_takes_and_how_many_there_are_but_not_that_all_are_sold() -> None:
    pairs = {(before, after) for before in SaleState for after in SaleState if before != after}
    left_alone = {pair for pair in pairs if not concerns_gate(sale_in(pair[0]), sale_in(pair[1]))}
    assert {pair for pair in left_alone if (pair[0].value, pair[1].value) in LEGAL} == {
        (SaleState.DRAFT, SaleState.SCHEDULED),
        (SaleState.SCHEDULED, SaleState.DRAFT),
        (SaleState.OPEN, SaleState.SOLD_OUT),
        (SaleState.SOLD_OUT, SaleState.OPEN),
    }
    sale = sale_in(SaleState.OPEN)
    assert concerns_gate(sale, replace(sale, terms=replace(TERMS, total=TERMS.total + 1)))


def test_limits_that_are_given_stay_and_zeros_get_their_defaults() -> None:
    assert with_defaults(TERMS) == TERMS
    open_ended = replace(TERMS, total=100, per_user_limit=0, per_purchase_limit=0)
    assert with_defaults(open_ended) == replace(open_ended, per_user_limit=10, per_purchase_limit=10)
    assert with_defaults(replace(open_ended, total=4)).per_purchase_limit == 4
    assert with_defaults(replace(open_ended, per_purchase_limit=3)).per_user_limit == 3


@pytest.mark.parametrize(
    ("stored", "state", "reason"),
    [
        (WISH, ReservationState.RESERVED, ErrorReason.ERROR_REASON_UNSPECIFIED),
        (WISH, ReservationState.SOLD, ErrorReason.ERROR_REASON_UNSPECIFIED),
        (WISH, ReservationState.RELEASED, ErrorReason.ERROR_REASON_RESERVATION_RELEASED),
        (replace(WISH, quantity=1), ReservationState.RESERVED, ErrorReason.ERROR_REASON_REQUEST_ID_REUSED),
        (replace(WISH, user_id="bob"), ReservationState.RELEASED, ErrorReason.ERROR_REASON_REQUEST_ID_REUSED),
    ],
)
def test_a_stored_row_decides_a_wish(stored: Wish, state: ReservationState, reason: int) -> None:
    assert reason_of_stored(WISH, stored, state) == reason


@given(st.integers(1, 1000), st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1))
def test_a_gates_record_gives_its_contents_back(quantity: int, name: str) -> None:
    wish = replace(WISH, quantity=quantity, user_id=name, request_id=name[::-1])
    assert wish_of(wish.reservation_id, SALE_ID, record_of("R", wish)) == wish


def test_the_token_of_a_page_gives_back_where_it_ended_and_is_of_no_other_list() -> None:
    time = datetime(2026, 11, 1, 12, 30, 0, 123456, UTC)
    token = token_after(SALES, time, SALE_ID)
    assert place_of(token, SALES) == (time, SALE_ID)
    assert place_of("", SALES) is None
    with pytest.raises(DomainError):
        place_of(token, ["reservations", SALE_ID, ""])


@pytest.mark.parametrize("last", [["x", SALE_ID], ["2026-11-01T12:30:00", SALE_ID], ["2026-11-01T12:30:00+00:00", "x"]])
def test_any_other_token_is_refused_as_bad_input(last: list[str]) -> None:
    with pytest.raises(DomainError) as caught:
        place_of(page_token.encode(SALES, last), SALES)
    assert caught.value.reason == ErrorReason.ERROR_REASON_INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("quantities", "freed", "numbers", "after"),
    [
        ([("a", 2), ("b", 1)], [], {"a": (4, 5), "b": (6,)}, 7),
        ([("a", 2), ("b", 2)], [1, 3], {"a": (1, 3), "b": (4, 5)}, 6),
        ([("a", 2), ("b", 2)], [2], {"a": (2, 4), "b": (5, 6)}, 7),
        ([("a", 1)], [1, 2, 3], {"a": (1,)}, 4),
    ],
)
def test_freed_numbers_are_shared_out_before_fresh_ones(
    quantities: list[tuple[str, int]], freed: list[int], numbers: dict[str, tuple[int, ...]], after: int
) -> None:
    assert share_out(quantities, freed, next_number=4) == (numbers, after)


def count_of(*rows: tuple[str, str, str, int, str]) -> Count:
    sale = Sale(SALE_ID, TERMS, SaleState.OPEN, datetime(2026, 11, 1, tzinfo=UTC))
    count = Count(sale, epoch=7)
    count.add(rows)
    return count


def test_a_calibration_counts_what_is_reserved_and_sold_but_keeps_released_records() -> None:
    counted = count_of(
        ("a", "alice", "r1", 2, "RESERVED"), ("b", "alice", "r2", 1, "SOLD"), ("c", "bob", "r1", 2, "RELEASED")
    )
    found = counted.counts
    assert (found.available, found.reserved, found.sold) == (2, 2, 1)
    assert (found.records, found.users) == (3, 1)
    assert counted.users == {"alice": 3}
    assert counted.records == [{"a": "R2\nalice\nr1", "b": "S1\nalice\nr2", "c": "L2\nbob\nr1"}]


def test_a_calibration_that_counts_more_than_there_is_is_refused() -> None:
    with pytest.raises(DomainError) as caught:
        _ = count_of(("a", "alice", "r1", 6, "RESERVED")).counts
    assert caught.value.reason == ErrorReason.ERROR_REASON_INTERNAL


def test_a_grant_outlives_every_call_that_could_still_insert_it() -> None:
    assert Settings(database_url="", redis_url="").grant_age_max_ms > 1.5 * 1000 * INSERT_S_MAX


def test_every_lua_file_begins_by_saying_what_it_does() -> None:
    scripts = list((Path(__file__).resolve().parents[2] / "inventory_svc" / "lua").glob("*.lua"))
    assert scripts
    assert all(path.read_text().startswith("-- ") for path in scripts)
