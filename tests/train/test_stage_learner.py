"""A model in parts learns what it learns in one piece."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from peerlm import config
from peerlm.model.model import LanguageModel
from peerlm.model.part import Part
from peerlm.model.plan import modules
from peerlm.train.learner import Learner
from peerlm.train.stage_learner import StageLearner

CPU = torch.device("cpu")
BLOCKS = {
    "attention": ("attention", "feedforward") * 2,
    "recurrent": ("recurrent",) * 4,
    "hybrid": ("recurrent", "feedforward", "attention", "feedforward"),
}


def plan_of(blocks: tuple[str, ...], *, tied: bool = True) -> config.Plan:
    return config.Plan(
        model=config.ModelSection(blocks=blocks, dim=16, hidden=24, context=8, tied=tied),
        data=config.DataSection(vocab=32),
        train=config.TrainSection(batch=8, accumulate=4, lr=0.005, adamw_lr=0.005, clip=0.5),
    )


def spans(blocks: int, stages: int) -> list[range]:
    return [range(s * blocks // stages, (s + 1) * blocks // stages) for s in range(stages)]


class Ring:
    """One host a stage, in one process."""

    def __init__(self, plan: config.Plan, stages: int) -> None:
        names = modules(plan.model)
        blocks = spans(len(plan.model.blocks), stages)
        self.plan, self.norms = plan, [0.0] * stages
        self.hosts = []
        for stage, span in enumerate(blocks):
            held = [names[1 + index] for index in span]
            held += [names[0], names[-1]] if stage == 0 else []
            self.hosts.append(StageLearner(plan, CPU, held, blocks))

    def step(self, batch_BT1: np.ndarray, rate: float = 1.0) -> float:
        total = 0.0
        for number, part in enumerate(np.array_split(batch_BT1, self.plan.train.accumulate)):
            key = (b"me", number, 0)
            share = len(part) / len(batch_BT1)
            stream = self.hosts[0].enter(key, part[:, :-1], 0)
            for stage, host in enumerate(self.hosts[1:], 1):
                stream = host.forward(key, stream, stage, stage)
            loss, gradient = self.hosts[0].loss(stream, part[:, 1:], share)
            total += loss * share
            for host in reversed(self.hosts):
                gradient = host.backward(key, gradient)
            assert gradient is None
        norm = sum(sum(host.squared_norms(()).values()) for host in self.hosts) ** 0.5
        for host in self.hosts:
            assert host.is_due
            host.step(rate, norm)
        return total


def counting(rng_seed: int) -> np.ndarray:
    start = np.random.default_rng(rng_seed).integers(0, 32, (8, 1))
    return (start + np.arange(9)) % 32


@pytest.mark.timeout(60)  # fifty steps, twice
@pytest.mark.parametrize(
    ("kind", "stages", "tied"),
    [(kind, stages, True) for kind in BLOCKS for stages in (2, 3, 4)] + [("hybrid", 3, False)],
)
def test_one_host_a_stage_is_one_process(kind: str, stages: int, tied: bool) -> None:
    plan = plan_of(BLOCKS[kind], tied=tied)
    ring, alone = Ring(plan, stages), Learner(plan, CPU)
    for step in range(50):
        rate = min(1.0, (step + 1) / 10)
        assert ring.step(counting(step), rate) == pytest.approx(
            alone.step(counting(step), rate).loss, abs=1e-4
        )
    whole = dict(alone.model.named_parameters())
    found = {n: p for host in ring.hosts for n, p in host.model.named_parameters()}
    assert set(found) == set(whole)
    for name, parameter in found.items():
        torch.testing.assert_close(parameter, whole[name], rtol=1e-4, atol=1e-4)


def test_parts_begin_as_the_whole_model_does() -> None:
    plan = plan_of(BLOCKS["hybrid"], tied=False)
    whole = LanguageModel(plan.model, 32)
    whole.initialise(7)
    expected = dict(whole.named_parameters())
    names = modules(plan.model)
    for held in ((names[0], names[1], names[-1]), names[2:4], names[4:5]):
        part = Part(plan.model, 32, held)
        part.initialise(7)
        for name, parameter in part.named_parameters():
            assert torch.equal(parameter, expected[name]), name


def test_a_pass_is_made_anew_when_the_weights_have_moved() -> None:
    plan = plan_of(BLOCKS["hybrid"])
    blocks, names = spans(4, 2), modules(plan.model)

    def host() -> StageLearner:
        return StageLearner(plan, CPU, names[3:5], blocks)

    def move(learner: StageLearner) -> None:
        with torch.no_grad():
            for parameter in learner.model.parameters():
                parameter.add_(0.01)

    hidden = np.random.default_rng(1).standard_normal((2, 8, 16)).astype(np.float32)
    before, after = host(), host()
    before.forward((b"me", 1, 0), hidden, 1, 1)
    move(before)
    move(after)
    after.forward((b"me", 1, 0), hidden, 1, 1)
    ones = np.ones_like(hidden)
    np.testing.assert_array_equal(
        before.backward((b"me", 1, 0), ones), after.backward((b"me", 1, 0), ones)
    )
    assert before.squared_norms(()) == after.squared_norms(())


def test_more_sequences_than_a_batch_still_make_a_mean() -> None:
    plan = plan_of(BLOCKS["hybrid"])
    plan = replace(plan, train=replace(plan.train, clip=0.0))
    blocks, names = spans(4, 2), modules(plan.model)
    once, twice = (StageLearner(plan, CPU, names[3:5], blocks) for _ in range(2))
    hidden = np.random.default_rng(1).standard_normal((8, 8, 16)).astype(np.float32)
    for learner, times in ((once, 1), (twice, 2)):
        for number in range(times):
            learner.forward((b"me", number, 0), hidden, 1, 1)
            learner.backward((b"me", number, 0), np.ones_like(hidden) / 8)
    assert twice.squared_norms(())[1] == pytest.approx(once.squared_norms(())[1], rel=1e-5)
    for learner in (once, twice):
        learner.step(1.0, 1.0)
        assert learner.sequences == 0
    for mine, theirs in zip(once.model.parameters(), twice.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_each_stage_moves_by_the_mean_over_what_it_had() -> None:
    """Some passes end before its last stage; another host of that one has their gradients."""
    plan = plan_of(BLOCKS["hybrid"])
    plan = replace(plan, train=replace(plan.train, clip=0.0))
    blocks, names = spans(4, 2), modules(plan.model)
    parts, all_of_it = (StageLearner(plan, CPU, names, blocks) for _ in range(2))
    tokens, ones = counting(1)[:2, :-1], np.ones((2, 8, 16), np.float32) / 8
    for number in range(4):
        parts.enter((b"me", number, 1), tokens, 0)
        parts.backward((b"me", number, 1), ones)
        if number < 2:
            parts.forward((b"you", number, 0), ones, 1, 1)
            parts.backward((b"you", number, 0), ones)
        all_of_it.enter((b"me", number, 1), tokens, 0)
        all_of_it.backward((b"me", number, 1), ones)
        all_of_it.forward((b"you", number, 0), ones, 1, 1)
        all_of_it.backward((b"you", number, 0), ones)
    assert parts.is_due
    assert parts.squared_norms(()) == pytest.approx(all_of_it.squared_norms(()), rel=1e-5)
    for learner in (parts, all_of_it):
        learner.step(1.0, 1.0)
    for mine, theirs in zip(parts.model.parameters(), all_of_it.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_stage_to_which_nothing_came_home_stays_as_it_is() -> None:
    plan = plan_of(BLOCKS["hybrid"])
    learner = StageLearner(plan, CPU, modules(plan.model), spans(4, 2))
    for number in range(4):
        learner.enter((b"me", number, 1), counting(1)[:2, :-1], 0)
        learner.backward((b"me", number, 1), np.ones((2, 8, 16), np.float32))
    before = {n: p.detach().clone() for n, p in learner.model.named_parameters()}
    learner.step(1.0, 1.0)
    moved = {n for n, p in learner.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert not any(name.startswith(("blocks.2", "blocks.3")) for name in moved)


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    plan = plan_of(BLOCKS["hybrid"])
    learner = StageLearner(plan, CPU, modules(plan.model)[3:5], spans(4, 2))
    before = [p.detach().clone() for p in learner.model.parameters()]
    hidden = np.ones((8, 8, 16), np.float32)
    learner.forward((b"me", 0, 0), hidden, 1, 1)
    learner.backward((b"me", 0, 0), np.full_like(hidden, np.nan))
    assert not learner.step(1.0, learner.squared_norms(())[1] ** 0.5)
    assert all(map(torch.equal, before, learner.model.parameters()))
    assert not learner.is_due
