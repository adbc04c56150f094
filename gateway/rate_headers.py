"""What an answer tells users of their rate: RateLimit-Limit, RateLimit-Remaining and RateLimit-Reset
(draft-ietf-httpapi-ratelimit-headers-06)."""

import math

from gateway.problems import Headers

#: Made once for so many remainders; larger ones are made each time.
_KEPT_MAX = 1024


class RateHeaders:
    """For buckets of ``burst`` tokens that refill at ``rate_per_s``. Every bought share's answer has these, so they are
    made before and only looked up."""

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._kept = [self._made(left) for left in range(min(burst, _KEPT_MAX) + 1)]

    def of(self, left: float) -> Headers:
        """The headers when ``left`` tokens are left; whole ones count. Not to be changed."""
        whole = int(left)
        return self._kept[whole] if 0 <= whole < len(self._kept) else self._made(whole)

    def _made(self, left: int) -> Headers:
        full_s = math.ceil((self._burst - left) / self._rate_per_s)
        return [
            ("ratelimit-limit", str(self._burst)),
            ("ratelimit-remaining", str(left)),
            ("ratelimit-reset", str(full_s)),
        ]
