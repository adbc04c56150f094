"""A sale's verdict: nothing broken when all is well, and every breach in words."""

from dataclasses import replace

import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as purchase
from hypothesis import given
from hypothesis import strategies as st

from bench.audit.data import Account, InLine, Look, Purchase, SaleLook, Stock
from bench.load.plan import Buyer, BuyerResult, LoadResults, is_among
from bench.sale.ending import Statement
from bench.sale.follow import Following
from bench.sale.report import SaleEnd, broken_promises, figures, summary_lines
from bench.seeding import Seeded, waiters
from mesh.identity import purchase_id

SALE = "11111111-1111-4111-8111-111111111111"
PRICE = 2500


def own(user: str) -> str:
    return str(purchase_id(user, SALE, f"{user}-buy"))


def right_end() -> SaleEnd:
    """Ann and Dan own the two shares, Bob could not pay, Cleo was too late; Dan tried again by hand."""
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
    statement = Statement(
        final=True,
        sold_units=2,
        sold_purchases=2,
        captured_minor=2 * PRICE,
        refunded_minor=0,
        unfinished=0,
        non_wins={"INSUFFICIENT_FUNDS": 1},
        words={"INSUFFICIENT_FUNDS": "Too little money."},
        listed=1,
    )
    return SaleEnd(Seeded(SALE, 2, PRICE, buyers, users), load, now, "", 3, look, [], statement=statement)


def end_with_line() -> SaleEnd:
    """As before, but Dan and Cleo wait in line: Dan is promoted when Bob cannot pay, Cleo waits to the end."""
    end = right_end()
    results = list(end.load.buyers)
    results[2] = BuyerResult(202, "", 30.0, 0.03, 202, "", 1, own("cleo"), True, 2)
    results[3] = BuyerResult(202, "", 25.0, 0.025, 202, "", 1, own("dan"), True, 1)
    buyers = tuple(Buyer(each.user_id, each.token, each.request_id, True) for each in end.seeded.buyers)
    stock = Stock(0, 0, 2, 2, False)
    sale = SaleLook(
        sale_id=SALE,
        name="fund",
        state="CLOSED",
        unit_price_minor=PRICE,
        currency_code="EUR",
        total=2,
        gate_before=stock,
        gate_after=stock,
        book=stock,
        reservations=(),
        entries=(),
        line=(
            InLine(own("dan"), "dan", "dan-buy", 1, 1, "PROMOTED", 1, 1.0),
            InLine(own("cleo"), "cleo", "cleo-buy", 1, 2, "CLOSED", 2, 2.0),
        ),
    )
    in_vain = Purchase(own("cleo"), "cleo", SALE, "cleo-buy", 1, PRICE, "EUR", "FAILED", "SALE_CLOSED", (), 0.0)
    now = replace(end.now, counts=end.now.counts | {_SALE_CLOSED: 1})
    assert end.statement is not None
    return replace(
        end,
        seeded=replace(end.seeded, buyers=buyers),
        load=LoadResults(0.0, 0.04, 7, 0, {}, results),
        look=replace(end.look, sales=(sale,), purchases=(*end.look.purchases, in_vain)),
        now=now,
        statement=replace(end.statement, non_wins={"SALE_CLOSED": 1, "INSUFFICIENT_FUNDS": 1}, listed=2),
    )


_SALE_CLOSED = (purchase.PURCHASE_STATE_FAILED, ErrorReason.ERROR_REASON_SALE_CLOSED)
_REFUNDED = (purchase.PURCHASE_STATE_REFUNDED, 0)


def end_with_refund() -> SaleEnd:
    """As the one with the line, but Ann then got her money back, and Cleo her share."""
    end = end_with_line()
    assert end.statement is not None
    states = {"ann": "REFUNDED", "cleo": "CONFIRMED"}
    purchases = [each._replace(state=states.get(each.user_id, each.state)) for each in end.look.purchases]
    paid = {"ann": 10_000, "cleo": 10_000 - PRICE}
    accounts = [each._replace(balance_minor=paid.get(each.user_id, each.balance_minor)) for each in end.look.accounts]
    line = (end.look.sales[0].line[0], end.look.sales[0].line[1]._replace(state="PROMOTED"))
    statement = replace(
        end.statement,
        captured_minor=3 * PRICE,
        refunded_minor=PRICE,
        non_wins={"INSUFFICIENT_FUNDS": 1, "REFUNDED": 1},
    )
    counts = {key: count for key, count in end.now.counts.items() if key != _SALE_CLOSED} | {_REFUNDED: 1}
    sales = (replace(end.look.sales[0], line=line),)
    return replace(
        end,
        look=replace(end.look, purchases=tuple(purchases), accounts=tuple(accounts), sales=sales),
        now=replace(end.now, counts=counts),
        refunds_asked=1,
        statement=statement,
    )


