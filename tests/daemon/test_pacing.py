"""Bulk data goes out as fast as its way takes it without a queue, in a line that is simulated byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from random import Random

import pytest

from peerlm.daemon.pacing import (
    FORGOTTEN_S,
    LEAST_BYTES_S,
    UNKNOWN,
    WIDE_BYTES_S,
    Line,
    Pace,
    Paces,
)
from peerlm.types import Instant

STEP_S = 0.005
LOOK_S = 0.05


@dataclass
class Pipe:
    """A line with a queue of any length before it. `offered`: what the sender would send if nobody held it back."""

    bytes_s: float
    rtt_s: float
    offered_bytes_s: float = inf
    pace: Pace = None  # type: ignore[assignment]
    queue: float = 0.0
    sent: float = 0.0
    others_s: Callable[[], float] = lambda: 0.0
    """What answers take longer for reasons that are not ours."""
    smooth_s: float = 0.0

    def __post_init__(self) -> None:
        self.pace = self.pace or Pace()
        self.smooth_s = self.rtt_s

    def run(self, began: float, seconds: float) -> tuple[float, list[float]]:
        """(share of the line that was used, queueing times)."""
        carried, queues = 0.0, []
        for step in range(round(seconds / STEP_S)):
            now = Instant(began + step * STEP_S)
            # Without a pace TCP keeps twice what is on its way.
            window = 2 * self.bytes_s * self.rtt_s
            rate = min(self.pace.rate_bytes_s, self.offered_bytes_s)
            room = max(0.0, window - self.queue)
            coming = min(rate * STEP_S, room) if rate < inf else room
            going = min(self.queue + coming, self.bytes_s * STEP_S)
            self.queue += coming - going
            self.sent += coming
            carried += going
            rtt_s = self.rtt_s + self.queue / self.bytes_s + self.others_s()
            self.smooth_s += (rtt_s - self.smooth_s) / 4
            queues.append(self.queue / self.bytes_s)
            if step % round(LOOK_S / STEP_S) == 0:
                is_filled = self.offered_bytes_s >= self.pace.rate_bytes_s
                line = Line(self.smooth_s, self.rtt_s, going / STEP_S, is_filled, int(self.sent))
                self.pace.look(line, now)
        return carried / (self.bytes_s * seconds), queues


@pytest.mark.parametrize("mbit", [3, 10, 100, 300])
@pytest.mark.parametrize("rtt_s", [0.01, 0.05, 0.2])
def test_a_line_is_used_and_hardly_anybody_waits(mbit: float, rtt_s: float) -> None:
    pipe = Pipe(mbit * 125_000, rtt_s)
    pipe.run(0.0, 10.0)
    used, queues = pipe.run(10.0, 30.0)
    assert used > 0.85
    assert sorted(queues)[round(0.99 * len(queues)) - 1] < 0.045


@pytest.mark.parametrize("mean_s", [0.03, 0.2])
@pytest.mark.parametrize("is_constant", [True, False])
def test_a_delay_that_is_not_ours_does_not_take_the_line_from_us(
    mean_s: float, is_constant: bool
) -> None:
    rng = Random(1)
    pipe = Pipe(2e6, 0.05)
    pipe.run(0.0, 10.0)
    pipe.others_s = lambda: mean_s if is_constant else rng.expovariate(1 / mean_s)
    assert pipe.run(10.0, 120.0)[0] > 0.5


def test_after_a_delay_that_was_not_ours_the_queue_is_short_again() -> None:
    pipe = Pipe(2e6, 0.05)
    pipe.others_s = lambda: 0.06
    pipe.run(0.0, 60.0)
    pipe.others_s = lambda: 0.0
    pipe.run(60.0, 30.0)
    used, queues = pipe.run(90.0, 30.0)
    assert used > 0.85
    assert sorted(queues)[round(0.99 * len(queues)) - 1] < 0.05


def test_who_sends_little_is_not_sped_up_for_it() -> None:
    pipe = Pipe(1e6, 0.05)
    pipe.run(0.0, 10.0)
    pipe.offered_bytes_s = 1e5
    before = pipe.pace.rate_bytes_s
    pipe.run(10.0, 60.0)
    assert pipe.pace.rate_bytes_s <= before * 1.1


def test_a_line_that_becomes_better_is_used_and_one_that_becomes_worse_recovers() -> None:
    pipe = Pipe(1e6, 0.05)
    pipe.run(0.0, 10.0)
    pipe.bytes_s = 4e6
    pipe.run(10.0, 10.0)
    assert pipe.run(20.0, 10.0)[0] > 0.85
    pipe.bytes_s = 0.5e6
    pipe.run(30.0, 10.0)
    assert max(pipe.run(40.0, 10.0)[1]) < 0.05


@pytest.mark.parametrize(
    "line",
    [
        Line(0.5, 0.001, 2 * WIDE_BYTES_S, is_filled=True, acked_bytes=1),
        Line(0.5, 0.001, 1e6, is_filled=False, acked_bytes=1),
        Line(0.5, 0.1, 0.0, is_filled=True, acked_bytes=1),
        UNKNOWN,
    ],
)
def test_what_is_wide_or_not_known_is_left_alone(line: Line) -> None:
    pace = Pace()
    for second in range(5):
        pace.look(line, Instant(second))
    assert pace.rate_bytes_s == inf


def crawling(rtt_s: float, delivered_bytes_s: float = 1.0) -> Line:
    return Line(rtt_s, 0.1, delivered_bytes_s, is_filled=True, acked_bytes=1)


def test_one_late_answer_is_no_queue_and_however_long_one_is_it_never_stands_still() -> None:
    pace = Pace()
    pace.look(crawling(1.0), Instant(0.0))
    pace.look(crawling(0.1), Instant(2.0))
    assert pace.rate_bytes_s == inf
    for second in range(4, 200, 2):
        pace.look(crawling(1.0), Instant(second))
        assert pace.rate_bytes_s >= LEAST_BYTES_S
    pace.look(crawling(0.9, 1e6), Instant(300.0))
    pace.look(crawling(0.9, 1e6), Instant(302.0))
    rate = pace.rate_bytes_s
    pace.look(crawling(0.9, 1e6), Instant(302.5))
    assert pace.rate_bytes_s == rate, "within the time of an answer"


def test_connections_with_a_host_have_one_pace_until_it_is_long_ago() -> None:
    paces = Paces()
    one = paces.of("10.0.0.1", Instant(5.0))
    one.look(crawling(1.0), Instant(5.0))
    assert paces.of("10.0.0.1", Instant(6.0)) is one
    assert paces.of("10.0.0.2", Instant(6.0)) is not one
    assert paces.of("10.0.0.1", Instant(7.0 + FORGOTTEN_S)) is not one
