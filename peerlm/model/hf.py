"""A folder of Llama's shape, as `transformers` reads and writes them, in and out.

    config.json                     what the model is (`llama.py` says what is taken)
    model.safetensors               its tensors; or many files, and model.safetensors.index.json
    tokenizer.json                  of the `tokenizers` library

Opening reads names, types and shapes; values are read when they are asked for, a fragment at a time. A name
in the index may not lead out of the folder, and no pickle is ever opened. Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peerlm.config import ModelSection, Plan
from peerlm.errors import ConfigError
from peerlm.model.export import TOKENIZER, WEIGHTS
from peerlm.model.llama import DERIVED, HEAD, config_of, model_of, published_names
from peerlm.model.plan import parameter_shapes
from peerlm.model.tensors import (
    StoredTensor,
    Tensors,
    Values,
    require_shape,
    stored_tensors,
    write_tensors,
)
from peerlm.store import disk
from peerlm.types import printable

CONFIG, INDEX, TOKENIZER_CONFIG = (
    "config.json",
    "model.safetensors.index.json",
    "tokenizer_config.json",
)

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

JSON_BYTES_MAX = 64 << 20

BLOCK = 1 << 20
"""Elements that are compared at a time."""


@dataclass(frozen=True, slots=True)
class HfModel:
    """What the folder holds: `tensors` by our names."""

    model: ModelSection
    vocab: int
    tensors: Tensors


def open_hf(folder: Path) -> HfModel:
    """Look at everything but the values.

    Raises:
        ConfigError: a file is missing, damaged or not of Llama's shape, or tensors are not what
            config.json says.
        StateError: a file cannot be read.
    """
    config = _read_json(folder / CONFIG)
    model, vocab = model_of(config, str(folder / CONFIG))
    found, where = _tensors(folder)
    names = published_names(model)
    for ours, (_, shape) in parameter_shapes(model, vocab).items():
        require_shape(found, names[ours], shape, where)
    for name in sorted(found.keys() - set(names.values())):
        if name == HEAD:
            _require_equal(found, HEAD, names["embedding.weight"], where)
        elif not name.endswith(DERIVED):
            raise ConfigError(
                f"{where}: {printable(name)} is none of the tensors of the model in {folder / CONFIG}"
            )
    return HfModel(model, vocab, {ours: found[theirs] for ours, theirs in names.items()})


def write_hf(
    folder: Path,
    plan: Plan,
    fragments: Iterable[Values],
    tokenizer: bytes | None,
    metadata: Mapping[str, str],
    end: int | None = None,
) -> None:
    """Write the model whose fragments, in the plan's order, are flat fp32 `fragments`. The long part, the
    weights, is on the disk before any file appears. `end`: the token that the tokenizer puts behind a document.

    Raises:
        ConfigError: the model is not Llama's shape.
        StateError: the disk will not take it.
    """
    config = config_of(plan.model, plan.data.vocab, end)
    names = published_names(plan.model)
    shapes = parameter_shapes(plan.model, plan.data.vocab)
    with disk.explained("make", folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with disk.AtomicFile(folder / WEIGHTS) as file:
        write_tensors(
            file,
            {names[ours]: shape for ours, (_, shape) in shapes.items()},
            fragments,
            {**metadata, "format": "pt"},
        )
        if tokenizer is None:
            disk.remove(folder / TOKENIZER)
            disk.remove(folder / TOKENIZER_CONFIG)
        else:
            disk.write_atomic(folder / TOKENIZER, tokenizer)
            _write_json(
                folder / TOKENIZER_CONFIG,
                {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "clean_up_tokenization_spaces": False,
                },
            )
        _write_json(folder / CONFIG, config)


# ------------------------------------------------------------------------------------- files


def _tensors(folder: Path) -> tuple[dict[str, StoredTensor], Path]:
    """All tensors of the folder by their names there, and the file that names them."""
    single, index = folder / WEIGHTS, folder / INDEX
    if single.exists() or not index.exists():
        if not single.exists() and (pickles := _pickles(folder)):
            raise ConfigError(
                f"{pickles[0]}: a pickle can run programs and is never read; convert the model to safetensors"
            )
        return stored_tensors(single)[0], single
    named = _read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise ConfigError(f"{index}: has no weight_map of names of files")
    found: dict[str, StoredTensor] = {}
    for file in sorted(set(named.values())):
        if Path(file).name != file or "\0" in file or not file.endswith(".safetensors"):
            raise ConfigError(
                f"{index}: weight_map names {printable(file)!r}: must be a safetensors file in the same folder"
            )
        for name, tensor in stored_tensors(folder / file)[0].items():
            if named.get(name) != file:
                raise ConfigError(
                    f"{index}: weight_map has {printable(name)} in {named.get(name)!r}, and it is in {file!r}"
                )
            found[name] = tensor
    return found, index


def _pickles(folder: Path) -> list[Path]:
    return sorted(path for pattern in PICKLES for path in folder.glob(pattern))


def _require_equal(tensors: Tensors, name: str, other: str, where: Path) -> None:
    """A tied head may be kept a second time. Raises `ConfigError` where it is another matrix."""
    require_shape(tensors, name, tensors[other].shape, where)
    size = int(np.prod(tensors[name].shape))
    for start in range(0, size, BLOCK):
        part = start, min(start + BLOCK, size)
        if not np.array_equal(tensors[name].values(*part), tensors[other].values(*part)):
            raise ConfigError(
                f"{where}: {name} differs from {other}, and tie_word_embeddings = true says that they are one"
            )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        value = json.loads(disk.read_file(path, JSON_BYTES_MAX))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON: {printable(str(error)[:200])}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: must be a JSON object")
    return value


def _write_json(path: Path, value: object) -> None:
    disk.write_atomic(path, json.dumps(value, indent=2).encode() + b"\n")
