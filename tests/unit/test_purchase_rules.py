"""A purchase's rules: legal steps, what decides a repetition, and what a request must look like."""

import uuid
from datetime import UTC, datetime

import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as pb

from mesh.errors import DomainError
from mesh.identity import purchase_id
from purchase_svc import messages
from purchase_svc.messages import (
    read_filter,
    read_purchase_id,
    read_wish,
    read_wishes,
    refusal,
    write_outcome,
    write_page,
    write_purchase,
)
from purchase_svc.purchase import (
    FINAL_STATES,
    NON_WINS,
    UNFINISHED_STATES,
    Outcome,
    Purchase,
    PurchaseState,
    Wish,
    bought,
    decided_by_row,
    may_become,
    refused,
)

SALE = "6f0d1b52-3f6e-5c0e-9a55-7c1f2f1d9b3a"
MOMENT = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)


def a_wish(user: str = "alice", request: str = "r1", quantity: int = 2) -> Wish:
    return Wish(purchase_id(user, SALE, request), user, SALE, request, quantity)


def a_purchase(wish: Wish, state: PurchaseState = PurchaseState.RESERVED, reason: int = 0) -> Purchase:
    return Purchase(
        purchase_id=wish.purchase_id,
        user_id=wish.user_id,
        sale_id=uuid.UUID(wish.sale_id),
        request_id=wish.request_id,
        quantity=wish.quantity,
        amount_minor=1000 * wish.quantity,
        currency_code="EUR",
        partition=wish.partition,
        state=state,
        reason=reason,
        share_numbers=tuple(range(1, wish.quantity + 1)) if state is PurchaseState.CONFIRMED else (),
        attempts=0,
        cleanup_pending=False,
        create_time=MOMENT,
        update_time=MOMENT,
    )


def test_a_final_state_is_never_left_but_for_a_refund() -> None:
    for state in FINAL_STATES:
        assert state.final
        left_for = {following for following in PurchaseState if may_become(state, following)}
        assert left_for == ({PurchaseState.REFUNDING} if state is PurchaseState.CONFIRMED else set())


def test_every_state_is_final_or_is_driven_on_or_waits_for_an_operator() -> None:
    assert set(PurchaseState) == FINAL_STATES | UNFINISHED_STATES | {PurchaseState.PARKED}
    assert not FINAL_STATES & UNFINISHED_STATES
    assert {PurchaseState.CONFIRMED} == FINAL_STATES - NON_WINS


def test_who_has_left_the_line_never_comes_back() -> None:
    assert not any(may_become(state, PurchaseState.WAITLISTED) for state in PurchaseState)
    reached = {state for state in PurchaseState if may_become(PurchaseState.WAITLISTED, state)}
    assert reached == {PurchaseState.RESERVED, PurchaseState.CANCELLED, PurchaseState.FAILED}


def test_a_refund_gives_back_what_was_bought_and_nothing_else() -> None:
    refundable = {state for state in PurchaseState if may_become(state, PurchaseState.REFUNDING)}
    assert refundable == {PurchaseState.CONFIRMED}
    assert {state for state in PurchaseState if may_become(state, PurchaseState.REFUNDED)} == {PurchaseState.REFUNDING}


def test_a_cancel_wins_only_before_a_worker_has_claimed() -> None:
    cancellable = {state for state in PurchaseState if may_become(state, PurchaseState.CANCELLED)}
    assert cancellable == {PurchaseState.WAITLISTED, PurchaseState.RESERVED}


def test_shares_are_reached_only_from_a_claim() -> None:
    assert {state for state in PurchaseState if may_become(state, PurchaseState.CONFIRMED)} == {PurchaseState.SETTLING}


def test_every_unfinished_state_can_reach_a_final_one() -> None:
    for state in UNFINISHED_STATES | {PurchaseState.PARKED}:
        reached, frontier = {state}, [state]
        while frontier:
            here = frontier.pop()
            for following in PurchaseState:
                if may_become(here, following) and following not in reached:
                    reached.add(following)
                    frontier.append(following)
        assert reached & FINAL_STATES


@pytest.mark.parametrize("state", list(PurchaseState))
def test_a_row_of_the_same_contents_decides_whatever_its_state(state: PurchaseState) -> None:
    reason = ErrorReason.ERROR_REASON_UNAVAILABLE if state in {PurchaseState.FAILED, PurchaseState.PARKED} else 0
    row = a_purchase(a_wish(), state, reason)
    assert decided_by_row(a_wish(), row) == bought(row)


def test_a_row_of_other_contents_refuses_the_id() -> None:
    outcome = decided_by_row(a_wish(quantity=3), a_purchase(a_wish(quantity=2)))
    assert outcome.reason == ErrorReason.ERROR_REASON_REQUEST_ID_REUSED


def test_an_outcome_is_a_purchase_or_a_reason() -> None:
    with pytest.raises(AssertionError):
        refused(a_wish(), ErrorReason.ERROR_REASON_UNSPECIFIED)
    with pytest.raises(AssertionError):
        write_outcome(Outcome(a_wish().purchase_id))
    with pytest.raises(AssertionError):
        write_outcome(Outcome(a_wish().purchase_id, ErrorReason.ERROR_REASON_SOLD_OUT, a_purchase(a_wish())))


