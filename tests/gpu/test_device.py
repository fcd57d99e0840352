"""The path between a CUDA device and its daemon: what is copied, what is added, and what it costs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from peerlm import config
from peerlm.cli.main import main
from peerlm.model.plan import fragments
from peerlm.model.weights import copy_out
from peerlm.train.evaluate import evaluate
from peerlm.train.hands import Hands
from peerlm.train.learner import Learner

PLAN = config.with_changes(
    config.Plan(), {"model.dim": 64, "model.hidden": 96, "model.context": 32}, "test"
)
CUDA = torch.device("cuda", 0)


def counting(seed: int) -> np.ndarray:
    start = np.random.default_rng(seed).integers(0, 256, (8, 1))
    return (start + np.arange(33)) % 256


def test_it_learns_in_bf16_what_a_processor_learns_in_fp32() -> None:
    losses = []
    for device in (CUDA, torch.device("cpu")):
        learner = Learner(PLAN, device)
        for step in range(60):
            learner.step(counting(step))
        losses.append(evaluate(learner.model, [counting(99)]))
    assert losses[0] < 3.0
    assert losses[0] == pytest.approx(losses[1], abs=0.3)


def test_a_correction_is_added_where_the_weights_are() -> None:
    learner, specs = Learner(PLAN, CUDA), fragments(PLAN)
    hands = Hands(learner, specs, None)
    before, after = (np.empty(specs[1].size, np.float32) for _ in range(2))
    copy_out(learner.model, specs[1], before)
    places = [p.data_ptr() for p in learner.model.parameters()]
    hands.add(specs[1].id, np.full(specs[1].size, 0.25, np.float32))
    copy_out(learner.model, specs[1], after)
    assert np.allclose(after - before, 0.25, atol=1e-6)
    assert [p.data_ptr() for p in learner.model.parameters()] == places


def test_compiled_steps_learn_too() -> None:
    plan = replace(PLAN, model=replace(PLAN.model, blocks=("attention", "feedforward")))
    learner = Learner(plan, CUDA, compiled=True)
    losses = [learner.step(counting(step)).loss for step in range(40)]
    assert losses[-1] < losses[0] - 1


def test_bench_step_tells_how_long_the_device_waits(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "step", "--plan", "small", "--device", "cuda", "--pairs", "1"]
    assert main([*arguments, "--steps", "5", "--peak-tflops", "989", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for row in found["rows"]:
        assert 0 < row["mfu"] < 1
        assert 0 <= row["idle"] < 1
