"""The loops of an exchange, as fast as this installation has them: compiled.py's, else plain.py's."""

from __future__ import annotations

import math

from peerlm.mix.vector import Vector

try:
    from peerlm.mix.compiled import (
        NAME,
        add,
        decode_blocks,
        difference,
        encode_blocks,
        squares,
    )
except ImportError:
    from peerlm.mix.plain import (
        NAME,
        add,
        decode_blocks,
        difference,
        encode_blocks,
        squares,
    )

__all__ = ["NAME", "add", "decode_blocks", "difference", "encode_blocks", "norm", "squares"]


def norm(values: Vector) -> float:
    """Euclidean norm; inf or NaN if an element is not finite, or beyond about 1e19."""
    return math.sqrt(squares(values))
