"""A finished model as plain files: safetensors, the plan, and the tokenizer.

    model.safetensors   fp32 tensors under the torch model's own names
    plan.toml           what the model is; its SHA-256 is in the safetensors metadata
    tokenizer.json      only when the plan has one

Each file is replaced whole or not at all, the weights last, so a crash leaves the old model or the
new one; weights whose plan is another's are refused on reading.
Nothing is ever pickled. Writing and `read_model` need no torch, because a daemon writes models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import tomlkit

from peerlm.config import Plan, read_toml, told
from peerlm.errors import ConfigError
from peerlm.model.plan import Shape, fragments, parameter_shapes
from peerlm.model.tensors import (
    StoredTensor,
    Values,
    fragment_values,
    require_shape,
    stored_tensors,
    tensors_header,
    write_tensors,
)
from peerlm.store import disk
from peerlm.types import printable

if TYPE_CHECKING:
    from peerlm.model.model import LanguageModel

WEIGHTS, PLAN, TOKENIZER = "model.safetensors", "plan.toml", "tokenizer.json"


def write_model(
    directory: Path,
    plan: Plan,
    values: Iterable[Values],
    tokenizer: bytes | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the model whose fragments, in the plan's order, are flat fp32 `values`.

    `metadata` is added to the safetensors header. Raises `StateError` when the disk will not take it.
    """
    with disk.explained("make", directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    plan_toml = render_plan(plan).encode()
    shapes, header = shapes_and_header(plan, plan_toml, metadata or {})
    if tokenizer is not None:
        disk.write_atomic(directory / TOKENIZER, tokenizer)
    disk.write_atomic(directory / PLAN, plan_toml)
    with disk.AtomicFile(directory / WEIGHTS) as file:
        write_tensors(file, shapes, values, header)


def shapes_and_header(
    plan: Plan, plan_toml: bytes, metadata: Mapping[str, str]
) -> tuple[dict[str, Shape], dict[str, str]]:
    """Of the weights' file: every tensor's shape, and what its header says besides."""
    shapes = {n: s for n, (_, s) in parameter_shapes(plan.model, plan.data.vocab).items()}
    digest = hashlib.sha256(plan_toml).hexdigest()
    return shapes, {**metadata, "format": "pt", "plan_sha256": digest}


def weights_header(plan: Plan, metadata: Mapping[str, str]) -> bytes:
    """How the weights' file begins; the fragments' values, in the plan's order, follow it."""
    shapes, header = shapes_and_header(plan, render_plan(plan).encode(), metadata)
    return tensors_header(shapes, header)


def open_model(directory: Path) -> tuple[Plan, dict[str, StoredTensor]]:
    """The plan, and the tensors by our names, of which no values are read yet.

    Raises:
        ConfigError: a file is missing or damaged, or the weights are not the plan's.
        StateError: a file cannot be read.
    """
    plan_path, weights_path = directory / PLAN, directory / WEIGHTS
    for path in (plan_path, weights_path):
        if not path.is_file():
            raise ConfigError(
                f"{path}: no such file; a model is a folder with {WEIGHTS} and {PLAN}"
            )
    plan_toml = plan_path.read_bytes()
    plan = read_toml(Plan, plan_toml.decode(errors="replace"), str(plan_path))
    tensors, header = stored_tensors(weights_path)
    if header.get("plan_sha256") != hashlib.sha256(plan_toml).hexdigest():
        raise ConfigError(
            f"{weights_path}: written with another plan than {plan_path}; export again"
        )
    shapes = parameter_shapes(plan.model, plan.data.vocab)
    for name, (_, shape) in shapes.items():
        require_shape(tensors, name, shape, weights_path)
    for name in sorted(tensors.keys() - shapes.keys()):
        raise ConfigError(f"{weights_path}: {printable(name)}: the plan's model has no such tensor")
    return plan, tensors


def read_model(directory: Path) -> tuple[Plan, list[Values]]:
    """The plan and its fragments' values, as `write_model` took them. Raises as `open_model` does."""
    plan, tensors = open_model(directory)
    return plan, [fragment_values(spec, tensors) for spec in fragments(plan)]


def load_model(directory: Path) -> LanguageModel:
    """The model in `directory`, on the CPU, ready to evaluate or generate. Needs torch.

    Raises as `open_model` does.
    """
    from peerlm.model.model import LanguageModel
    from peerlm.model.weights import copy_in

    plan, tensors = open_model(directory)
    model = LanguageModel(plan.model, plan.data.vocab)
    for spec in fragments(plan):
        copy_in(model, spec, fragment_values(spec, tensors))
    return model.eval()


def render_plan(plan: Plan) -> str:
    """The plan as TOML that `config.read_toml` reads back to an equal plan."""
    return tomlkit.dumps(
        {
            section: {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
            for section, values in told(plan).items()
        }
    )
