"""What a settlement worker decides from the answers of inventory and balance."""

import uuid

import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import reason_name
from purchase_svc.purchase import PurchaseState
from purchase_svc.settlement_rules import (
    Answer,
    Claimed,
    Ending,
    Retry,
    after_unknown_outcome,
    exhausted,
    retry_delay_s,
)

REASONS = [value for value in ErrorReason.values() if value != ErrorReason.ERROR_REASON_UNSPECIFIED]
#: What may follow from a failed call, a bug, or data that contradict each other: none of it decides anything.
UNDECIDED = [
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
    "OVERLOADED",
    "REQUEST_ID_REUSED",
    "INVALID_ARGUMENT",
    "HOLD_NOT_FOUND",
    "HOLD_CAPTURED",
    "STOCK_RECALIBRATING",
    "RESERVATION_SOLD",
]


def claimed(attempts: int) -> Claimed:
    return Claimed(uuid.uuid4(), "alice", uuid.uuid4(), 2, 2_000, "EUR", 7, attempts)


def answer(name: str, *, known: bool = True) -> Answer:
    return Answer(ErrorReason.Value(f"ERROR_REASON_{name}"), known=known)


@pytest.mark.parametrize("name", UNDECIDED)
def test_what_decides_nothing_neither_takes_nor_refuses_money(name: str) -> None:
    assert not answer(name).done
    assert not answer(name).no_money


@pytest.mark.parametrize("name", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "INVALID_ARGUMENT", "SALE_NOT_OPEN"])
def test_what_decides_nothing_takes_no_shares_away(name: str) -> None:
    assert not answer(name).no_shares
    assert not answer(name).nothing_held
    assert not answer(name).nothing_reserved


@given(st.sampled_from([0, *REASONS]))
def test_a_call_that_failed_as_a_whole_decides_nothing_whatever_its_reason(reason: int) -> None:
    unknown = Answer(reason, known=False)
    decided = [unknown.done, unknown.no_money, unknown.no_shares, unknown.nothing_held, unknown.nothing_reserved]
    assert not any(decided)


@given(st.sampled_from(REASONS))
def test_nothing_is_both_done_and_refused(reason: int) -> None:
    given_answer = Answer(reason)
    assert not given_answer.done


def test_captured_money_is_never_taken_for_nothing_held() -> None:
    assert not answer("HOLD_CAPTURED").nothing_held


def test_a_sold_share_is_never_taken_for_nothing_reserved() -> None:
    assert not answer("RESERVATION_SOLD").nothing_reserved


@pytest.mark.parametrize(("attempts", "delay_s"), [(1, 1), (2, 1), (3, 5), (5, 5), (6, 30), (11, 30), (500, 30)])
def test_retries_grow_apart(attempts: int, delay_s: int) -> None:
    assert retry_delay_s(attempts) == delay_s


def test_an_unknown_outcome_is_tried_again_until_attempts_are_exhausted() -> None:
    reason = ErrorReason.ERROR_REASON_UNAVAILABLE
    early, last = claimed(11), claimed(12)
    assert after_unknown_outcome(early, reason, 12) == Retry(early.purchase_id, 7, 30, reason)
    assert after_unknown_outcome(last, reason, 12) == Ending(last.purchase_id, PurchaseState.PARKED, reason)


def test_only_crashes_exhaust_a_purchase_before_it_is_tried() -> None:
    assert not exhausted(claimed(12), 12)
    assert exhausted(claimed(13), 12)


@pytest.mark.parametrize(
    ("state", "reason", "numbers"),
    [
        (PurchaseState.CONFIRMED, 0, ()),
        (PurchaseState.CONFIRMED, ErrorReason.ERROR_REASON_HOLD_EXPIRED, (1,)),
        (PurchaseState.FAILED, 0, ()),
        (PurchaseState.FAILED, ErrorReason.ERROR_REASON_HOLD_EXPIRED, (1,)),
        (PurchaseState.CANCELLED, ErrorReason.ERROR_REASON_HOLD_EXPIRED, ()),
        (PurchaseState.RESERVED, 0, ()),
    ],
)
def test_an_ending_is_shares_without_a_reason_or_a_reason_without_shares(
    state: PurchaseState, reason: int, numbers: tuple[int, ...]
) -> None:
    with pytest.raises(AssertionError):
        Ending(uuid.uuid4(), state, reason, numbers)


def test_undecided_names_are_reasons_of_the_contract() -> None:
    assert set(UNDECIDED) <= {reason_name(value) for value in REASONS}
