"""Small models of Llama's shape: ours, with random weights, as folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from peerlm import config
from peerlm.model.hf import CONFIG, INDEX, HfModel, write_hf
from peerlm.model.model import LanguageModel
from peerlm.model.plan import fragments
from peerlm.model.tensors import fragment_values
from peerlm.model.weights import copy_in

PLAN = config.with_changes(
    config.Plan(),
    {
        "model.blocks": ("attention", "feedforward") * 2,
        "model.dim": 32,
        "model.heads": 4,
        "model.kv_heads": 2,
        "model.hidden": 48,
        "model.context": 16,
        "data.vocab": 64,
        "mix.fragment_max": 3000,
    },
    "test",
)


def random_values(plan: config.Plan, rng_seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(rng_seed)
    return [rng.normal(0, 0.2, spec.size).astype(np.float32) for spec in fragments(plan)]


def written(folder: Path, plan: config.Plan = PLAN, tokenizer: bytes | None = None) -> Path:
    """The folder, in which there is now a model as `transformers` would write it."""
    write_hf(folder, plan, random_values(plan), tokenizer, {})
    return folder


def values_of(found: HfModel, plan: config.Plan) -> list[np.ndarray]:
    return [fragment_values(spec, found.tensors) for spec in fragments(plan)]


def built(plan: config.Plan, values: list[np.ndarray]) -> LanguageModel:
    model = LanguageModel(plan.model, plan.data.vocab)
    for spec, part in zip(fragments(plan), values, strict=True):
        copy_in(model, spec, part)
    return model.eval()


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes one away."""
    held = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in held.items() if v is not None}))


def shard(folder: Path) -> None:
    """Two files and an index in the place of one file."""
    import safetensors.numpy

    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, held in files.items():
        safetensors.numpy.save_file({n: tensors[n] for n in held}, folder / file, {"format": "pt"})
    weight_map = {name: file for file, held in files.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


__all__ = [
    "CONFIG",
    "INDEX",
    "PLAN",
    "built",
    "edit",
    "random_values",
    "shard",
    "values_of",
    "written",
]
