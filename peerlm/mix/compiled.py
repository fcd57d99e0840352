"""The loops of an exchange as kernel.c has them: those of plain.py, in one pass each.

The library is built when peerlm is installed, if there is a compiler; it knows nothing of Python, so that
one build serves every version. A call lets go of the interpreter's lock.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peerlm.mix.plain import keys_of
from peerlm.mix.vector import Blocks, Vector

NAME = "compiled"

_POINTER, _SIZE, _FLOAT, _SUM = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_float, ctypes.c_double
_KEY = ctypes.c_uint32
_ENCODE = (_POINTER, _SIZE, *[_FLOAT] * 4, _KEY, _KEY, _POINTER, _POINTER)
_DECODE = (_POINTER, _POINTER, _POINTER, _SIZE)
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "squares": (_SUM, (_POINTER, _SIZE)),
    "difference": (None, (_POINTER, _POINTER, _POINTER, _SIZE, _POINTER)),
    "add": (_SUM, (_POINTER, _POINTER, _POINTER, _FLOAT, _SIZE)),
    "encode8": (_SIZE, _ENCODE),
    "encode4": (_SIZE, _ENCODE),
    "decode8": (_SUM, _DECODE),
    "decode4": (_SUM, _DECODE),
}


def _library() -> ctypes.CDLL:
    """Raises `ImportError` where it was not built, or does not fit this machine."""
    built = sorted(Path(__file__).parent.glob("_kernel*.so"))
    if not built:
        raise ImportError("peerlm was installed without a compiler at hand")
    try:
        library = ctypes.CDLL(str(built[0]))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, f"peerlm_{name}")
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise ImportError(f"{built[0]}: {error}") from None
    return library


_LIBRARY = _library()


def _at(values: NDArray[Any] | None) -> int | None:
    """Where its first element is, for a function that takes elements in a row."""
    if values is None:
        return None
    assert values.flags.c_contiguous, values.strides
    return int(values.__array_interface__["data"][0])


def squares(values: Vector) -> float:
    """As plain.py's, as all others here."""
    _check(values)
    return float(_LIBRARY.peerlm_squares(_at(values), values.size))


def difference(ours: Vector, theirs: Vector, out: Vector) -> tuple[float, float]:
    _check(ours, theirs, out)
    sums = (ctypes.c_double * 2)()
    _LIBRARY.peerlm_difference(_at(ours), _at(theirs), _at(out), out.size, sums)
    return sums[0], sums[1]


def add(phi: Vector, queued: Vector | None, flow: Vector, scale: float) -> float:
    _check(phi, flow, phi if queued is None else queued)
    moved = _LIBRARY.peerlm_add(_at(phi), _at(queued), _at(flow), scale, phi.size)
    return float(moved)


def encode_blocks(
    values: Vector, kind: Blocks, rng: np.random.Generator, scales: Vector, out: NDArray[np.uint8]
) -> int:
    _check(values)
    function = _LIBRARY.peerlm_encode8 if kind.bits == 8 else _LIBRARY.peerlm_encode4
    at_block = function(
        _at(values),
        values.size,
        kind.bound,
        kind.top,
        kind.offset,
        kind.tiniest,
        *keys_of(rng),
        _at(scales),
        _at(out),
    )
    return int(at_block)


def decode_blocks(scales: Vector, encoded: NDArray[np.uint8], kind: Blocks, out: Vector) -> float:
    _check(out)
    function = _LIBRARY.peerlm_decode8 if kind.bits == 8 else _LIBRARY.peerlm_decode4
    return float(function(_at(scales), _at(encoded), _at(out), out.size))


def _check(*vectors: Vector) -> None:
    """What C cannot see."""
    for vector in vectors:
        assert vector.dtype == np.float32, vector.dtype
        assert vector.size == vectors[0].size, (vector.size, vectors[0].size)
