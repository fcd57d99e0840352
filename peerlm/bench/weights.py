"""The weights that nodes of a benchmark start with: about as far apart as if they had trained apart.

A vector that all have in common plus noise of each node's own, a function of seeds alone, so that a node
can be put back to where it was without keeping a copy. Filled a piece at a time, for the peak of memory is
a figure too.
"""

from __future__ import annotations

import numpy as np

from peerlm.mix.vector import Vector, pieces
from peerlm.types import FragmentId

SCALE = 0.05
"""Root mean square of the weights that all have in common."""

APART = 0.1
"""Norm of a node's own noise ÷ norm of the common weights: below where clipping begins."""


def prepare(phi: Vector, fragment: FragmentId, rng_seed: int, number: int) -> None:
    """Fill `phi` [n] with the weights that node `number` starts with: common ones, and noise of its own."""
    common = np.random.default_rng((rng_seed, fragment, 0))
    own = np.random.default_rng((rng_seed, fragment, number))
    for piece in pieces(phi.size):
        part = phi[piece]
        common.standard_normal(dtype=np.float32, out=part)
        part += np.float32(APART) * own.standard_normal(part.size, np.float32)
        part *= np.float32(SCALE)