def request(**changes: object) -> pb.CreatePurchaseRequest:
    fields: dict[str, object] = {"request_id": "r1", "user_id": "alice", "sale_id": SALE, "quantity": 1}
    return pb.CreatePurchaseRequest(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"request_id": ""}, "request_id"),
        ({"request_id": "x" * 129}, "request_id"),
        ({"request_id": "tab\there"}, "request_id"),
        ({"request_id": " r1"}, "request_id"),
        ({"request_id": "ä"}, "request_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "u" * 129}, "user_id"),
        ({"user_id": "nul\x00"}, "user_id"),
        ({"sale_id": ""}, "sale_id"),
        ({"sale_id": "not-a-uuid"}, "sale_id"),
        ({"sale_id": "{" + SALE[:-2] + "}"}, "sale_id"),
        ({"quantity": 0}, "quantity"),
        ({"quantity": -1}, "quantity"),
        ({"quantity": 1001}, "quantity"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, object], field: str) -> None:
    with pytest.raises(DomainError) as error:
        read_wish(request(**changes))
    assert error.value.reason == ErrorReason.ERROR_REASON_INVALID_ARGUMENT
    assert {name for name, _ in error.value.violations} == {field}


def test_all_wrong_fields_are_named_at_once() -> None:
    with pytest.raises(DomainError) as error:
        read_wish(pb.CreatePurchaseRequest())
    assert [name for name, _ in error.value.violations] == ["request_id", "user_id", "sale_id", "quantity"]


def test_the_id_does_not_depend_on_how_the_sale_id_is_written() -> None:
    assert read_wish(request(sale_id=SALE.upper())) == read_wish(request())


def test_what_is_no_sale_id_is_not_remembered() -> None:
    before = messages._remembered_uuid.cache_info().currsize
    assert read_wishes(pb.BatchCreatePurchasesRequest(requests=[request(sale_id="x" * 1_000_000)])) == [None]
    assert messages._remembered_uuid.cache_info().currsize == before


def test_a_user_id_may_be_any_printable_text() -> None:
    assert read_wish(request(user_id="Zoë Müller 東")).user_id == "Zoë Müller 東"


def test_a_malformed_request_does_not_fail_its_neighbours() -> None:
    batch = pb.BatchCreatePurchasesRequest(requests=[request(), request(quantity=0), request(request_id="r2")])
    wishes = read_wishes(batch)
    assert [wish.request_id if wish else None for wish in wishes] == ["r1", None, "r2"]


@pytest.mark.parametrize("count", [0, 1001])
def test_a_batch_has_1_to_1000_requests(count: int) -> None:
    with pytest.raises(DomainError) as error:
        read_wishes(pb.BatchCreatePurchasesRequest(requests=[request()] * count))
    assert error.value.violations[0][0] == "requests"


def test_an_outcome_that_may_be_repeated_says_when() -> None:
    wish = a_wish()
    overloaded = write_outcome(refused(wish, ErrorReason.ERROR_REASON_OVERLOADED))
    sold_out = write_outcome(refused(wish, ErrorReason.ERROR_REASON_SOLD_OUT))
    assert 500 <= overloaded.retry_after_ms <= 1000
    assert sold_out.retry_after_ms == 0
    assert overloaded.purchase_id == str(wish.purchase_id)
    assert overloaded.state == pb.PURCHASE_STATE_UNSPECIFIED
    assert write_outcome(None).purchase_id == ""
    assert refusal(wish, ErrorReason.ERROR_REASON_SOLD_OUT).metadata == {"sale_id": SALE}


def test_a_confirmed_purchase_shows_its_shares_and_what_was_paid() -> None:
    shown = write_purchase(a_purchase(a_wish(), PurchaseState.CONFIRMED))
    assert (shown.state, list(shown.share_numbers)) == (pb.PURCHASE_STATE_CONFIRMED, [1, 2])
    assert (shown.amount.amount_minor, shown.amount.currency_code) == (2000, "EUR")
    assert shown.create_time.ToDatetime(UTC) == MOMENT


EVERYTHING = read_filter(pb.ListPurchasesRequest())[0]


def after_of(token: str) -> object:
    return read_filter(pb.ListPurchasesRequest(page_token=token))[1]


def test_a_page_ends_with_a_token_only_when_there_is_more() -> None:
    purchases = [a_purchase(a_wish(request=f"r{number}")) for number in range(3)]
    assert write_page(purchases, 3, EVERYTHING).next_page_token == ""
    page = write_page(purchases, 2, EVERYTHING)
    assert after_of(page.next_page_token) == purchases[1].purchase_id
    assert write_page([], 2, EVERYTHING).next_page_token == ""


def test_a_page_stays_below_what_a_client_receives() -> None:
    huge = [a_purchase(a_wish(request=f"r{number}", quantity=1000), PurchaseState.CONFIRMED) for number in range(3000)]
    page = write_page(huge, 3000, EVERYTHING)
    assert 0 < len(page.purchases) < 3000
    assert page.ByteSize() < 4 * 1024 * 1024
    assert str(after_of(page.next_page_token)) == page.purchases[-1].purchase_id


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"sale_id": "x"}, "sale_id"),
        ({"user_id": " "}, "user_id"),
        ({"page_token": "x"}, "page_token"),
        ({"page_size": -1}, "page_size"),
        ({"state": 99}, "state"),
    ],
)
def test_a_wrong_filter_is_named(fields: dict[str, object], field: str) -> None:
    with pytest.raises(DomainError) as error:
        read_filter(pb.ListPurchasesRequest(**fields))  # type: ignore[arg-type]
    assert [name for name, _ in error.value.violations] == [field]


def test_a_page_size_has_a_default_and_a_limit() -> None:
    assert read_filter(pb.ListPurchasesRequest())[2] == 1_000
    assert read_filter(pb.ListPurchasesRequest(page_size=1_000_000))[2] == 10_000


def test_a_purchase_id_must_be_a_uuid() -> None:
    with pytest.raises(DomainError) as error:
        read_purchase_id("x", "")
    assert error.value.violations[0][0] == "purchase_id"
