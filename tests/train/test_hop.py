"""Hops: what a codec may cost, and that no bytes from a peer do more than be refused."""

from __future__ import annotations

import math
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from peerlm.errors import WireError
from peerlm.train import hop as hops
from peerlm.train.hop import CODECS, NUMBER_MAX, STREAM_BYTES_MAX, Hop, Kind, Stream
from peerlm.types import PeerId

ME = PeerId(b"m" * 16)
STAGES, LENGTH, FEATURES = 3, 8, 4
FIELDS = ("kind", "origin", "number", "stage", "rate", "norms", "codec", "shape", "body")
F32_MAX = float(np.finfo(np.float32).max)

streams = npst.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, LENGTH), st.just(FEATURES)),
    elements=st.floats(-(2.0**126), 2.0**126, width=32),
)


def stream(scale: float = 1.0) -> Stream:
    drawn = np.random.default_rng(1).standard_normal((2, LENGTH, FEATURES))
    return (scale * drawn).astype(np.float32)


def unpack(data: bytes) -> Hop:
    return hops.unpack(data, STAGES, LENGTH, FEATURES)


def passed(values: Stream, codec: str) -> Stream:
    shape = values.shape
    return hops.decode(hops.encode(values, codec), (shape[0], shape[1], shape[2]), codec)


def forward(values: Stream | None = None, codec: str = "fp32") -> list[Any]:
    """The fields of a good hop, to be spoilt."""
    made = Hop(
        Kind.FORWARD, ME, 7, 1, 0.5, (1.0, -1.0, 2.0), stream() if values is None else values
    )
    fields: list[Any] = msgpack.unpackb(hops.pack(made, codec))
    return fields


# ---------------------------------------------------------------------------------------- codecs


@given(streams)
def test_fp32_is_exact(values: Stream) -> None:
    assert np.array_equal(passed(values, "fp32"), values)


@given(streams)
def test_fp16_is_off_by_half_a_step_of_its_own_or_of_the_smallest(values: Stream) -> None:
    most = float(np.abs(values).max())
    off = np.abs(passed(values, "fp16").astype(np.float64) - values)
    # Eleven bits of each number, and steps of 2^-24 at the bottom, in units of most / 2^15.
    bound = np.abs(values) * 2.0**-11 + most * 2.0**-40
    assert (off <= 1.01 * bound + 1e-34).all()


@given(streams)
def test_int8_is_off_by_half_a_step_of_its_token(values: Stream) -> None:
    off = np.abs(passed(values, "int8").astype(np.float64) - values)
    steps = np.abs(values).max(axis=-1, keepdims=True) / 127.0
    assert (off <= 0.501 * steps + 1e-29).all()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("scale", [1e-20, 1e-9, 1.0, 1e30])
def test_the_direction_of_a_gradient_survives_however_small_it_is(codec: str, scale: float) -> None:
    values = stream(scale)
    heard = passed(values, codec).astype(np.float64).ravel()
    said = values.astype(np.float64).ravel()
    assert heard @ said / np.linalg.norm(heard) / np.linalg.norm(said) > 0.9999
    assert np.linalg.norm(heard) == pytest.approx(np.linalg.norm(said), rel=0.01)


def test_int8_keeps_a_small_token_beside_a_large_one() -> None:
    values = stream()
    values[0, 0] *= 1e6
    np.testing.assert_allclose(passed(values, "int8")[1], values[1], atol=0.02)


@pytest.mark.parametrize("codec", CODECS)
def test_nothing_stays_nothing(codec: str) -> None:
    nothing = np.zeros((2, LENGTH, FEATURES), np.float32)
    assert np.array_equal(passed(nothing, codec), nothing)


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_stored_otherwise_is_said_alike(codec: str) -> None:
    turned = np.asfortranarray(stream())
    assert hops.encode(turned, codec) == hops.encode(stream(), codec)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_no_stream(codec: str, value: float) -> None:
    values = stream()
    values[1, 2, 3] = value
    with np.errstate(all="ignore"), pytest.raises(WireError, match="stream"):
        unpack(hops.pack(Hop(Kind.FORWARD, ME, 0, 0, 0.0, (0.0,) * 3, values), codec))


# ----------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", [Kind.FORWARD, Kind.BACKWARD])
def test_a_hop_comes_as_it_was_sent(codec: str, kind: Kind) -> None:
    sent = Hop(kind, ME, NUMBER_MAX - 1, 2, 0.25, (-1.0, hops.NORM_MAX, 3.0), stream())
    heard = unpack(hops.pack(sent, codec))
    assert (heard.kind, heard.origin, heard.number, heard.stage) == (kind, ME, NUMBER_MAX - 1, 2)
    assert (heard.rate, heard.norms) == (0.25, (-1.0, hops.NORM_MAX, 3.0))
    assert heard.stream is not None
    np.testing.assert_array_equal(heard.stream, passed(stream(), codec))
    assert heard.stream.dtype == np.float32


