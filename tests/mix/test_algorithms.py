"""Outer steps against their textbook forms."""

import numpy as np
import pytest

from peerlm.config import MixSection, Plan, with_changes
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


def test_noloco_is_the_papers_step_with_the_pull_of_the_round_before():
    """m ← α m + γ Δ + γ/2 (φ_j − φ_i), φ ← φ + m; the pull was added while inner steps ran."""
    rng, mix = np.random.default_rng(0), MixSection(outer_momentum=0.5, gamma=0.7)
    noloco = algorithms.get("noloco")
    share = noloco.coefficient(mix, ramp=1.0, meetings=1)
    phi = rng.standard_normal((2, 50)).astype(np.float32)
    waiting = np.zeros_like(phi)
    phi_64, momentum_64 = phi.astype(np.float64), np.zeros((2, 50))
    for _ in range(6):
        progress = rng.standard_normal((2, 50)).astype(np.float32)
        pull = phi_64[::-1] - phi_64
        momentum_64 = 0.5 * momentum_64 + 0.7 * progress + 0.35 * pull
        phi_64 = phi_64 + momentum_64
        waiting += np.float32(share) * (phi[::-1] - phi)
        for i in (0, 1):
            noloco.outer(phi[i], waiting[i], progress[i], mix)
    assert np.allclose(phi, phi_64, atol=1e-5)
    assert phi.dtype == waiting.dtype == np.float32


@pytest.mark.parametrize("name", ["dgd", "adpsgd"])
def test_without_outer_momentum_phi_arrives_where_the_inner_steps_did(name):
    phi, momentum = np.ones(3, np.float32), np.ones(3, np.float32)
    algorithms.get(name).outer(phi, momentum, np.full(3, 2, np.float32), MixSection())
    assert phi.tolist() == [3, 3, 3]
    assert momentum.tolist() == [1, 1, 1]


def test_who_mixes_and_how_much():
    mix = MixSection(weight=0.4)
    known = {name: algorithms.get(name) for name in algorithms.ALGORITHMS}
    assert [name for name, a in known.items() if not a.mixes] == ["local"]
    assert [name for name, a in known.items() if a.through_momentum] == ["noloco"]
    assert known["outer_mix"].coefficient(mix, ramp=1.0) == 0.4
    assert known["outer_mix"].coefficient(mix, ramp=0.5) == 0.2
    assert known["dgd"].coefficient(mix, ramp=2 / 3) == pytest.approx(0.8 / 3)
    assert known["adpsgd"].coefficient(mix, ramp=0.5) == 0.25
    assert known["local"].coefficient(mix, ramp=1.0) == 0


@pytest.mark.parametrize("exchanges", [1, 3])
def test_the_pulls_of_noloco_add_up_to_one_between_two_outer_steps(exchanges):
    mix, noloco = MixSection(gamma=0.8, exchanges=exchanges), algorithms.get("noloco")
    assert 2 * exchanges * noloco.coefficient(mix, ramp=1.0) == pytest.approx(0.4)
    assert noloco.coefficient(mix, ramp=0.5, meetings=1) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("alpha", "gamma", "holds"),
    [(0.5, 0.7, True), (0.5, 1.49, True), (0.5, 1.5, False), (0.9, 0.3, True), (0.9, 0.7, False)],
)
def test_a_plan_in_which_noloco_would_diverge_is_refused(alpha, gamma, holds):
    changes = {"mix.outer_momentum": alpha, "mix.gamma": gamma}
    assert with_changes(Plan(), changes, "plan").mix.gamma == gamma, "others have no γ"
    changes["mix.algorithm"] = "noloco"
    if holds:
        assert with_changes(Plan(), changes, "plan").mix.algorithm == "noloco"
    else:
        with pytest.raises(ConfigError, match=r"plan: mix\.gamma = .* must be below 2\(1 - "):
            with_changes(Plan(), changes, "plan")


def test_newcomers_weigh_in_over_three_outer_steps():
    assert [algorithms.ramp(k) for k in range(5)] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1, 1])


def test_an_unknown_name_is_an_error_that_lists_the_known():
    with pytest.raises(ConfigError, match="outer_mix, noloco, adpsgd, dgd, local"):
        algorithms.get("allreduce")
