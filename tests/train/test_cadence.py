"""Which fragment is handed in when."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlm.train.cadence import Cadence
from peerlm.types import FragmentId


def hand_in_all(cadence: Cadence) -> list[int]:
    """Hand in what is ready, and have the daemon take it at once."""
    ready = cadence.ready()
    for fragment in ready:
        cadence.handed_in(fragment)
        cadence.taken(fragment)
    return list(ready)


@pytest.mark.parametrize(("fragments", "every"), [(1, 1), (10, 20), (10, 3), (3, 50)])
def test_each_fragment_comes_once_in_every_h_steps(fragments: int, every: int) -> None:
    cadence = Cadence(range(fragments), every)
    seen: Counter[int] = Counter()
    for _ in range(4 * every):
        cadence.stepped()
        seen.update(hand_in_all(cadence))
    assert seen == dict.fromkeys(range(fragments), 4)


def test_fragments_are_spread_over_the_steps() -> None:
    cadence = Cadence(range(10), every=20)
    bursts = []
    for _ in range(40):
        cadence.stepped()
        bursts.append(len(hand_in_all(cadence)))
    assert max(bursts) == 1
    assert sum(bursts) == 20


def test_a_fragment_the_daemon_still_reads_waits_and_does_not_pile_up() -> None:
    cadence = Cadence(range(1), every=2)
    cadence.stepped()
    cadence.stepped()
    cadence.handed_in(FragmentId(0))
    for _ in range(5):
        cadence.stepped()
        assert cadence.ready() == []
    cadence.taken(FragmentId(0))
    assert hand_in_all(cadence) == [0]
    assert cadence.ready() == []


def test_draining_hands_in_what_moved_and_nothing_else() -> None:
    cadence = Cadence(range(2), every=4)
    for _ in range(2):
        cadence.stepped()
    assert hand_in_all(cadence) == [1]
    cadence.drain()
    assert hand_in_all(cadence) == [0]
    assert cadence.is_idle()


def test_draining_before_the_first_step_has_nothing_to_hand_in() -> None:
    cadence = Cadence(range(2), every=4)
    cadence.drain()
    assert cadence.is_idle()


def test_draining_is_over_only_when_the_daemon_has_read_everything() -> None:
    cadence = Cadence(range(1), every=4)
    cadence.stepped()
    cadence.drain()
    cadence.handed_in(FragmentId(0))
    assert not cadence.is_idle()
    cadence.taken(FragmentId(0))
    assert cadence.is_idle()


@given(st.integers(1, 12), st.integers(1, 60), st.lists(st.integers(1, 60), max_size=8))
def test_however_h_changes_each_fragment_comes_within_the_larger_of_two(
    fragments: int, every: int, changes: list[int]
) -> None:
    cadence, last, step, widest = Cadence(range(fragments), every), [0] * fragments, 0, every
    for h in [*changes, every]:
        cadence.change(h)
        widest = max(widest, h)
        for _ in range(2 * h):
            step += 1
            cadence.stepped()
            for fragment in cadence.ready():
                assert step - last[fragment] <= widest
                last[fragment] = step
                cadence.handed_in(fragment)
                cadence.taken(fragment)
    assert all(step - at <= every for at in last)


def test_fragments_keep_their_places_through_few_steps_and_back() -> None:
    cadence = Cadence(range(18), 20)
    for h in (10, 5, 10, 20, 40, 80):
        cadence.change(h)
        for _ in range(3 * h):
            cadence.stepped()
            for fragment in cadence.ready():
                cadence.handed_in(fragment)
                cadence.taken(fragment)
    at_once = []
    for _ in range(80):
        cadence.stepped()
        ready = cadence.ready()
        at_once.append(len(ready))
        for fragment in ready:
            cadence.handed_in(fragment)
            cadence.taken(fragment)
    assert sum(at_once) == 18
    assert max(at_once) == 1


def test_a_new_h_keeps_fragments_spread_out() -> None:
    cadence = Cadence(range(4), 8)
    cadence.change(80)
    came = {}
    for step in range(1, 81):
        cadence.stepped()
        for fragment in cadence.ready():
            came[fragment] = step
            cadence.handed_in(fragment)
            cadence.taken(fragment)
    assert sorted(came.values()) == [20, 40, 60, 80]
