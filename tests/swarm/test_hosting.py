"""Who holds which stages, and between whom the stream goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlm.swarm.hosting import Hosting, Run, follows, holders
from peerlm.types import PeerId

ANN, BOB, EVE, ZOE = (PeerId(bytes([n]) * 16) for n in range(4))


@pytest.mark.parametrize(
    ("run", "after", "holds"),
    [
        ((1, 1), (0, 0), True),
        ((1, 2), (0, 0), True),
        ((0, 1), (0, 0), True),  # holds the next stage too
        ((2, 2), (0, 0), False),
        ((0, 0), (2, 2), True),  # the ring closes
        ((0, 0), (1, 1), False),
        ((0, 2), (2, 2), True),
        ((1, 1), (0, 1), True),  # begins within
        ((0, 1), (0, 1), False),
    ],
)
def test_the_stage_behind_the_last_is_the_next_and_behind_all_the_first(
    run: Run, after: Run, holds: bool
) -> None:
    assert follows(run, after, 3) is holds


def test_neighbours_are_those_that_the_stream_comes_from_or_goes_to() -> None:
    middle = Hosting(1, 1, 4)
    runs = {ZOE: (0, 0), ANN: (2, 3), BOB: (3, 3), EVE: (1, 1)}
    assert middle.neighbours(runs) == (ANN, ZOE)
    assert Hosting(3, 3, 4).neighbours(runs) == tuple(sorted((ANN, ZOE)))
    assert Hosting(0, 0, 4).neighbours(runs) == tuple(sorted((ANN, BOB, EVE)))


def test_who_holds_everything_needs_nobody_and_is_needed_by_nobody() -> None:
    assert Hosting().is_whole
    assert Hosting(0, 2, 3).neighbours({ANN: (1, 1)}) == ()
    assert Hosting(1, 1, 3).neighbours({ANN: (0, 2), BOB: (0, 0)}) == (BOB,)


def test_who_begins_within_anothers_run_is_its_neighbour_and_who_begins_where_it_does_is_not() -> (
    None
):
    assert Hosting(1, 1, 3).neighbours({ANN: (0, 1), BOB: (1, 1)}) == (ANN,)
    assert Hosting(1, 2, 4).neighbours({ANN: (1, 1), BOB: (2, 2), EVE: (1, 2)}) == (ANN, BOB)


def test_both_ends_are_with_the_first_stage() -> None:
    assert Hosting(0, 0, 3).has_ends
    assert not Hosting(1, 2, 3).has_ends
    assert not Hosting(0, 1, 3).is_whole


def test_holders_of_a_stage() -> None:
    runs = {ANN: (0, 1), BOB: (1, 3), EVE: (2, 2)}
    assert holders(1, runs, (ANN, BOB, EVE)) == (ANN, BOB)
    assert holders(1, runs, (BOB,)) == (BOB,)
    assert holders(4, runs, (ANN, BOB, EVE)) == ()


@st.composite
def two_runs(draw: st.DrawFn) -> tuple[int, Run, Run]:
    count = draw(st.integers(2, 6))
    runs = []
    for _ in range(2):
        first = draw(st.integers(0, count - 1))
        runs.append((first, draw(st.integers(first, count - 1))))
    return count, runs[0], runs[1]


@given(two_runs())
def test_either_both_are_neighbours_or_neither_is(drawn: tuple[int, Run, Run]) -> None:
    count, one, two = drawn
    sees = bool(Hosting(*one, count).neighbours({ANN: two}))
    assert sees == bool(Hosting(*two, count).neighbours({ANN: one}))


@given(
    st.integers(2, 6).flatmap(
        lambda count: st.tuples(st.just(count), st.permutations(range(count)))
    )
)
def test_one_host_a_stage_makes_a_ring(drawn: tuple[int, list[int]]) -> None:
    count, order = drawn
    peers = {PeerId(bytes([n]) * 16): (stage, stage) for n, stage in enumerate(order)}
    for peer, (stage, _) in peers.items():
        others = {p: run for p, run in peers.items() if p != peer}
        met = {others[p][0] for p in Hosting(stage, stage, count).neighbours(others)}
        assert met == {(stage - 1) % count, (stage + 1) % count}
