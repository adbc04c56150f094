"""How large batches are, and how many of them may be under way, at every pace that can be set."""

from hypothesis import given
from hypothesis import strategies as st

from purchase_svc.pacing import Pace

PACES = st.builds(Pace, rate_per_s=st.integers(1, 100_000), burst=st.integers(10, 10_000))


@given(PACES)
def test_a_batch_always_fits_the_bucket(pace: Pace) -> None:
    assert 1 <= pace.batch_max <= pace.capacity


@given(PACES)
def test_bucket_and_calls_under_way_share_the_burst(pace: Pace) -> None:
    assert pace.calls_max >= 1
    assert pace.calls_max == 1 or pace.capacity + pace.calls_max * pace.batch_max <= pace.burst


@given(PACES)
def test_slow_calls_that_count_twice_do_not_lower_the_pace_below_the_rate(pace: Pace) -> None:
    per_second = 2 * pace.batch_max / pace.slow_call_s
    assert per_second <= pace.rate_per_s * 1.001


def test_the_defaults_send_50_purchases_10_times_a_second() -> None:
    pace = Pace(500, 100)
    assert (pace.batch_max, pace.capacity, pace.calls_max) == (50, 50, 1)
    assert pace.slow_call_s == 0.2


def test_an_opened_bucket_sends_large_batches() -> None:
    pace = Pace(100_000, 1_000)
    assert (pace.batch_max, pace.calls_max) == (250, 2)
