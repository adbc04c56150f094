"""Contestants measured in turns, A B A B, so that what the machine does besides falls on all of them alike."""

import statistics
from collections.abc import Awaitable, Callable, Mapping

Figures = dict[str, float]
Contestant = Callable[[int], Awaitable[Figures]]
Say = Callable[[str], None]


def spread(values: list[float]) -> dict[str, object]:
    """Median, least and most of a figure, and all of its values in their order."""
    rounded = [round(value, 4) for value in values]
    return {"median": statistics.median(rounded), "min": min(rounded), "max": max(rounded), "values": rounded}


async def alternate(rounds: int, contestants: Mapping[str, Contestant], say: Say) -> dict[str, dict[str, object]]:
    """Lets each play in every round; the spread of every figure by contestant. A contestant is told the round, from 0;
    what it raises ends the contest."""
    seen: dict[str, dict[str, list[float]]] = {name: {} for name in contestants}
    for number in range(rounds):
        for name, play in contestants.items():
            figures = await play(number)
            for figure, value in figures.items():
                seen[name].setdefault(figure, []).append(value)
            told = ", ".join(f"{figure} {value:,.4g}" for figure, value in figures.items())
            say(f"  round {number + 1} of {rounds}  {name}: {told}")
    return {name: {figure: spread(values) for figure, values in figures.items()} for name, figures in seen.items()}


def median(results: Mapping[str, Mapping[str, object]], contestant: str, figure: str) -> float:
    """The median of one figure."""
    found = results[contestant][figure]
    assert isinstance(found, dict)
    return float(found["median"])
