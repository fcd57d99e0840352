"""A node mixes as often as its share of the line carries, whatever the line."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlm.config import MixSection
from peerlm.mix.tempo import PERIOD_S, Tempo
from peerlm.types import Instant

STEP_S = 0.1


class Line:
    """A node that trains and mixes over a line on which an outer step's exchanges take `cost_s`."""

    def __init__(
        self,
        mix: MixSection,
        cost_s: float,
        *,
        sent: int = 0,
        work_s: float = 0.0,
        rate: float = 0.0,
        trains_on_cpu: bool = False,
    ) -> None:
        self.now = 0.0
        self.cost_s = cost_s
        self.sent, self.work_s, self.rate, self.on_cpu = sent, work_s, rate, trains_on_cpu
        self.tempo = Tempo(mix, Instant(0.0))

    def live(self, seconds: float) -> None:
        """Outer steps one after another; when exchanges take longer than the steps, they wait."""
        until = self.now + seconds
        while self.now < until:
            round_s = max(self.tempo.inner_steps * STEP_S, self.cost_s)
            self.tempo.note(Instant(self.now), moving=True)
            self.tempo.note(Instant(self.now + self.cost_s), moving=self.cost_s >= round_s)
            self.tempo.exchanged(self.sent, self.work_s, self.rate)
            self.now += round_s
            self.tempo.look(STEP_S, Instant(self.now), trains_on_cpu=self.on_cpu)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("cost_s", [0.7, 2.0, 10.0])
def test_the_line_is_used_as_much_as_it_may_be(share: float, cost_s: float) -> None:
    line = Line(MixSection(bandwidth_share=share), cost_s)
    line.live(5000)
    assert line.tempo.use == pytest.approx(share, rel=0.25)
    assert line.tempo.inner_steps == pytest.approx(cost_s / share / STEP_S, rel=0.25)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_where_the_line_is_known_bytes_count_and_not_how_long_they_took(share: float) -> None:
    """A megabyte an outer step on a line of one a second; the exchange itself takes but a tenth of one."""
    line = Line(MixSection(bandwidth_share=share), 0.1, sent=1_000_000, rate=1e6)
    line.live(3000)
    assert line.tempo.use == pytest.approx(share, rel=0.1)
    assert line.tempo.inner_steps == pytest.approx(1 / share / STEP_S, rel=0.1)
    assert line.tempo.line_bytes_s == 1e6


def test_on_a_long_way_exchanges_take_the_time_and_the_line_is_left_idle() -> None:
    line = Line(MixSection(), 6.0, sent=1000, rate=1e9)
    line.live(5000)
    assert line.tempo.use is not None
    assert line.tempo.use < 1e-4
    assert line.tempo.inner_steps == pytest.approx(6.0 / 0.75 / STEP_S, rel=0.1)


@pytest.mark.parametrize(("on_cpu", "bound"), [(True, 0.05), (False, 0.5)])
def test_work_is_bounded_more_tightly_where_processors_train(on_cpu: bool, bound: float) -> None:
    line = Line(MixSection(), 0.01, sent=1, work_s=0.8, rate=1e9, trains_on_cpu=on_cpu)
    line.live(5000)
    assert line.tempo.inner_steps == pytest.approx(0.8 / bound / STEP_S, rel=0.1)


def test_the_best_of_the_last_measurements_is_what_the_line_can_do() -> None:
    tempo = Tempo(MixSection(), Instant(0.0))
    assert tempo.line_bytes_s is None
    for rate in (5.0, 9.0, 0.0, 2.0):
        tempo.exchanged(1, 0.0, rate)
    assert tempo.line_bytes_s == 9.0
    for _ in range(40):
        tempo.exchanged(1, 0.0, 3.0)
    assert tempo.line_bytes_s == 3.0


def test_a_line_that_becomes_slow_is_noticed_and_one_that_recovers_too() -> None:
    line = Line(MixSection(), 1.0)
    line.live(500)
    fast = line.tempo.inner_steps
    line.cost_s = 20.0
    line.live(3000)
    assert line.tempo.inner_steps > 10 * fast
    line.cost_s = 1.0
    line.live(3000)
    assert line.tempo.inner_steps == pytest.approx(fast, rel=0.35)


def test_bounds_hold_on_the_fastest_line_and_on_the_slowest() -> None:
    mix = MixSection(inner_steps_min=3, inner_steps_max=50)
    for cost_s, expected in ((0.001, 3), (100.0, 50)):
        line = Line(mix, cost_s)
        line.live(10_000)
        assert line.tempo.inner_steps == expected


def test_without_a_share_h_is_the_plans() -> None:
    line = Line(MixSection(bandwidth_share=0.0, inner_steps=7), 20.0)
    line.live(1000)
    assert line.tempo.inner_steps == 7
    assert line.tempo.use == pytest.approx(1.0)


def test_without_exchanges_h_stays_and_the_line_is_idle() -> None:
    tempo = Tempo(MixSection(), Instant(0.0))
    for second in range(100):
        tempo.look(STEP_S, Instant(float(second)))
    assert tempo.inner_steps == MixSection().inner_steps
    assert tempo.use == 0.0


def test_nothing_is_concluded_from_less_than_an_outer_step() -> None:
    tempo = Tempo(MixSection(inner_steps=100), Instant(0.0))
    tempo.note(Instant(0.0), moving=True)
    tempo.look(1.0, Instant(2 * PERIOD_S))
    assert tempo.use is None


def test_what_was_before_a_beginning_does_not_count() -> None:
    tempo = Tempo(MixSection(), Instant(0.0))
    tempo.note(Instant(0.0), moving=True)
    tempo.begin(Instant(100.0))
    tempo.note(Instant(101.0), moving=False)
    tempo.look(STEP_S, Instant(110.0))
    assert tempo.use == pytest.approx(0.1)


def test_a_revised_plan_begins_anew_only_where_it_is_about_this() -> None:
    mix = MixSection()
    line = Line(mix, 10.0)
    line.live(2000)
    settled = line.tempo.inner_steps
    assert settled > mix.inner_steps
    line.tempo.follow(replace(mix, weight=0.4), Instant(line.now))
    assert line.tempo.inner_steps == settled
    line.tempo.follow(replace(mix, inner_steps=30), Instant(line.now))
    assert line.tempo.inner_steps == 30


@given(st.integers(0, 2**32), st.floats(0.01, 1.0))
def test_use_is_a_share_whatever_is_noted(seed: int, share: float) -> None:
    rng, now = random.Random(seed), 0.0
    mix = MixSection(bandwidth_share=share)
    tempo = Tempo(mix, Instant(0.0))
    for _ in range(200):
        now += rng.expovariate(1.0)
        if rng.random() < 0.5:
            tempo.note(Instant(now), moving=rng.random() < 0.5)
        else:
            tempo.look(rng.random(), Instant(now))
        assert tempo.use is None or 0 <= tempo.use <= 1
        assert mix.inner_steps_min <= tempo.inner_steps <= mix.inner_steps_max
