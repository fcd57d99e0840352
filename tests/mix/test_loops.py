"""What kernel.c computes is what plain.py does, to the last bit."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlm.mix import loops, plain
from peerlm.mix.codec import BLOCKS
from peerlm.mix.vector import PIECE, blocks_of

compiled = pytest.importorskip("peerlm.mix.compiled", reason="installed without a compiler")

SIZES = st.one_of(
    st.integers(0, 400),
    st.sampled_from([PIECE - 1, PIECE, PIECE + 1, PIECE + 64, 2 * PIECE + 193, 3 * PIECE]),
)
MAGNITUDES = st.sampled_from([0.0, 1e-42, 1e-30, 1e-3, 1.0, 3e18, 3e19, 9e36])
KINDS = st.sampled_from(["int8", "int4"])
SEEDS = st.integers(0, 2**32 - 1)


def vector(size: int, magnitude: float, seed: int, at: int = 0) -> np.ndarray:
    """Random, of that magnitude; a few bytes off a word's boundary if `at` is."""
    rng = np.random.default_rng(seed)
    room = np.zeros(4 * size + 8, np.uint8)
    values = np.frombuffer(room.data, np.float32, size, at)
    values[...] = (magnitude * rng.standard_normal(size)).astype(np.float32)
    values[rng.random(size) < 0.1] = 0
    return values


def bits(value: object) -> object:
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, tuple):
        return tuple(bits(one) for one in value)
    return value.tobytes() if isinstance(value, np.ndarray) else value


@given(SIZES, MAGNITUDES, SEEDS, st.integers(0, 7))
def test_squares_are_the_same(size: int, magnitude: float, seed: int, at: int) -> None:
    values = vector(size, magnitude, seed, at)
    assert bits(compiled.squares(values)) == bits(plain.squares(values))


@given(SIZES, MAGNITUDES, SEEDS, st.integers(0, 7), st.booleans())
def test_differences_are_the_same(
    size: int, magnitude: float, seed: int, at: int, in_place: bool
) -> None:
    ours, theirs = vector(size, magnitude, seed), vector(size, magnitude, seed + 1, at)
    found = []
    for kind in (plain, compiled):
        x = theirs.copy() if in_place else theirs
        out = x if in_place else np.empty_like(ours)
        found.append((bits(kind.difference(ours, x, out)), bits(out)))
    assert found[0] == found[1]


@given(SIZES, MAGNITUDES, SEEDS, st.booleans(), st.floats(-2, 2, width=32))
def test_flows_are_the_same(
    size: int, magnitude: float, seed: int, has_queue: bool, scale: float
) -> None:
    flow, found = vector(size, magnitude, seed), []
    for kind in (plain, compiled):
        phi, queued = vector(size, magnitude, seed + 1), vector(size, magnitude, seed + 2)
        total = kind.add(phi, queued if has_queue else None, flow, scale)
        found.append((bits(total), bits(phi), bits(queued)))
    assert found[0] == found[1]


@given(SIZES, MAGNITUDES, SEEDS, KINDS, st.integers(0, 7))
def test_blocks_are_the_same_there_and_back(
    size: int, magnitude: float, seed: int, codec: str, at: int
) -> None:
    values, kind, found = vector(size, magnitude, seed, at), BLOCKS[codec], []
    for how in (plain, compiled):
        scales = np.zeros(blocks_of(size), np.float32)
        integers = np.full(size if kind.bits == 8 else (size + 1) // 2, 0xEE, np.uint8)
        rng = np.random.default_rng(seed)
        fit = how.encode_blocks(values, kind, rng, scales, integers)
        out = np.empty(size, np.float32)
        if fit < size:
            found.append((fit, 0, 0, 0, 0))
            continue
        total = how.decode_blocks(scales, integers, kind, out)
        found.append((fit, bits(scales), bits(integers), bits(out), bits(total)))
    assert found[0] == found[1]


@given(st.binary(min_size=132, max_size=132), st.integers(0, 128), KINDS)
def test_any_bytes_are_decoded_alike(encoded: bytes, size: int, codec: str) -> None:
    kind, found = BLOCKS[codec], []
    scales = np.abs(np.nan_to_num(np.frombuffer(encoded, np.float32, 1)))
    integers = np.frombuffer(encoded, np.uint8, size if codec == "int8" else (size + 1) // 2, 4)
    for how in (plain, compiled):
        out = np.empty(size, np.float32)
        with np.errstate(over="ignore"):
            total = how.decode_blocks(scales[: blocks_of(size)], integers, kind, out)
        found.append((bits(total), bits(out)))
    assert found[0] == found[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2e37, -2e37])
@pytest.mark.parametrize("at", [0, 5, 127, 128, 300, PIECE + 3])
@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_both_say_where_an_element_does_not_fit(bad: float, at: int, codec: str) -> None:
    values = np.ones(PIECE + 10, np.float32)
    values[at] = bad
    for how in (plain, compiled):
        scales = np.zeros(blocks_of(values.size), np.float32)
        integers, rng = np.zeros(values.size, np.uint8), np.random.default_rng(0)
        fit = how.encode_blocks(values, BLOCKS[codec], rng, scales, integers)
        assert fit == at // 128 * 128


def test_the_compiled_ones_are_taken_where_they_are() -> None:
    assert loops.NAME == "compiled"
    assert loops.squares is compiled.squares
