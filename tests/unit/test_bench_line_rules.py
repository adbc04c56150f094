"""I8: whoever is promoted had nobody before it in line, and each wrong line is named."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.audit.data import InLine, Look, Purchase, Reservation, SaleLook, Stock
from bench.audit.line_rules import check_line, passed_over
from mesh.identity import purchase_id

SALE = "11111111-1111-4111-8111-111111111111"
NOW = 1_000_000.0
OLD = NOW - 1000.0
USERS = ("ann", "bob", "cleo", "dan")
ANN, BOB, CLEO, DAN = (str(purchase_id(user, SALE, f"key-{user}")) for user in USERS)


def entry(user: str, ticket: int, state: str, decision: int = 0, quantity: int = 1) -> InLine:
    key = str(purchase_id(user, SALE, f"key-{user}"))
    return InLine(key, user, f"key-{user}", quantity, ticket, state, decision, OLD if decision else 0.0)


def reservation(user: str, state: str, quantity: int = 1) -> Reservation:
    key = str(purchase_id(user, SALE, f"key-{user}"))
    return Reservation(key, user, SALE, f"key-{user}", quantity, state, (1,) if state == "SOLD" else (), OLD)


def bought(user: str, state: str) -> Purchase:
    key = str(purchase_id(user, SALE, f"key-{user}"))
    numbers = (1,) if state == "CONFIRMED" else ()
    return Purchase(key, user, SALE, f"key-{user}", 1, 2500, "EUR", state, "", numbers, OLD)


def right_look() -> Look:
    """Ann was promoted, Bob left, Cleo and Dan wait. Nothing is on sale, and nobody moves."""
    stock = Stock(0, 0, 1, 1, True, 2)
    sale = SaleLook(
        sale_id=SALE,
        name="fund",
        state="SOLD_OUT",
        unit_price_minor=2500,
        currency_code="EUR",
        total=1,
        gate_before=stock,
        gate_after=stock,
        book=stock,
        reservations=(reservation("ann", "SOLD"), reservation("bob", "RELEASED")),
        entries=(),
        line=(
            entry("ann", 1, "PROMOTED", 2),
            entry("bob", 2, "LEFT", 1),
            entry("cleo", 3, "WAITING")._replace(told_place=1),
            entry("dan", 4, "WAITING")._replace(told_place=2),
        ),
    )
    purchases = (
        bought("ann", "CONFIRMED"),
        bought("bob", "CANCELLED"),
        bought("cleo", "WAITLISTED"),
        bought("dan", "WAITLISTED"),
    )
    return Look(NOW, (sale,), purchases, (), (), (), (), ())


def with_sale(look: Look, **changes: object) -> Look:
    return replace(look, sales=(replace(look.sales[0], **changes),))  # type: ignore[arg-type]


def with_entry(look: Look, index: int, **changes: object) -> Look:
    line = list(look.sales[0].line)
    line[index] = line[index]._replace(**changes)  # type: ignore[arg-type]
    return with_sale(look, line=tuple(line))


def with_purchase(look: Look, index: int, **changes: object) -> Look:
    purchases = list(look.purchases)
    purchases[index] = purchases[index]._replace(**changes)  # type: ignore[arg-type]
    return replace(look, purchases=tuple(purchases))


def test_a_right_line_has_no_violations() -> None:
    assert check_line(right_look()) == []


def moving(look: Look) -> Look:
    return with_sale(look, gate_before=look.sales[0].book._replace(waiting=3))


BREACHES: list[tuple[str, str, Callable[[Look], Look]]] = [
    ("I8", "overtaken", lambda look: with_entry(look, 3, state="PROMOTED", decision_number=3)),
    ("I8", "overtaken", lambda look: with_entry(look, 0, ticket=9)),
    ("I8", "ticket numbers", lambda look: with_entry(look, 3, ticket=3)),
    ("I8", "decision numbers", lambda look: with_entry(look, 1, decision_number=2)),
    ("I8", "decision numbers", lambda look: with_entry(look, 1, decision_number=0)),
    ("I8", "units promoted", lambda look: with_sale(look, reservations=look.sales[0].reservations[1:])),
    ("I8", "units promoted", lambda look: with_entry(look, 0, quantity=2)),
    ("I8", "units left", lambda look: with_sale(look, reservations=look.sales[0].reservations[:1])),
    (
        "I8",
        "units left",
        lambda look: with_sale(look, reservations=(reservation("ann", "SOLD"), reservation("bob", "RESERVED"))),
    ),
    (
        "I8",
        "units waiting",
        lambda look: with_sale(look, reservations=(*look.sales[0].reservations, reservation("cleo", "RESERVED"))),
    ),
    ("I8", "place", lambda look: with_entry(look, 2, told_place=2)),
    ("I8", "place", lambda look: with_entry(moving(look), 2, told_place=2)),
    ("I8", "place", lambda look: with_entry(moving(look), 3, told_place=1)),
    ("I8", "place", lambda look: with_entry(look, 3, told_place=0)),
    ("I7", "idle units", lambda look: with_sale(look, gate_after=Stock(1, 0, 0, 1, True, 2))),
    ("I8", "line of a closed sale", lambda look: with_sale(look, state="CLOSED")),
    ("I8", "in no line", lambda look: with_sale(look, line=look.sales[0].line[:3])),
    ("I8", "waits on", lambda look: with_purchase(look, 2, state="CANCELLED")),
    ("I8", "waits on", lambda look: with_purchase(look, 2, state="CONFIRMED")),
    ("I4", "untold", lambda look: with_purchase(look, 0, state="WAITLISTED")),
]


@pytest.mark.parametrize(
    ("promise", "code", "spoil"), BREACHES, ids=[f"{p}-{c}-{i}" for i, (p, c, _) in enumerate(BREACHES)]
)
def test_each_breach_is_named(promise: str, code: str, spoil: Callable[[Look], Look]) -> None:
    assert (promise, code) in {(item.promise, item.code) for item in check_line(spoil(right_look()))}


def test_while_the_line_moves_places_may_only_have_become_better() -> None:
    look = with_entry(moving(right_look()), 2, told_place=0)
    assert check_line(with_entry(look, 3, told_place=1)) == []


def test_whoever_has_just_been_decided_may_not_have_been_told_yet() -> None:
    look = with_entry(right_look(), 0, end_s=NOW - 1)
    assert check_line(with_purchase(look, 0, state="WAITLISTED")) == []
    assert check_line(with_purchase(right_look(), 2, state="CANCELLED", update_s=NOW - 1)) == []


def test_one_unit_is_not_idle_while_the_first_wants_two_unless_overtaking_is_allowed() -> None:
    look = with_entry(with_sale(right_look(), gate_after=Stock(1, 0, 0, 1, True, 2)), 2, quantity=2)
    assert check_line(look) == []
    assert {item.code for item in check_line(with_sale(look, overtaking_allowed=True))} == {"idle units"}


def test_a_bigger_request_may_be_passed_only_where_overtaking_is_allowed() -> None:
    line = [entry("ann", 1, "WAITING", quantity=3), entry("bob", 2, "PROMOTED", 1, quantity=2)]
    assert passed_over(line, overtaking_allowed=True) == []
    assert passed_over(line, overtaking_allowed=False) == [(line[1], line[0])]
    for quantity in (1, 2):
        as_small = [line[0]._replace(quantity=quantity), line[1]]
        assert passed_over(as_small, overtaking_allowed=True) == [(line[1], as_small[0])]


def test_whoever_leaves_later_had_been_passed() -> None:
    line = [entry("ann", 1, "LEFT", 2), entry("bob", 2, "PROMOTED", 1)]
    assert passed_over(line, overtaking_allowed=False) == [(line[1], line[0])]
    left_before = [entry("ann", 1, "LEFT", 1), entry("bob", 2, "PROMOTED", 2)]
    assert passed_over(left_before, overtaking_allowed=False) == []


_QUANTITIES = st.lists(st.integers(1, 3), min_size=1, max_size=12)
_FREED = st.lists(st.integers(0, 6), min_size=1, max_size=8)


@given(_QUANTITIES, _FREED, st.booleans(), st.randoms(use_true_random=False))
def test_a_line_served_by_the_rule_is_never_named(
    quantities: list[int], freed: list[int], overtaking: bool, chance: random.Random
) -> None:
    """Whatever is freed when and whoever leaves: serving heads while they fit passes nobody."""
    line = {ticket: entry("ann", ticket, "WAITING", quantity=each) for ticket, each in enumerate(quantities, start=1)}
    decision = free = 0
    for units in freed:
        free += units
        waiting = [ticket for ticket, item in line.items() if item.state == "WAITING"]
        if waiting and chance.random() < 0.5:
            decision += 1
            leaver = chance.choice(waiting)
            line[leaver] = line[leaver]._replace(state="LEFT", decision_number=decision)
        for ticket in waiting:
            item = line[ticket]
            if item.state != "WAITING":
                continue
            if item.quantity <= free:
                free -= item.quantity
                decision += 1
                line[ticket] = item._replace(state="PROMOTED", decision_number=decision)
            elif not overtaking:
                break
    assert passed_over(line.values(), overtaking) == []
