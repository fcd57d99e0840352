"""The loops of an exchange in numpy, a cache-sized piece at a time: what they mean.

Nothing here starts threads (so no BLAS), and numpy lets go of the interpreter's lock inside each call.
Where kernel.c could be compiled, compiled.py does the same in one pass each, to the last bit: for that
reason sums of squares are taken in an order that is said here, and not in numpy's own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from peerlm.mix.vector import BLOCK, PIECE, Blocks, Vector, blocks_of, pieces

NAME = "numpy"

_LANES = 64
"""Partial sums of a sum of squares."""


def squares(values: Vector) -> float:
    """Σ x²; inf or NaN if an element is not finite, or beyond about 1e19."""
    total = 0.0
    for piece in pieces(values.size):
        total += _squares_of_piece(values[piece])
    return total


def difference(ours: Vector, theirs: Vector, out: Vector) -> tuple[float, float]:
    """`out` := `ours` − `theirs`, and Σ theirs², Σ out². `out` may be `theirs`."""
    of_theirs = of_out = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in pieces(out.size):
            of_theirs += _squares_of_piece(theirs[piece])
            np.subtract(ours[piece], theirs[piece], out=out[piece])
            of_out += _squares_of_piece(out[piece])
    return of_theirs, of_out


def add(phi: Vector, queued: Vector | None, flow: Vector, scale: float) -> float:
    """`phi` += `scale` × `flow`, and `queued` likewise if there is one; Σ phi² then."""
    room, total = np.empty(min(PIECE, phi.size), np.float32), 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in pieces(phi.size):
            part = phi[piece]
            scaled = np.multiply(flow[piece], np.float32(scale), out=room[: part.size])
            part += scaled
            total += _squares_of_piece(part)
            if queued is not None:
                queued[piece] += scaled
    return total


def encode_blocks(
    values: Vector, kind: Blocks, rng: np.random.Generator, scales: Vector, out: NDArray[np.uint8]
) -> int:
    """Integers and the `scales` they are times of, a scale a block, rounded up or down at random. The
    first element of a block with one that is not finite or beyond `kind.bound`; `values.size` if
    none is."""
    keys = keys_of(rng)
    for piece in pieces(values.size):
        rows = _as_rows(values[piece])
        largest = _largest_of_rows(rows)
        fits = largest <= kind.bound
        if not fits.all():
            return int(piece.start + BLOCK * np.argmin(fits))
        scale = largest / kind.top
        scale[scale < kind.tiniest] = 0.0
        scales[piece.start // BLOCK :][: scale.size] = scale
        inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
        integers = _round_at_random(rows, inverse, kind, draw(keys, piece.start, rows.size))
        integers = integers[: piece.stop - piece.start]
        if kind.bits == 8:
            np.bitwise_xor(integers, 0x80, out=out[piece])  # from offset to two's complement
        else:
            _pack_nibbles(integers, out[piece.start // 2 : (piece.stop + 1) // 2])
    return int(values.size)


def decode_blocks(scales: Vector, encoded: NDArray[np.uint8], kind: Blocks, out: Vector) -> float:
    """`out` := the integers times their blocks' `scales`; Σ out²."""
    total = 0.0
    for piece in pieces(out.size):
        if kind.bits == 8:
            integers = encoded[piece].view(np.int8)
        else:
            integers = _unpack_nibbles(encoded[piece.start // 2 : (piece.stop + 1) // 2])
        part = out[piece]
        part[...] = integers[: part.size]
        scale = scales[piece.start // BLOCK :][: blocks_of(part.size)]
        whole = part.size // BLOCK * BLOCK
        rows = part[:whole].reshape(-1, BLOCK)
        rows *= scale[: rows.shape[0], None]
        part[whole:] *= scale[-1]
        total += _squares_of_piece(part)
    return total


def keys_of(rng: np.random.Generator) -> tuple[int, int]:
    """Two words of 32 bits, from which the rounding of one vector follows."""
    return int(rng.integers(1 << 32)), int(rng.integers(1 << 32))


def draw(keys: tuple[int, int], start: int, size: int) -> NDArray[np.uint16]:
    """Random words for the rounding of `size` elements from `start` on: a hash of where they stand."""
    words = np.arange(start // 2, (start + size + 1) // 2, dtype=np.uint32)
    words *= np.uint32(0x9E3779B1)
    words += np.uint32(keys[0])
    words ^= words >> np.uint32(16)
    words *= np.uint32(0x7FEB352D)
    words ^= np.uint32(keys[1])
    words ^= words >> np.uint32(15)
    words *= np.uint32(0x846CA68B)
    words ^= words >> np.uint32(16)
    return words.view("<u2")[:size]


def _squares_of_piece(piece: Vector) -> float:
    """Element i goes to partial sum i mod `_LANES`; those are folded by halves in fp64."""
    whole = piece.size // _LANES * _LANES
    with np.errstate(over="ignore", invalid="ignore"):
        lanes = np.zeros((2, _LANES), np.float32)
        if whole:
            part = piece[:whole]
            np.add.reduce((part * part).reshape(-1, _LANES), axis=0, out=lanes[0])
        rest = piece[whole:]
        lanes[1, : rest.size] = rest * rest
        sums = (lanes[0] + lanes[1]).astype(np.float64)
        while sums.size > 1:
            half = sums.size // 2
            sums = sums[:half] + sums[half:]
    return float(sums[0])


def _as_rows(values: Vector) -> NDArray[np.float32]:
    """`values` as rows of `BLOCK`; a short last row is filled up with zeros."""
    if values.size % BLOCK:
        values = np.concatenate([values, np.zeros(-values.size % BLOCK, np.float32)])
    return values.reshape(-1, BLOCK)


def _largest_of_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Largest |x| of each row; NaN and inf come through. Folds wide, for numpy reduces slowly."""
    folded = np.abs(rows)
    for half in (64, 32, 16, 8):
        folded = np.maximum(folded[:, :half], folded[:, half:])
    largest: NDArray[np.float32] = folded.max(axis=1)
    return largest


def _round_at_random(
    rows: NDArray[np.float32],
    inverse: NDArray[np.float32],
    kind: Blocks,
    words: NDArray[np.uint16],
) -> NDArray[np.uint8]:
    """floor(rows × inverse + u) + offset, flat, with u uniform over multiples of 2⁻¹⁶ in [0, 1)."""
    dithered = words.astype(np.float32).reshape(rows.shape)
    dithered *= np.float32(2.0**-16)
    dithered += kind.offset
    dithered += rows * inverse[:, None]
    return dithered.astype(np.uint8).ravel()  # all positive, so truncating is flooring


def _pack_nibbles(integers: NDArray[np.uint8], packed: NDArray[np.uint8]) -> None:
    """Two elements a byte, the first in the low half."""
    if integers.size % 2:
        integers = np.append(integers, np.uint8(0))
    pairs = integers.view("<u2")
    packed[...] = (pairs | (pairs >> 4)) & 0xFF


def _unpack_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    pairs = packed.astype("<u2")
    pairs |= pairs << 4
    pairs &= 0x0F0F
    integers = pairs.view(np.int8)
    integers -= 8
    return integers
