"""When a worker is started again."""

from __future__ import annotations

import pytest

from peerlm.node.supervision import (
    BACKOFF_S_MAX,
    BARREN_REPORTS,
    GAPS_MIN,
    HUNG_S,
    HUNG_S_MIN,
    Supervision,
)
from peerlm.types import Instant

NOW = Instant(100.0)


def died(supervision: Supervision, error: str = "boom") -> float:
    """A generation that dies at once; how long the next one is waited for."""
    supervision.start(NOW)
    supervision.exited(error, True, NOW)
    due = supervision.deadline()
    assert due is not None
    return due - NOW


def test_deaths_in_a_row_wait_longer_but_never_beyond_a_minute_however_many() -> None:
    supervision = Supervision()
    waits = [died(supervision) for _ in range(3000)]
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert waits[-1] == BACKOFF_S_MAX
    assert supervision.restarts == 3000
    assert supervision.last_error == "boom"


def test_a_worker_that_was_asked_to_stop_is_started_again_at_once() -> None:
    supervision = Supervision()
    assert died(supervision, "") == 0.0
    assert (supervision.restarts, supervision.last_error) == (0, "")


def test_a_worker_whose_every_step_is_not_finite_is_condemned_once_and_counts_as_dead() -> None:
    supervision = Supervision()
    supervision.start(NOW)
    supervision.ready("cpu", 1)
    for report in range(BARREN_REPORTS):
        assert not supervision.condemn(NOW)
        supervision.progressed(None, report + 1, NOW)
    assert supervision.condemn(NOW)
    assert not supervision.condemn(NOW)
    supervision.exited("", True, NOW)
    assert "not finite" in supervision.last_error
    assert supervision.restarts == 1


def test_a_silent_worker_is_condemned_unless_nothing_is_expected_of_it() -> None:
    supervision = Supervision()
    supervision.start(NOW)
    supervision.ready("cpu", 1)
    late = Instant(NOW + HUNG_S + 1)
    supervision.heard(late)
    assert not supervision.condemn(late)
    assert silence_s(supervision, late) == pytest.approx(HUNG_S, abs=1)
    assert supervision.silent_s(late) == 0


def silence_s(supervision: Supervision, since: Instant, step_s: float = 0.5) -> float:
    """How long a worker may be silent, looked at twice a second, until it is condemned."""
    waited = 0.0
    while not supervision.condemn(Instant(since + waited)):
        waited += step_s
        assert waited < 2 * HUNG_S
    return waited


@pytest.mark.parametrize(
    ("gap_s", "patience_s"), [(1.0, HUNG_S_MIN), (10.0, 200.0), (80.0, HUNG_S)]
)
def test_whoever_used_to_tell_often_is_waited_for_less(gap_s: float, patience_s: float) -> None:
    supervision = Supervision()
    supervision.start(NOW)
    supervision.ready("cpu", 1)
    now = NOW
    for _ in range(GAPS_MIN):
        for _ in range(int(gap_s / 0.5)):
            now = Instant(now + 0.5)
            assert not supervision.condemn(now)
        supervision.progressed(1.0, 0, now)
    assert silence_s(supervision, now) == pytest.approx(patience_s, abs=1)


def one_that_told_each_second() -> tuple[Supervision, Instant]:
    """A worker that runs, and when it last told how it goes."""
    supervision, last = Supervision(), NOW
    supervision.start(NOW)
    supervision.ready("cpu", 1)
    for second in range(1, 10):
        last = Instant(NOW + second)
        supervision.progressed(1.0, 0, last)
    return supervision, last


def test_an_evaluation_may_take_longer_than_any_step() -> None:
    supervision, last = one_that_told_each_second()
    for second in range(1, 300):
        assert not supervision.condemn(Instant(last + second), evaluating=True)
    assert supervision.silent_s(Instant(last + 300)) == 0


def test_people_are_told_of_an_unusual_silence_before_it_ends() -> None:
    supervision, last = one_that_told_each_second()
    for second in range(1, 31):
        assert not supervision.condemn(Instant(last + second))
    assert supervision.silent_s(Instant(last + 10)) == 0
    assert supervision.silent_s(Instant(last + 30)) == 30


def test_a_machine_that_slept_has_not_been_told_nothing() -> None:
    supervision, _ = one_that_told_each_second()
    awake = Instant(NOW + 5000)
    assert not supervision.condemn(awake)
    assert supervision.silent_s(awake) < 10


def test_progress_for_a_while_wipes_the_slate_clean() -> None:
    supervision = Supervision()
    for _ in range(5):
        died(supervision)
    supervision.start(NOW)
    supervision.progressed(1.0, 0, Instant(NOW + 61))
    supervision.exited("boom", True, NOW)
    assert supervision.deadline() == NOW + 1.0
