"""What hosts of stages send each other: the stream on its way around the ring, and its gradient on the way back.

A hop is a msgpack array behind which nothing follows. It comes from another machine, so each field is checked before
it is believed, and a stream that is not finite is none. On the line the stream has two bytes a number or one:

    fp32   as it is
    fp16   divided by one scale for all, so that gradients do not fall below what fp16 can tell from nothing
    int8   divided by a scale for each token

B sequences, T tokens, D features of the stream.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from peerlm.errors import WireError
from peerlm.types import PeerId

Stream = NDArray[np.float32]

CODECS = ("fp32", "fp16", "int8")
BYTES_MAX = 15 << 20
"""Of a hop: the worker's socket takes somewhat more in one message."""

STREAM_BYTES_MAX = BYTES_MAX - (1 << 16)
"""Of a stream in fp32. What remains is enough for the norms of all stages."""

STAGES_MAX = 4096
NUMBER_MAX = 1 << 62
NORM_MAX = 1e100
"""Of a stage's gradient, squared: far above what float32 can make, and so that the sum of all is finite."""

UNKNOWN = -1.0
"""What stands for a norm that is not known."""

_FP16_MOST = 32768.0
_SCALE = struct.Struct("<f")


class Kind(IntEnum):
    FORWARD = 0
    """The stream, for the stage named; stage 0 is the end of the way."""
    BACKWARD = 1
    """The gradient of what went forward for the stage named."""
    LOST = 2
    """What was sent forward for the stage named comes to nothing."""
    TRIAL = 3
    """A stream of held-out text: forward only."""


@dataclass(frozen=True, slots=True)
class Hop:
    """`origin`, `number`: the microbatch, by the node that reads its text. `rate`, and `norms`, of the gradient of each
    stage, squared: of the last step that is known; negative norms are not known."""

    kind: Kind
    origin: PeerId
    number: int
    stage: int = 0
    rate: float = 0.0
    norms: tuple[float, ...] = ()
    stream: Stream | None = None


def pack(hop: Hop, codec: str) -> bytes:
    """The bytes of a hop, with its stream in `codec`."""
    shape, body = ((), b"") if hop.stream is None else (hop.stream.shape, encode(hop.stream, codec))
    return bytes(
        msgpack.packb(
            [
                int(hop.kind),
                hop.origin,
                hop.number,
                hop.stage,
                hop.rate,
                [_plausible(norm) for norm in hop.norms],
                codec,
                shape,
                body,
            ]
        )
    )


def unpack(data: bytes, stages: int, length_max: int, features: int) -> Hop:
    """A hop of a model with so many `stages`, of sequences of at most `length_max` tokens. Norms that no sound gradient has are
    not known: a step would come to nothing by them. Older nodes say such ones of their own, and pass on those of
    others, so they are no reason to refuse. Raises `WireError`."""
    try:
        raw = msgpack.unpackb(data, max_array_len=STAGES_MAX, max_map_len=0, max_ext_len=0)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"hop: not msgpack: {type(error).__name__}") from None
    if type(raw) is not list or len(raw) != 9:
        raise WireError("hop: not an array of 9")
    kind, origin, number, stage, rate, norms, codec, shape, body = raw
    _require("kind", type(kind) is int and 0 <= kind <= Kind.TRIAL)
    _require("origin", type(origin) is bytes and len(origin) == 16)
    _require("number", type(number) is int and 0 <= number < NUMBER_MAX)
    _require("stage", type(stage) is int and 0 <= stage < stages)
    _require("rate", type(rate) is float and 0.0 <= rate <= 1.0)
    _require("norms", type(norms) is list and all(type(n) is float for n in norms))
    _require("norms", len(norms) == (0 if kind == Kind.LOST else stages))
    _require("codec", codec in CODECS)
    _require("stream", type(body) is bytes)
    stream = None if kind == Kind.LOST else _stream(codec, shape, body, length_max, features)
    return Hop(
        Kind(kind), PeerId(origin), number, stage, rate, tuple(map(_plausible, norms)), stream
    )


def _plausible(norm: float) -> float:
    return norm if 0.0 <= norm <= NORM_MAX else UNKNOWN


def _stream(codec: str, shape: Any, body: bytes, length_max: int, features: int) -> Stream:
    _require(
        "shape", type(shape) is list and len(shape) == 3 and all(type(n) is int for n in shape)
    )
    sequences, length, width = shape
    _require("shape", sequences > 0 and 0 < length <= length_max and width == features)
    _require("shape", 4 * sequences * length * width <= STREAM_BYTES_MAX)
    with np.errstate(all="ignore"):  # whatever comes of a false scale is not finite
        stream = decode(body, (sequences, length, width), codec)
    _require("stream", bool(np.isfinite(stream).all()))
    return stream


def _require(what: str, holds: bool) -> None:
    if not holds:
        raise WireError(f"hop: {what} is not what it can be")


def encode(stream: Stream, codec: str) -> bytes:
    """`stream` (B, T, D), all of it finite, in the codec named."""
    match codec:
        case "fp32":
            return np.ascontiguousarray(stream, "<f4").tobytes()
        case "fp16":
            most = float(np.abs(stream).max(initial=0.0))
            scale = most / _FP16_MOST if most > 0.0 else 1.0
            scale = max(scale, 1e-30)
            return _SCALE.pack(scale) + (stream / np.float32(scale)).astype("<f2").tobytes()
        case "int8":
            scales = np.maximum(np.abs(stream).max(axis=-1, keepdims=True) / 127.0, 1e-30)
            whole = np.rint(stream / scales).astype(np.int8)
            return scales.astype("<f4").tobytes() + whole.tobytes()
        case _:
            raise AssertionError(f"no codec {codec!r}")


def decode(body: bytes, shape: tuple[int, int, int], codec: str) -> Stream:
    """The stream of this shape. Raises `WireError` if the bytes are of another."""
    sequences, length, _ = shape
    count = math.prod(shape)
    expected = {"fp32": 4 * count, "fp16": 4 + 2 * count, "int8": 4 * sequences * length + count}
    if len(body) != expected[codec]:
        raise WireError(f"hop: {len(body)} bytes of stream, not {expected[codec]}")
    match codec:
        case "fp32":
            return np.frombuffer(body, "<f4").astype(np.float32).reshape(shape)
        case "fp16":
            (scale,) = _SCALE.unpack_from(body)
            values = np.frombuffer(body, "<f2", offset=_SCALE.size).astype(np.float32)
            return (values * np.float32(scale)).reshape(shape)
        case _:
            scales = np.frombuffer(body, "<f4", sequences * length).astype(np.float32)
            whole = np.frombuffer(body, np.int8, offset=4 * scales.size).astype(np.float32)
            return whole.reshape(shape) * scales.reshape(sequences, length, 1)
