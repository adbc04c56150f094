"""reports/sale.png: how a sale went, in three panels."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.load.plan import first_latencies
from bench.percentiles import percentile
from bench.sale.report import SaleEnd

_BLUE, _GREEN, _GREY, _RED, _ORANGE = "#1f77b4", "#2ca02c", "#7f7f7f", "#d62728", "#ff7f0e"
_THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")
_BINS = 60


def _answers(axes: Axes, end: SaleEnd) -> None:
    """First answers by kind over the burst, from each buyer's own clock: exact, not sampled."""
    burst_s = end.load.burst_wall_s
    for status, waits, label, colour in (
        (202, False, "accepted (202)", _GREEN),
        (202, True, "in line (202)", _BLUE),
        (409, False, "sold out (409)", _GREY),
    ):
        times = sorted(
            item.answered_at_s for item in end.load.buyers if item.first_status == status and item.waitlisted is waits
        )
        if times:
            counts = [*range(len(times) + 1), len(times)]
            axes.step([0.0, *times, burst_s], counts, where="post", label=f"{label}: {len(times):,}", color=colour)
    shed = [(item.at_s, item.shed_429) for item in end.now.samples if item.at_s <= burst_s * 1.1 + 0.1]
    if end.load.shed_429:
        axes.plot(*zip((0.0, 0), *shed, strict=True), label=f"shed (429), attempts: {end.load.shed_429:,}", color=_RED)
    axes.axvline(burst_s, color="black", linewidth=0.8, linestyle=":")
    axes.set_title(f"The burst: {len(end.load.buyers):,} users answered in {burst_s:.2f} s")
    axes.set_xlabel("seconds since everybody pressed Buy")
    axes.set_xlim(0, max(burst_s * 1.05, 0.1))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(_THOUSANDS)
    axes.legend(loc="upper left")


def _stock(axes: Axes, end: SaleEnd) -> None:
    samples = end.now.samples
    times = [item.at_s for item in samples]
    axes.plot(times, [item.available for item in samples], label="on sale", color=_BLUE)
    axes.plot(times, [item.reserved for item in samples], label="reserved, being settled", color=_ORANGE)
    axes.plot(times, [item.sold for item in samples], label="sold", color=_GREEN)
    if any(item.waiting for item in samples):
        axes.plot(times, [item.waiting for item in samples], label="waiting in line", color=_GREY)
    axes.plot(times, [item.settled for item in samples], label="purchases settled", color="black", linestyle="--")
    rate = end.balance_rate_max_per_s
    axes.set_title(f"Stock and settlement: {end.now.settle_wall_s:.1f} s, at most {rate:,} purchases in a second")
    axes.set_xlabel("seconds since everybody pressed Buy")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(_THOUSANDS)
    axes.legend(loc="center right")


def _latencies(axes: Axes, end: SaleEnd) -> None:
    accepted, refused = first_latencies(end.load.buyers, 202), first_latencies(end.load.buyers, 409)
    latencies = first_latencies(end.load.buyers)
    top = max(percentile(latencies, 100), 1.0)
    kinds = [(refused, "sold out", _GREY), (accepted, "accepted or in line", _GREEN)]
    kinds = [kind for kind in kinds if kind[0]]
    if kinds:
        values, labels, colours = zip(*kinds, strict=True)
        axes.hist(values, bins=_BINS, range=(0, top), stacked=True, label=labels, color=colours)
    for percent, style in ((50, "--"), (99, ":")):
        value = percentile(latencies, percent)
        axes.axvline(value, color="black", linewidth=1, linestyle=style, label=f"p{percent}: {value:,.0f} ms")
    axes.set_title("From a user's first send to the answer, waits after 429 included")
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("users")
    axes.set_xlim(0, top * 1.02)
    axes.yaxis.set_major_formatter(_THOUSANDS)
    axes.legend(loc="upper right")


def draw(end: SaleEnd, path: Path) -> None:
    """Writes the picture."""
    mpl.rcParams.update({"axes.grid": True, "grid.alpha": 0.3, "font.size": 10, "legend.framealpha": 0.9})
    figure = Figure(figsize=(11, 12), layout="constrained")
    top, middle, bottom = figure.subplots(3)
    _answers(top, end)
    _stock(middle, end)
    _latencies(bottom, end)
    seeded = end.seeded
    figure.suptitle(f"{len(seeded.buyers):,} users, {seeded.shares:,} shares: {end.now.confirmed:,} sold", fontsize=14)
    figure.savefig(path, dpi=110)
