"""Percentiles by the nearest-rank method: every figure reported is one that was measured."""

import math
from collections.abc import Sequence


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` (0 to 100) of ``ascending`` do not exceed; 0.0 when it is empty.

    ``ascending`` must be sorted. Raises ValueError for a percent out of range.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"percent must be 0 to 100, is {percent}")
    if not ascending:
        return 0.0
    rank = max(1, math.ceil(len(ascending) * percent / 100))
    return ascending[rank - 1]
