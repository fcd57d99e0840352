"""Other people's mixing, in a few lines each: what the shipped algorithms are measured against.

Nothing here is shipped. Each is the textbook's recursion, held against its closed form or against figures
that its paper's setting gives, so that a comparison with it is one with what it says it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[Any]
Compressor = Callable[[Array], Array]


def circulant(nodes: int, shifts: list[int]) -> Array:
    """Everybody averages with those at these places from it, itself included."""
    return np.asarray(sum(np.roll(np.eye(nodes), s, axis=1) for s in shifts) / len(shifts))


def ring(nodes: int) -> Array:
    return circulant(nodes, [-1, 0, 1])


def torus(side: int) -> Array:
    """Four neighbours and oneself, by a fifth each."""
    one, away = np.eye(side), 3 * ring(side) - np.eye(side)
    return (np.kron(one, one) + np.kron(away, one) + np.kron(one, away)) / 5


def left(w: Array) -> float:
    """ρ: the largest factor by which a difference between nodes is left."""
    return float(np.linalg.norm(w - 1 / len(w), 2))


@pytest.mark.parametrize(("side", "rho"), [(4, 0.6), (8, 0.8828)])
def test_a_torus_leaves_what_its_slowest_wave_leaves(side: int, rho: float) -> None:
    assert left(torus(side)) == pytest.approx((3 + 2 * np.cos(2 * np.pi / side)) / 5, abs=1e-9)
    assert left(torus(side)) == pytest.approx(rho, abs=5e-5)


@pytest.mark.parametrize(("nodes", "rho"), [(8, 0.5), (16, 0.6), (32, 0.6667), (64, 0.7143)])
def test_a_static_exponential_graph_leaves_all_but_two_of_its_terms(nodes: int, rho: float) -> None:
    t = int(np.log2(nodes))
    w = circulant(nodes, [0, *(1 << k for k in range(t))])
    assert left(w) == pytest.approx((t - 1) / (t + 1), abs=1e-9)
    assert left(w) == pytest.approx(rho, abs=5e-5)


OPTIMA = np.arange(8) - 3.5
"""f_i = ½(x − c_i)²; the optimum of all is 0."""


def descended(w: Array, lr: float) -> Array:
    x = np.zeros(8)
    for _ in range(2000):
        x = w @ (x - lr * (x - OPTIMA))
    return x


def tracked(w: Array, lr: float) -> Array:
    """Gradient tracking: x ← W(x − ηy), y ← Wy + g⁺ − g."""
    x, y = np.zeros(8), -OPTIMA
    for _ in range(2000):
        g, x = x - OPTIMA, w @ (x - lr * y)
        y = w @ y + (x - OPTIMA) - g
    return x


def corrected(w: Array, lr: float) -> Array:
    """D²: x⁺ = W(2x − x⁻ − η(g − g⁻)); W's eigenvalues must be above −⅓, and half of W does."""
    w = (np.eye(8) + w) / 2
    last = np.zeros(8)
    x = w @ (last + lr * OPTIMA)
    for _ in range(2000):
        x, last = w @ (2 * x - last - lr * (x - last)), x
    return x


@pytest.mark.parametrize(("lr", "bias"), [(0.1, 0.77012), (0.5, 1.92360)])
def test_tracking_and_d2_are_exact_where_descent_is_biased(lr: float, bias: float) -> None:
    assert np.abs(descended(ring(8), lr)).max() == pytest.approx(bias, abs=5e-6)
    assert np.abs(corrected(ring(8), lr)).max() < 1e-9
    assert np.abs(tracked(ring(8), min(lr, 0.1))).max() < 1e-9


def pushed(lost: float, running: bool, runs: int = 1000) -> Array:
    """Push-sum of 16, in round t to who is 2ᵗ places on: how far each swarm ends from its mean, [runs].

    `running`: who sends tells the sum of all it has ever sent to that node, so that what was lost
    comes with the next one that arrives (Hadjicostis); else what is lost is gone.
    """
    nodes, rng = 16, np.random.default_rng(1)
    x = np.stack([rng.standard_normal((runs, nodes)), np.ones((runs, nodes))], axis=2)
    mean = x[:, :, 0].mean(axis=1)
    sent, heard = np.zeros((4, runs, nodes, 2)), np.zeros((4, runs, nodes, 2))
    for number in range(120):
        t = number % 4
        x /= 2
        sent[t] += x
        arrives = rng.random((runs, nodes, 1)) >= lost
        x += np.roll(arrives * (sent[t] - heard[t]), 1 << t, axis=1)
        heard[t] = np.where(arrives | (not running), sent[t], heard[t])
    return np.asarray(np.abs(x[:, :, 0] / x[:, :, 1] - mean[:, None]).max(axis=1))


def test_push_sum_loses_mass_and_running_sums_do_not() -> None:
    assert np.sqrt((pushed(0.1, running=False) ** 2).mean()) == pytest.approx(0.052, rel=0.15)
    assert pushed(0.1, running=True).max() < 1e-10


def top(share: float) -> Compressor:
    def compress(v: Array) -> Array:
        size = np.abs(v)
        least = np.partition(size, -round(share * v.shape[1]), axis=1)
        return np.where(size >= least[:, [-round(share * v.shape[1])]], v, 0)

    return compress


def eight_bits(v: Array) -> Array:
    step = np.abs(v).max(axis=1, keepdims=True) / 127
    return np.asarray(np.round(v / step) * step)


@pytest.mark.parametrize(
    ("compress", "gamma", "rounds", "rest"),
    [
        (lambda v: v, 1.0, 300, 2.6e-7),
        (eight_bits, 0.9, 300, 9.3e-7),
        (top(0.1), 0.25, 1000, 2.1e-6),
        (top(0.01), 0.046, 4000, 3.6e-5),
    ],
    ids=["exact", "8 bits", "top 10 %", "top 1 %"],
)
def test_choco_agrees_through_a_compressor(
    compress: Compressor, gamma: float, rounds: int, rest: float
) -> None:
    """x̂ ← x̂ + C(x − x̂), x ← x + γ(W − I)x̂, on a ring of 25 with 400 numbers each: how much of the
    variance is left, within twice of what it is in the paper's setting."""
    x = np.random.default_rng(1).standard_normal((25, 400))
    first, mean = x.var(axis=0).mean(), x.mean(axis=0)
    known, pull = np.zeros_like(x), gamma * (ring(25) - np.eye(25))
    for _ in range(rounds):
        known += compress(x - known)
        x += pull @ known
    assert np.abs(x.mean(axis=0) - mean).max() < 1e-12
    assert rest / 2 < x.var(axis=0).mean() / first < 2 * rest
