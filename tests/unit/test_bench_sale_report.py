"""A sale's verdict: nothing broken when all is well, and every breach in words."""

from dataclasses import replace

import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as purchase
from hypothesis import given
from hypothesis import strategies as st

from bench.audit.data import Account, Look, Purchase
from bench.load.plan import Buyer, BuyerResult, LoadResults, is_among
from bench.sale.follow import Following
from bench.sale.report import SaleEnd, broken_promises, figures, summary_lines
from bench.seeding import Seeded
from mesh.identity import purchase_id

SALE = "11111111-1111-4111-8111-111111111111"
PRICE = 2500


def own(user: str) -> str:
    return str(purchase_id(user, SALE, f"{user}-buy"))


def right_end() -> SaleEnd:
    """Ann and Dan own the two shares, Bob could not pay, Cleo was too late."""
    users = {"ann": 10_000, "bob": 1_000, "cleo": 10_000, "dan": 10_000}
    results = [
        BuyerResult(202, "", 10.0, 0.01, 202, "", 1, own("ann")),
        BuyerResult(202, "", 20.0, 0.02, 202, "", 1, own("bob")),
        BuyerResult(409, "SOLD_OUT", 30.0, 0.03, 409, "SOLD_OUT", 1, ""),
        BuyerResult(409, "SOLD_OUT", 40.0, 0.04, 202, "", 2, own("dan")),
    ]

    def bought(user: str, state: str, number: int = 0) -> Purchase:
        numbers = (number,) if number else ()
        return Purchase(own(user), user, SALE, f"{user}-buy", 1, PRICE, "EUR", state, "", numbers, 0.0)

    look = Look(
        now_s=0.0,
        sales=(),
        purchases=(bought("ann", "CONFIRMED", 1), bought("bob", "FAILED"), bought("dan", "CONFIRMED", 2)),
        holds=(),
        accounts=tuple(
            Account(user, "EUR", funds - (PRICE if user in ("ann", "dan") else 0), 0) for user, funds in users.items()
        ),
        totals=(),
        wrong_accounts=(),
        wrong_transfers=(),
    )
    now = Following(settle_wall_s=0.5)
    now.counts = {
        (purchase.PURCHASE_STATE_CONFIRMED, 0): 2,
        (purchase.PURCHASE_STATE_FAILED, ErrorReason.ERROR_REASON_INSUFFICIENT_FUNDS): 1,
    }
    buyers = tuple(Buyer(user, "token", f"{user}-buy") for user in users)
    load = LoadResults(0.0, 0.04, 7, 0, {}, results)
    return SaleEnd(Seeded(SALE, 2, PRICE, buyers, users), load, now, "", 3, look, [])


def test_a_right_sale_breaks_no_promise_and_its_figures_add_up() -> None:
    end = right_end()
    assert broken_promises(end) == []
    assert figures(end) == {
        "users": 4,
        "shares": 2,
        "answered": 4,
        "accepted": 3,
        "sold_out": 1,
        "shed_429": 7,
        "errors": 0,
        "burst_wall_s": 0.04,
        "p50_ms": 20.0,
        "p99_ms": 40.0,
        "max_ms": 40.0,
        "accepted_p99_ms": 20.0,
        "accepted_first_wave": 2,
        "confirmed": 2,
        "failed": {"INSUFFICIENT_FUNDS": 1},
        "settle_wall_s": 0.5,
        "resold_in_burst": 0,
        "balance_rate_max_per_s": 3,
        "audit_violations": [],
    }
    assert any("everybody under a second" in text for text in summary_lines(end, 500))


def with_result(end: SaleEnd, index: int, result: BuyerResult) -> SaleEnd:
    buyers = list(end.load.buyers)
    buyers[index] = result
    return replace(end, load=LoadResults(0.0, 0.04, 7, end.load.errors, end.load.error_kinds, buyers))


def with_look(end: SaleEnd, **changes: object) -> SaleEnd:
    return replace(end, look=replace(end.look, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        (replace(right_end(), missing="not over after 9 s: 3 units still reserved"), "3 units still reserved"),
        (with_result(right_end(), 2, BuyerResult(0, "", 0, 0, 0, "", 9, "")), "1 of 4 users were never answered"),
        (
            replace(right_end(), load=LoadResults(0, 1, 0, 2, {"503 X": 2}, right_end().load.buyers)),
            "2 errors: 2 x 503",
        ),
        (with_result(right_end(), 2, BuyerResult(409, "SALE_NOT_OPEN", 1, 1, 409, "SALE_NOT_OPEN", 1, "")), "NOT_OPEN"),
        (replace(right_end(), now=Following()), "0 shares were sold, but 2 should have been"),
        (replace(right_end(), audit_violations=["I1 x: y"]), "the audit found 1 violations"),
        (with_result(right_end(), 0, BuyerResult(202, "", 1, 1, 202, "", 1, own("dan"))), "another purchase"),
        (with_look(right_end(), purchases=right_end().look.purchases[1:]), "1 accepted purchases are not in the books"),
        (with_result(right_end(), 1, BuyerResult(409, "SOLD_OUT", 1, 1, 409, "SOLD_OUT", 1, "")), "never told 202"),
        (with_look(right_end(), accounts=right_end().look.accounts[1:]), "1 users were charged wrongly, ann"),
    ],
)
def test_each_breach_is_told_in_words(spoilt: SaleEnd, words: str) -> None:
    assert any(words in text for text in broken_promises(spoilt)), broken_promises(spoilt)


@given(st.integers(1, 3000), st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0]))
def test_the_poor_are_spread_evenly(users: int, poor: float) -> None:
    assert abs(sum(is_among(index, poor) for index in range(users)) - users * poor) < 1
