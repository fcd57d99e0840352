"""The inner optimizers: who takes which parameter, rates, forgetting, and Muon's arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from peerlm import config
from peerlm.model.model import LanguageModel
from peerlm.train import optimizer
from peerlm.train.muon import Muon, orthogonalised
from peerlm.train.optimizer import InnerOptimizer

MODEL = config.ModelSection(
    blocks=("recurrent", "attention", "feedforward"), dim=16, hidden=24, context=8, tied=False
)
TRAIN = config.TrainSection()


def model_with_gradients() -> LanguageModel:
    model = LanguageModel(MODEL, 32)
    model.initialise(1)
    model.loss(torch.arange(18).view(2, 9)).backward()
    return model


def owners(model: LanguageModel, inner: InnerOptimizer) -> dict[str, str]:
    """Which torch optimizer moves each parameter."""
    return {
        name: type(part).__name__
        for part in inner.parts
        for group in part.param_groups
        for name, parameter in model.named_parameters()
        if any(parameter is p for p in group["params"])
    }


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = model_with_gradients()
    assert {
        name: owner == "Muon"
        for name, owner in owners(model, optimizer.build(model, TRAIN)).items()
    } == {
        name: name.startswith("blocks.") and parameter.ndim == 2
        for name, parameter in model.named_parameters()
    }


def test_a_part_without_blocks_has_nothing_for_muon() -> None:
    ends = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(4, 3)})
    (part,) = optimizer.build(ends, TRAIN).parts
    assert isinstance(part, torch.optim.AdamW)


@pytest.mark.parametrize("name", ["muon", "adamw", "sgd"])
def test_a_step_that_the_device_finds_not_finite_has_not_been(name: str) -> None:
    """Neither parameters nor what the optimizer remembers: the next is as if it had never been asked for."""
    settings, moved = replace(TRAIN, optimizer=name), []
    for spoilt in (False, True):
        model = model_with_gradients()
        gradients = [p.grad.clone() for p in model.parameters()]
        inner = optimizer.build(model, settings, runs_ahead=True)
        inner.step(torch.tensor(True))
        if spoilt:
            before = [p.detach().clone() for p in model.parameters()]
            for parameter in model.parameters():
                parameter.grad.fill_(float("nan"))
            inner.step(torch.tensor(False))
            assert all(map(torch.equal, model.parameters(), before))
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad.copy_(gradient)
        inner.step(torch.tensor(True))
        moved.append(list(model.parameters()))
    assert all(map(torch.equal, *moved))


@pytest.mark.parametrize("name", ["muon", "adamw", "sgd"])
def test_a_step_that_is_told_on_the_device_is_the_same_step(name: str) -> None:
    settings, moved = replace(TRAIN, optimizer=name), []
    for told in ((), (torch.tensor(True),)):
        model = model_with_gradients()
        inner = optimizer.build(model, settings, runs_ahead=bool(told))
        for _ in range(3):
            inner.step(*told)
        moved.append(list(model.parameters()))
    for ours, theirs in zip(*moved, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["muon", "adamw", "sgd"])
def test_each_optimizer_moves_every_parameter(name: str) -> None:
    model = model_with_gradients()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer.build(model, replace(TRAIN, optimizer=name)).step()
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters())


def test_rate_zero_moves_nothing_and_half_moves_half() -> None:
    model = model_with_gradients()
    inner = optimizer.build(model, replace(TRAIN, optimizer="sgd", weight_decay=0.0))
    start = model.embedding.weight.detach().clone()
    inner.set_rate(0.0)
    inner.step()
    assert torch.equal(model.embedding.weight, start)
    moved = []
    for scale in (0.5, 1.0):
        before = model.embedding.weight.detach().clone()
        inner.set_rate(scale)
        inner.step()
        moved.append(model.embedding.weight.detach() - before)
    torch.testing.assert_close(moved[1], 2 * moved[0], rtol=1e-3, atol=1e-6)


def test_only_matrices_decay() -> None:
    model = model_with_gradients()
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.zero_()
        torch.nn.init.ones_(parameter)
    optimizer.build(model, replace(TRAIN, weight_decay=0.5)).step()
    for name, parameter in model.named_parameters():
        decayed = bool((parameter < 1.0).all())
        assert decayed == (parameter.ndim == 2), name


def test_reset_forgets_the_named_tensors_only() -> None:
    model = model_with_gradients()
    inner = optimizer.build(model, TRAIN)
    inner.step()
    named = dict(model.named_parameters())
    inner.reset(["embedding.weight", "blocks.1.attention.query.weight"])
    remembered = {n for n, p in named.items() if any(part.state.get(p) for part in inner.parts)}
    assert named.keys() - remembered == {"embedding.weight", "blocks.1.attention.query.weight"}
    inner.step()


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 40)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    singular = torch.linalg.svdvals(orthogonalised(matrix, (3.4445, -4.775, 2.0315), 5, 1e-7))
    assert 0.6 < singular.min() <= singular.max() < 1.3


def test_on_the_cpu_muon_follows_torchs_own_up_to_bf16() -> None:
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(24, 40, generator=generator)
    gradients = [torch.randn(24, 40, generator=generator) for _ in range(4)]
    ends = []
    for kind in (Muon, torch.optim.Muon):
        parameter = torch.nn.Parameter(start.clone())
        rule = kind([parameter], lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
        for gradient in gradients:
            parameter.grad = gradient
            rule.step()
        ends.append(parameter.detach() - start)
    assert (ends[0] - ends[1]).norm() < 0.02 * ends[1].norm()
