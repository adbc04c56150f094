"""The watcher's rules on the waitlist and on refunds: a right round passes, each breach is named."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.faults.books import InLine, PurchaseRow, Snapshot, Unit
from tests.faults.rules import RULES, Round

GATE = {"serving": "1", "available": "0", "reserved": "0", "sold": "1", "total": "1", "waiting": "1"}


def row(key: str, state: str, *numbers: int) -> PurchaseRow:
    return PurchaseRow(key, f"user-{key}", f"request-{key}", state, 0, numbers, False)


def snapshot(rows: list[PurchaseRow], **fields: object) -> Snapshot:
    """One owner of one share, one refunded, one promoted who failed, one who left, one who waits."""
    purchases = {each.purchase_id: each for each in rows}
    right = Snapshot(
        purchases=purchases,
        holds={"owner": "CAPTURED", "back": "REVERSED", "poor": "REFUSED"},
        line={
            "poor": InLine("PROMOTED", 1, 1, 2),
            "left": InLine("LEFT", 2, 1, 1),
            "owner": InLine("PROMOTED", 3, 1, 3),
            "waits": InLine("WAITING", 4, 1, 0),
        },
        reservations={
            "owner": Unit("SOLD", 1, (1,)),
            "back": Unit("RELEASED", 1, ()),
            "poor": Unit("RELEASED", 1, ()),
            "left": Unit("RELEASED", 1, ()),
        },
        holds_after={"owner": "CAPTURED", "back": "REVERSED", "poor": "REFUSED"},
        purchases_after=purchases,
        bad_accounts=0,
        ledger_sum=0,
        bad_bookings=0,
        reversed_bookings=frozenset({"back"}),
        gate=GATE,
    )
    return replace(right, **fields)  # type: ignore[arg-type]


ROWS = [
    row("owner", "CONFIRMED", 1),
    row("back", "REFUNDED"),
    row("poor", "FAILED"),
    row("left", "CANCELLED"),
    row("waits", "WAITLISTED"),
]


def broken(now: Snapshot, before: Snapshot | None = None) -> list[str]:
    look = Round(now, before, {}, 1)
    return [f"{promise} {rule.__name__}" for promise, rule in RULES for _ in rule(look)]


def with_line(**places: InLine) -> Callable[[], Snapshot]:
    return lambda: snapshot(ROWS, line=snapshot(ROWS).line | places)


def with_units(**units: Unit) -> Callable[[], Snapshot]:
    return lambda: snapshot(ROWS, reservations=snapshot(ROWS).reservations | units)


def with_rows(*rows: PurchaseRow, **fields: object) -> Callable[[], Snapshot]:
    merged = {each.purchase_id: each for each in (*ROWS, *rows)}
    return lambda: snapshot(list(merged.values()), **fields)


def test_a_right_round_breaks_nothing() -> None:
    assert broken(snapshot(ROWS), snapshot(ROWS)) == []


REVERSED = {"owner": "REVERSED", "back": "REVERSED", "poor": "REFUSED"}
CAPTURED = {"owner": "CAPTURED", "back": "CAPTURED", "poor": "REFUSED"}
HELD = {"owner": "CAPTURED", "back": "REVERSED", "poor": "REFUSED", "waits": "HELD"}
BREACHES: list[tuple[str, Callable[[], Snapshot]]] = [
    ("I8 line_is_served_in_order", with_line(owner=InLine("PROMOTED", 5, 1, 3))),
    ("I8 line_is_served_in_order", with_line(left=InLine("LEFT", 2, 1, 4))),
    ("I8 line_is_served_in_order", with_line(waits=InLine("WAITING", 1, 1, 0))),
    ("I8 line_and_units_agree", with_line(gone=InLine("PROMOTED", 5, 1, 9))),
    ("I8 line_and_units_agree", with_units(left=Unit("RESERVED", 1, ()))),
    ("I8 line_and_units_agree", with_line(gone=InLine("CLOSED", 5, 1, 9))),
    ("I2 refunded_have_their_money", lambda: snapshot(ROWS, reversed_bookings=frozenset())),
    ("I2 refunded_have_their_money", lambda: snapshot(ROWS, holds=CAPTURED, holds_after=CAPTURED)),
    ("I2 captured_own_their_shares", lambda: snapshot(ROWS, holds=CAPTURED, holds_after=CAPTURED)),
    ("I2 refunded_have_their_money", with_units(back=Unit("SOLD", 1, (2,)))),
    ("I2 refunded_have_their_money", with_rows(row("back", "REFUNDED", 2))),
    ("I2 refunded_have_their_money", lambda: snapshot(ROWS, holds=REVERSED, holds_after=REVERSED)),
    ("I2 confirmed_have_both", lambda: snapshot(ROWS, holds=REVERSED, holds_after=REVERSED)),
    ("I2 refunded_have_their_money", with_rows(row("poor", "REFUNDING"))),
    ("I2 waitlisted_have_nothing", lambda: snapshot(ROWS, holds=HELD)),
    ("I2 waitlisted_have_nothing", with_units(waits=Unit("SOLD", 1, (2,)))),
]


@pytest.mark.parametrize(("named", "spoilt"), BREACHES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BREACHES)])
def test_each_breach_of_a_round_is_named(named: str, spoilt: Callable[[], Snapshot]) -> None:
    assert named in broken(spoilt())


def test_what_happens_between_two_readings_is_no_breach() -> None:
    """A refund from asking to end, and a promotion with its settlement, while the books are read."""
    units = snapshot(ROWS).reservations
    refunded = replace(
        snapshot(ROWS),
        reservations=units | {"owner": Unit("RELEASED", 1, ())},
        holds_after=REVERSED,
        purchases_after={each.purchase_id: each for each in (*ROWS[1:], row("owner", "REFUNDED"))},
        reversed_bookings=frozenset({"owner", "back"}),
    )
    assert broken(refunded) == []
    served = replace(
        snapshot(ROWS),
        reservations=units | {"owner": Unit("RELEASED", 1, ()), "waits": Unit("SOLD", 1, (1,))},
        holds_after=REVERSED | {"waits": "CAPTURED"},
        purchases_after={
            each.purchase_id: each for each in (*ROWS[1:4], row("owner", "REFUNDED"), row("waits", "CONFIRMED", 1))
        },
        reversed_bookings=frozenset({"owner", "back"}),
    )
    assert broken(served) == []


@pytest.mark.parametrize(
    ("before", "after", "legal"),
    [
        ("WAITLISTED", "CONFIRMED", True),
        ("WAITLISTED", "REFUNDED", True),
        ("RESERVED", "REFUNDED", True),
        ("CONFIRMED", "REFUNDED", True),
        ("RESERVED", "WAITLISTED", False),
        ("REFUNDED", "CONFIRMED", False),
        ("CANCELLED", "RESERVED", False),
        ("CONFIRMED", "FAILED", False),
    ],
)
def test_however_many_steps_a_look_misses_they_must_be_legal(before: str, after: str, legal: bool) -> None:
    looks = [snapshot([*ROWS, row("x", state)]) for state in (before, after)]
    assert ("I5 steps_are_legal" in broken(looks[1], looks[0])) is not legal


def test_a_place_in_line_is_kept_and_a_decision_stays() -> None:
    before = snapshot(ROWS)
    for changed in (
        {"left": InLine("PROMOTED", 2, 1, 4)},
        {"waits": InLine("WAITING", 5, 1, 0)},
        {"poor": InLine("WAITING", 1, 1, 0)},
    ):
        assert "I8 places_in_line_are_kept" in broken(snapshot(ROWS, line=before.line | changed), before)
    fewer = {key: place for key, place in before.line.items() if key != "waits"}
    assert "I8 places_in_line_are_kept" in broken(snapshot(ROWS, line=fewer), before)
    had_units = replace(before, reservations=before.reservations | {"waits": Unit("RESERVED", 1, ())})
    assert "I8 line_and_units_agree" in broken(snapshot(ROWS), had_units)


def test_captured_money_may_be_given_back_and_nothing_else_changes() -> None:
    before = snapshot(ROWS)
    now = snapshot(ROWS, holds=REVERSED, holds_after=REVERSED)
    assert "I5 reservations_never_return" not in broken(now, before)
    assert "I5 reservations_never_return" in broken(before, now)
