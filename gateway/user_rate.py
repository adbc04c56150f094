"""How often one user may buy: a token bucket for each, in bounded memory."""

import math
from collections import OrderedDict


class UserRate:
    """Token buckets of ``burst`` tokens that refill at ``rate_per_s``; at most ``users_max`` are remembered.

    Beyond that the user seen longest ago is forgotten, that is, starts again with a full bucket; whoever has been quiet
    for burst / rate seconds has a full one anyway. Times are seconds of one monotonic clock.
    """

    def __init__(self, rate_per_s: float, burst: int, users_max: int) -> None:
        assert rate_per_s > 0
        assert burst >= 1
        assert users_max >= 1
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._burst = float(burst)
        self._users_max = users_max
        #: Tokens that whoever took or asked for one last has left.
        self.left = float(burst)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, user_id: str, now: float) -> int:
        """Takes one of the user's tokens: 0 if there was one, else the milliseconds until there will be."""
        tokens, seen = self._buckets.pop(user_id, (self._burst, now))
        tokens = min(self._burst, tokens + max(0.0, now - seen) * self.rate_per_s)
        allowed = tokens >= 1.0
        self.left = tokens - 1.0 if allowed else tokens
        self._buckets[user_id] = (self.left, now)
        if len(self._buckets) > self._users_max:
            self._buckets.popitem(last=False)
        return 0 if allowed else max(1, math.ceil((1.0 - tokens) / self.rate_per_s * 1000))
