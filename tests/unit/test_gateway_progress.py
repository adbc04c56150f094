"""Rates, and when settlement will be through."""

from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from gateway.metrics import ANSWER_KINDS, GatewayMetrics, kind_of
from gateway.progress import Rates, SettlementProgress, settled_and_unsettled
from mesh.metrics import Metrics


def count(
    state: purchase.PurchaseState.ValueType,
    purchases: int,
    reason: ErrorReason.ValueType = ErrorReason.ERROR_REASON_UNSPECIFIED,
) -> purchase.PurchaseCount:
    return purchase.PurchaseCount(state=state, purchases=purchases, units=purchases, reason=reason)


def test_a_rate_is_that_of_the_last_five_seconds() -> None:
    rates = Rates()
    assert rates.per_s() == {}
    rates.note({"a": 100, "b": 7}, 10.0)
    assert rates.per_s() == {"a": 0.0, "b": 0.0}
    for second in range(1, 4):
        rates.note({"a": 100 + 50 * second, "b": 7}, 10.0 + second)
    assert rates.per_s() == {"a": 50.0, "b": 0.0}
    for second in range(4, 12):
        rates.note({"a": 250, "b": 7}, 10.0 + second)
    assert rates.per_s() == {"a": 0.0, "b": 0.0}, "what was before no longer counts"


def test_a_rate_after_a_long_pause_is_that_of_the_pause() -> None:
    rates = Rates()
    rates.note({"a": 0}, 10.0)
    rates.note({"a": 600}, 70.0)
    assert rates.per_s() == {"a": 10.0}


def test_what_settlement_has_never_seen_is_neither_settled_nor_to_be_settled() -> None:
    counts = [
        count(purchase.PURCHASE_STATE_RESERVED, 1),
        count(purchase.PURCHASE_STATE_SETTLING, 2),
        count(purchase.PURCHASE_STATE_CONFIRMED, 10),
        count(purchase.PURCHASE_STATE_REFUNDING, 20),
        count(purchase.PURCHASE_STATE_REFUNDED, 30),
        count(purchase.PURCHASE_STATE_FAILED, 40, ErrorReason.ERROR_REASON_INSUFFICIENT_FUNDS),
        count(purchase.PURCHASE_STATE_FAILED, 1000, ErrorReason.ERROR_REASON_SALE_CLOSED),
        count(purchase.PURCHASE_STATE_CANCELLED, 1000),
        count(purchase.PURCHASE_STATE_WAITLISTED, 1000),
        count(purchase.PURCHASE_STATE_PARKED, 1000),
    ]
    assert settled_and_unsettled(counts) == (100, 3)


def test_the_end_of_settlement_is_told_from_its_pace() -> None:
    progress = SettlementProgress()
    reserved, confirmed = purchase.PURCHASE_STATE_RESERVED, purchase.PURCHASE_STATE_CONFIRMED
    first = progress.note([count(reserved, 1000)], 0.5, 10.0)
    assert first == {"settled": 0, "unsettled": 1000, "rate_per_s": 0.0, "eta_s": None, "oldest_age_s": 0.5}
    second = progress.note([count(reserved, 500), count(confirmed, 500)], 1.5, 11.0)
    assert (second["rate_per_s"], second["eta_s"]) == (500.0, 1.0)
    last = progress.note([count(confirmed, 1000)], None, 12.0)
    assert (last["unsettled"], last["eta_s"], last["oldest_age_s"]) == (0, 0.0, None)
    assert progress.note([count(reserved, 1)], -0.3, 13.0)["oldest_age_s"] == 0.0, "clocks differ"


def test_every_answer_to_a_buyer_is_of_one_kind() -> None:
    assert kind_of("buy", 202, "OK") == "accepted"
    assert kind_of("buy", 202, "WAITLISTED") == "waitlisted"
    assert kind_of("buy", 409, "SOLD_OUT") == "sold_out"
    assert kind_of("buy", 409, "WAITLIST_FULL") == "sold_out"
    assert kind_of("buy", 429, "OVERLOADED") == "shed"
    assert kind_of("buy", 401, "UNAUTHENTICATED") == "refused"
    assert kind_of("buy", 503, "UNAVAILABLE") == "errors"
    assert kind_of("stock", 503, "UNAVAILABLE") == "errors"
    assert kind_of("stock", 429, "OVERLOADED") is None
    counted = GatewayMetrics(Metrics())
    counted.answered("buy", 409, "SOLD_OUT")
    counted.sold_out_at_door, counted.shed_at_door = 5, 3
    counted.answered("buy", 202, "OK")
    expected = dict.fromkeys(ANSWER_KINDS, 0) | {"accepted": 1, "sold_out": 6, "shed": 3}
    assert counted.answers_by_kind() == expected
