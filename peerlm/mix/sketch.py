"""A vector in 32 numbers, enough to tell whether two vectors are roughly the same.

Each element is added, with a random sign, to one of k sums (Charikar, Chen and Farach-Colton's count
sketch). The squared norm of a difference of sketches is an unbiased estimate of the squared
distance of the vectors, with a relative standard deviation of √(2/k) at most for vectors without
dominant elements. Sums and signs come from a hash of the element's index, so there is no matrix,
and every machine gets the same numbers to the last bit.

Whoever knows the seed beforehand can craft another vector with the same sketch: where that matters,
the one who compares draws the seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from peerlm.mix.vector import Vector, pieces

SKETCH_SIZE = 32


def sketch(values: Vector, rng_seed: int, fragment: int, k: int = SKETCH_SIZE) -> Vector:
    """The sketch [k] of `values` [n], n < 2³². `rng_seed` and `fragment` choose sums and signs."""
    assert 1 <= k <= 256
    key = _mixed64(_mixed64(rng_seed % 2**64) ^ fragment)
    sums = np.zeros(k)
    for piece in pieces(values.size):
        hashes = _hashes(piece, key)
        signed = values[piece].view(np.uint32) ^ ((hashes & 1) << 31)  # flips the sign bit
        hashes >>= 8
        hashes *= np.uint32(k)
        hashes >>= 24
        sums += np.bincount(hashes, weights=signed.view(np.float32), minlength=k)
    with np.errstate(over="ignore"):
        return sums.astype(np.float32)


def distance(ours: Sequence[float] | Vector, theirs: Sequence[float] | Vector) -> float:
    """Estimate of |a − b| ÷ max(|a|, |b|) from two sketches of the same seed and fragment.

    inf if they cannot be compared: different lengths, elements or norms that are not finite.
    """
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf
    with np.errstate(over="ignore"):
        largest, apart = max(np.linalg.norm(a), np.linalg.norm(b)), np.linalg.norm(a - b)
    if not (np.isfinite(largest) and np.isfinite(apart)):
        return math.inf
    return float(apart / largest) if largest > 0 else 0.0


def _hashes(piece: slice, key: int) -> NDArray[np.uint32]:
    """32 well-mixed bits for each index in `piece` (the finaliser of MurmurHash3)."""
    bits = np.arange(piece.start, piece.stop, dtype=np.uint32)
    bits *= np.uint32(0x9E3779B1)
    bits ^= np.uint32(key & 0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits ^= bits >> shift
        bits *= np.uint32(factor)
    bits ^= np.uint32(key >> 32)
    bits ^= bits >> 16
    return bits


def _mixed64(number: int) -> int:
    """SplitMix64's mixing of a 64-bit number."""
    number = (number + 0x9E3779B97F4A7C15) % 2**64
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
    return number ^ (number >> 31)
