"""What goes into a codec comes out, within its promise; what a hostile peer sends does not get in."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from peerlm.errors import WireError
from peerlm.mix import codec
from peerlm.mix.vector import BLOCK, PIECE

LEVELS = {"int8": 127, "int4": 7}

floats = st.floats(-6e4, 6e4, width=32)
vectors = arrays(np.float32, st.integers(0, 700), elements=floats)


def normal(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def step_of_each(values: np.ndarray, name: str) -> np.ndarray:
    """The distance between two neighbouring integers, in the block of each element."""
    steps = [
        np.full(len(block), np.abs(block).max() / LEVELS[name])
        for block in np.split(values, range(BLOCK, len(values), BLOCK))
        if len(block)
    ]
    return np.concatenate([np.zeros(0), *steps])


# ------------------------------------------------------------------------------------ to the last bit


LAID_OUT_ANEW = (
    "an exchange has other bytes than nodes of the version before write and read: "
    "wire/versions.py has to follow, and only then what is written here"
)

FROZEN = {
    "fp32": "0000fe42 0000fec2 0000803f 000000c0" + "00000000" * 124 + "00007e43 000000c0 00000000",
    "fp16": "f057 f0d7 003c 00c0" + "0000" * 124 + "f05b 00c0 0000",
    "int8": "4000803f 40000040" + "7f 81 01 fe" + "00" * 124 + "7f ff 00",
    "int4": "4000803f 40000040" + "1f 69" + "88" * 62 + "7f 08",
}
"""Scales before integers, little-endian, the lower half of a byte first."""


@pytest.mark.parametrize("name", codec.CODECS)
def test_a_vector_has_the_bytes_that_other_nodes_know(name):
    top = LEVELS.get(name, 127)
    values = np.zeros(131, np.float32)
    values[:4], values[128:] = [top, -top, 1, -2], [2 * top, -2, 0]
    frozen = bytes.fromhex(FROZEN[name])
    assert codec.encode(values, name, np.random.default_rng(0)) == frozen, LAID_OUT_ANEW
    decoded = codec.decode(frozen, values.size, name)
    assert np.allclose(decoded, values, rtol=1e-5, atol=0), LAID_OUT_ANEW
    room = memoryview(bytearray(len(frozen)))
    squares = float(np.dot(values, values))
    view = codec.encode_or_view(values, name, np.random.default_rng(0), room, squares)
    assert view == frozen, LAID_OUT_ANEW


# --------------------------------------------------------------------------- what comes back


@given(vectors)
def test_fp32_comes_back_bit_for_bit(values):
    encoded = codec.encode(values, "fp32", np.random.default_rng(0))
    assert np.array_equal(codec.decode(encoded, values.size, "fp32"), values)


@given(vectors)
def test_fp16_comes_back_as_numpy_rounds_it(values):
    encoded = codec.encode(values, "fp16", np.random.default_rng(0))
    decoded = codec.decode(encoded, values.size, "fp16")
    assert np.array_equal(decoded, values.astype(np.float16).astype(np.float32))


@given(vectors, st.sampled_from(["int8", "int4"]), st.integers(0, 2**32))
def test_every_element_lands_on_a_neighbouring_integer(values, name, seed):
    encoded = codec.encode(values, name, np.random.default_rng(seed))
    assert len(encoded) == codec.encoded_size(name, values.size)
    decoded = codec.decode(encoded, values.size, name)
    step = step_of_each(values, name)
    assert np.all(np.abs(decoded - values) <= step * 1.001 + 1e-36)
    assert np.all(decoded[step == 0] == 0)


@pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 129])
@pytest.mark.parametrize("name", codec.CODECS)
def test_sizes_around_a_piece(name, size):
    values = normal(size)
    encoded = codec.encode(values, name, np.random.default_rng(1))
    decoded = codec.decode(encoded, size, name)
    assert np.linalg.norm(decoded - values) / np.linalg.norm(values) < 0.2
    reused = np.empty(size, np.float32)
    assert codec.decode(memoryview(encoded), size, name, out=reused) is reused
    assert np.array_equal(reused, decoded)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_rounding_has_no_bias(name):
    values, rng, rounds = normal(2048), np.random.default_rng(3), 400
    total = np.zeros(2048)
    for _ in range(rounds):
        total += codec.decode(codec.encode(values, name, rng), 2048, name)
    error = (total / rounds - values) / step_of_each(values, name)
    assert abs(error.mean()) < 3 * 0.5 / np.sqrt(2048 * rounds)
    assert np.abs(error).max() < 6 * 0.5 / np.sqrt(rounds)


def test_same_rng_same_bytes():
    values = normal(1000)
    first, second = (codec.encode(values, "int8", np.random.default_rng(5)) for _ in range(2))
    assert first == second


def test_bytes_per_parameter():
    size = 4_000_000
    assert codec.encoded_size("int8", size) / size <= 1.04
    assert codec.encoded_size("int4", size) / size <= 0.54
    with pytest.raises(ValueError, match="no codec 'int2'"):
        codec.encoded_size("int2", size)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", codec.CODECS)
def test_encode_refuses_what_is_not_finite(name, bad):
    values = normal(300)
    values[299] = bad
    with pytest.raises(ValueError, match="not finite"):
        codec.encode(values, name, np.random.default_rng(0))


def test_encode_refuses_what_the_codec_cannot_hold():
    with pytest.raises(ValueError):
        codec.encode(np.float32([7e4]), "fp16", np.random.default_rng(0))
    with pytest.raises(ValueError):
        codec.encode(np.float32([3e37]), "int8", np.random.default_rng(0))
    extremes = np.float32([1e37, -1e37, 1e-45, 0])
    for name in ("int8", "int4"):
        encoded = codec.encode(extremes, name, np.random.default_rng(0))
        assert np.isfinite(codec.decode(encoded, 4, name)).all()


@pytest.mark.parametrize("name", codec.CODECS)
def test_every_truncation_and_addition_is_refused(name):
    encoded = bytes(codec.encode(normal(130), name, np.random.default_rng(0)))
    for length in range(len(encoded)):
        with pytest.raises(WireError):
            codec.decode(encoded[:length], 130, name)
    with pytest.raises(WireError, match="bytes instead of"):
        codec.decode(encoded + b"\0", 130, name)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 3e38])
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_scales_that_would_poison_are_refused(name, scale):
    encoded = codec.encode(normal(300), name, np.random.default_rng(0))
    struct.pack_into("<f", encoded, 4, scale)
    with pytest.raises(WireError, match="scale"):
        codec.decode(encoded, 300, name)


@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_elements_that_would_poison_are_refused(name):
    encoded = codec.encode(normal(300), name, np.random.default_rng(0))
    encoded[-2:] = (
        np.float32(np.nan).tobytes()[-2:] if name == "fp32" else np.float16("inf").tobytes()
    )
    with pytest.raises(WireError, match="not finite"):
        codec.decode(encoded, 300, name)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 64), st.integers(0, 400))
def test_garbage_never_escapes(garbage, offset, size):
    encoded = bytearray(codec.encode(normal(size), "int4", np.random.default_rng(0)))
    encoded[offset : offset + len(garbage)] = garbage
    try:
        decoded = codec.decode(encoded, size, "int4")
    except WireError:
        return
    assert decoded.shape == (size,)
    assert np.isfinite(decoded).all()


def test_codecs_get_finer_as_nodes_come_close():
    assert codec.choose_codecs("int8", "int4", 0.1) == ("int8", "int4")
    assert codec.choose_codecs("int8", "int4", 0.017) == ("fp16", "int4")
    assert codec.choose_codecs("int8", "int4", 5e-4) == ("fp32", "int4")
    assert codec.choose_codecs("fp32", "fp16", 0.0) == ("fp32", "fp16")
