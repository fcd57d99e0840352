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
from peerlm.mix.loops import decode_blocks, difference, encode_blocks, squares
from peerlm.mix.vector import Blocks, Vector, blocks_of, pieces

CODECS = ("fp32", "fp16", "int8", "int4")
"""Every codec, finest first."""

WEIGHT_CODECS = ("fp32", "fp16", "int8")
"""Codecs fit for raw weights: what a request may use."""

IS_LITTLE = sys.byteorder == "little"

LARGEST = 1e37
"""int8 and int4 refuse elements beyond this, so that no decoded element can overflow fp32."""

_SCALE_MAX = np.float32(np.finfo(np.float32).max / 128)

_FLOORS = {"fp32": 1e-7, "fp16": 2e-4, "int8": 6e-3}


def encoded_size(codec: str, size: int) -> int:
    """Bytes that `size` elements take. Raises `ValueError` for an unknown codec."""
    match codec:
        case "fp32":
            return 4 * size
        case "fp16":
            return 2 * size
        case "int8":
            return 4 * blocks_of(size) + size
        case "int4":
            return 4 * blocks_of(size) + (size + 1) // 2
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
        fit = encode_blocks(values, BLOCKS[codec], rng, scales, integers)
        if fit < values.size:
            raise ValueError(f"an element near {fit} is not finite, or beyond {LARGEST:.0e}")
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
    return room, decode_blocks(scales, integers, BLOCKS[codec], room)


def subtract_decoded(
    encoded: bytes | bytearray | memoryview, codec: str, ours: Vector, out: Vector
) -> tuple[float, float]:
    """`out` := `ours` − the elements in `encoded`; Σ of the squares of those, and of `out`. Raises as
    `decode`."""
    if codec != "fp32" or not IS_LITTLE:
        theirs, of_theirs = decode_measured(encoded, codec, out)
        return of_theirs, difference(ours, theirs, out)[1]
    _check_length(encoded, out.size, codec)
    theirs = np.frombuffer(encoded, _FLOATS[codec])
    of_theirs, of_out = difference(ours, theirs, out)
    if not math.isfinite(of_theirs):
        _refuse_what_is_not_finite(theirs, codec)
    return of_theirs, of_out


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
    total = squares(elements)
    if not math.isfinite(total):  # only then is a closer look needed
        _refuse_what_is_not_finite(elements, codec)
    return total


def _refuse_what_is_not_finite(elements: Vector, codec: str) -> None:
    for piece in pieces(elements.size):
        if not np.isfinite(elements[piece]).all():
            raise WireError(f"{codec} vector: an element near {piece.start} is not finite")


# ------------------------------------------------------------------------------- block codecs


def _kind(bits: int) -> Blocks:
    levels = (1 << (bits - 1)) - 1
    headroom = 1.0 - 2.0**-17  # keeps the largest element plus its dither below the next integer
    return Blocks(
        bits=bits,
        bound=np.float32(LARGEST),
        top=np.float32(levels * headroom),
        tiniest=np.float32(np.finfo(np.float32).tiny),
        offset=np.float32(levels + 1 + 2.0**-17),
    )


BLOCKS = {"int8": _kind(8), "int4": _kind(4)}


def _sections(
    encoded: bytes | bytearray | memoryview, size: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Views of the scales [blocks] and of the payload bytes."""
    scales = np.frombuffer(encoded, "<f4", count=blocks_of(size))
    return scales, np.frombuffer(encoded, np.uint8, offset=scales.nbytes)
