"""Vectors of weights as bytes, and back.

Four codecs: `fp32` and `fp16` hold every element; `int8` and `int4` hold blocks of 128 elements as
small integers times one fp32 scale, rounded up or down at random so that the expectation is the
value itself. None of them keeps anything between two calls or about a neighbour. Since both sides
of an exchange use the *decoded* difference, an error made here slows mixing but never moves the
swarm's mean.

    int8, int4:  scales: fp32 a block | payload, little-endian        fp32, fp16:  payload

int4 is for differences, whose error shrinks with them; raw weights never travel below 8 bits.
Weights have a *floor*: once two nodes are as close as the request's rounding, exchanges only stir.
`choose_codecs` notices and asks for more bits. Integrity and secrecy are the bulk plane's business.
"""

from __future__ import annotations

import math
import sys

import numpy as np
from numpy.typing import NDArray

from peerlm.errors import WireError
from peerlm.mix.vector import Vector, pieces, square_sum, squares

CODECS = ("fp32", "fp16", "int8", "int4")
"""Every codec, finest first."""

WEIGHT_CODECS = ("fp32", "fp16", "int8")
"""Codecs fit for raw weights: what a request may use."""

BLOCK = 128
"""Elements that share a scale: 1/32 byte an element. Must divide `vector.PIECE`."""

IS_LITTLE = sys.byteorder == "little"

LARGEST = 1e37
"""int8 and int4 refuse elements beyond this, so that no decoded element can overflow fp32."""

_TINIEST = np.float32(np.finfo(np.float32).tiny)
_SCALE_MAX = np.float32(np.finfo(np.float32).max / 128)
_HEADROOM = 1.0 - 2.0**-17  # keeps the largest element plus its dither below the next integer

_FLOORS = {"fp32": 1e-7, "fp16": 2e-4, "int8": 6e-3}


def encoded_size(codec: str, size: int) -> int:
    """Bytes that `size` elements take. Raises `ValueError` for an unknown codec."""
    match codec:
        case "fp32":
            return 4 * size
        case "fp16":
            return 2 * size
        case "int8":
            return 4 * _blocks(size) + size
        case "int4":
            return 4 * _blocks(size) + (size + 1) // 2
    raise ValueError(f"no codec {codec!r}; codecs are {', '.join(CODECS)}")


def encode(
    values: Vector,
    codec: str,
    rng: np.random.Generator,
    out: memoryview | None = None,
    known_squares: float = math.nan,
) -> memoryview:
    """The bytes of `values` [n], at the beginning of `out` if given. `rng` is drawn from by int8 and
    int4 only. `known_squares`: Σ values², which tells whether they are finite.

    Raises:
        ValueError: unknown codec; an element that is not finite or too large for the codec.
    """
    size = encoded_size(codec, values.size)
    # Not a bytearray: zeroing a large one would hold up the whole process.
    encoded = np.empty(size, np.uint8).data if out is None else out[:size]
    if codec in ("fp32", "fp16"):
        payload = np.frombuffer(encoded, _FLOATS[codec])
        _encode_floats(values, payload, codec, math.isfinite(known_squares))
    else:
        scales, integers = _sections(encoded, values.size)
        _encode_blocks(values, scales, integers, codec, rng)
    return encoded


def encode_or_view(
    values: Vector, codec: str, rng: np.random.Generator, out: memoryview, known_squares: float
) -> memoryview:
    """The same, but what needs no encoding is not copied: it is `values` seen as bytes."""
    if codec == "fp32" and IS_LITTLE and math.isfinite(known_squares):
        return values.data.cast("B")
    return encode(values, codec, rng, out, known_squares)


def decode(
    encoded: bytes | bytearray | memoryview,
    expected_size: int,
    codec: str,
    out: Vector | None = None,
) -> Vector:
    """The `expected_size` elements in `encoded`, in `out` [expected_size] if given, all finite.

    Allocates nothing before the exact length has been checked.

    Raises:
        WireError: a missing or additional byte; a scale or element that is not finite.
    """
    _check_length(encoded, expected_size, codec)
    decoded = np.empty(expected_size, np.float32) if out is None else out
    elements, _ = decode_measured(encoded, codec, decoded)
    if elements is not decoded:
        decoded[...] = elements
    return decoded


def decode_measured(
    encoded: bytes | bytearray | memoryview, codec: str, room: Vector
) -> tuple[Vector, float]:
    """As many elements as `room` has, and Σ x² of them. They are in `room` or, where they need no
    decoding, still in `encoded`. Raises as `decode`."""
    _check_length(encoded, room.size, codec)
    if codec in ("fp32", "fp16"):
        payload = np.frombuffer(encoded, _FLOATS[codec])
        if codec == "fp32" and IS_LITTLE:
            return payload, _squares_of_finite(payload, codec)
        room[...] = payload
        return room, _squares_of_finite(room, codec)
    scales, integers = _sections(encoded, room.size)
    if not np.all((scales >= 0) & (scales <= _SCALE_MAX)):
        raise WireError(f"{codec} vector: a block's scale is negative, too large or not finite")
    _decode_blocks(scales, integers, room, codec)
    return room, squares(room)


