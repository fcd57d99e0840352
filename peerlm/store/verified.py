"""When each name's chunks were last read, all of them, because somebody of this node asked (`peerlm data verify`).

Remembered by the manifest, so a name that stands for something else since then was not verified, and what was written
again as it was is. Each node knows its own readings alone. What cannot be read of the memory counts as none, and no more is
kept of it than names of the swarm's store stand for. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from math import isfinite
from typing import NamedTuple

from peerlm.types import ObjectHash, WallTime

HASH_BYTES = 32

BYTES_MAX = 4 << 20
"""Of the memory: a hundred bytes for each name that there may be, and some."""


class Reading(NamedTuple):
    at: float
    """Wall time of its end."""
    missing: int
    """Chunks that could not be had then."""


class Verified:
    """`memory`: what `encode` gave."""

    def __init__(self, memory: bytes = b"") -> None:
        self._readings = _read(memory)

    def of(self, manifest: ObjectHash) -> Reading | None:
        return self._readings.get(manifest)

    def note(
        self, manifest: ObjectHash, missing: int, named: Collection[ObjectHash], wall: WallTime
    ) -> None:
        """It was read just now. `named`: the manifests that names stand for."""
        kept = {known: reading for known, reading in self._readings.items() if known in named}
        self._readings = {**kept, manifest: Reading(wall, missing)}

    def encode(self) -> bytes:
        return json.dumps({of.hex(): list(one) for of, one in self._readings.items()}).encode()


def _read(memory: bytes) -> dict[ObjectHash, Reading]:
    try:
        body = json.loads(memory)
        found = {
            ObjectHash(bytes.fromhex(of)): Reading(float(at), int(missing))
            for of, (at, missing) in body.items()
        }
    except (AttributeError, OverflowError, RecursionError, TypeError, ValueError):
        return {}
    return {
        of: one
        for of, one in found.items()
        if len(of) == HASH_BYTES and isfinite(one.at) and one.missing >= 0
    }
