"""What the gateway counts, in Prometheus' text format.

Counted in plain numbers and rendered on demand: the library's own counters take a lock and a microsecond each, a tenth
of what a refusal may cost.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

#: Upper bounds of the latency histogram, s.
_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0)


class Metrics(Collector):
    """Counts of one process. ``gauges`` are read when the metrics are: name -> (help, value)."""

    def __init__(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        self._gauges = gauges
        self._answers: Counter[tuple[str, int, str]] = Counter()
        self._buckets = [0] * (len(_BOUNDS_S) + 1)
        self._sum_s = 0.0
        #: Purchases refused at the door because the sale was sold out; counted apart because that is the hot path.
        self.sold_out_at_door = 0
        #: And for want of room.
        self.shed_at_door = 0
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def answered(self, route: str, status: int, reason: str) -> None:
        """Counts one answer."""
        self._answers[route, status, reason] += 1

    def purchase_took(self, seconds: float) -> None:
        """Notes how long a purchase request took that was not refused at the door."""
        self._buckets[bisect_left(_BOUNDS_S, seconds)] += 1
        self._sum_s += seconds

    def text(self) -> bytes:
        """Everything, as text."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        answers = CounterMetricFamily(
            "gateway_answers", "Answers by route, status and reason", labels=("route", "status", "reason")
        )
        for (route, status, reason), count in self._answers.items():
            answers.add_metric((route, str(status), reason), count)
        answers.add_metric(("buy", "409", "SOLD_OUT_AT_DOOR"), self.sold_out_at_door)
        answers.add_metric(("buy", "429", "OVERLOADED_AT_DOOR"), self.shed_at_door)
        yield answers
        took = HistogramMetricFamily(
            "gateway_purchase_seconds", "Time to answer purchases, those refused at the door left out"
        )
        total, buckets = 0, []
        for bound, count in zip((*map(str, _BOUNDS_S), "+Inf"), self._buckets, strict=True):
            total += count
            buckets.append((bound, float(total)))
        took.add_metric((), buckets, self._sum_s)
        yield took
        for name, (text, value) in self._gauges.items():
            yield GaugeMetricFamily(name, text, value())
