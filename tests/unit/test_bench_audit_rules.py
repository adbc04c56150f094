"""The audit's rules: a right look passes, each wrong thing is named, what is in flight is no violation."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from bench.audit.data import Account, Entry, Hold, Look, Purchase, Reservation, SaleLook, Stock, Totals
from bench.audit.rules import check, persisting
from mesh.identity import purchase_id

SALE = "11111111-1111-4111-8111-111111111111"
NOW = 1_000_000.0
OLD = NOW - 1000.0
WON, POOR = (str(purchase_id(user, SALE, f"key-{user}")) for user in ("ann", "bob"))


def right_look() -> Look:
    """Ann owns share 1 of 10 and has paid; Bob had no money. At rest."""
    stock = Stock(available=9, reserved=0, sold=1, total=10)
    sale = SaleLook(
        sale_id=SALE,
        name="fund",
        state="OPEN",
        unit_price_minor=2500,
        currency_code="EUR",
        total=10,
        gate_before=stock,
        gate_after=stock,
        book=stock,
        reservations=(
            Reservation(WON, "ann", SALE, "key-ann", 1, "SOLD", (1,), OLD),
            Reservation(POOR, "bob", SALE, "key-bob", 1, "RELEASED", (), OLD),
        ),
        entries=(Entry(WON, 2500, "EUR", "CAPTURE"),),
    )
    return Look(
        now_s=NOW,
        sales=(sale,),
        purchases=(
            Purchase(WON, "ann", SALE, "key-ann", 1, 2500, "EUR", "CONFIRMED", "", (1,), OLD),
            Purchase(POOR, "bob", SALE, "key-bob", 1, 2500, "EUR", "FAILED", "INSUFFICIENT_FUNDS", (), OLD),
        ),
        holds=(
            Hold(WON, "ann", 2500, "EUR", SALE, "CAPTURED", OLD),
            Hold(POOR, "bob", 2500, "EUR", SALE, "REFUSED", OLD),
        ),
        accounts=(Account("ann", "EUR", 0, 0), Account("bob", "EUR", 1000, 0)),
        totals=(Totals("EUR", 0, 1000, 1000, 0, 0),),
        wrong_accounts=(),
        wrong_transfers=(),
    )


def with_sale(look: Look, **changes: object) -> Look:
    return replace(look, sales=(replace(look.sales[0], **changes),))  # type: ignore[arg-type]


def with_purchase(look: Look, index: int, **changes: object) -> Look:
    purchases = list(look.purchases)
    purchases[index] = purchases[index]._replace(**changes)  # type: ignore[arg-type]
    return replace(look, purchases=tuple(purchases))


def with_hold(look: Look, index: int, **changes: object) -> Look:
    holds = list(look.holds)
    holds[index] = holds[index]._replace(**changes)  # type: ignore[arg-type]
    return replace(look, holds=tuple(holds))


def with_reservation(look: Look, index: int, **changes: object) -> Look:
    reservations = list(look.sales[0].reservations)
    reservations[index] = reservations[index]._replace(**changes)  # type: ignore[arg-type]
    return with_sale(look, reservations=tuple(reservations))


def with_gate(look: Look, **changes: object) -> Look:
    gate = look.sales[0].book._replace(**changes)  # type: ignore[arg-type]
    return with_sale(look, gate_before=gate, gate_after=gate)


def test_a_right_look_has_no_violations() -> None:
    assert check(right_look()) == []


def refunded_look() -> Look:
    """Ann got her money back, and her share is on sale again."""
    look = with_purchase(right_look(), 0, state="REFUNDED", share_numbers=())
    look = with_hold(look, 0, state="REVERSED")
    look = with_reservation(look, 0, state="RELEASED", share_numbers=())
    stock = Stock(available=10, reserved=0, sold=0, total=10)
    entries = (*look.sales[0].entries, Entry(f"reversal:{WON}", -2500, "EUR", "REVERSAL"))
    return with_sale(look, gate_before=stock, gate_after=stock, book=stock, entries=entries)


def test_a_refunded_purchase_is_as_good_as_none() -> None:
    assert check(refunded_look()) == []


def test_a_refund_under_way_gives_the_money_back_before_the_shares() -> None:
    look = with_purchase(right_look(), 0, state="REFUNDING", update_s=NOW - 1)
    assert check(look) == []
    look = with_hold(look, 0, state="REVERSED")
    assert check(look) == []
    look = with_reservation(look, 0, state="RELEASED", share_numbers=())
    assert {item.code for item in check(look) if item.promise == "I2"} == set()
    look = with_hold(look, 0, state="CAPTURED")
    assert {item.code for item in check(look) if item.promise == "I2"} == {"shares before money"}


REFUND_BREACHES: list[tuple[str, Callable[[Look], Look]]] = [
    ("not reversed", lambda look: with_hold(look, 0, state="CAPTURED")),
    ("refund booking", lambda look: with_sale(look, entries=look.sales[0].entries[:1])),
    ("refund booking", lambda look: with_sale(look, entries=look.sales[0].entries + look.sales[0].entries[1:])),
    ("refunded shares", lambda look: with_reservation(look, 0, state="SOLD", share_numbers=(1,))),
    ("refunded numbers", lambda look: with_purchase(look, 0, share_numbers=(1,))),
    ("stuck", lambda look: with_purchase(look, 0, state="REFUNDING")),
    ("refund without capture", lambda look: with_hold(with_purchase(look, 0, state="REFUNDING"), 0, state="RELEASED")),
]


@pytest.mark.parametrize(
    ("code", "spoil"), REFUND_BREACHES, ids=[f"{c}-{i}" for i, (c, _) in enumerate(REFUND_BREACHES)]
)
def test_each_wrong_refund_is_named(code: str, spoil: Callable[[Look], Look]) -> None:
    assert code in {item.code for item in check(spoil(refunded_look()))}


def with_stray(look: Look) -> Look:
    """A reservation whose id is not that of its own fields, and no purchase."""
    look = replace(look, purchases=look.purchases[:1])
    return with_reservation(look, 1, request_id="other")


BREACHES: list[tuple[str, str, Callable[[Look], Look]]] = [
    ("I1", "range reservations", lambda look: with_reservation(look, 0, share_numbers=(11,))),
    ("I1", "owners reservations", lambda look: with_reservation(look, 1, state="SOLD", share_numbers=(1,))),
    ("I1", "owners purchases", lambda look: with_purchase(look, 1, state="CONFIRMED", share_numbers=(1,))),
    ("I1", "oversold", lambda look: with_reservation(look, 0, quantity=11)),
    ("I2", "no hold", lambda look: replace(look, holds=look.holds[1:])),
    ("I2", "not captured", lambda look: with_hold(look, 0, state="RELEASED")),
    ("I2", "not captured", lambda look: with_hold(look, 0, state="REVERSED")),
    ("I2", "other hold", lambda look: with_hold(look, 0, amount_minor=2400)),
    ("I2", "other hold", lambda look: with_hold(look, 0, user_id="bob")),
    ("I2", "price", lambda look: with_sale(look, unit_price_minor=2400)),
    ("I2", "not sold", lambda look: with_reservation(look, 0, state="RELEASED")),
    ("I2", "numbers", lambda look: with_reservation(look, 0, share_numbers=(2,))),
    ("I2", "quantity", lambda look: with_purchase(look, 0, share_numbers=())),
    ("I2", "no reservation", lambda look: with_sale(look, reservations=look.sales[0].reservations[1:])),
    ("I2", "booking", lambda look: with_sale(look, entries=look.sales[0].entries * 2)),
    ("I2", "booking", lambda look: with_sale(look, entries=())),
    ("I2", "money kept", lambda look: with_hold(look, 1, state="CAPTURED")),
    ("I2", "money kept", lambda look: with_hold(look, 1, state="HELD")),
    ("I2", "money booked", lambda look: with_purchase(look, 0, state="CANCELLED")),
    ("I2", "shares kept", lambda look: with_reservation(look, 1, state="RESERVED")),
    ("I2", "sale", lambda look: with_purchase(look, 1, sale_id="22222222-2222-4222-8222-222222222222")),
    ("I2", "sold to none", lambda look: replace(look, purchases=look.purchases[1:])),
    ("I2", "stray hold", lambda look: replace(look, purchases=look.purchases[1:])),
    ("I2", "stray booking", lambda look: replace(look, holds=look.holds[1:])),
    ("I3", "sum", lambda look: replace(look, totals=(Totals("EUR", 5, 1000, 1000, 0, 0),))),
    ("I3", "balances", lambda look: replace(look, totals=(Totals("EUR", 0, 1001, 1000, 0, 0),))),
    ("I3", "held", lambda look: replace(look, totals=(Totals("EUR", 0, 1000, 1000, 5, 0),))),
    ("I3", "bounds", lambda look: replace(look, accounts=(Account("ann", "EUR", 100, 101),))),
    ("I3", "account", lambda look: replace(look, wrong_accounts=("ann EUR",))),
    ("I3", "transfer", lambda look: replace(look, wrong_transfers=(WON,))),
    ("I4", "stuck", lambda look: with_purchase(look, 1, state="SETTLING")),
    ("I5", "id", lambda look: with_purchase(look, 1, request_id="other")),
    ("I5", "listed twice", lambda look: replace(look, purchases=look.purchases + look.purchases[:1])),
    ("I5", "request twice", lambda look: with_purchase(look, 1, user_id="ann", request_id="key-ann")),
    ("I5", "contents", lambda look: with_reservation(look, 0, quantity=2)),
    ("I5", "reservation id", with_stray),
    ("I6", "sum gate", lambda look: with_gate(look, available=10)),
    ("I6", "negative gate", lambda look: with_gate(look, available=-1)),
    ("I6", "sum book", lambda look: with_sale(look, book=look.sales[0].book._replace(sold=2))),
    ("I6", "gate and book", lambda look: with_gate(look, available=10, sold=0)),
    ("I6", "book and list", lambda look: with_reservation(look, 0, quantity=2)),
    ("I7", "limbo", lambda look: with_gate(look, available=8, reserved=1)),
    ("I7", "gate shut", lambda look: with_gate(look, open=False)),
    ("I7", "no gate", lambda look: with_sale(look, gate_before=None, gate_after=None)),
]


@pytest.mark.parametrize(
    ("promise", "code", "spoil"), BREACHES, ids=[f"{p}-{c}-{i}" for i, (p, c, _) in enumerate(BREACHES)]
)
def test_each_breach_is_named(promise: str, code: str, spoil: Callable[[Look], Look]) -> None:
    assert (promise, code) in {(item.promise, item.code) for item in check(spoil(right_look()))}


def test_a_purchase_between_its_steps_is_no_violation() -> None:
    for state, hold_state, reservation_state, reserved, sold in (
        ("RESERVED", None, "RESERVED", 1, 0),
        ("SETTLING", "HELD", "RESERVED", 1, 0),
        ("SETTLING", "HELD", "SOLD", 0, 1),
        ("SETTLING", "CAPTURED", "SOLD", 0, 1),
    ):
        numbers = (2,) if reservation_state == "SOLD" else ()
        look = with_purchase(right_look(), 1, state=state, reason="", update_s=NOW - 5)
        look = with_reservation(look, 1, state=reservation_state, share_numbers=numbers, create_s=NOW - 5)
        look = with_hold(look, 1, state=hold_state) if hold_state else replace(look, holds=look.holds[:1])
        stock = Stock(8, reserved, 1 + sold, 10)
        look = with_sale(look, gate_after=stock, book=stock)
        # The gate follows SQL a moment later.
        look = with_sale(look, gate_before=Stock(9, 0, 1, 10))
        assert check(look) == [], state


def test_what_was_given_back_a_moment_ago_may_still_be_on_its_way() -> None:
    look = with_purchase(right_look(), 1, state="CANCELLED", update_s=NOW - 1)
    look = with_reservation(look, 1, state="RESERVED", create_s=NOW - 2)
    stock = Stock(8, 1, 1, 10)
    assert check(with_sale(with_gate(look, **stock._asdict()), book=stock)) == []


def test_a_long_queue_is_not_taken_for_a_stuck_purchase() -> None:
    purchases = tuple(
        Purchase(str(purchase_id(f"u{i}", SALE, "k")), f"u{i}", SALE, "k", 1, 2500, "EUR", "RESERVED", "", (), NOW - 80)
        for i in range(20_000)
    )
    look = right_look()
    found = check(replace(look, purchases=look.purchases + purchases))
    assert [item for item in found if item.promise == "I4"] == []
    found = check(replace(look, purchases=look.purchases + purchases[:100]))
    assert {item.code for item in found if item.promise == "I4"} == {"stuck"}


def test_a_parked_purchase_waits_for_an_operator_and_is_not_stuck() -> None:
    look = with_purchase(right_look(), 1, state="PARKED")
    assert check(look) == []


def test_gate_and_book_are_compared_only_at_rest() -> None:
    look = with_gate(right_look(), available=10, sold=0)
    moving = with_sale(look, gate_before=Stock(8, 1, 1, 10))
    assert {item.code for item in check(look)} == {"gate and book"}
    assert check(moving) == []


def test_a_closed_sale_needs_no_gate() -> None:
    assert check(with_sale(right_look(), state="CLOSED", gate_before=None, gate_after=None)) == []


def test_only_what_two_looks_show_persists() -> None:
    first = check(with_hold(with_gate(right_look(), available=10, sold=0), 0, state="REVERSED"))
    second = check(with_hold(right_look(), 0, state="REVERSED"))
    assert {item.code for item in persisting(first, second)} == {"not captured"}
