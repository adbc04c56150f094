"""The rules of holds and transfers: who gets what told, and that money and decisions always agree."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from hypothesis import given
from hypothesis import strategies as st

from balance_svc.account import Account
from balance_svc.hold import OK, Decision, Hold, HoldRequest, HoldState
from balance_svc.hold_batch import HoldBatch
from balance_svc.transfer import TransferBatch, TransferKind, TransferRequest

NOW = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)
TTL = timedelta(seconds=120)
R, S = ErrorReason, HoldState


def request(hold_id: str = "h", user_id: str = "ann", amount_minor: int = 60) -> HoldRequest:
    return HoldRequest(hold_id, user_id, "EUR", amount_minor, "sale")


def hold(state: HoldState, expire_time: datetime = NOW + TTL) -> Hold:
    """A hold of 60 in a state."""
    if state is S.REFUSED:
        return Hold(request(), state, R.ERROR_REASON_INSUFFICIENT_FUNDS, NOW, None, NOW)
    return Hold(request(), state, OK, NOW, expire_time, None if state is S.HELD else NOW)


def batch_of(existing: Hold | None, *, balance: int = 100, now: datetime = NOW) -> HoldBatch:
    held = existing.held_minor if existing else 0
    return HoldBatch([Account("ann", "EUR", balance, held)], [existing] if existing else [], now)


ANSWERS = [
    # state before; place: reason, state; capture: ...; release: ...; reverse: ...
    (S.HELD, (OK, S.HELD), (OK, S.CAPTURED), (OK, S.RELEASED), (R.ERROR_REASON_HOLD_NOT_CAPTURED, S.HELD)),
    (S.CAPTURED, (OK, S.CAPTURED), (OK, S.CAPTURED), (R.ERROR_REASON_HOLD_CAPTURED, S.CAPTURED), (OK, S.REVERSED)),
    *(
        (S.RELEASED, (refusal, S.RELEASED), (refusal, S.RELEASED), (OK, S.RELEASED), (refusal, S.RELEASED))
        for refusal in [R.ERROR_REASON_HOLD_RELEASED]
    ),
    *(
        (S.EXPIRED, (refusal, S.EXPIRED), (refusal, S.EXPIRED), (OK, S.EXPIRED), (refusal, S.EXPIRED))
        for refusal in [R.ERROR_REASON_HOLD_EXPIRED]
    ),
    (
        S.REFUSED,
        (R.ERROR_REASON_INSUFFICIENT_FUNDS, S.REFUSED),
        (R.ERROR_REASON_HOLD_REFUSED, S.REFUSED),
        (OK, S.REFUSED),
        (R.ERROR_REASON_HOLD_REFUSED, S.REFUSED),
    ),
    *(
        (S.REVERSED, (refusal, S.REVERSED), (refusal, S.REVERSED), (refusal, S.REVERSED), (OK, S.REVERSED))
        for refusal in [R.ERROR_REASON_HOLD_REVERSED]
    ),
]


@pytest.mark.parametrize(("state", "place", "capture", "release", "reverse"), ANSWERS, ids=[row[0] for row in ANSWERS])
def test_each_state_has_one_answer_to_each_call(
    state: HoldState,
    place: tuple[int, HoldState],
    capture: tuple[int, HoldState],
    release: tuple[int, HoldState],
    reverse: tuple[int, HoldState],
) -> None:
    calls: list[tuple[tuple[int, HoldState], Callable[[HoldBatch], Decision]]] = [
        (place, lambda batch: batch.place(request(), TTL)),
        (capture, lambda batch: batch.capture("h")),
        (release, lambda batch: batch.release("h")),
        (reverse, lambda batch: batch.reverse("h")),
    ]
    for expected, call in calls:
        batch = batch_of(hold(state))
        for _ in range(2):
            # The second time, what the first call made answers alike, within the very batch too.
            decision = call(batch)
            assert decision.hold is not None
            assert (decision.reason, decision.hold.state) == expected
        assert len(batch.changes().updated) == (expected[1] is not state)


@pytest.mark.parametrize("call", ["capture", "release", "reverse", "expire"])
def test_a_hold_past_its_time_has_expired_whoever_looks(call: str) -> None:
    batch = batch_of(hold(S.HELD, expire_time=NOW), now=NOW)
    decision = getattr(batch, call)("h")
    assert decision.hold is not None
    assert decision.hold.state is S.EXPIRED
    assert decision.hold.end_time == NOW
    assert decision.reason == (OK if call in ("release", "expire") else R.ERROR_REASON_HOLD_EXPIRED)
    [account] = batch.changes().accounts
    assert (account.balance_minor, account.held_minor) == (100, 0)
    assert batch.changes().entries == []


def test_a_hold_is_not_expired_a_microsecond_early() -> None:
    batch = batch_of(hold(S.HELD, expire_time=NOW + timedelta(microseconds=1)))
    assert batch.capture("h").reason == OK


def test_a_lapsed_hold_placed_again_frees_the_money_for_the_next_in_the_batch() -> None:
    batch = batch_of(hold(S.HELD, expire_time=NOW))
    assert batch.place(request(), TTL).reason == R.ERROR_REASON_HOLD_EXPIRED
    assert batch.place(request("other", amount_minor=100), TTL).reason == OK


@pytest.mark.parametrize(
    "other",
    [
        HoldRequest("h", "bob", "EUR", 60, "sale"),
        HoldRequest("h", "ann", "USD", 60, "sale"),
        HoldRequest("h", "ann", "EUR", 61, "sale"),
        HoldRequest("h", "ann", "EUR", 60, "other"),
    ],
)
@pytest.mark.parametrize("state", list(S))
def test_an_id_with_other_contents_is_refused_and_changes_nothing(state: HoldState, other: HoldRequest) -> None:
    batch = batch_of(hold(state, expire_time=NOW))
    assert batch.place(other, TTL).reason == R.ERROR_REASON_REQUEST_ID_REUSED
    changes = batch.changes()
    assert not changes.updated
    assert not changes.inserted


def test_two_holds_in_one_batch_do_not_spend_the_same_money() -> None:
    batch = batch_of(None)
    assert [batch.place(request(hold_id), TTL).reason for hold_id in "abc"] == [
        OK,
        R.ERROR_REASON_INSUFFICIENT_FUNDS,
        R.ERROR_REASON_INSUFFICIENT_FUNDS,
    ]


def test_a_reversal_keeps_the_time_at_which_the_hold_was_captured() -> None:
    captured = hold(S.CAPTURED)
    decision = batch_of(captured, now=NOW + TTL).reverse("h")
    assert decision.hold is not None
    assert decision.hold.end_time == captured.end_time


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["place", "capture", "release", "reverse", "expire"]),
        st.sampled_from("abcd"),
        st.sampled_from(["ann", "bob", "nobody"]),
        st.integers(1, 80),
    ),
    max_size=40,
)


@given(CALLS, st.integers(0, 100), st.integers(0, 100))
def test_holds_accounts_and_entries_agree_after_any_calls(
    calls: list[tuple[str, str, str, int]], ann: int, bob: int
) -> None:
    """I3 for the rules alone: nothing an account says is not explained by a hold, and no entry stands alone."""
    batch = HoldBatch([Account("ann", "EUR", ann, 0), Account("bob", "EUR", bob, 0)], [], NOW)
    for call, hold_id, user_id, amount in calls:
        if call == "place":
            batch.place(request(hold_id, user_id, amount), TTL)
        else:
            getattr(batch, call)(hold_id)
    changes = batch.changes()
    assert sum(entry.amount_minor for entry in changes.entries) == 0
    start = {"ann": ann, "bob": bob}
    for account in changes.accounts:
        own = [item for item in changes.inserted if item.request.user_id == account.user_id]
        assert account.held_minor == sum(item.held_minor for item in own)
        assert account.balance_minor == start[account.user_id] - sum(item.paid_minor for item in own)
        booked = sum(e.amount_minor for e in changes.entries if e.account == f"user:{account.user_id}")
        assert account.balance_minor == start[account.user_id] + booked
        assert 0 <= account.held_minor <= account.balance_minor


def transfer(kind: TransferKind, amount_minor: int, request_id: str = "r") -> TransferRequest:
    return TransferRequest(request_id, kind, "ann", "EUR", amount_minor)


def test_a_withdrawal_takes_only_what_is_not_held() -> None:
    batch = TransferBatch.of([Account("ann", "EUR", 100, 60)], [])
    assert batch.decide(transfer(TransferKind.WITHDRAWAL, 41, "a")) == R.ERROR_REASON_INSUFFICIENT_FUNDS
    assert batch.decide(transfer(TransferKind.WITHDRAWAL, 40, "b")) == OK
    assert batch.decide(transfer(TransferKind.WITHDRAWAL, 1, "c")) == R.ERROR_REASON_INSUFFICIENT_FUNDS
    assert batch.changed() == [Account("ann", "EUR", 60, 60)]


def test_a_refused_transfer_stays_refused() -> None:
    batch = TransferBatch.of([Account("ann", "EUR", 10, 0)], [])
    assert batch.decide(transfer(TransferKind.WITHDRAWAL, 50)) == R.ERROR_REASON_INSUFFICIENT_FUNDS
    assert batch.decide(transfer(TransferKind.DEPOSIT, 90, "more")) == OK
    assert batch.decide(transfer(TransferKind.WITHDRAWAL, 50)) == R.ERROR_REASON_INSUFFICIENT_FUNDS


def test_one_request_id_is_one_transfer_of_one_kind() -> None:
    batch = TransferBatch.of([Account("ann", "EUR", 100, 0)], [])
    assert [batch.decide(transfer(TransferKind.DEPOSIT, 5)) for _ in range(2)] == [OK, OK]
    assert batch.decide(transfer(TransferKind.DEPOSIT, 6)) == R.ERROR_REASON_REQUEST_ID_REUSED
    assert batch.decide(transfer(TransferKind.WITHDRAWAL, 5)) == R.ERROR_REASON_REQUEST_ID_REUSED
    assert batch.changed() == [Account("ann", "EUR", 105, 0)]


def test_an_account_never_holds_more_than_can_be_counted() -> None:
    batch = TransferBatch.of([Account("ann", "EUR", 10**18 - 4, 0)], [])
    assert batch.decide(transfer(TransferKind.DEPOSIT, 5)) == R.ERROR_REASON_INVALID_ARGUMENT
    assert batch.decide(transfer(TransferKind.DEPOSIT, 4)) == OK
