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
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors
import tomlkit
from numpy.typing import NDArray

from peerlm.config import Plan, read_toml, to_dict
from peerlm.errors import ConfigError
from peerlm.model.plan import fragments, parameter_shapes
from peerlm.store import disk

if TYPE_CHECKING:
    from peerlm.model.model import LanguageModel

Values = NDArray[np.float32]

WEIGHTS, PLAN, TOKENIZER = "model.safetensors", "plan.toml", "tokenizer.json"


def write_model(
    directory: Path,
    plan: Plan,
    fragment_values: Sequence[Values],
    tokenizer: bytes | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the model whose fragments, in the plan's order, are flat fp32 `fragment_values`.

    `metadata` is added to the safetensors header. Raises `StateError` when the disk will not take it.
    """
    with disk.explained("make", directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    plan_toml = render_plan(plan).encode()
    header = {
        **(metadata or {}),
        "format": "pt",
        "plan_sha256": hashlib.sha256(plan_toml).hexdigest(),
    }
    tensors = join_fragments(plan, fragment_values)
    if tokenizer is not None:
        disk.write_atomic(directory / TOKENIZER, tokenizer)
    disk.write_atomic(directory / PLAN, plan_toml)
    _write_tensors(directory / WEIGHTS, tensors, header)


def read_model(directory: Path) -> tuple[Plan, list[Values]]:
    """The plan and its fragments' values, as `write_model` took them.

    Raises:
        ConfigError: a file is missing or damaged, or the weights are not the plan's.
    """
    plan_path, weights_path = directory / PLAN, directory / WEIGHTS
    for path in (plan_path, weights_path):
        if not path.is_file():
            raise ConfigError(
                f"{path}: no such file; a model is a folder with {WEIGHTS} and {PLAN}"
            )
    plan_toml = plan_path.read_bytes()
    plan = read_toml(Plan, plan_toml.decode(errors="replace"), str(plan_path))
    try:
        with safetensors.safe_open(weights_path, framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ConfigError(f"{weights_path}: not a safetensors file: {error}") from None
    if header.get("plan_sha256") != hashlib.sha256(plan_toml).hexdigest():
        raise ConfigError(
            f"{weights_path}: written with another plan than {plan_path}; export again"
        )
    for name, (_, shape) in parameter_shapes(plan.model, plan.data.vocab).items():
        found = tensors.get(name)
        if found is None or found.shape != shape or found.dtype != np.float32:
            saw = "missing" if found is None else f"{found.dtype}{list(found.shape)}"
            raise ConfigError(f"{weights_path}: {name} is {saw}, the plan has float32{list(shape)}")
    return plan, split_fragments(plan, tensors)


def load_model(directory: Path) -> LanguageModel:
    """The model in `directory`, on the CPU, ready to evaluate or generate. Needs torch.

    Raises `ConfigError` as `read_model` does.
    """
    from peerlm.model.model import LanguageModel
    from peerlm.model.weights import copy_in

    plan, fragment_values = read_model(directory)
    model = LanguageModel(plan.model, plan.data.vocab)
    for spec, values in zip(fragments(plan), fragment_values, strict=True):
        copy_in(model, spec, values)
    return model.eval()


def join_fragments(plan: Plan, fragment_values: Sequence[Values]) -> dict[str, Values]:
    """Whole tensors in their shapes, from the values of every fragment."""
    shapes = parameter_shapes(plan.model, plan.data.vocab)
    tensors = {name: np.empty(shape, np.float32) for name, (_, shape) in shapes.items()}
    for spec, values in zip(fragments(plan), fragment_values, strict=True):
        assert values.shape == (spec.size,), (spec.name, values.shape, spec.size)
        offset = 0
        for piece in spec.slices:
            length = piece.stop - piece.start
            tensors[piece.tensor].reshape(-1)[piece.start : piece.stop] = values[
                offset : offset + length
            ]
            offset += length
    return tensors


def split_fragments(plan: Plan, tensors: Mapping[str, Values]) -> list[Values]:
    """The values of every fragment, from whole tensors: the inverse of `join_fragments`."""
    return [
        np.concatenate(
            [tensors[piece.tensor].reshape(-1)[piece.start : piece.stop] for piece in spec.slices]
        )
        for spec in fragments(plan)
    ]


def render_plan(plan: Plan) -> str:
    """The plan as TOML that `config.read_toml` reads back to an equal plan."""
    return tomlkit.dumps(
        {
            section: {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
            for section, values in to_dict(plan).items()
        }
    )


def _write_tensors(path: Path, tensors: Mapping[str, Values], metadata: Mapping[str, str]) -> None:
    """A safetensors file, tensor by tensor: no second copy of the model is ever in memory."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, values in tensors.items():
        start, end = end, end + values.nbytes
        header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with disk.AtomicFile(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            file.write(values.reshape(-1).data.cast("B"))
