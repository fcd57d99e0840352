"""Outer steps against their textbook forms."""

import numpy as np
import pytest

from peerlm.config import MixSection
from peerlm.errors import ConfigError
from peerlm.mix import algorithms

NODES = 8


def ring(nodes: int) -> np.ndarray:
    """W of a ring: a third to itself and to each neighbour."""
    return sum(np.roll(np.eye(nodes), shift, axis=1) for shift in (-1, 0, 1)) / 3


@pytest.mark.parametrize(("lr", "bias"), [(0.1, 0.77012), (0.5, 1.92360)])
def test_dgd_reaches_its_biased_fixed_point_on_a_ring(lr, bias):
    """f_i = ½(x − i + 3.5)²: the worst node's distance from the optimum, 0, in closed form."""
    dgd, weights = algorithms.get("dgd"), ring(NODES)
    optima = np.arange(NODES, dtype=np.float32) - 3.5
    x = np.zeros(NODES, np.float32)
    for _ in range(600):
        dgd.outer(x, np.zeros(NODES, np.float32), -lr * (x - optima), MixSection())
        x = (weights @ x).astype(np.float32)
    exact = np.linalg.solve(np.eye(NODES) - (1 - lr) * weights, lr * weights @ optima)
    assert np.allclose(x, exact, atol=1e-5)
    assert np.abs(x).max() == pytest.approx(bias, abs=1e-5)


@pytest.mark.parametrize("name", ["outer_mix", "local"])
def test_outer_step_is_nesterov_momentum_on_progress(name):
    rng, mix = np.random.default_rng(0), MixSection(outer_momentum=0.8, outer_lr=0.7)
    phi, momentum = rng.standard_normal((2, 50)).astype(np.float32)
    phi_64, momentum_64 = phi.astype(np.float64), momentum.astype(np.float64)
    for _ in range(5):
        progress = rng.standard_normal(50).astype(np.float32)
        momentum_64 = 0.8 * momentum_64 + progress
        phi_64 = phi_64 + 0.7 * (progress + 0.8 * momentum_64)
        algorithms.get(name).outer(phi, momentum, progress, mix)
    assert np.allclose(phi, phi_64, atol=1e-5)
    assert np.allclose(momentum, momentum_64, atol=1e-5)


def test_who_mixes_and_how_much():
    mix = MixSection(weight=0.4)
    outer_mix, local, dgd = (algorithms.get(name) for name in ("outer_mix", "local", "dgd"))
    assert [a.mixes for a in (outer_mix, local, dgd)] == [True, False, True]
    assert outer_mix.coefficient(mix, ramp=1.0) == 0.4
    assert outer_mix.coefficient(mix, ramp=0.5) == 0.2
    assert local.coefficient(mix, ramp=1.0) == 0
    assert dgd.coefficient(mix, ramp=1.0, edge=1 / 3) == pytest.approx(1 / 3)


def test_newcomers_weigh_in_over_three_outer_steps():
    assert [algorithms.ramp(k) for k in range(5)] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])


def test_an_unknown_name_is_an_error_that_lists_the_known():
    with pytest.raises(ConfigError, match="outer_mix, local, dgd"):
        algorithms.get("allreduce")