def test_a_right_sale_breaks_no_promise_and_its_figures_add_up() -> None:
    end = right_end()
    assert broken_promises(end) == []
    assert figures(end) == {
        "users": 4,
        "shares": 2,
        "answered": 4,
        "accepted": 3,
        "waitlisted": 0,
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
        "promoted": 0,
        "waiting_at_close": 0,
        "refunded": 0,
        "statement": {
            "final": True,
            "sold": 2,
            "captured_minor": 5000,
            "refunded_minor": 0,
            "won_nothing": {"INSUFFICIENT_FUNDS": 1},
        },
        "settle_wall_s": 0.5,
        "resold_in_burst": 0,
        "balance_rate_max_per_s": 3,
        "audit_violations": [],
    }
    told = "\n".join(summary_lines(end, 500))
    assert "everybody under a second" in told
    assert "1 got a share by trying again" in told
    assert "1: Too little money." in told


def test_a_sale_with_a_line_breaks_no_promise_and_nobody_tries_again() -> None:
    end = end_with_line()
    assert broken_promises(end) == []
    told = figures(end)
    assert (told["accepted"], told["waitlisted"], told["promoted"], told["waiting_at_close"]) == (2, 2, 1, 1)
    assert "in line 2: 1 promoted, 1 still waiting at the close; nobody had to" in "\n".join(summary_lines(end, 500))


def test_a_refund_makes_room_for_who_waits_and_gives_the_money_back() -> None:
    end = end_with_refund()
    assert broken_promises(end) == []
    assert (figures(end)["confirmed"], figures(end)["refunded"], figures(end)["promoted"]) == (2, 1, 2)


def with_result(end: SaleEnd, index: int, result: BuyerResult) -> SaleEnd:
    buyers = list(end.load.buyers)
    buyers[index] = result
    return replace(end, load=LoadResults(0.0, 0.04, 7, end.load.errors, end.load.error_kinds, buyers))


def with_look(end: SaleEnd, **changes: object) -> SaleEnd:
    return replace(end, look=replace(end.look, **changes))  # type: ignore[arg-type]


def with_line(end: SaleEnd, **changes: object) -> SaleEnd:
    """The last in line changed."""
    sale = end.look.sales[0]
    line = (*sale.line[:-1], sale.line[-1]._replace(**changes))  # type: ignore[arg-type]
    return with_look(end, sales=(replace(sale, line=line),))


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
        (replace(right_end(), statement=None), "there is no final statement"),
        (replace(end_with_line(), statement=right_end().statement), "the statement says"),
        (
            with_result(end_with_line(), 2, BuyerResult(409, "SOLD_OUT", 1, 1, 409, "SOLD_OUT", 1, "")),
            "1 users asked to wait and were refused",
        ),
        (
            with_result(end_with_line(), 2, BuyerResult(202, "", 1, 1, 202, "", 1, own("cleo"), True, 0)),
            "not which place",
        ),
        (
            with_result(end_with_line(), 3, BuyerResult(202, "", 1, 1, 202, "", 1, own("dan"), True, 2)),
            "not which place",
        ),
        (replace(end_with_line(), seeded=right_end().seeded), "2 users came into the line who had not asked"),
        (with_line(end_with_line(), state="WAITING"), "1 still wait in line"),
        (replace(end_with_refund(), refunds_asked=2), "2 users asked for a refund, and 1 got it"),
        (with_look(end_with_refund(), accounts=end_with_line().look.accounts), "2 users were charged wrongly, ann"),
    ],
)
def test_each_breach_is_told_in_words(spoilt: SaleEnd, words: str) -> None:
    assert any(words in text for text in broken_promises(spoilt)), broken_promises(spoilt)


@given(st.integers(1, 3000), st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0]))
def test_the_poor_are_spread_evenly(users: int, poor: float) -> None:
    assert abs(sum(is_among(index, poor) for index in range(users)) - users * poor) < 1


@given(st.integers(1, 3000), st.sampled_from([0.05, 0.2]), st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_as_many_of_the_poor_wait_as_of_the_others(users: int, poor: float, wait: float) -> None:
    is_poor = [is_among(index, poor) for index in range(users)]
    waits = waiters(is_poor, wait)
    for kind in (True, False):
        of_kind = [waits[index] for index in range(users) if is_poor[index] is kind]
        assert abs(sum(of_kind) - len(of_kind) * wait) < 1
