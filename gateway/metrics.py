"""What the gateway counts."""

from mesh.metrics import Metrics

#: Upper bounds of the latency histogram, s.
_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0)

#: Kinds of answers, for people who look at a sale. All are of requests to buy, but "errors" (5xx) of any request:
#: bought, waits in line, refused for lack of shares or of room in line, told to come again, refused for another reason.
ANSWER_KINDS = ("accepted", "waitlisted", "sold_out", "shed", "refused", "errors")


def kind_of(route: str, status: int, reason: str) -> str | None:
    """The kind of an answer; None for one of no kind."""
    if status >= 500:
        return "errors"
    if route != "buy":
        return None
    if status == 202:
        return "waitlisted" if reason == "WAITLISTED" else "accepted"
    if status == 429:
        return "shed"
    return "sold_out" if reason in ("SOLD_OUT", "WAITLIST_FULL") else "refused"


class GatewayMetrics:
    """Counts of answers, in the process's ``metrics``."""

    def __init__(self, metrics: Metrics) -> None:
        #: Purchases refused at the door because the sale was sold out; counted apart because that is the hot path.
        self.sold_out_at_door = 0
        #: And for want of room.
        self.shed_at_door = 0
        self._kinds = dict.fromkeys(ANSWER_KINDS, 0)
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
        kind = kind_of(route, status, reason)
        if kind is not None:
            self._kinds[kind] += 1

    def purchase_took(self, seconds: float) -> None:
        """Notes how long a purchase request took that was not refused at the door."""
        self._took.add((), seconds)

    def answers_by_kind(self) -> dict[str, int]:
        """How many answers of each kind there have been, those at the door included."""
        return {
            **self._kinds,
            "sold_out": self._kinds["sold_out"] + self.sold_out_at_door,
            "shed": self._kinds["shed"] + self.shed_at_door,
        }
