"""The noise scale, from gradients whose signal and noise are known."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from peerlm import config
from peerlm.train.learner import Learner
from peerlm.train.noise import ESTIMATES_MIN, OFTEN, SELDOM, NoiseScale


def drawn(rng: random.Random, signal: float, noise: float) -> tuple[float, float]:
    """|g|² of one batch, and of the mean of two, of gradients in 400 dimensions; `noise`: |noise|² of one batch."""
    sides = [rng.gauss(0, math.sqrt(noise / 400)) for _ in range(800)]
    mean = signal / 20
    one = sum((mean + a) ** 2 for a in sides[:400])
    two = sum((mean + (a + b) / 2) ** 2 for a, b in zip(sides[:400], sides[400:], strict=True))
    return one, two


@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0])
def test_it_is_the_batch_whose_gradient_is_half_noise(noise: float) -> None:
    scale, rng, found = NoiseScale(100), random.Random(1), []
    for _ in range(400):
        scale.add(*drawn(rng, 1.0, noise))
        found.append(scale.tokens() or math.nan)
    assert np.nanmedian(found) == pytest.approx(100 * noise, rel=0.25)


def test_a_few_estimates_say_nothing_and_nor_does_noise_alone() -> None:
    scale = NoiseScale(100)
    for _ in range(ESTIMATES_MIN - 1):
        scale.add(2.0, 1.5)
    assert scale.tokens() is None
    scale.add(2.0, 1.5)
    assert scale.tokens() == pytest.approx(100.0)
    for _ in range(20):
        scale.add(2.0, 0.5)
    assert scale.tokens() is None


def test_what_is_not_finite_is_passed_over() -> None:
    scale = NoiseScale(100)
    for one, two in [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)] * 3:
        scale.add(one, two)
    assert scale.tokens() is None


def test_it_is_measured_often_at_first_and_seldom_after() -> None:
    scale = NoiseScale(100)
    used = [scale.is_due() for _ in range(OFTEN + 4 * SELDOM)]
    assert all(used[:OFTEN])
    assert sum(used[OFTEN:]) == 4


def test_gradients_are_those_of_a_larger_batch_and_move_nothing() -> None:
    model = config.ModelSection(blocks=("recurrent", "attention"), dim=16, hidden=24, context=8)
    train = config.TrainSection(batch=4)
    plan = config.Plan(model=model, data=config.DataSection(vocab=32), train=train)
    learner = Learner(plan, torch.device("cpu"))
    rng = np.random.default_rng(1)
    shape = (2, plan.train.batch, plan.model.context + 1)
    first, second = rng.integers(0, plan.data.vocab, shape)
    before = [p.clone() for p in learner.model.parameters()]
    one, two = learner.gradient_squares((first, second))
    (both,) = learner.gradient_squares((np.concatenate([first, second]),))
    assert two == pytest.approx(both, rel=1e-4)
    assert one > 0
    assert all(torch.equal(a, b) for a, b in zip(before, learner.model.parameters(), strict=True))
    assert all(p.grad is None for p in learner.model.parameters())
