"""How short a queue may be without less being answered, found out by trying. Rules only, no I/O."""


class StandingQueue:
    """The bound of a queue in an overload that lasts.

    Neither the queue nor the measured rate tells whether a bound is too low: a few requests keep every call busy as
    well as many do, and what is answered is then as low as the bound. So it is tried: for a while so many are let in,
    for a while ``MORE`` times as many. If more are answered then, the bound was too low, and rises; if not, it only
    made people wait, and falls. (So does BBR on a shared line. TCP Vegas looks at round trips instead; those of a
    machine short of processor time are as uneven without a queue as with one.)

    Times are seconds of one monotonic clock.
    """

    #: So many times as many are let in while it is tried.
    MORE = 1.5
    #: By how much more must be answered for the bound to rise; what it then rises by, and else falls to.
    GAIN, RISE, FALL = 1.05, 1.35, 0.94
    #: What it falls to while it is so many times what the fastest call would need.
    FAR_ABOVE, FALL_FAR = 4.0, 0.7
    #: Answers are counted over so many calls, for calls are uneven, and over this time, s, at least and at most.
    COUNT_CALLS, COUNT_S_MIN, COUNT_S_MAX = 30, 0.2, 1.5
    #: Weight of the latest call in their mean time.
    WEIGHT = 0.2

    def __init__(self, length: float, now: float, *, least: float, wait_s: float) -> None:
        """Begins with a bound of ``length``; is never below ``least``, nor above what is answered in ``wait_s``."""
        self._length = max(length, least)
        self._least = least
        self._wait_s = wait_s
        self._most = self._length * self.MORE
        self._trying = False
        self._call_s: float | None = None
        self._since = now
        self._answers = self._calls = 0
        self._counting_since: float | None = None
        self._per_s = 0.0

    @property
    def length(self) -> float:
        """Requests that may be on their way now."""
        return min(self._length * self.MORE, self._most) if self._trying else self._length

    def answered(self, answers: int, now: float, took_s: float, *, fastest_s: float, refused_at: float) -> None:
        """Notes that a call with so many answers came back after ``took_s``; the fastest of late took ``fastest_s``,
        and somebody was refused last at ``refused_at``."""
        call_s = self._call_s = took_s if self._call_s is None else self._call_s + self.WEIGHT * (took_s - self._call_s)
        if self._counting_since is None:
            # What comes back at first was let in under the other bound.
            if now - self._since >= call_s:
                self._counting_since, self._answers, self._calls = now, 0, 0
            return
        self._answers += answers
        self._calls += 1
        counted_s = now - self._counting_since
        if counted_s < self.COUNT_S_MIN or (self._calls < self.COUNT_CALLS and counted_s < self.COUNT_S_MAX):
            return
        per_s = self._answers / counted_s
        if not self._trying:
            self._per_s = per_s
        elif per_s > self._per_s * self.GAIN:
            self._length *= self.RISE
        elif refused_at >= self._since:
            # Had nobody been refused meanwhile, there would have been nobody to let in.
            far = self._length > self.FAR_ABOVE * per_s * fastest_s
            self._length *= self.FALL_FAR if far else self.FALL
        self._most = max(self._least, per_s * self._wait_s)
        self._length = max(self._least, min(self._length, self._most))
        self._trying = not self._trying
        self._since, self._counting_since = now, None
