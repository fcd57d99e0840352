from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from peerlm.daemon.throttle import TokenBucket
from peerlm.types import Instant


@given(
    rate=st.floats(1e3, 1e9),
    burst=st.floats(1e3, 1e7),
    chunks=st.lists(st.integers(1, 1 << 20), min_size=1, max_size=200),
)
def test_never_more_than_the_rate_and_one_burst_and_chunk(rate, burst, chunks) -> None:
    bucket, now, moved = TokenBucket(rate, burst, Instant(0.0)), 0.0, 0
    for chunk in chunks:
        now += bucket.delay_s(Instant(now))
        assert moved <= (rate * now + burst) * (1 + 1e-9) + 1
        bucket.take(chunk, Instant(now))
        moved += chunk


def test_the_rate_is_reached() -> None:
    bucket, now = TokenBucket(1e6, 1e5, Instant(0.0)), 0.0
    for _ in range(100):
        now += bucket.delay_s(Instant(now))
        bucket.take(250_000, Instant(now))
    assert 24.0 < now < 25.0


def test_idle_time_saves_up_no_more_than_a_burst() -> None:
    bucket = TokenBucket(1000, 500, Instant(0.0))
    assert bucket.try_take(500, Instant(1e6))
    assert not bucket.try_take(1, Instant(1e6))
    assert bucket.try_take(99, Instant(1e6 + 0.1))


def test_no_rate_is_no_limit() -> None:
    bucket = TokenBucket(0, 1, Instant(0.0))
    bucket.take(1e12, Instant(0.0))
    assert bucket.delay_s(Instant(0.0)) == 0.0
    assert bucket.try_take(1e12, Instant(0.0))


def test_a_clock_that_stands_still_gives_nothing() -> None:
    bucket = TokenBucket(10, 10, Instant(5.0))
    bucket.take(20, Instant(5.0))
    assert bucket.delay_s(Instant(5.0)) == 1.0
    assert bucket.delay_s(Instant(4.0)) == 1.0
