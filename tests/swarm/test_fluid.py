"""Rates of stages: the exact optimum, beside what trying every set of stages says."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlm.swarm.fluid import rates

runs = st.tuples(st.integers(0, 4), st.integers(1, 5)).filter(lambda ends: ends[0] < ends[1])
swarms = st.dictionaries(runs.map(lambda ends: range(*ends)), st.floats(0.01, 100), max_size=8)
costs = st.lists(st.floats(0.1, 10), min_size=5, max_size=5)


def by_every_set(speeds: dict[range, float], cost: list[float]) -> float:
    """Hall's condition: no set of stages can be faster than its hosts together."""
    sets = [set(s) for n in range(1, 6) for s in combinations(range(5), n)]
    return min(
        sum(v for run, v in speeds.items() if s.intersection(run)) / sum(cost[i] for i in s)
        for s in sets
    )


@given(swarms, costs)
def test_the_slowest_stage_is_as_fast_as_it_can_be(
    speeds: dict[range, float], cost: list[float]
) -> None:
    assert min(rates(speeds, cost)) == pytest.approx(by_every_set(speeds, cost), rel=1e-6)


@given(swarms, costs, runs)
def test_hosting_more_is_never_worth_less(
    speeds: dict[range, float], cost: list[float], wider: tuple[int, int]
) -> None:
    before = min(rates({**speeds, range(2, 3): 5.0}, cost))
    hull = range(min(2, wider[0]), max(3, wider[1]))
    assert (
        min(rates({**speeds, hull: 5.0 + speeds.get(hull, 0.0)}, cost)) >= before * (1 - 1e-6)
        or range(2, 3) in speeds
    )


def test_time_is_divided_where_it_helps_most() -> None:
    alone = {range(1): 10.0, range(1, 2): 2.0}
    assert rates(alone, [1.0, 1.0]) == [10.0, 2.0]
    assert rates({**alone, range(2): 4.0}, [1.0, 1.0]) == pytest.approx([10.0, 6.0])
    assert rates({**alone, range(2): 10.0}, [1.0, 1.0]) == pytest.approx([11.0, 11.0])


def test_a_stage_without_host_is_at_rest() -> None:
    assert rates({range(1): 3.0}, [1.0, 1.0]) == [3.0, 0.0]
    assert rates({}, [1.0]) == [0.0]
