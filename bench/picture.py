"""The benchmarks as a picture: reports/bench.png."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.reach import reached

_COLOURS = {"stretch": "#2a7f4f", "reach": "#6aa84f", "short": "#c0504d"}


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draws what is in the report."""
    figure = Figure(figsize=(14, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    _goals(axes[0][0], report)
    _overload(axes[0][1], report.get("overload", {}).get("curve", {}))
    _processor(axes[1][0], report.get("burst", {}).get("processor_s", []))
    _accept(axes[1][1], report)
    figure.savefig(path, dpi=110)


def _goals(axes: Axes, report: Mapping[str, Any]) -> None:
    """How far each goal is: 1 is reached."""
    seen = reached(report)[::-1]
    axes.barh(
        [each.goal.words for each in seen], [each.share for each in seen], color=[_COLOURS[each.mark] for each in seen]
    )
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_title("Goals: right of the line is reached")


def _overload(axes: Axes, curve: Mapping[str, Mapping[str, float]]) -> None:
    axes.set_title("Overload: what is offered and what comes of it")
    if not curve:
        return
    offered = [point["offered_per_s"] for point in curve.values()]
    axes.plot(offered, [point["goodput_per_s"] for point in curve.values()], "o-", label="accepted per s")
    axes.set_xlabel("offered per s")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right")
    right = axes.twinx()
    right.plot(offered, [point["accepted_p99_ms"] for point in curve.values()], "s--", color="#c0504d")
    right.set_ylabel("p99 of the accepted, ms", color="#c0504d")
    right.set_ylim(bottom=0)


def _processor(axes: Axes, rounds: list[Mapping[str, float]]) -> None:
    axes.set_title("Processor time of a burst, seconds, by part")
    if not rounds:
        return
    last = {name: seconds for name, seconds in sorted(rounds[-1].items(), key=lambda item: -item[1]) if seconds}
    axes.bar(list(last), list(last.values()), color="#4f81bd")
    axes.tick_params(axis="x", rotation=35)


def _accept(axes: Axes, report: Mapping[str, Any]) -> None:
    axes.set_title("Accepted per second, medians")
    found = {
        name: figures["per_s"]["median"]
        for name, figures in report.get("accept", {}).items()
        if isinstance(figures, Mapping) and isinstance(figures.get("per_s"), Mapping)
    }
    if found:
        bars = axes.bar(list(found), list(found.values()), color="#4f81bd")
        axes.bar_label(bars, fmt="{:,.0f}")
        axes.tick_params(axis="x", rotation=25)
