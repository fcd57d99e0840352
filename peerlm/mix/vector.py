"""Arithmetic on long fp32 vectors, a cache-sized piece at a time.

A fragment has up to four million parameters: 16 MB, far more than a core's second-level cache. Work
that goes over it several times is done piece by piece, so that only the first pass waits for
memory. Nothing here starts threads (so no BLAS), and numpy lets go of the interpreter's lock inside
each call, so the daemon's pool can run several fragments at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
"""One-dimensional, fp32, C-contiguous."""

PIECE = 1 << 16
"""Elements worked on at a time: 256 KiB of fp32, a few of which fit in a second-level cache."""


def pieces(size: int) -> Iterator[slice]:
    """Slices of at most `PIECE` elements that cover `range(size)` in order."""
    for start in range(0, size, PIECE):
        yield slice(start, min(start + PIECE, size))


def square_sum(piece: Vector) -> float:
    """Σ x² of one piece; inf or NaN if an element is not finite, or beyond about 1e19."""
    return float(np.einsum("i,i->", piece, piece))


def squares(values: Vector) -> float:
    """Σ x², summed in the same order wherever it is done; else as `square_sum`."""
    return sum(square_sum(values[piece]) for piece in pieces(values.size))


def norm(values: Vector) -> float:
    """Euclidean norm; inf or NaN if an element is not finite, or beyond about 1e19."""
    return math.sqrt(squares(values))
