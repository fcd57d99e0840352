"""The inner step: it learns, repeats itself by seed, and refuses what is not finite."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from peerlm import config
from peerlm.errors import DeviceLost
from peerlm.train.evaluate import evaluate
from peerlm.train.learner import Learner, choose_device

PLAN = config.Plan(
    model=config.ModelSection(
        blocks=("recurrent", "attention", "feedforward"), dim=16, hidden=24, context=8
    ),
    data=config.DataSection(vocab=32),
    train=config.TrainSection(batch=8),
)
CPU = torch.device("cpu")


def counting(rng_seed: int, batch: int = 8) -> np.ndarray:
    """Sequences that count upwards from a random start: easy to learn."""
    start = np.random.default_rng(rng_seed).integers(0, 32, (batch, 1))
    return (start + np.arange(9)) % 32


def trained(plan: config.Plan, steps: int, rate: float = 1.0) -> Learner:
    learner = Learner(plan, CPU)
    for step in range(steps):
        learner.step(counting(step), rate)
    return learner


def weights(learner: Learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.model.parameters()])


@pytest.mark.timeout(90)  # two torch threads that share a core with others wait for each other
@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_it_learns_to_count(name: str) -> None:
    plan = replace(PLAN, train=replace(PLAN.train, optimizer=name, lr=0.02, adamw_lr=0.01))
    learner = Learner(plan, CPU)
    assert evaluate(learner.model, [counting(99)]) == pytest.approx(math.log(32), abs=0.3)
    for step in range(80):
        learner.step(counting(step))
    assert evaluate(learner.model, [counting(99)]) < 1.0


def test_a_seed_and_the_batches_fix_every_bit() -> None:
    assert torch.equal(weights(trained(PLAN, 4)), weights(trained(PLAN, 4)))
    other = replace(PLAN, run=replace(PLAN.run, rng_seed=2))
    assert not torch.equal(weights(trained(PLAN, 4)), weights(trained(other, 4)))


def test_micro_batches_add_up_to_the_batch() -> None:
    whole = Learner(PLAN, CPU)
    split = Learner(replace(PLAN, train=replace(PLAN.train, accumulate=4)), CPU)
    one, four = whole.step(counting(1)), split.step(counting(1))
    assert one.loss == pytest.approx(four.loss, rel=1e-5)
    assert one.grad_norm == pytest.approx(four.grad_norm, rel=1e-4)
    torch.testing.assert_close(weights(whole), weights(split), rtol=1e-3, atol=1e-4)


def test_a_long_gradient_is_clipped_but_reported_whole() -> None:
    short = replace(PLAN.train, optimizer="sgd", clip=0.01, lr=1.0, weight_decay=0.0)
    learner = Learner(replace(PLAN, train=short), CPU)
    before = weights(learner)
    result = learner.step(counting(1))
    assert result.grad_norm > 0.1
    assert (weights(learner) - before).norm().item() == pytest.approx(0.01, rel=1e-2)


def test_clip_zero_leaves_the_gradient_alone() -> None:
    free = replace(PLAN.train, optimizer="sgd", clip=0.0, lr=1.0, weight_decay=0.0)
    learner = Learner(replace(PLAN, train=free), CPU)
    before = weights(learner)
    result = learner.step(counting(1))
    moved = (weights(learner) - before).norm().item()
    assert moved == pytest.approx(result.grad_norm, rel=1e-3)


def test_what_is_not_finite_moves_nothing_and_is_reported() -> None:
    learner = trained(PLAN, 2)
    with torch.no_grad():
        learner.model.output.norm.weight[0] = float("nan")
    before = weights(learner)
    result = learner.step(counting(5))
    assert not result.finite
    assert math.isnan(result.loss)
    torch.testing.assert_close(weights(learner), before, rtol=0, atol=0, equal_nan=True)


def test_training_goes_on_after_a_poisoned_step() -> None:
    learner = trained(PLAN, 2)
    clean = learner.model.output.norm.weight.detach().clone()
    with torch.no_grad():
        learner.model.output.norm.weight.fill_(float("inf"))
    assert not learner.step(counting(5)).finite
    with torch.no_grad():
        learner.model.output.norm.weight.copy_(clean)
    assert learner.step(counting(6)).finite
    assert weights(learner).isfinite().all()


def test_evaluation_weighs_batches_by_tokens_and_leaves_the_mode() -> None:
    model = Learner(PLAN, CPU).model
    first, second = counting(1, batch=2), counting(2, batch=6)
    mean = (2 * evaluate(model, [first]) + 6 * evaluate(model, [second])) / 8
    assert evaluate(model, [first, second]) == pytest.approx(mean)
    assert model.training
    assert math.isnan(evaluate(model, []))


def test_auto_finds_a_device_and_cpu_is_always_there() -> None:
    assert choose_device("auto").type in ("cuda", "mps", "cpu")
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("setting", ["cuda:99", "cuda:x"])
def test_a_device_that_is_not_there_is_named(setting: str) -> None:
    with pytest.raises(DeviceLost, match=setting) as caught:
        choose_device(setting)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_asking_for_cuda_without_it_says_what_to_do() -> None:
    with pytest.raises(DeviceLost, match="sees no CUDA devices; use auto or cpu"):
        choose_device("cuda")
