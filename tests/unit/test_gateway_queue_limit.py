"""How many may be on their way to the Purchase Service, in a rush and in an overload that lasts."""

import pytest

from gateway.queue_limit import QueueBounds, QueueLimit

BOUNDS = QueueBounds(100, 5000, wait_s=0.5, standing_wait_s=0.02, rush_s=2.0, rate_initial_per_s=8000.0)


def _served(
    limit: QueueLimit,
    rate_per_s: float,
    seconds: float,
    *,
    start: float = 100.0,
    queued: int = 50,
    took_s: float = 0.01,
) -> float:
    now = start
    while now < start + seconds:
        now += 0.01
        limit.answered(round(rate_per_s / 100), queued, now, took_s)
    return now


def test_the_queue_may_be_as_long_as_can_be_answered_in_the_time_promised() -> None:
    limit = QueueLimit(BOUNDS)
    assert limit.length_max == 4000
    _served(limit, 2000, 1.0)
    assert limit.rate_per_s == pytest.approx(2000, rel=0.05)
    assert limit.length_max == pytest.approx(1000, rel=0.05)
    _served(limit, 2000, 0.1, start=199.0, queued=0)
    _served(limit, 100_000, 1.0, start=200.0)
    assert limit.length_max == 5000
    _served(limit, 10, 1.9, start=300.0)
    _served(limit, 10, 0.1, start=302.0, queued=0)
    _served(limit, 10, 1.9, start=303.0)
    assert limit.rate_per_s < 200
    assert limit.length_max == 100


def test_a_service_with_nothing_to_do_is_not_taken_for_a_slow_one() -> None:
    limit = QueueLimit(BOUNDS)
    _served(limit, 100, 5.0, queued=0)
    assert limit.rate_per_s == 8000.0


def test_a_refused_crowd_is_told_to_return_at_the_rate_of_service() -> None:
    limit = QueueLimit(BOUNDS, chance=lambda: 0.0)
    delays = [limit.return_after_ms(4000, 100.0) for _ in range(4000)]
    assert delays == sorted(delays)
    assert 200 <= delays[0] <= 300, "half the queue is answered by then"
    assert delays[-1] - delays[0] == pytest.approx(500, rel=0.02), "4,000 at 8,000/s"
    assert max(limit.return_after_ms(4000, 100.0) for _ in range(100_000)) == QueueLimit.RETRY_MS_MAX
    assert limit.return_after_ms(0, 200.0) == QueueLimit.RETRY_MS_MIN, "and a crowd of long ago is forgotten"


def test_who_is_told_the_longest_delay_at_once_does_not_return_at_once() -> None:
    limit = QueueLimit(BOUNDS)
    delays = [limit.return_after_ms(100_000, 100.0) for _ in range(1000)]
    longest = QueueLimit.RETRY_MS_MAX
    assert longest * (1 - QueueLimit.JITTER) <= min(delays) < longest * 0.8
    assert longest * 0.95 < max(delays) <= longest


def _refused(limit: QueueLimit, seconds: float, *, start: float) -> float:
    """Served at 2,000/s, with somebody refused all the time."""
    now = start
    while now < start + seconds:
        now = _served(limit, 2000, 0.1, start=now)
        limit.return_after_ms(50, now)
    return now


def test_an_overload_that_lasts_is_met_by_a_short_queue_until_nobody_has_been_refused_for_a_while() -> None:
    limit = QueueLimit(BOUNDS)
    now = _refused(limit, 1.9, start=100.0)
    assert not limit.standing
    now = _refused(limit, 0.3, start=now)
    assert limit.standing
    assert limit.length_max == pytest.approx(40, rel=0.1), "20 ms of 2,000/s"
    now = _served(limit, 2000, QueueLimit.CALM_S - 0.1, start=now)
    assert limit.standing, "somebody was refused a moment ago"
    _served(limit, 2000, 0.2, start=now)
    assert not limit.standing
    assert limit.length_max == pytest.approx(1000, rel=0.1)


def test_a_short_queue_begins_with_twice_the_time_of_the_fastest_call() -> None:
    limit = QueueLimit(BOUNDS)
    now = _served(limit, 2000, 2 * QueueLimit.FASTEST_S + 0.1, took_s=0.05)
    for later_s in (0.0, 1.0, BOUNDS.rush_s + 0.01):
        limit.return_after_ms(50, now + later_s)
    assert limit.standing
    assert limit.length_max == pytest.approx(200, rel=0.1), "twice 50 ms of 2,000/s"


def test_a_pause_makes_two_rushes_of_a_long_overload() -> None:
    limit, now = QueueLimit(BOUNDS), 100.0
    for _ in range(5):
        now = _refused(limit, 1.8, start=now)
        assert not limit.standing
        now = _served(limit, 2000, QueueLimit.CALM_S + 0.2, start=now)
