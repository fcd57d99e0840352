"""The plan of scrubbing: everything is read in time, wherever the clock, the disk and the process go."""

from __future__ import annotations

import math
import random

import pytest

from peerlm.store.scrub import DAY_S, JITTER, ROUND, Scrub
from peerlm.types import ObjectHash, WallTime

PERIOD_S = 28 * DAY_S
START = WallTime(1.8e9)
CHUNKS = [(ObjectHash(random.Random(i).randbytes(32)), 4 << 20) for i in range(200)]


def scrub(state: bytes = b"", now: float = START, *, seed: int = 1, bytes_s: float = 1e9) -> Scrub:
    return Scrub(PERIOD_S, bytes_s, random.Random(seed), WallTime(now), state)


def readings(plan: Scrub, now: float, end: float) -> list[tuple[float, ObjectHash]]:
    """When what is read until `end`: late turns at once, one after the other, others when they are due."""
    found = []
    while True:
        for turn in plan.turns(CHUNKS, WallTime(now), 16):
            now = max(now, turn.at)
            if now > end:
                return found
            found.append((now, turn.object_hash))
            plan.taken(turn)
            now += plan.pause_s(turn.size)


def by_chunk(found: list[tuple[float, ObjectHash]]) -> dict[ObjectHash, list[float]]:
    times: dict[ObjectHash, list[float]] = {name: [] for name, _ in CHUNKS}
    for at, name in found:
        times[name].append(at)
    return times


def test_each_is_read_once_in_a_period_give_or_take_a_fifth() -> None:
    for times in by_chunk(readings(scrub(), START, START + 8 * PERIOD_S)).values():
        assert len(times) in (7, 8, 9)
        gaps = [b - a for a, b in zip([START, *times], times, strict=False)]
        assert gaps[0] <= ROUND * PERIOD_S
        assert all((1 - 2 * JITTER) * PERIOD_S <= gap <= ROUND * PERIOD_S + 1 for gap in gaps[1:])
        assert max(gaps[1:]) - min(gaps[1:]) > 0.01 * PERIOD_S, "the turns are not moved"


def test_turns_are_spread_over_the_period_and_other_nodes_have_other_orders() -> None:
    found = readings(scrub(), START, START + PERIOD_S)
    tenths = [
        sum(1 for at, _ in found if int(10 * (at - START) / PERIOD_S) == i) for i in range(10)
    ]
    assert min(tenths) > 5
    other = readings(scrub(seed=2), START, START + PERIOD_S)
    assert [name for _, name in other] != [name for _, name in found]


def test_a_restart_goes_on_where_it_was() -> None:
    plan, now = scrub(), float(START)
    whole = readings(scrub(), START, START + 3 * PERIOD_S)
    found = []
    for _ in range(30):
        found += readings(plan, now, now + PERIOD_S / 10)
        now += PERIOD_S / 10
        plan = scrub(plan.state, now, seed=99)
    assert [name for _, name in found] == [name for _, name in whole]
    assert len(plan.state) <= 32


def test_what_was_due_while_the_node_was_off_is_read_first_and_once() -> None:
    plan = scrub()
    readings(plan, START, START + PERIOD_S)
    back = START + 1.5 * PERIOD_S
    found = readings(scrub(plan.state, back), back, back + 60)
    assert 80 <= len(found) <= 120
    assert len({name for _, name in found}) == len(found)
    again = START + 50 * PERIOD_S
    found = readings(scrub(plan.state, again), again, again + 60)
    assert len(found) <= 300, "rounds that were missed are made up for"


@pytest.mark.parametrize("state", [b"", b"garbage", bytes(20), b"scr1" + b"\xff" * 16, b"x" * 1000])
def test_without_its_memory_it_still_reads_each_in_six_fifths_of_a_period(state: bytes) -> None:
    found = by_chunk(readings(scrub(state), START, START + ROUND * PERIOD_S))
    assert all(found.values())


def test_a_clock_that_was_years_ahead_or_is_put_back_keeps_nothing_from_being_read() -> None:
    ahead = scrub(now=START + 400 * PERIOD_S)
    plan = scrub(ahead.state)
    found = by_chunk(readings(plan, START, START + ROUND * PERIOD_S))
    assert all(found.values())
    found = by_chunk(readings(plan, START - PERIOD_S, START - PERIOD_S + ROUND * PERIOD_S))
    assert all(found.values())


def test_a_budget_that_is_too_small_makes_rounds_longer_and_forgets_nobody() -> None:
    total = sum(size for _, size in CHUNKS)
    plan = scrub(bytes_s=total / (3 * PERIOD_S))
    assert not plan.is_enough(total)
    found = by_chunk(readings(plan, START, START + 15 * PERIOD_S))
    counts = [len(times) for times in found.values()]
    assert min(counts) >= 4
    assert max(counts) <= 6


def test_what_has_just_come_waits_for_a_turn_that_is_still_to_come() -> None:
    plan = scrub()
    assert plan.turns([], WallTime(START + PERIOD_S), 16) == []
    turns = plan.turns(CHUNKS, WallTime(START + PERIOD_S), 1000)
    assert len(turns) == len(CHUNKS)
    assert all(turn.at > START + PERIOD_S for turn in turns)
    assert all(math.isfinite(turn.at) for turn in turns)


def test_it_knows_when_each_had_its_last_turn_also_after_a_start() -> None:
    plan, end = scrub(), START + 2.5 * PERIOD_S
    assert [plan.last(name) for name, _ in CHUNKS] == [None] * len(CHUNKS)
    last = {name: max(times) for name, times in by_chunk(readings(plan, START, end)).items()}
    for one in (plan, scrub(plan.state, end, seed=99)):
        known = {name: one.last(name) for name, _ in CHUNKS}
        assert all(at is not None and abs(at - last[name]) < 60 for name, at in known.items())


@pytest.mark.parametrize("is_first", [True, False])
def test_turns_that_were_missed_are_not_taken_for_readings(is_first: bool) -> None:
    """It was away for rounds, or its memory is of a release that did not say since when it had missed none."""
    plan = scrub()
    readings(plan, START, START + 2 * PERIOD_S)
    state, later = plan.state, START + (2 if is_first else 9) * PERIOD_S
    first = b"scr1" + state[4:20]
    plan = scrub(first if is_first else state, later)
    assert plan.state[4:12] == state[4:12]
    assert [plan.last(name) for name, _ in CHUNKS] == [None] * len(CHUNKS)
    readings(plan, later, later + 1.5 * PERIOD_S)
    assert None not in [plan.last(name) for name, _ in CHUNKS]
