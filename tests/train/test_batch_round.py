"""One batch on its way: what is sent again, what is given up, and that it ends."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from peerlm.train.batch_round import TRIES, WINDOW, BatchRound


def test_few_are_under_way_at_once() -> None:
    batch = BatchRound(WINDOW + 2, 10)
    entered = [batch.enter() for _ in range(WINDOW)]
    assert entered == [(part, 10 + part) for part in range(WINDOW)]
    assert not batch.may_enter
    batch.came_around(10)
    batch.came_home(10)
    assert batch.may_enter
    assert batch.done == [0]


def test_one_that_came_around_does_so_once() -> None:
    batch = BatchRound(1, 0)
    part, number = batch.enter()
    assert batch.part_of(number) == part
    assert not batch.is_around(number)
    batch.came_around(number)
    assert batch.part_of(number) is None
    assert batch.is_around(number)
    assert batch.part_of(number + 1) is None


def test_what_is_lost_on_its_way_is_sent_again_under_another_number_and_first() -> None:
    batch = BatchRound(WINDOW + 1, 0)
    for _ in range(WINDOW):
        batch.enter()
    batch.lost(1)
    assert batch.enter() == (1, WINDOW)
    assert batch.part_of(1) is None
    assert batch.next_number == WINDOW + 1


def test_what_is_lost_too_often_is_given_up() -> None:
    batch = BatchRound(1, 0)
    for number in range(TRIES):
        assert batch.may_enter
        assert batch.enter() == (0, number)
        batch.lost(number)
    assert batch.is_over
    assert batch.done == []


def test_what_is_lost_behind_the_end_is_given_up_for_others_have_its_gradient() -> None:
    batch = BatchRound(2, 0)
    for _ in range(2):
        batch.enter()
    batch.came_around(0)
    batch.lost(0)
    assert not batch.may_enter
    assert not batch.is_around(0)
    batch.came_around(1)
    batch.came_home(1)
    assert batch.is_over
    assert batch.done == [1]


def test_what_is_lost_twice_or_was_never_sent_is_lost_once() -> None:
    batch = BatchRound(1, 5)
    batch.lost(5)
    batch.enter()
    batch.lost(5)
    batch.lost(5)
    assert batch.enter() == (0, 6)
    assert not batch.may_enter


@given(st.integers(1, 9), st.integers(0, 99), st.randoms(use_true_random=False))
def test_it_always_ends_and_each_part_comes_home_at_most_once(
    parts: int, first: int, rng: random.Random
) -> None:
    batch, under_way, around, numbers = BatchRound(parts, first), [], set[int](), []
    for _ in range(3 * TRIES * parts):
        if batch.is_over:
            break
        if batch.may_enter and (not under_way or rng.random() < 0.5):
            numbers.append(batch.enter()[1])
            under_way.append(numbers[-1])
            continue
        number = rng.choice(under_way)
        if rng.random() < 0.3:
            under_way.remove(number)
            batch.lost(number)
        elif number in around:
            under_way.remove(number)
            batch.came_home(number)
        else:
            around.add(number)
            batch.came_around(number)
        assert len(under_way) <= WINDOW
    assert batch.is_over
    assert not under_way
    assert len(set(batch.done)) == len(batch.done)
    assert numbers == list(range(first, batch.next_number))
    assert len(numbers) <= TRIES * parts
