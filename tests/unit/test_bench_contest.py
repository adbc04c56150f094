"""Contestants in turns, and what their figures come to."""

from bench.contest import alternate, median, spread
from bench.processor_time import used_since


async def test_contestants_play_in_turns_and_each_figure_has_its_spread() -> None:
    played: list[str] = []

    def contestant(name: str, values: list[float]):  # type: ignore[no-untyped-def]
        async def play(number: int) -> dict[str, float]:
            played.append(f"{name}{number}")
            return {"per_s": values[number]}

        return play

    told: list[str] = []
    seen = await alternate(3, {"a": contestant("a", [1, 9, 2]), "b": contestant("b", [4, 4, 4])}, told.append)
    assert played == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert len(told) == 6
    assert seen["a"]["per_s"] == {"median": 2, "min": 1, "max": 9, "values": [1, 9, 2]}
    assert median(seen, "b", "per_s") == 4


def test_a_part_that_was_started_anew_counts_from_its_start() -> None:
    assert used_since({"a": 1.5, "b": 9.0}, {"a": 2.0, "b": 0.5, "c": 0.25}) == {"a": 0.5, "b": 0.5, "c": 0.25}


def test_a_spread_of_one_is_itself() -> None:
    assert spread([3.0])["median"] == 3.0
