"""Tensors in safetensors files, read a part at a time: a model is never in memory as a whole.

The library checks a file's header (sizes, gaps, overlaps, the end of the file); where a tensor lies is then
read from the same header, because the library hands out whole tensors, and no bfloat16 without torch.
What is read becomes fp32, which loses nothing of fp16 and bf16. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from peerlm.errors import ConfigError
from peerlm.model.plan import FragmentSpec, Shape
from peerlm.store.disk import AtomicFile, ReadFile
from peerlm.types import printable

Values = NDArray[np.float32]

TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
"""How numpy reads each type that is taken. It has no bfloat16, which is the upper half of an fp32."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that lies `offset` bytes into `file`."""

    file: ReadFile
    dtype: str
    shape: Shape
    offset: int

    def values(self, start: int, stop: int) -> Values:
        """Elements `start` to `stop`, flattened in row-major order. Raises `StateError`."""
        kind = TYPES[self.dtype]
        raw = np.empty(stop - start, kind)
        self.file.read_into(self.offset + start * kind.itemsize, raw.data.cast("B"))
        if self.dtype == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32, copy=False)


Tensors = Mapping[str, StoredTensor]


def stored_tensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and the file's metadata.

    Raises:
        ConfigError: no such file, damaged, or no safetensors file at all.
        StateError: it cannot be read.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    file = ReadFile(path)
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except safetensors.SafetensorError as error:
        raise ConfigError(f"{path}: not a safetensors file: {printable(str(error))}") from None
    start = 8 + int.from_bytes(file.read_at(0, 8), "little")
    header = json.loads(file.read_at(8, start - 8))
    metadata = header.pop("__metadata__", {})
    return {
        name: StoredTensor(
            file, entry["dtype"], tuple(entry["shape"]), start + entry["data_offsets"][0]
        )
        for name, entry in header.items()
    }, metadata


def require_shape(tensors: Tensors, name: str, shape: Shape, where: Path) -> None:
    """Raises `ConfigError` unless there is a tensor of that name and shape, of a type we read."""
    found = tensors.get(name)
    if found is None or found.shape != shape or found.dtype not in TYPES:
        saw = "missing" if found is None else f"{found.dtype}{list(found.shape)}"
        raise ConfigError(f"{where}: {name} is {saw}, must be {list(shape)} of {', '.join(TYPES)}")


def fragment_values(spec: FragmentSpec, tensors: Tensors) -> Values:
    """The fragment's elements in order, from whole tensors by our names. Raises `StateError`."""
    return np.concatenate([tensors[p.tensor].values(p.start, p.stop) for p in spec.slices])


def tensors_header(shapes: Mapping[str, Shape], metadata: Mapping[str, str]) -> bytes:
    """How a safetensors file of fp32 tensors `shapes` begins, whatever their names. What follows are their values."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_tensors(
    file: AtomicFile,
    shapes: Mapping[str, Shape],
    fragments: Iterable[Values],
    metadata: Mapping[str, str],
) -> None:
    """A safetensors file of fp32 tensors `shapes`, in the plan's order. As fragments cover the parameters in that order,
    their values one after another are its body. Raises `StateError`.
    """
    file.write(tensors_header(shapes, metadata))
    body, end = file.size_bytes, 4 * sum(map(prod, shapes.values()))
    for values in fragments:
        file.write(values.data.cast("B"))
    assert file.size_bytes - body == end, f"{file.size_bytes - body} bytes for {end}"
