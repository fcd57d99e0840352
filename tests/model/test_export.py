"""A model's files: they reload to the same logits, and damage is named."""

from __future__ import annotations

import errno
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from peerlm import config
from peerlm.errors import ConfigError, StateError
from peerlm.model.export import load_model, read_model, render_plan, write_model
from peerlm.model.model import LanguageModel
from peerlm.model.plan import fragments
from peerlm.model.weights import copy_out
from peerlm.store import disk

PLAN = config.Plan(
    model=config.ModelSection(
        blocks=("recurrent", "attention", "feedforward"), dim=32, hidden=64, context=16, tied=False
    ),
    mix=config.MixSection(fragment_max=3000),
)


def model_and_values(rng_seed: int = 1) -> tuple[LanguageModel, list[np.ndarray]]:
    model = LanguageModel(PLAN.model, PLAN.data.vocab)
    model.initialise(rng_seed)
    values = [np.empty(spec.size, np.float32) for spec in fragments(PLAN)]
    for spec, out in zip(fragments(PLAN), values, strict=True):
        copy_out(model, spec, out)
    return model.eval(), values


def test_a_written_model_loads_to_the_same_logits(tmp_path: Path) -> None:
    model, values = model_and_values()
    write_model(tmp_path / "out", PLAN, values, tokenizer=b"{}", metadata={"tokens": "12"})
    tokens_BT = torch.arange(16)[None]
    assert torch.equal(load_model(tmp_path / "out")(tokens_BT), model(tokens_BT))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model.safetensors",
        "plan.toml",
        "tokenizer.json",
    ]


def test_the_file_holds_the_torch_models_own_names(tmp_path: Path) -> None:
    model, values = model_and_values()
    write_model(tmp_path, PLAN, values)
    held = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert {name: value.shape for name, value in held.items()} == {
        name: tuple(p.shape) for name, p in model.named_parameters()
    }


def test_reading_gives_back_the_plan_and_every_fragment(tmp_path: Path) -> None:
    _, values = model_and_values()
    write_model(tmp_path, PLAN, values)
    plan, read = read_model(tmp_path)
    assert plan == PLAN
    for mine, theirs in zip(values, read, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("name", list(config.PRESETS))
def test_a_rendered_plan_reads_back_equal(name: str) -> None:
    plan = config.preset(name)
    assert config.read_toml(config.Plan, render_plan(plan), "test") == plan


def test_a_crash_between_the_files_leaves_the_old_weights_whole_and_the_mix_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, values = model_and_values()
    write_model(tmp_path, PLAN, values)
    before = (tmp_path / "model.safetensors").read_bytes()

    write = disk.AtomicFile.write

    def fill_up(file: disk.AtomicFile, data: bytes) -> None:
        if file.path.name == "model.safetensors":
            with disk.explained("write", file.path):
                raise OSError(errno.ENOSPC, "No space left on device")
        write(file, data)

    monkeypatch.setattr(disk.AtomicFile, "write", fill_up)
    renamed = replace(PLAN, run=config.RunSection(name="other"))
    with pytest.raises(StateError, match=r"model\.safetensors: the disk is full"):
        write_model(tmp_path, renamed, values)
    assert not list(tmp_path.glob(".*"))
    assert (tmp_path / "model.safetensors").read_bytes() == before
    with pytest.raises(ConfigError, match="written with another plan"):
        read_model(tmp_path)


def test_missing_damaged_or_foreign_weights_are_named(tmp_path: Path) -> None:
    _, values = model_and_values()
    with pytest.raises(ConfigError, match="no such file"):
        read_model(tmp_path)
    write_model(tmp_path, PLAN, values)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="not a safetensors file"):
        read_model(tmp_path)
    with safetensors.safe_open(_written(weights, whole), framework="numpy") as file:
        header = file.metadata()
    tensors = safetensors.numpy.load_file(weights)
    tensors["embedding.weight"] = np.zeros((3, 3), np.float32)
    safetensors.numpy.save_file(tensors, weights, header)
    with pytest.raises(ConfigError, match=r"embedding.weight is F32\[3, 3\], must be"):
        read_model(tmp_path)
    del tensors["embedding.weight"]
    safetensors.numpy.save_file(tensors, weights, header)
    with pytest.raises(ConfigError, match=r"embedding.weight is missing"):
        read_model(tmp_path)
    whole_tensors = safetensors.numpy.load(whole)
    safetensors.numpy.save_file(whole_tensors | {"other": np.zeros(1, np.float32)}, weights, header)
    with pytest.raises(ConfigError, match=r"other: the plan's model has no such tensor"):
        read_model(tmp_path)


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_writing_and_reading_do_not_need_torch() -> None:
    code = "import sys, peerlm.model.export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
