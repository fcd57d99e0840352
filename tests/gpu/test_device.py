"""The path between a CUDA device and its daemon: what is copied, what is added, and what it costs."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from peerlm import config
from peerlm.cli.main import main
from peerlm.model.plan import fragments
from peerlm.model.weights import copy_out
from peerlm.train import shared
from peerlm.train.evaluate import evaluate
from peerlm.train.hands import Hands
from peerlm.train.learner import Learner
from peerlm.train.muon import Muon
from peerlm.train.shared import SharedMemory
from peerlm.train.staging import Landed, Way

PLAN = config.with_changes(
    config.Plan(), {"model.dim": 64, "model.hidden": 96, "model.context": 32}, "test"
)
CUDA = torch.device("cuda", 0)
SPECS = fragments(PLAN)


@pytest.fixture
def memory() -> SharedMemory:
    descriptor = shared.allocate(SPECS)
    try:
        return SharedMemory(descriptor, SPECS)
    finally:
        os.close(descriptor)


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


def test_a_step_that_is_not_finite_moves_nothing_though_nobody_waits_for_it() -> None:
    learner = Learner(PLAN, CUDA)
    norm = learner.model.output.norm.weight
    learner.step(counting(1))
    clean = norm.detach().clone()
    with torch.no_grad():
        norm[0] = float("nan")
    before = [p.detach().clone() for p in learner.model.parameters()]
    poisoned = [learner.begin(counting(2)), learner.begin(counting(3))]
    assert not any(begun.result().finite for begun in poisoned)
    for mine, was in zip(learner.model.parameters(), before, strict=True):
        assert torch.equal(mine.nan_to_num(7.0), was.nan_to_num(7.0))
    with torch.no_grad():
        norm.copy_(clean)
    assert learner.step(counting(4)).finite


def test_the_processor_is_ahead_of_the_device() -> None:
    learner = Learner(PLAN, CUDA)
    learner.step(counting(1))
    torch.cuda._sleep(1 << 30)  # half a second or so
    begun = learner.begin(counting(2))
    assert not begun.is_done
    assert begun.result().finite
    assert begun.is_done


def settled(hands: Hands, count: int) -> list[Landed]:
    landed = hands.landed(wait=True)
    assert len(landed) == count
    return landed


def test_a_correction_is_added_where_the_weights_are(memory: SharedMemory) -> None:
    learner = Learner(PLAN, CUDA)
    hands = Hands(learner, SPECS, memory)
    before, after = (np.empty(SPECS[1].size, np.float32) for _ in range(2))
    copy_out(learner.model, SPECS[1], before)
    places = [p.data_ptr() for p in learner.model.parameters()]
    memory.correction[1][:] = np.random.default_rng(1).standard_normal(SPECS[1].size)
    hands.bring_in(SPECS[1].id, memory.correction[1])
    assert settled(hands, 1) == [Landed(SPECS[1].id, Way.IN)]
    copy_out(learner.model, SPECS[1], after)
    assert np.allclose(after - before, memory.correction[1], atol=1e-6)
    assert [p.data_ptr() for p in learner.model.parameters()] == places


def test_what_is_taken_out_is_of_the_moment_when_it_was_asked_for(memory: SharedMemory) -> None:
    learner = Learner(PLAN, CUDA)
    hands = Hands(learner, SPECS, memory)
    for fragment in SPECS:
        expected = np.empty(fragment.size, np.float32)
        copy_out(learner.model, fragment, expected)
        hands.take_out(fragment.id, memory.boundary[fragment.id])
        learner.step(counting(fragment.id))  # moves θ while it crosses
        assert settled(hands, 1) == [Landed(fragment.id, Way.OUT)]
        assert np.array_equal(memory.boundary[fragment.id], expected)


def test_many_crossings_at_once_lose_nothing(memory: SharedMemory) -> None:
    learner = Learner(PLAN, CUDA)
    hands, rng = Hands(learner, SPECS, memory), np.random.default_rng(2)
    first = [np.empty(fragment.size, np.float32) for fragment in SPECS]
    for fragment, values in zip(SPECS, first, strict=True):
        copy_out(learner.model, fragment, values)
    expected = [values.astype(np.float64) for values in first]
    for _ in range(20):
        for fragment in SPECS:
            memory.correction[fragment.id][:] = rng.standard_normal(fragment.size)
            expected[fragment.id] += memory.correction[fragment.id]
            hands.bring_in(fragment.id, memory.correction[fragment.id])
        settled(hands, len(SPECS))
    for fragment in SPECS:
        hands.take_out(fragment.id, memory.boundary[fragment.id])
    settled(hands, len(SPECS))
    for fragment in SPECS:
        assert np.allclose(memory.boundary[fragment.id], expected[fragment.id], atol=1e-4)


@pytest.mark.parametrize("shapes", [[(64, 64)] * 3, [(64, 96), (96, 64), (64, 96), (8, 200)]])
def test_many_matrices_at_once_move_as_one_by_one(shapes: list[tuple[int, int]]) -> None:
    moved = []
    for rule in (Muon, torch.optim.Muon):
        torch.manual_seed(1)
        matrices = [nn.Parameter(torch.randn(shape, device=CUDA)) for shape in shapes]
        optimizer = rule(matrices, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for _ in range(3):
            for matrix in matrices:
                matrix.grad = torch.randn_like(matrix)
            optimizer.step()
        moved.append(matrices)
    for ours, theirs in zip(*moved, strict=True):
        assert torch.allclose(ours, theirs, atol=0.02)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler that torch loads
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
