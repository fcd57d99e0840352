"""Repair stays below `store.repair_bytes_s`, but for what it may have saved up, and for the last chunk that it takes."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from store_scene import Store, peer_of

from peerlm.node.ceiling import RESERVE_S, Ceiling
from peerlm.node.makers import FRESH_S
from peerlm.types import Instant

RATE = 1000
CHUNK = 500
A, B = peer_of(1), peer_of(2)


def taken(ceiling: Ceiling, now: float, size: int = CHUNK) -> int:
    """All that may be had at this moment."""
    ceiling.accrue(Instant(now))
    total = 0
    while ceiling.take(size):
        total += size
    return total


def test_nothing_may_be_had_before_it_is_earned() -> None:
    ceiling = Ceiling(RATE, Instant(5.0))
    assert taken(ceiling, 5.0) == 0
    assert taken(ceiling, 6.0) == RATE
    assert taken(ceiling, 6.0) == 0


def test_a_reserve_of_two_seconds_is_saved_and_no_more() -> None:
    assert taken(Ceiling(RATE, Instant(0.0)), 3600.0) == RESERVE_S * RATE


def test_what_is_taken_last_may_pass_it_and_is_paid_for_afterwards() -> None:
    ceiling = Ceiling(RATE, Instant(0.0))
    assert taken(ceiling, 0.5, size=4 * RATE) == 4 * RATE
    assert taken(ceiling, 4.0) == 0, "half a second's worth less than nothing is left"
    assert taken(ceiling, 4.1, size=1) == 100


def test_what_is_given_back_may_be_had_again() -> None:
    ceiling = Ceiling(RATE, Instant(0.0))
    assert taken(ceiling, 1.0) == RATE
    ceiling.give_back(2 * CHUNK)
    assert taken(ceiling, 1.0) == 2 * CHUNK


def test_without_one_all_may_be_had_and_giving_back_means_nothing() -> None:
    ceiling = Ceiling(0, Instant(0.0))
    assert all(ceiling.take(1 << 40) for _ in range(100))
    ceiling.give_back(5)
    assert ceiling.take(1)


@given(
    steps=st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(1, 5000)), min_size=1, max_size=30)
)
def test_over_any_time_it_is_kept_whatever_is_asked_for(steps: list[tuple[float, int]]) -> None:
    ceiling, now, total = Ceiling(RATE, Instant(0.0)), 0.0, 0
    for wait_s, size in steps:
        now += wait_s
        total += taken(ceiling, now, size)
        assert total < RATE * now + size + max(s for _, s in steps) + 1


def test_repair_of_a_store_keeps_to_it_until_a_person_does_not_want_to_wait() -> None:
    """Of what one of five nodes had each of three others is to fetch some 18 kB, each with a ceiling of its own."""
    store = Store(5, repair_after_s=10.0, repair_bytes_s=RATE, keep_s=1e9)
    rng = random.Random(1)
    manifest = store.publish(A, "plays", [rng.randbytes(CHUNK) for _ in range(200)])
    store.run(FRESH_S + 100, step_s=50)  # what was named lately is no repair
    store.kill(B)
    came = [came_in(store, seconds) for seconds in (9, 5, 5)]
    assert came[0] == 0, "it may come back"
    assert 2 * RATE < came[1] <= (4 + RESERVE_S) * RATE + CHUNK
    assert 4 * RATE < came[2] <= 5 * RATE + CHUNK
    assert min(store.copies(manifest)) < 3, "it takes longer than that"
    for node in store.nodes.values():
        node.storing.repair_now(store.now)
    store.run(20)
    assert min(store.copies(manifest)) >= 3


def came_in(store: Store, seconds: int) -> int:
    """Bytes that came to the node to which the most did."""
    before = {peer: node.storing.used for peer, node in store.nodes.items() if node.is_up}
    store.run(seconds)
    return max(store.nodes[peer].storing.used - used for peer, used in before.items())
