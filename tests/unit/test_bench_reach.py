"""What the benchmarks reached, as it is told."""

import pytest

from bench.reach import GOALS, Goal, Reached, lines, reached


def _report(wall_s: float, ratio: float) -> dict[str, object]:
    return {
        "rounds": 5,
        "burst": {"burst": {"wall_s": {"median": wall_s}}},
        "accept": {"ratios": {"http / fastapi row locks": ratio}},
    }


@pytest.mark.parametrize(
    ("wall_s", "ratio", "marks"),
    [
        (0.9, 40.0, ["stretch", "stretch"]),
        (1.0, 30.0, ["stretch", "stretch"]),
        (1.5, 25.0, ["reach", "reach"]),
        (1.51, 24.9, ["short", "short"]),
    ],
)
def test_less_is_better_of_times_and_more_of_ratios(wall_s: float, ratio: float, marks: list[str]) -> None:
    assert [each.mark for each in reached(_report(wall_s, ratio))] == marks


def test_the_table_tells_what_is_there_and_what_is_short() -> None:
    table = lines(_report(2.0, 26.0))
    assert len(table) == 3
    assert table[1].endswith("SHORT OF IT")
    assert table[2].endswith("reached")
    assert lines({}) == table[:1]


def test_figures_without_a_goal_stand_below_without_a_mark() -> None:
    decrements = {"limits": {"redis-benchmark DECRBY": {"per_s": {"median": 123_456.7}}}}
    table = lines({**_report(2.0, 26.0), "accept": decrements})
    assert len(table) == 3
    assert table[2].split() == ["redis-benchmark", "DECRBY,", "per", "s", "123,457"]


@pytest.mark.parametrize(
    ("value", "less", "more"), [(0.0, 3.0, 0.0), (2.0, 2.0, 0.5), (4.0, 1.0, 1.0), (99.0, 4 / 99, 3.0)]
)
def test_the_share_of_the_way_is_bounded(value: float, less: float, more: float) -> None:
    assert Reached(Goal("", (), 4.0, 1.0, most=True), value, "").share == less
    assert Reached(Goal("", (), 4.0, 9.0), value, "").share == more


def test_every_goal_has_a_stretch_beyond_its_reach() -> None:
    assert all(goal.stretch < goal.reach if goal.most else goal.stretch > goal.reach for goal in GOALS)
