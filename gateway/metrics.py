"""What the gateway counts."""

from mesh.metrics import Metrics

#: Upper bounds of the latency histogram, s.
_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0)


class GatewayMetrics:
    """Counts of answers, in the process's ``metrics``."""

    def __init__(self, metrics: Metrics) -> None:
        #: Purchases refused at the door because the sale was sold out; counted apart because that is the hot path.
        self.sold_out_at_door = 0
        #: And for want of room.
        self.shed_at_door = 0
        self._answers = metrics.counts(
            "gateway_answers", "Answers by route, status and reason", ("route", "status", "reason")
        )
        metrics.totals(
            "gateway_refused_at_door",
            "Purchases refused before anything but their sale and key was looked at, by reason",
            ("reason",),
            lambda: {("SOLD_OUT",): self.sold_out_at_door, ("OVERLOADED",): self.shed_at_door},
        )
        self._took = metrics.durations(
            "gateway_purchase_seconds", "Time to answer purchases, those refused at the door left out", (), _BOUNDS_S
        )

    def answered(self, route: str, status: int, reason: str) -> None:
        """Counts one answer that was not given at the door."""
        self._answers.add((route, str(status), reason))

    def purchase_took(self, seconds: float) -> None:
        """Notes how long a purchase request took that was not refused at the door."""
        self._took.add((), seconds)
