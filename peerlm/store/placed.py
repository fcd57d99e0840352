"""What a node that decides by itself has decided, as bytes: the stages it holds, and copies of others' stages. One with fixed stages has
it only if the run began with weights of which it does not hold all.

Copies are objects, like a joiner's fetched state: this names them, so that a start does not take them for
leftovers. Pure bytes in and out; what cannot be read is a `StateError` that says what to do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

from peerlm.errors import StateError
from peerlm.types import FragmentId, ObjectHash

BYTES_MAX = 16 << 20


@dataclass(frozen=True, slots=True)
class Copy:
    """A fragment of a stage that is held elsewhere, as it was when it was pulled."""

    version: int
    object_hash: ObjectHash
    size: int
    """Bytes."""
    sketch: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """`held`: empty before the first decision."""

    held: range = range(0)
    copies: Mapping[FragmentId, Copy] = field(default_factory=dict)

    def encode(self) -> bytes:
        copies = [
            [fragment, copy.version, copy.object_hash.hex(), copy.size, list(copy.sketch)]
            for fragment, copy in sorted(self.copies.items())
        ]
        held = [self.held.start, self.held.stop]
        return json.dumps({"held": held, "copies": copies}, allow_nan=False).encode()


def read_placed(data: bytes, path: Path, count: int) -> Placed:
    """Of a model in `count` stages. Raises `StateError`."""
    try:
        body = json.loads(data)
        start, stop = map(_count, body["held"])
        if stop > count:
            raise ValueError(stop)
        copies = {
            FragmentId(_count(fragment)): Copy(
                _count(version), _hash(name), _count(size), tuple(map(_number, sketch))
            )
            for fragment, version, name, size, sketch in body["copies"]
        }
        return Placed(range(start, stop), copies)
    except (KeyError, TypeError, ValueError, RecursionError):
        raise StateError(
            f"{path}: is damaged; remove it, and the node decides anew which stages it holds"
        ) from None


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError(value)
    return value


def _hash(value: str) -> ObjectHash:
    if len(name := bytes.fromhex(value)) != 32:
        raise ValueError(value)
    return ObjectHash(name)


def _number(value: object) -> float:
    if not isinstance(value, int | float) or not isfinite(value):
        raise ValueError(value)
    return float(value)