@pytest.mark.parametrize("norm", [math.nan, math.inf, -math.inf, 1e308, -2.0])
def test_a_norm_that_no_sound_gradient_has_is_neither_said_nor_heard(norm: float) -> None:
    """An older node says it of its own gradient, and passes on what it has heard."""
    sent = Hop(Kind.BACKWARD, ME, 7, 0, 0.5, (0.0, norm, 3.0), stream())
    said: list[Any] = msgpack.unpackb(hops.pack(sent, "fp32"))
    assert said[FIELDS.index("norms")] == [0.0, -1.0, 3.0]
    said[FIELDS.index("norms")] = [0.0, norm, 3.0]
    assert unpack(msgpack.packb(said)).norms == (0.0, -1.0, 3.0)


def test_word_of_a_loss_has_no_stream() -> None:
    assert unpack(hops.pack(Hop(Kind.LOST, ME, 5), "int8")) == Hop(Kind.LOST, ME, 5)


# --------------------------------------------------------------------------------------- hostile

WRONG: list[tuple[str, Any]] = [
    *(("kind", value) for value in (4, -1, 1.0, True, None, "0", [])),
    *(("origin", value) for value in (b"", b"x" * 15, b"x" * 17, "m" * 16, 7, None)),
    *(("number", value) for value in (-1, NUMBER_MAX, 2**64 - 1, 1.0, True, None, b"")),
    *(("stage", value) for value in (STAGES, -1, 0.0, True, None)),
    *(("rate", value) for value in (-0.1, 1.1, math.nan, math.inf, 1, None)),
    *(("norms", value) for value in ([], [0.0] * 2, [0.0] * 4, [0, 0, 0], [None] * 3, 0.0, None)),
    *(("codec", value) for value in ("fp8", "", b"fp32", None, ["fp32"], 0)),
    *(("shape", value) for value in ([], [2, 8], [2, 8, 4, 1], [0, 8, 4], [2, 0, 4], [2, 9, 4])),
    *(("shape", value) for value in ([2, 8, 5], [-2, -8, 4], [2.0, 8, 4], [True, 8, 4], None)),
    *(("shape", value) for value in ([3, 8, 4], [2**60, 8, 4], [2**63, 1, 4], b"284", "284")),
    *(("body", value) for value in (b"", b"x", "x" * 256, None, 256, [0] * 256)),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_field_that_cannot_be_is_refused(field: str, value: Any) -> None:
    fields = forward()
    fields[FIELDS.index(field)] = value
    with pytest.raises(WireError, match="hop: "):
        unpack(msgpack.packb(fields))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("more", [-1, 1])
def test_a_stream_of_another_length_is_refused(codec: str, more: int) -> None:
    fields = forward(codec=codec)
    fields[8] = fields[8][:-1] if more < 0 else fields[8] + b"x"
    with pytest.raises(WireError, match="bytes of stream"):
        unpack(msgpack.packb(fields))


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, F32_MAX])
@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_a_scale_that_makes_nothing_finite_is_refused(codec: str, scale: float) -> None:
    fields = forward(codec=codec)
    fields[8] = np.float32(scale).tobytes() + fields[8][4:]
    with pytest.raises(WireError, match="stream"):
        unpack(msgpack.packb(fields))


def test_a_small_hop_of_a_stream_too_large_to_be_sent_on_is_refused() -> None:
    """In int8 it is a quarter of what it becomes."""
    features = 1 << 12
    count = STREAM_BYTES_MAX // 4 // features + 1
    fields = [0, ME, 0, 1, 0.0, [0.0] * 3, "int8", [count, 1, features]]
    body = bytes(4 * count + count * features)
    with pytest.raises(WireError, match="shape"):
        hops.unpack(msgpack.packb([*fields, body]), STAGES, LENGTH, features)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 5000,
        b"\x81\x00\x00",
        b"\xd4\x05\x00",
        b"\xd7\xff" + bytes(8),
        b"\xa1\xff",
        msgpack.packb(list(range(9))) + b"\x00",
    ],
)
def test_what_is_no_array_of_nine_is_refused(data: bytes) -> None:
    with pytest.raises(WireError, match="hop: "):
        unpack(data)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=40)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)


def heard_or_refused(data: bytes) -> None:
    try:
        heard = unpack(data)
    except WireError:
        return
    assert (heard.stream is None) == (heard.kind is Kind.LOST)
    assert heard.stream is None or np.isfinite(heard.stream).all()


@given(st.binary(max_size=200))
def test_any_bytes_are_heard_or_refused(data: bytes) -> None:
    heard_or_refused(data)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 8), anything), max_size=3), st.sampled_from(CODECS))
def test_any_fields_are_heard_or_refused(spoilt: list[tuple[int, Any]], codec: str) -> None:
    fields = forward(codec=codec)
    for index, value in spoilt:
        fields[index] = value
    heard_or_refused(msgpack.packb(fields))


@given(st.integers(0, 10**4), st.integers(0, 255), st.sampled_from(CODECS))
def test_any_byte_may_be_another(at: int, byte: int, codec: str) -> None:
    data = bytearray(msgpack.packb(forward(codec=codec)))
    data[at % len(data)] = byte
    heard_or_refused(bytes(data))


@given(st.integers(0, 10**4), st.sampled_from(CODECS))
def test_a_hop_that_is_cut_is_refused(at: int, codec: str) -> None:
    data = msgpack.packb(forward(codec=codec))
    with pytest.raises(WireError):
        unpack(data[: at % len(data)])
