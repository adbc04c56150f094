"""How fast something goes on, from readings of how far it has come; and when settlement will be through. Rules only."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

#: Time over which rates are measured, s, and most readings kept for it.
_WINDOW_S, _READINGS_MAX = 5.0, 64

#: States that settlement has brought a purchase to; one in REFUNDING or REFUNDED was CONFIRMED before.
_SETTLED = frozenset(
    {
        purchase.PURCHASE_STATE_CONFIRMED,
        purchase.PURCHASE_STATE_FAILED,
        purchase.PURCHASE_STATE_REFUNDING,
        purchase.PURCHASE_STATE_REFUNDED,
    }
)
_UNSETTLED = frozenset({purchase.PURCHASE_STATE_RESERVED, purchase.PURCHASE_STATE_SETTLING})
#: Reasons for which a purchase failed that settlement has never seen.
_NEVER_SETTLED = frozenset({ErrorReason.ERROR_REASON_SALE_CLOSED, ErrorReason.ERROR_REASON_ABANDONED})


class Rates:
    """Rates of counters of the same names, over the last five seconds. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, dict[str, int]]] = deque(maxlen=_READINGS_MAX)

    def note(self, totals: Mapping[str, int], now: float) -> None:
        """Takes in how far each counter has come."""
        self._readings.append((now, dict(totals)))
        while len(self._readings) > 2 and self._readings[1][0] <= now - _WINDOW_S:
            self._readings.popleft()

    def per_s(self) -> dict[str, float]:
        """How fast each counter grows; 0 before there are two readings, and for one that shrank."""
        if not self._readings:
            return {}
        (before, old), (after, new) = self._readings[0], self._readings[-1]
        elapsed = after - before
        return {
            name: round(max(0.0, (total - old.get(name, 0)) / elapsed), 1) if elapsed > 0 else 0.0
            for name, total in new.items()
        }


def settled_and_unsettled(counts: Sequence[purchase.PurchaseCount]) -> tuple[int, int]:
    """Purchases that settlement has ended, and those that it has yet to. Neither in line, nor parked, nor cancelled."""
    settled = sum(each.purchases for each in counts if each.state in _SETTLED and each.reason not in _NEVER_SETTLED)
    return settled, sum(each.purchases for each in counts if each.state in _UNSETTLED)


class SettlementProgress:
    """How far the settlement of one sale has come, and when it will be through at the rate of the last seconds."""

    def __init__(self) -> None:
        self._rates = Rates()

    def note(self, counts: Sequence[purchase.PurchaseCount], oldest_age_s: float | None, now: float) -> dict[str, Any]:
        """The progress as of these counts. ``eta_s`` is 0 when all is settled, and null while nothing moves.
        ``oldest_age_s`` is that of the oldest purchase yet to be settled."""
        settled, unsettled = settled_and_unsettled(counts)
        self._rates.note({"settled": settled}, now)
        rate_per_s = self._rates.per_s()["settled"]
        eta_s = 0.0 if unsettled == 0 else round(unsettled / rate_per_s, 1) if rate_per_s > 0 else None
        return {
            "settled": settled,
            "unsettled": unsettled,
            "rate_per_s": rate_per_s,
            "eta_s": eta_s,
            "oldest_age_s": round(max(0.0, oldest_age_s), 1) if oldest_age_s is not None else None,
        }
