"""Long fp32 vectors, and how they are cut.

A fragment has up to four million parameters: 16 MB, far more than a core's second-level cache. Work
that goes over it several times is done piece by piece, so that only the first pass waits for memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
"""One-dimensional, fp32, C-contiguous."""

PIECE = 1 << 16
"""Elements worked on at a time: 256 KiB of fp32, a few of which fit in a second-level cache."""

BLOCK = 128
"""Elements that share a scale where vectors are small integers. Divides `PIECE`."""


def pieces(size: int) -> Iterator[slice]:
    """Slices of at most `PIECE` elements that cover `range(size)` in order."""
    for start in range(0, size, PIECE):
        yield slice(start, min(start + PIECE, size))


def blocks_of(size: int) -> int:
    """How many blocks `size` elements have."""
    return -(-size // BLOCK)


@dataclass(frozen=True, slots=True)
class Blocks:
    """A way to hold blocks as integers of so many `bits`.

    bound: the largest |x| that is taken.
    top: what a block's largest |x| is divided by for its scale.
    tiniest: scales below it become 0, and so the block.
    offset: what makes every integer positive, half a step of the dither included.
    """

    bits: int
    bound: np.float32
    top: np.float32
    tiniest: np.float32
    offset: np.float32
