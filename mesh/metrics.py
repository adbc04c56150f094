"""What a process counts, and the port where it shows it in Prometheus' text format.

Counted in plain numbers and rendered on demand: the library's own counters take a lock and a microsecond each, a tenth
of what a refusal at the gateway may cost. Labels are those of the metric, in its order.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from mesh.loopback import require_local
from mesh.settings import SettingsError

Labels = tuple[str, ...]
Kind = TypeVar("Kind", bound=Collector)

#: Setting of every process; see ``Metrics.show``.
LISTEN_HELP = "host:port to show metrics on (keep it private); empty: nowhere"


class Counts(Collector):
    """Counters of one name, by their labels."""

    def __init__(self, name: str, text: str, labels: Labels = ()) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._values: dict[Labels, float] = {}

    def add(self, labels: Labels = (), amount: float = 1) -> None:
        """Counts up."""
        self._values[labels] = self._values.get(labels, 0) + amount

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, value in list(self._values.items()):
            family.add_metric(labels, value)
        yield family


class Histogram:
    """Durations with the same labels, seconds."""

    __slots__ = ("_bounds_s", "counts", "sum_s")

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self._bounds_s = bounds_s
        #: At most as long as each bound and longer than the one before; the last: longer than all.
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Notes one duration."""
        self.counts[bisect_left(self._bounds_s, seconds)] += 1
        self.sum_s += seconds


class Durations(Collector):
    """Histograms of times of one name, by their labels. ``bounds_s`` are upper bounds, rising, seconds."""

    def __init__(self, name: str, text: str, labels: Labels, bounds_s: tuple[float, ...]) -> None:
        self._name, self._text, self._labels, self._bounds_s = name, text, labels, bounds_s
        self._histograms: dict[Labels, Histogram] = {}

    def of(self, labels: Labels) -> Histogram:
        """The one with these labels: for a hot path, which may keep it."""
        histogram = self._histograms.get(labels)
        if histogram is None:
            histogram = self._histograms[labels] = Histogram(self._bounds_s)
        return histogram

    def add(self, labels: Labels, seconds: float) -> None:
        """Notes one duration."""
        self.of(labels).add(seconds)

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        names = (*map(str, self._bounds_s), "+Inf")
        for labels, histogram in list(self._histograms.items()):
            total, buckets = 0.0, []
            for bound, count in zip(names, histogram.counts, strict=True):
                total += count
                buckets.append((bound, total))
            family.add_metric(labels, buckets, histogram.sum_s)
        yield family


class _Readings(Collector):
    """Values of one name by their labels, known elsewhere and read when the metrics are."""

    def __init__(
        self,
        family: type[GaugeMetricFamily] | type[CounterMetricFamily],
        name: str,
        text: str,
        labels: Labels,
        read: Callable[[], Mapping[Labels, float]],
    ) -> None:
        self._family, self._name, self._text, self._labels, self._read = family, name, text, labels, read

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        family = self._family(self._name, self._text, labels=self._labels)
        for labels, value in self._read().items():
            family.add_metric(labels, value)
        yield family


class Metrics:
    """All that one process counts, with what the system knows of it (memory, descriptors, processor time)."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)

    def counts(self, name: str, text: str, labels: Labels = ()) -> Counts:
        """A counter; ``_total`` is added to its name."""
        return self._added(Counts(name, text, labels))

    def durations(self, name: str, text: str, labels: Labels, bounds_s: tuple[float, ...]) -> Durations:
        """A histogram of times, seconds."""
        return self._added(Durations(name, text, labels, bounds_s))

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value that ``read`` knows. It is called in another thread, so it may only look."""
        self.gauges(name, text, (), lambda: {(): read()})

    def gauges(self, name: str, text: str, labels: Labels, read: Callable[[], Mapping[Labels, float]]) -> None:
        """As ``gauge``, with labels."""
        self._added(_Readings(GaugeMetricFamily, name, text, labels, read))

    def totals(self, name: str, text: str, labels: Labels, read: Callable[[], Mapping[Labels, float]]) -> None:
        """As ``gauges``, of counters that are kept elsewhere."""
        self._added(_Readings(CounterMetricFamily, name, text, labels, read))

    def _added(self, collector: Kind) -> Kind:
        self._registry.register(collector)
        return collector

    def text(self) -> bytes:
        """Everything, as text."""
        return generate_latest(self._registry)

    def show(self, listen: str, *, allow_plaintext: bool = False) -> int:
        """Shows them at ``http://listen/metrics`` from now until the process ends; the port bound, 0 for an empty
        ``listen``. Served by a daemon thread. Raises SettingsError for an address it cannot listen on, and for one
        beyond loopback unless ``allow_plaintext``.
        """
        if not listen:
            return 0
        require_local("metrics", listen, allowed=allow_plaintext)
        host, _, port = listen.rpartition(":")
        try:
            server, _ = start_http_server(int(port), host, self._registry)
        except (OSError, ValueError, OverflowError) as error:
            raise SettingsError(f"metrics: cannot listen on {listen}: {error}") from error
        return server.server_port
