"""What a process counts, as Prometheus reads it."""

import urllib.request

import pytest

from mesh.metrics import Metrics
from mesh.settings import SettingsError


def test_everything_counted_is_shown_in_the_text() -> None:
    metrics = Metrics()
    counts = metrics.counts("sheds", "Sheds", ("reason",))
    counts.add(("calls",))
    counts.add(("calls",), 2)
    took = metrics.durations("took_seconds", "Took", ("method",), (0.25, 1.0))
    for seconds in (0.25, 0.5, 0.5, 8.0):
        took.add(("x",), seconds)
    stock: dict[tuple[str, ...], float] = {("a", "sold"): 3.0}
    metrics.gauges("units", "Units", ("sale_id", "state"), lambda: stock)
    metrics.gauge("waiting", "Waiting", lambda: 7)
    metrics.totals("refused", "Refused", ("reason",), lambda: {("full",): 5})
    lines = metrics.text().decode().splitlines()
    for line in (
        'sheds_total{reason="calls"} 3.0',
        'took_seconds_bucket{le="0.25",method="x"} 1.0',
        'took_seconds_bucket{le="1.0",method="x"} 3.0',
        'took_seconds_bucket{le="+Inf",method="x"} 4.0',
        'took_seconds_sum{method="x"} 9.25',
        'units{sale_id="a",state="sold"} 3.0',
        "waiting 7.0",
        'refused_total{reason="full"} 5.0',
    ):
        assert line in lines
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)
    stock.clear()
    assert "units{" not in metrics.text().decode(), "what is not known is not shown"


def test_they_are_shown_on_a_port_of_their_own_and_only_where_asked() -> None:
    metrics = Metrics()
    metrics.counts("sheds", "Sheds").add()
    assert metrics.show("") == 0
    port = metrics.show("127.0.0.1:0")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        assert "sheds_total 1.0" in reply.read().decode().splitlines()
    for wrong in (f"127.0.0.1:{port}", "nowhere", "127.0.0.1:99999"):
        with pytest.raises(SettingsError, match=wrong):
            metrics.show(wrong)
