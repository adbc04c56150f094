"""When the overview calls a promise kept, broken or unknown."""

from typing import Any

import pytest
from flashsale.balance.v1 import balance_service_pb2 as balance
from flashsale.inventory.v1.inventory_service_pb2 import Stock
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from gateway.audit_glance import AuditGlance, SaleReadings, books_finding, sale_findings

CONFIRMED = purchase.PURCHASE_STATE_CONFIRMED


def stock(**changes: Any) -> Stock:
    return Stock(**{"sale_id": "s", "available": 1, "sold": 9, "total": 10, "epoch": 1, **changes})


def counts(**units: int) -> list[purchase.PurchaseCount]:
    return [
        purchase.PurchaseCount(
            state=purchase.PurchaseState.Value(f"PURCHASE_STATE_{name}"), purchases=number, units=number
        )
        for name, number in units.items()
    ]


def readings(**changes: Any) -> SaleReadings:
    gate = stock(holder_changes=7)
    usual = {"gate": gate, "book": stock(), "counts": counts(CONFIRMED=9), "gate_after": gate}
    return SaleReadings(**{**usual, **changes})


def test_a_sale_at_rest_in_which_all_agree_keeps_every_promise() -> None:
    assert sale_findings("Fund", readings()) == {"I1": None, "I2": None, "I6": None}
    refunding = readings(counts=counts(CONFIRMED=7, REFUNDING=2, REFUNDED=5, FAILED=3))
    assert sale_findings("Fund", refunding)["I2"] is None


def test_each_difference_is_named() -> None:
    found = sale_findings("Fund", readings(book=stock(available=0, sold=10), counts=counts(CONFIRMED=8)))
    assert found["I6"] == "Fund: available 1 in Redis, 0 in SQL, sold 9 in Redis, 10 in SQL"
    assert found["I2"] == "Fund: 10 shares sold, 8 paid for"
    assert sale_findings("Fund", readings(book=stock(reserved=2)))["I1"] == "Fund: 1 shares more than it has"
    assert sale_findings("Fund", readings(book=stock(waiting=1)))["I6"] is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": counts(CONFIRMED=8, SETTLING=1)},
        {"counts": counts(CONFIRMED=8, RESERVED=1)},
        {"gate_after": stock(holder_changes=8)},
    ],
    ids=["settling", "reserved", "changing"],
)
def test_a_sale_in_flight_is_not_compared_but_never_oversold(changes: dict[str, Any]) -> None:
    assert sale_findings("Fund", readings(book=stock(sold=8), **changes)) == {"I1": None}


def test_a_parked_purchase_leaves_open_who_paid() -> None:
    assert set(sale_findings("Fund", readings(counts=counts(CONFIRMED=8, PARKED=1)))) == {"I1", "I6"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"entries_sum_minor": 1},
        {"balances_sum_minor": 1},
        {"held_sum_minor": 1},
    ],
    ids=str,
)
def test_books_that_do_not_add_up_are_broken_at_once(wrong: dict[str, int]) -> None:
    books = balance.CheckBooksResponse(totals=[balance.CurrencyTotals(currency_code="EUR", **wrong)])
    finding = books_finding(books)
    assert finding is not None
    glance = AuditGlance()
    glance.note("books", {"I3": finding}, "now", at_once=True)
    assert glance.shown()["verdict"] == "broken"
    assert books_finding(balance.CheckBooksResponse(wrong_accounts=[balance.Account()])) is not None
    assert books_finding(balance.CheckBooksResponse(wrong_transfers=["t"])) is not None
    assert books_finding(balance.CheckBooksResponse(totals=[balance.CurrencyTotals(currency_code="EUR")])) is None


def test_a_difference_counts_once_it_stands_and_never_while_it_moves() -> None:
    glance = AuditGlance()
    assert glance.shown()["verdict"] == "unknown"
    for number in range(10):
        glance.note("s", {"I6": f"available {number}"}, "now")
        assert glance.shown()["verdict"] == "unknown"
    glance.note("s", {"I6": "available 9"}, "now")
    assert glance.shown()["verdict"] == "unknown"
    glance.note("s", {"I6": "available 9"}, "later")
    shown = glance.shown()
    assert (shown["verdict"], shown["checked_at"]) == ("broken", "later")
    [line] = [line for line in shown["lines"] if line["promise"] == "I6"]
    assert line == {"promise": "I6", "text": "available 9", "ok": False}
    glance.note("s", {"I6": None}, "now")
    assert glance.shown()["verdict"] == "kept"


def test_one_broken_sale_is_not_hidden_by_the_others_and_a_forgotten_one_is_gone() -> None:
    glance = AuditGlance()
    for _ in range(3):
        for subject in ("good", "bad", "better"):
            glance.note(subject, {"I2": "wrong" if subject == "bad" else None}, "now")
    assert glance.shown()["verdict"] == "broken"
    glance.note("bad", {}, "now")
    assert glance.shown()["verdict"] == "kept", "in flight again, it cannot be judged"
    glance.forget_others(set())
    assert glance.shown()["verdict"] == "unknown"
