"""The learning rate as a function of the swarm's tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlm.train.schedule import rate, rewarm


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, 0.0), (50, 0.5), (100, 1.0), (550, 0.55), (1000, 0.1), (5000, 0.1)],
)
def test_it_rises_falls_along_a_cosine_and_stays(tokens: int, expected: float) -> None:
    assert rate(tokens, 1000, warmup=0.1, final=0.1) == pytest.approx(expected)


def test_without_warmup_it_starts_at_the_peak() -> None:
    assert rate(0, 1000, warmup=0.0, final=0.1) == 1.0


@given(
    st.integers(0, 10**12),
    st.integers(1, 10**12),
    st.floats(0, 0.5),
    st.floats(0, 1),
)
def test_it_is_always_a_share_of_the_peak(
    tokens: int, budget: int, warmup: float, final: float
) -> None:
    assert 0.0 <= rate(tokens, budget, warmup, final) <= 1.0 + 1e-12


def test_a_cold_worker_rises_in_its_own_steps() -> None:
    assert [rewarm(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rewarm(0, 0) == 1.0
