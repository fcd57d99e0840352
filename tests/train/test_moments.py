"""An optimizer's state through a file: exact, cut into stages, refused whole where it is not sound."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from peerlm import config
from peerlm.errors import ConfigError
from peerlm.model import weights
from peerlm.model.model import LanguageModel
from peerlm.model.moments import (
    FORMAT,
    MomentsFile,
    copy_moments,
    moment_shapes,
    moments_header,
    open_moments,
    part_bytes,
    part_of,
    remembered,
)
from peerlm.model.plan import fragments, modules
from peerlm.train import optimizer
from peerlm.train.hands import Hands
from peerlm.train.learner import Learner
from peerlm.train.moments import Keepsake, begin_with
from peerlm.train.stage_learner import StageLearner

CPU = torch.device("cpu")
OPTIMIZERS = ("muon", "adamw", "sgd")


def plan_of(name: str = "muon", **model: object) -> config.Plan:
    blocks = ("recurrent", "attention", "feedforward")
    shape = config.ModelSection(blocks=blocks, dim=16, hidden=24, context=8, **model)  # type: ignore[arg-type]
    return config.Plan(
        model=shape,
        data=config.DataSection(vocab=32),
        train=config.TrainSection(batch=4, accumulate=1, optimizer=name),
        mix=config.MixSection(fragment_max=1024),
    )


def batches(count: int, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 32, (4, 9)) for _ in range(count)]


def learned(plan: config.Plan, steps: int = 5) -> Learner:
    learner = Learner(plan, CPU)
    for batch in batches(steps):
        learner.step(batch)
    return learner


def keep(learner: Learner | StageLearner, plan: config.Plan, path: Path) -> None:
    kept = Keepsake(learner.optimizer, plan, path, 0)
    kept.finish()
    assert (kept.error, kept.is_over) == ("", True)


def begin(learner: Learner | StageLearner, plan: config.Plan, path: Path) -> tuple[bool, str]:
    hands = Hands(learner, (), None)  # type: ignore[arg-type]
    return begin_with(path, plan, learner.optimizer, hands)


def moments(inner: optimizer.InnerOptimizer) -> dict[str, tuple[int, bytes]]:
    found = {name: inner.moments(name) for name in inner.names}
    return {name: (steps, values.tobytes()) for name, (steps, values) in found.items()}


def apart(one: Learner, two: Learner) -> float:
    """The largest difference of a weight."""
    pairs = zip(one.model.parameters(), two.model.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """What a Muon has kept."""
    path = tmp_path / "snapshots" / "kept.safetensors"
    path.parent.mkdir()
    keep(learned(plan_of()), plan_of(), path)
    return path


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_who_goes_on_with_it_learns_as_one_that_was_never_away(name: str, tmp_path: Path) -> None:
    plan, path = plan_of(name), tmp_path / "kept.safetensors"
    one, later = learned(plan), batches(8, seed=2)
    keep(one, plan, path)
    two, cold = Learner(plan, CPU), Learner(plan, CPU)
    for spec in fragments(plan):
        values = np.empty(spec.size, np.float32)
        weights.copy_out(one.model, spec, values)
        weights.copy_in(two.model, spec, values)
        weights.copy_in(cold.model, spec, values)
    assert begin(two, plan, path) == (True, "goes on from what was kept")
    for batch in later:
        for learner in (one, two, cold):
            learner.step(batch, 0.7)
    assert apart(one, two) <= 1e-6
    assert apart(one, cold) > 1e-3, "which says something"
    assert moments(one.optimizer) == moments(two.optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("tied", [True, False])
def test_the_plan_says_what_torch_keeps(name: str, tied: bool) -> None:
    plan = plan_of(name, tied=tied)
    inner = learned(plan, 1).optimizer
    sizes = {n: p.numel() for n, p in LanguageModel(plan.model, 32).named_parameters()}
    assert list(remembered(plan)) == inner.names
    for parameter, count in remembered(plan).items():
        steps, values = inner.moments(parameter)
        assert len(values) == count * sizes[parameter]
        assert steps == (1 if count == 2 else 0)


def test_each_stage_goes_on_with_its_part_and_parts_make_the_whole(tmp_path: Path) -> None:
    plan = plan_of()
    whole, path = learned(plan), tmp_path / "kept.safetensors"
    keep(whole, plan, path)
    names, blocks = modules(plan.model), [range(1), range(1, 3)]
    tensors = {}
    for stage, span in enumerate(blocks):
        held = [names[1 + i] for i in span] + ([names[0], names[-1]] if stage == 0 else [])
        host = StageLearner(plan, CPU, held, blocks)
        assert begin(host, plan, path) == (True, "goes on from what was kept")
        own = moments(host.optimizer)
        assert own == {n: m for n, m in moments(whole.optimizer).items() if n in own}
        keep(host, plan, tmp_path / f"stage-{stage}")
        assert len(load_file(tmp_path / f"stage-{stage}")) < len(moment_shapes(plan))
        tensors |= dict(open_moments(tmp_path / f"stage-{stage}", plan))
    # what fragments have of it, each from a host of its stage, is a file of the whole
    parts = [part_of(spec, plan, tensors) for spec in fragments(plan)]
    sizes = [tuple(part.nbytes for part in parts_of_one) for parts_of_one in parts]
    assert sizes == [part_bytes(spec, plan) for spec in fragments(plan)]
    body = b"".join(part.tobytes() for kind in zip(*parts, strict=True) for part in kind)
    assert moments_header(plan) + body == path.read_bytes()
    two_of_three = Learner(plan, CPU)
    is_warm, line = begin(two_of_three, plan, tmp_path / "stage-1")
    assert not is_warm
    assert "begins empty for the rest" in line


def test_nothing_kept_is_no_trouble(tmp_path: Path) -> None:
    assert begin(Learner(plan_of(), CPU), plan_of(), tmp_path / "none") == (False, "")


def spoilt(path: Path, how: str) -> str:
    """Do it, and return a part of what is to be said."""
    tensors, about = load_file(path), {"format": FORMAT, "optimizer": "muon"}
    name = "blocks.1.attention.query.weight"
    match how:
        case "cut":
            path.write_bytes(path.read_bytes()[:-5])
            return "not a safetensors file"
        case "garbage":
            path.write_bytes(os.urandom(4096))
            return "not a safetensors file"
        case "another optimizer":
            about["optimizer"] = "adamw"
        case "another format":
            about["format"] = "peerlm-optimizer-9"
        case "another shape":
            tensors[f"first.{name}"] = tensors[f"first.{name}"][:, 1:].copy()
        case "another type":
            tensors[f"first.{name}"] = tensors[f"first.{name}"].astype(np.float16)
        case "unknown":
            tensors["first.\x1b[2J"] = np.zeros(1, np.float32)
        case "half of it":
            del tensors["second.embedding.weight"]
        case "not finite":
            tensors[f"first.{name}"][3, 4] = np.nan
        case "below 0":
            tensors["second.embedding.weight"][3, 4] = -1.0
        case "no count":
            tensors["step.embedding.weight"] = np.array(0.5, np.float32)
    save_file(tensors, path, about)
    return how if how in ("not finite", "below 0") else ""


@pytest.mark.parametrize(
    "how",
    [
        *("cut", "garbage", "another optimizer", "another format", "another shape"),
        *("another type", "unknown", "half of it", "not finite", "below 0", "no count"),
    ],
)
def test_what_is_not_sound_is_refused_whole_in_one_line(kept: Path, how: str) -> None:
    said = spoilt(kept, how)
    learner = Learner(plan_of(), CPU)
    before = moments(learner.optimizer)
    is_warm, line = begin(learner, plan_of(), kept)
    assert not is_warm
    assert line.startswith("begins empty: ")
    assert said in line
    assert line.isprintable()
    assert moments(learner.optimizer) == before
    assert learner.step(batches(1)[0]).finite, "it trains all the same"
    with pytest.raises(ConfigError):
        copy_moments(kept, kept.parent / "copy", plan_of())
    assert not (kept.parent / "copy").exists()


def test_a_copy_is_what_was_copied(kept: Path) -> None:
    copy = kept.parent / "copy.safetensors"
    assert copy_moments(kept, copy, plan_of()) == len(remembered(plan_of()))
    assert copy.read_bytes() == kept.read_bytes()


def test_it_is_there_whole_or_as_it_was(kept: Path) -> None:
    plan, before = plan_of(), kept.read_bytes()
    learner = learned(plan, 7)
    unfinished = Keepsake(learner.optimizer, plan, kept, 0)
    assert unfinished.error == ""
    assert kept.read_bytes() == before
    full = Keepsake(learner.optimizer, plan, kept, 1000)
    full.finish()
    assert full.is_over
    assert "limits.disk_bytes" in full.error
    assert kept.read_bytes() == before
    unfinished.finish()
    assert kept.read_bytes() != before
    assert {path.name for path in kept.parent.iterdir()} == {kept.name}


def test_another_model_takes_none_of_it(kept: Path) -> None:
    plan = plan_of()
    other = replace(plan, model=replace(plan.model, dim=24))
    with pytest.raises(ConfigError, match="must be F32"):
        open_moments(kept, other)
    MomentsFile(kept, other, []).abort()