def _check_length(encoded: bytes | bytearray | memoryview, size: int, codec: str) -> None:
    length = memoryview(encoded).nbytes
    if length != encoded_size(codec, size):
        raise WireError(f"{codec} vector: {length} bytes instead of {encoded_size(codec, size)}")


def noise_floor(codec: str) -> float:
    """Relative spread at which swarms stall that mix with this codec in the request.

    A pair that mixed by halves is left as far apart as the request's rounding error, whatever it
    was before. Replies have no floor: the error of a difference shrinks with the difference.
    """
    return _FLOORS[codec]


def choose_codecs(request: str, reply: str, distance: float) -> tuple[str, str]:
    """The codecs for the next exchange, finer than the plan's where those would only stir.

    `distance` is the recent |d̂| ÷ |φ|. Below three times a request codec's floor the next finer one
    takes its place; the reply is kept, for it has no floor.
    """
    position = CODECS.index(request)
    while position > 0 and distance < 3 * noise_floor(CODECS[position]):
        position -= 1
    return CODECS[position], reply


# ------------------------------------------------------------------------------- float codecs

_FLOATS: dict[str, np.dtype[np.floating]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}


def _encode_floats(
    values: Vector, payload: NDArray[np.floating], codec: str, is_finite: bool
) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in pieces(values.size):
            payload[piece] = values[piece]
            if is_finite and codec == "fp32":
                continue
            if not np.isfinite(payload[piece]).all():
                raise ValueError(f"an element near {piece.start} is not finite in {codec}")


def _squares_of_finite(elements: Vector, codec: str) -> float:
    """Σ x²; inf if an element is beyond about 1e19. Raises `WireError` if one is not finite."""
    total = 0.0
    for piece in pieces(elements.size):
        of_piece = square_sum(elements[piece])
        # The sum tells of what is not finite; only when it does is a closer look needed.
        if not math.isfinite(of_piece) and not np.isfinite(elements[piece]).all():
            raise WireError(f"{codec} vector: an element near {piece.start} is not finite")
        total += of_piece
    return total


# ------------------------------------------------------------------------------- block codecs

_LEVELS = {"int8": 127, "int4": 7}


def _blocks(size: int) -> int:
    return -(-size // BLOCK)


def _sections(
    encoded: bytes | bytearray | memoryview, size: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Views of the scales [blocks] and of the payload bytes."""
    scales = np.frombuffer(encoded, "<f4", count=_blocks(size))
    return scales, np.frombuffer(encoded, np.uint8, offset=scales.nbytes)


def _encode_blocks(
    values: Vector,
    scales: NDArray[np.float32],
    payload: NDArray[np.uint8],
    codec: str,
    rng: np.random.Generator,
) -> None:
    levels = _LEVELS[codec]
    for piece in pieces(values.size):
        rows = _as_rows(values[piece])
        largest = _largest_of_rows(rows)
        if not np.all(largest <= LARGEST):
            raise ValueError(
                f"an element near {piece.start} is not finite, or beyond {LARGEST:.0e}"
            )
        scale = largest / np.float32(levels * _HEADROOM)
        scale[scale < _TINIEST] = 0.0
        scales[piece.start // BLOCK :][: scale.size] = scale
        inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
        integers = _round_at_random(rows, inverse, levels + 1, rng)[: piece.stop - piece.start]
        if codec == "int8":
            np.bitwise_xor(integers, 0x80, out=payload[piece])  # from offset to two's complement
        else:
            _pack_nibbles(integers, payload[piece.start // 2 : (piece.stop + 1) // 2])


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
    offset: int,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """floor(rows × inverse + u) + offset, flat, with u uniform over multiples of 2⁻¹⁶ in [0, 1)."""
    words = rng.integers(0, 1 << 64, size=-(-rows.size // 4), dtype=np.uint64)
    dithered = words.view(np.uint16)[: rows.size].astype(np.float32).reshape(rows.shape)
    dithered *= np.float32(2.0**-16)
    dithered += np.float32(offset + 2.0**-17)
    dithered += rows * inverse[:, None]
    return dithered.astype(np.uint8).ravel()  # all positive, so truncating is flooring


def _pack_nibbles(integers: NDArray[np.uint8], packed: NDArray[np.uint8]) -> None:
    """Two elements a byte, the first in the low half."""
    if integers.size % 2:
        integers = np.append(integers, np.uint8(0))
    pairs = integers.view("<u2")
    packed[...] = (pairs | (pairs >> 4)) & 0xFF


def _decode_blocks(
    scales: NDArray[np.float32], payload: NDArray[np.uint8], decoded: Vector, codec: str
) -> None:
    for piece in pieces(decoded.size):
        if codec == "int8":
            integers = payload[piece].view(np.int8)
        else:
            integers = _unpack_nibbles(payload[piece.start // 2 : (piece.stop + 1) // 2])
        target = decoded[piece]
        target[...] = integers[: target.size]
        scale = scales[piece.start // BLOCK :][: _blocks(target.size)]
        whole = target.size // BLOCK * BLOCK
        rows = target[:whole].reshape(-1, BLOCK)
        rows *= scale[: rows.shape[0], None]
        target[whole:] *= scale[-1]


def _unpack_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    pairs = packed.astype("<u2")
    pairs |= pairs << 4
    pairs &= 0x0F0F
    integers = pairs.view(np.int8)
    integers -= 8
    return integers
