"""How short the queue is in an overload that lasts: with a simulated service behind it, and far more people than it can
serve in front."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.queue_limit import QueueBounds, QueueLimit
from gateway.standing_queue import StandingQueue

BOUNDS = QueueBounds(2000, 8000, wait_s=0.5, standing_wait_s=0.04, rush_s=2.0, rate_initial_per_s=8000.0)
CALLS, BATCH, STEP_S = 3, 250, 0.001


@dataclass
class Second:
    """What was answered in a second, and how long those who were answered had waited, s."""

    answered: int = 0
    waits: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        return sorted(self.waits)[len(self.waits) // 2]


def overload(capacity: Callable[[float], float], *, call_s: float, uneven: float, seconds: int) -> list[Second]:
    """A service that answers ``capacity`` (of the time) a second, each call after ``call_s`` more or less, while
    somebody is refused at every moment."""
    rnd = random.Random(1)
    limit = QueueLimit(BOUNDS, rnd.random)
    passed = [Second() for _ in range(seconds)]
    queue: list[float] = []
    calls: list[tuple[float, float, list[float]]] = []
    sent, free_at = 0, 0.0
    for step in range(1, seconds * 1000):
        now = step * STEP_S
        while calls and calls[0][0] <= now:
            busy = len(calls) >= CALLS
            ended, began, came = heapq.heappop(calls)
            sent -= len(came)
            passed[int(now)].answered += len(came)
            passed[int(now)].waits += [ended - each for each in came]
            limit.answered(len(came), len(queue) + (sent if busy else 0), now, ended - began)
        queue += [now] * (limit.length_max - len(queue) - sent)
        limit.return_after_ms(len(queue) + sent, now)
        while queue and len(calls) < CALLS:
            came, queue = queue[:BATCH], queue[BATCH:]
            free_at = max(now, free_at) + len(came) / capacity(now)
            heapq.heappush(calls, (free_at + call_s * rnd.uniform(1 - uneven, 1 + uneven), now, came))
            sent += len(came)
    return passed


def _per_s(passed: list[Second]) -> float:
    return sum(second.answered for second in passed) / len(passed)


def test_nothing_less_is_answered_however_uneven_calls_are() -> None:
    """A bound from the fastest call ended at a half of what was possible here."""
    for capacity_per_s, call_s in ((2000, 0.015), (2000, 0.06), (8000, 0.04)):
        passed = overload(lambda _, per_s=capacity_per_s: per_s, call_s=call_s, uneven=0.8, seconds=25)  # type: ignore[misc]
        assert _per_s(passed[8:]) > 0.9 * capacity_per_s, (capacity_per_s, call_s)


def test_people_wait_less_than_in_a_rush() -> None:
    passed = overload(lambda _: 4000, call_s=0.02, uneven=0.5, seconds=20)
    assert all(second.median_s < 0.25 for second in passed[8:])


def test_a_service_that_recovers_is_used_within_seconds() -> None:
    passed = overload(lambda now: 400 if now < 15 else 4000, call_s=0.04, uneven=0.5, seconds=30)
    assert _per_s(passed[12:15]) < 450
    assert _per_s(passed[22:]) > 0.8 * 4000


def test_a_service_that_slows_down_makes_people_wait_little_longer_than_promised() -> None:
    passed = overload(lambda now: 4000 if now < 15 else 400, call_s=0.04, uneven=0.5, seconds=35)
    assert _per_s(passed[20:]) > 0.9 * 400
    assert all(second.median_s < 2 * BOUNDS.wait_s for second in passed[25:])


def test_a_bound_that_refuses_nobody_does_not_fall() -> None:
    queue = StandingQueue(100.0, 0.0, least=16, wait_s=0.5)
    lengths = set()
    for step in range(1, 2000):
        queue.answered(5, step * 0.01, 0.02, fastest_s=0.02, refused_at=-1.0)
        lengths.add(queue.length)
    assert lengths == {100.0, 100.0 * StandingQueue.MORE}


def test_nobody_is_let_in_who_cannot_be_answered_in_time_not_for_a_trial_either() -> None:
    queue = StandingQueue(1000.0, 0.0, least=16, wait_s=0.5)
    lengths = []
    for step in range(1, 2000):
        queue.answered(5, step * 0.01, 0.02, fastest_s=0.02, refused_at=-1.0)
        lengths.append(queue.length)
    # 500/s.
    assert max(lengths[200:]) < 260


def test_a_bound_never_falls_below_the_least() -> None:
    queue = StandingQueue(100.0, 0.0, least=16, wait_s=0.5)
    for step in range(1, 20_000):
        queue.answered(1, step * 0.01, 0.02, fastest_s=0.02, refused_at=step * 0.01)
    assert queue.length in (16, 16 * StandingQueue.MORE)
