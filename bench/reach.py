"""What the benchmarks are to reach on two shared cores, and what they did reach. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Goal:
    """A figure of the report by its path, and two marks for it."""

    words: str
    path: tuple[str, ...]
    reach: float
    stretch: float
    #: Whether less is better.
    most: bool = False


GOALS = (
    Goal("burst, last answer, s", ("burst", "burst", "wall_s", "median"), 1.5, 1.0, most=True),
    Goal("burst, accepted p99, ms", ("burst", "burst", "accepted_p99_ms", "median"), 500, 300, most=True),
    Goal("accept through HTTP / FastAPI with row locks", ("accept", "ratios", "http / fastapi row locks"), 25, 30),
    Goal("refuse through HTTP / nginx constant", ("refuse", "ratios", "sold out / nginx constant"), 0.4, 0.5),
    # Work of Redis, SQL and the broker together, beyond what they do in an idle time; a command each would be 1,000.
    Goal("servers' work for 1,000 refused", ("refuse", "ratios", "servers' work / 1,000 refused"), 1.0, 0.5, most=True),
    Goal("unary CreatePurchase / bare grpc.aio", ("accept", "ratios", "grpc unary / bare grpc unary"), 0.5, 0.8),
    Goal("BatchCreatePurchases / accept through HTTP", ("accept", "ratios", "grpc batches / http"), 1.2, 2.0),
    Goal(
        "batches with mutual TLS / in the clear",
        ("mtls", "ratios", "batches with mutual tls / in the clear"),
        0.85,
        0.95,
    ),
    Goal("settle / pgbench, a hold each, 16 clients", ("settle", "ratios", "settle / pgbench 16 clients"), 1.0, 2.0),
    Goal(
        "settlement's pace under a flood of reads", ("flood", "ratios", "settlement under flood / asked for"), 0.95, 1.0
    ),
    Goal("goodput at 10x overload / peak", ("overload", "ratios", "goodput at 10x / peak"), 0.9, 0.95),
    Goal(
        "accepted p99 at 10x / unloaded", ("overload", "ratios", "accepted p99 at 10x / unloaded"), 2.0, 1.5, most=True
    ),
    Goal("cost with 10^6 accounts / 10^4", ("growth", "ratios", "10^6 accounts / small"), 1.15, 1.05, most=True),
    Goal("cost with 100 sales open / 1", ("growth", "ratios", "100 sales open / small"), 1.15, 1.05, most=True),
    Goal(
        "cost with 10^6 past purchases / 10^4",
        ("growth", "ratios", "10^6 past purchases / small"),
        1.15,
        1.05,
        most=True,
    ),
)


#: A longer bar of the picture would leave the others no room.
_SHARE_MAX = 3.0
#: Figures without a goal, by their paths: what the parts can do by themselves, and what something takes.
BESIDE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("nginx constant, per s", ("refuse", "nginx constant", "per_s", "median")),
    ("refused 429, queue full, per s", ("refuse", "work_of_servers", "overloaded", "per_s")),
    ("refused 429, user too often, per s", ("refuse", "work_of_servers", "too often", "per_s")),
    ("bare grpc.aio unary, per s", ("accept", "bare grpc unary", "per_s", "median")),
    ("redis-benchmark DECRBY, per s", ("accept", "limits", "redis-benchmark DECRBY", "per_s", "median")),
    ("pgbench, a hold each, 16 clients, per s", ("settle", "pgbench 16 clients", "per_s", "median")),
    ("memory for a pending purchase, bytes", ("growth", "pending", "bytes_each_in_all")),
)


@dataclass(frozen=True)
class Reached:
    """A goal, and how near it the report came: "stretch", "reach" or "short"."""

    goal: Goal
    value: float
    mark: str

    @property
    def share(self) -> float:
        """How much of the way to the goal it is: 1 is there. At most 3, also for a 0 of which less is better."""
        if not self.goal.most:
            return min(_SHARE_MAX, self.value / self.goal.reach)
        return self.goal.reach / max(self.value, self.goal.reach / _SHARE_MAX)


def reached(report: Mapping[str, Any]) -> list[Reached]:
    """Every goal whose figure is in the report."""
    found = []
    for goal in GOALS:
        value = _figure(report, goal.path)
        if value is not None:
            found.append(Reached(goal, value, _mark(goal, value)))
    return found


def _figure(report: Mapping[str, Any], path: Sequence[str]) -> float | None:
    value: Any = report
    for step in path:
        value = value.get(step) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def _mark(goal: Goal, value: float) -> str:
    for mark, bound in (("stretch", goal.stretch), ("reach", goal.reach)):
        if value <= bound if goal.most else value >= bound:
            return mark
    return "short"


def lines(report: Mapping[str, Any]) -> list[str]:
    """The table for people: the goals, and then what stands beside them."""
    rows = [f"{'':<46}{'measured':>10}{'reach':>9}{'stretch':>9}"]
    for each in reached(report):
        word = {"stretch": "stretch reached", "reach": "reached", "short": "SHORT OF IT"}[each.mark]
        rows.append(f"{each.goal.words:<46}{each.value:>10,.3g}{each.goal.reach:>9g}{each.goal.stretch:>9g}  {word}")
    for words, path in BESIDE:
        value = _figure(report, path)
        if value is not None:
            rows.append(f"{words:<46}{value:>10,.0f}")
    return rows
