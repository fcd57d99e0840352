"""Who is admitted and who reads what: no weights, no clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlm.serve.scheduler import SHARE_MIN, QueueFull, Scheduler


def test_first_come_first_served_lowest_slot_first() -> None:
    scheduler = Scheduler(slots=2, queue_max=8, chunk=64)
    scheduler.offer([(n, 4) for n in range(4)])
    assert scheduler.admit() == [0, 1]
    assert scheduler.admit() == []
    assert scheduler.end(0) == 0
    assert scheduler.admit() == [2]
    assert [(a.session, a.slot) for a in scheduler.step()] == [(1, 1), (2, 0)]


def test_a_request_waits_whole_or_not_at_all() -> None:
    scheduler = Scheduler(slots=1, queue_max=2, chunk=64)
    scheduler.offer([(0, 4)])
    scheduler.admit()
    scheduler.offer([(1, 4)])
    with pytest.raises(QueueFull):
        scheduler.offer([(2, 4), (3, 4)])
    assert scheduler.waiting == 1
    scheduler.offer([(4, 4)])
    scheduler.end(1)
    assert scheduler.end(1) is None
    assert scheduler.waiting == 1


def test_a_large_request_may_have_an_empty_house() -> None:
    scheduler = Scheduler(slots=2, queue_max=0, chunk=64)
    scheduler.offer([(n, 1) for n in range(5)])
    assert scheduler.admit() == [0, 1]


def test_who_writes_advances_in_every_step_beside_a_long_prompt() -> None:
    scheduler = Scheduler(slots=4, queue_max=8, chunk=32)
    scheduler.offer([(0, 1), (1, 1000)])
    scheduler.admit()
    read = 0
    while read < 1000:
        one, two = scheduler.step()
        assert (one.session, one.stop - one.start, one.is_last) == (0, 1, True)
        assert two.start == read
        assert two.stop - two.start <= 32
        read = two.stop
        assert two.is_last == (read == 1000)
        scheduler.drawn(0)


def test_a_short_prompt_is_not_held_up_by_long_ones() -> None:
    scheduler = Scheduler(slots=8, queue_max=8, chunk=64)
    scheduler.offer([(n, 5000) for n in range(4)] + [(4, 10)])
    scheduler.admit()
    steps = 0
    while not any(a.session == 4 and a.is_last for a in scheduler.step()):
        steps += 1
    assert steps <= 1


@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 9)), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(16, 64),
)
def test_everybody_reads_everything_once_in_order(
    sessions: list[tuple[int, int]], slots: int, chunk: int
) -> None:
    scheduler = Scheduler(slots, len(sessions), chunk)
    for number, (prompt, _) in enumerate(sessions):
        scheduler.offer([(number, prompt)])
    read = [0] * len(sessions)
    drawn = [0] * len(sessions)
    for _ in range(10_000):
        scheduler.admit()
        advances = scheduler.step()
        assert len({a.slot for a in advances}) == len(advances) <= slots
        assert sum(n for a in advances if (n := a.stop - a.start) > 1) <= chunk + SHARE_MIN
        for a in advances:
            assert a.start == read[a.session]
            read[a.session] = a.stop
            prompt, tokens = sessions[a.session]
            assert a.is_last == (a.stop == prompt + drawn[a.session])
            if a.is_last:
                drawn[a.session] += 1
                if drawn[a.session] == tokens:
                    scheduler.end(a.session)
                else:
                    scheduler.drawn(a.session)
        if not (scheduler.active or scheduler.waiting):
            break
    assert drawn == [tokens for _, tokens in sessions]
