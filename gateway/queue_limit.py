"""How many purchases may be waiting for an answer, and when those beyond are to return. Rules only, no I/O."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from gateway.standing_queue import StandingQueue


@dataclass(frozen=True, slots=True)
class QueueBounds:
    """Bounds of a QueueLimit; times in seconds."""

    #: A rush may be so many, and no more, however fast they are answered.
    least: int
    most: int
    #: The wait that is promised to whoever is let in.
    wait_s: float
    #: The wait that an overload which has lasted for ``rush_s`` begins to be met with: twice what a call takes at its
    #: fastest, and at least this.
    standing_wait_s: float
    rush_s: float
    rate_initial_per_s: float


class QueueLimit:
    """How many requests may be on their way at once so that each is answered in time, from the rate at which they are.

    A rush may fill the queue: its end is near. In an overload that lasts a full queue only makes everybody wait, for
    nothing more is answered by it. So when people have been refused for ``rush_s`` without a pause of ``CALM_S``, it is
    kept as short as it can be without less being answered, until there is such a pause (the idea of CoDel, RFC 8289:
    what counts is whether a queue stands, not how long it is; how short that is, ``StandingQueue`` finds out).

    The rate is measured only while requests wait: a service with nothing to do tells nothing about what it can do.
    Whoever is refused is told when to return, and those times are handed out at the measured rate, one after another:
    told all the same delay, a refused crowd comes back as the same crowd. Times are seconds of one monotonic clock.
    """

    #: Shortest time over which a rate is measured, s: single batches come in clumps.
    WINDOW_S = 0.05
    #: Weight of the newest window.
    WEIGHT = 0.4
    RETRY_MS_MIN = 50
    #: A crowd that is told to come back much later misses stock that returns, or learns late that there is none.
    RETRY_MS_MAX = 1000
    #: An overload is over when nobody has been refused for so long, s: longer than those wait who were told to return.
    CALM_S = 1.5
    #: The fastest call is looked for among those of the last one to two such times, s.
    FASTEST_S = 5.0
    #: Part of a delay that is left to chance, so that who is told the longest delay at once does not return at once.
    JITTER = 0.25
    #: Fewest on their way in a lasting overload.
    STANDING_LEAST = 16

    def __init__(self, bounds: QueueBounds, chance: Callable[[], float] = random.random) -> None:
        """``chance`` is from 0 to 1."""
        self._bounds = bounds
        self._chance = chance
        self.rate_per_s = bounds.rate_initial_per_s
        self._window_start: float | None = None
        self._window_answers = 0
        self._next_return = 0.0
        #: When the last refusal was, and the first of those that followed each other without a pause until then.
        self._refused_at = self._refusing_since = float("-inf")
        self._standing: StandingQueue | None = None
        self._fastest_s = self._fastest_before_s = float("inf")
        self._fastest_since = 0.0

    @property
    def standing(self) -> bool:
        """Whether an overload has lasted."""
        return self._standing is not None

    @property
    def length_max(self) -> int:
        """Requests that may be on their way now."""
        if self._standing is not None:
            return min(self._bounds.most, int(self._standing.length))
        return max(self._bounds.least, min(self._bounds.most, int(self.rate_per_s * self._bounds.wait_s)))

    def answered(self, answers: int, waiting: int, now: float, took_s: float) -> None:
        """Notes that a batch of ``answers`` came back after ``took_s`` and left ``waiting`` requests behind."""
        if self._window_start is not None:
            self._window_answers += answers
            elapsed = now - self._window_start
            if elapsed >= self.WINDOW_S:
                self.rate_per_s += self.WEIGHT * (self._window_answers / elapsed - self.rate_per_s)
                self._window_start, self._window_answers = now, 0
        if waiting == 0:
            self._window_start = None
        elif self._window_start is None:
            self._window_start, self._window_answers = now, 0
        if now - self._fastest_since > self.FASTEST_S:
            self._fastest_before_s, self._fastest_s, self._fastest_since = self._fastest_s, float("inf"), now
        self._fastest_s = min(self._fastest_s, took_s)
        if self._standing is None:
            return
        if now - self._refused_at >= self.CALM_S:
            self._standing = None
            return
        fastest_s = min(self._fastest_s, self._fastest_before_s)
        self._standing.answered(answers, now, took_s, fastest_s=fastest_s, refused_at=self._refused_at)

    def return_after_ms(self, waiting: int, now: float) -> int:
        """When a refused request should return, milliseconds from now; takes the next place in the order of return."""
        if now - self._refused_at > self.CALM_S:
            self._refusing_since = now
        self._refused_at = now
        if self._standing is None and now - self._refusing_since > self._bounds.rush_s:
            fastest_s = min(self._fastest_s, self._fastest_before_s)
            wait_s = min(self._bounds.wait_s, max(self._bounds.standing_wait_s, 2 * fastest_s))
            self._standing = StandingQueue(
                self.rate_per_s * wait_s, now, least=self.STANDING_LEAST, wait_s=self._bounds.wait_s
            )
        place_s = 1.0 / max(self.rate_per_s, 1.0)
        # Not before what is on its way is down to half.
        earliest = now + waiting * place_s / 2
        latest = now + self.RETRY_MS_MAX / 1000
        self._next_return = min(max(self._next_return + place_s, earliest), latest)
        delay_ms = (self._next_return - now) * 1000 * (1 - self.JITTER * self._chance())
        return min(self.RETRY_MS_MAX, max(self.RETRY_MS_MIN, round(delay_ms)))
