"""Bytes from peers: every message survives the trip, and nothing else ever becomes a message."""

from __future__ import annotations

import dataclasses
import math
import random
import time
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structs import MESSAGES, STRUCTS, sample, structs_of

from peerlm.errors import WireError
from peerlm.wire import codec, message
from peerlm.wire.codec import FRAME_BYTES_MAX, INTRODUCTION_BYTES_MAX, decode, decode_as, encode
from peerlm.wire.message import Message, NameRecord, NodeRecord, Ping, Struct, Suspect, Vitals


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda k: k.__name__)
def test_every_struct_comes_back_as_it_was(kind: type[Struct]) -> None:
    @settings(max_examples=25, deadline=None)
    @given(structs_of(kind))
    def scene(value: Struct) -> None:
        data = encode(value)
        assert decode_as(kind, data) == value
        assert encode(decode_as(kind, data)) == data, "same value, same bytes"

    scene()


def test_the_catalogue_numbers_every_struct_once() -> None:
    codes = [kind.code for kind in STRUCTS]
    assert len(codes) == len(set(codes))
    assert 0 not in codes
    named = {k for k in vars(message).values() if isinstance(k, type) and issubclass(k, Struct)}
    assert {k for k in named if not k.code} == {Struct, Message}, "a message without a number"


def test_two_structs_with_one_number_do_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True, slots=True)
    class Twin(Message):
        code = Ping.code

    monkeypatch.setattr(message, "Twin", Twin, raising=False)
    with pytest.raises(AssertionError, match="share a number"):
        codec._index()


def test_facts_are_no_messages() -> None:
    with pytest.raises(WireError, match="unknown type"):
        decode(encode(sample(Suspect)))


# --------------------------------------------------------------------------- damaged in many ways


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda k: k.__name__)
def test_cut_short_at_any_byte_it_is_no_message(kind: type[Message]) -> None:
    data = encode(sample(kind))
    for length in range(len(data)):
        with pytest.raises(WireError):
            decode(data[:length])
    with pytest.raises(WireError):
        decode(data + b"\x00")


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda k: k.__name__)
def test_a_flipped_bit_gives_a_well_formed_message_or_a_wire_error(kind: type[Message]) -> None:
    data = encode(sample(kind))
    lines = []
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            got = decode(bytes(damaged))
        except WireError as error:
            lines.append(str(error))
        else:
            assert decode(encode(got)) == got
    assert lines
    assert all("\n" not in line and len(line) < 400 for line in lines)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(data)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=9)
    | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(MESSAGES), st.lists(JUNK, max_size=12))
def test_well_formed_msgpack_with_any_fields_is_a_message_or_refused(
    kind: type[Message], fields: list[Any]
) -> None:
    try:
        got = decode(msgpack.packb([kind.code, *fields], use_bin_type=True))
    except (WireError, UnicodeEncodeError):
        return
    assert isinstance(got, kind)
    assert decode(encode(got)) == got


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda k: k.__name__)
def test_missing_and_wrong_typed_fields_are_named(kind: type[Message]) -> None:
    raw = msgpack.unpackb(encode(sample(kind)))
    if required := sum(f.default is dataclasses.MISSING for f in dataclasses.fields(kind)):
        with pytest.raises(WireError, match=f"{kind.__name__}: .* fields, must be at least"):
            decode(msgpack.packb(raw[:required]))
    for index, field in enumerate(dataclasses.fields(kind), start=1):
        for wrong in ({}, -1.5, b"?" * 7, "?" * 70_000, [[]], 2**64 - 1, math.nan, None):
            data = msgpack.packb([*raw[:index], wrong, *raw[index + 1 :]])
            try:
                got: Message | str = decode(data)
            except WireError as error:
                got = str(error)
            if isinstance(got, str):  # a map never gets as far as a field
                assert f"{kind.__name__}.{field.name}" in got or wrong == {}
            else:
                assert getattr(got, field.name) == wrong


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ([], "not a struct"),
        ({}, "not"),
        (31, "not a struct"),
        (["31", 1, []], "not a struct"),
        ([True, 1, []], "not a struct"),
        ([9999], "unknown type"),
        ([-1], "unknown type"),
        ([0], "unknown type"),
        ([31, True, []], "must be int"),
        ([31, 1.0, []], "must be int"),
        ([31, -1, []], "must not be negative"),
        ([31, 2**63, []], "at most"),
        ([31, 1, [[31, 1, []]]], "unknown type 31"),
        ([31, 1, [[21, b"x" * 15, 1, 1, b"x" * 16]]], "must be 16"),
        ([31, 1, [[21, b"x" * 16, 1, 1, b"x" * 16]] * 257], "at most 256"),
        ([41, b"x" * (512 * 1024 + 1)], "at most"),
        (
            [50, b"x" * 16, b"x" * 32, 10**7, 1, "a", "b", 1, 1.0, b"k" * 32, b"k" * 32],
            "at most",
        ),
        ([50, b"x" * 16, b"x" * 32, 1, 1, "a", "b", 1, 1.01, b"k" * 32, b"k" * 32], "at most"),
        ([50, b"x" * 16, b"x" * 32, 1, 1, "a", "b", 1, -0.1, b"k" * 32, b"k" * 32], "at least"),
        (
            [50, b"x" * 16, b"x" * 32, 1, 1, "a", "b", 1, math.inf, b"k" * 32, b"k" * 32],
            "finite",
        ),
    ],
)
def test_what_is_wrong_is_said(raw: Any, why: str) -> None:
    with pytest.raises(WireError, match=why):
        decode(msgpack.packb(raw, use_bin_type=True))


def test_text_that_is_not_utf8_is_refused() -> None:
    good = msgpack.packb([42, "plan"])
    with pytest.raises(WireError):
        decode(good.replace(b"plan", b"\xff\xfe\xfd\xfc"))
    with pytest.raises(WireError):
        decode(good.replace(b"plan", b"\xed\xa0\x80n"))  # half of a surrogate pair


# ----------------------------------------------------------------------------------- bombs, bounds


def test_a_frame_beyond_its_plane_is_not_even_read() -> None:
    with pytest.raises(WireError, match="at most"):
        decode(bytes(FRAME_BYTES_MAX + 1))
    hello = encode(sample(message.Hello))
    decode(hello, bytes_max=INTRODUCTION_BYTES_MAX)
    with pytest.raises(WireError, match="at most"):
        decode(bytes(INTRODUCTION_BYTES_MAX + 1), bytes_max=INTRODUCTION_BYTES_MAX)


@pytest.mark.parametrize(
    "host", ["::1%\0", "fe80::1%a b", "fe80::1%eth0", "a b", "ada\n", "b\u00fcro"]
)
def test_a_host_is_of_letters_that_a_host_has(host: str) -> None:
    record = NodeRecord(b"p" * 16, 1, 1, "ada-1.example_x.org", 7700, 7701, 7702, False)
    assert decode_as(NodeRecord, encode(record)) == record
    with pytest.raises(WireError, match="letters"):
        decode_as(NodeRecord, encode(dataclasses.replace(record, host=host)))


def test_the_longest_introduction_fits_its_frame() -> None:
    chain = (b"x" * 2048,) * 6
    hello = message.Hello(1, b"r" * 16, chain)
    welcome = message.Welcome(1, b"r" * 16, chain, 65_535, 65_535, "h" * 255)
    for introduction in (hello, welcome):
        data = encode(introduction)
        assert decode(data, bytes_max=INTRODUCTION_BYTES_MAX) == introduction


def test_the_longest_record_and_vitals_fit_their_rumors() -> None:
    record = NodeRecord(b"p" * 16, 2**62, 2**62, "h" * 255, 65_535, 65_535, 65_535, True)
    assert len(encode(record)) <= 1024
    vitals = Vitals(
        b"p" * 16, 2**62, 2**62, 2**62, "w" * 64, True, True, True, 2**62,
        1.5, 1.5, 1.5, 1.5, 2**62, 2**62, True, 2**62, 2**62, True, 2**62, 2**62, 1.5, 1.5,
        2**62, 2**62, "l" * 32, 2**62, True, 2**62, True, 2**62, (2**62,) * 8,
        (b"p" * 4,) * 4, (2**62,) * 4, 65_535, 2**62, 2**62,
    )  # fmt: skip
    assert len(encode(vitals)) <= 512
    name = NameRecord(
        "n" * 96, "w" * 64, b"h" * 32, 2**62, 2**62, b"p" * 16, 1.5, 64, True, "a" * 200
    )
    assert len(encode(name)) <= 1024


BOMBS = {
    "deep nesting": b"\x91" * 500_000 + b"\x00",
    "array that claims 4 billion": b"\xdd\xff\xff\xff\xff" + bytes(1000),
    "bytes that claim 4 GB": b"\xc6\xff\xff\xff\xff" + bytes(1000),
    "text that claims 4 GB": b"\xdb\xff\xff\xff\xff" + bytes(1000),
    "map that claims 4 billion": b"\xdf\xff\xff\xff\xff" + bytes(1000),
    "extension": b"\xc7\x10\x01" + bytes(16),
    "timestamp": b"\x92\x1f\xd6\xff\x00\x00\x00\x00",
    "nested claims": b"\xdd\x00\x0f\xff\xff" * 200_000,
    "many empty arrays": b"\x93\x1f\x01\xdd\x00\x0f\x00\x00" + b"\x90" * 0xF0000,
    "many lists in lists": b"\xdc\x01\xf4" + (b"\x91" * 1010 + b"\x00") * 500,
    "many nils": b"\xdd\x00\x0f\x00\x00" + b"\xc0" * 0xF0000,
    "long text of a bad field": msgpack.packb(["x" * 1_000_000]),
    "huge number where text goes": msgpack.packb([42, 2**63]),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_cost_little_time_and_memory(name: str) -> None:
    tracemalloc.start()
    began = time.perf_counter()
    try:
        with pytest.raises(WireError) as caught:
            decode(BOMBS[name])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - began < 1.0
    assert peak < 8 * FRAME_BYTES_MAX
    assert len(str(caught.value)) < 400


def test_random_damage_of_a_large_message_never_escapes_as_another_error() -> None:
    rng = random.Random(1)
    entry = message.DigestEntry(b"p" * 16, 1, 1, 0, 1, 1)
    data = encode(message.Sync((entry,) * 300, True))
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 5)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            decode(bytes(damaged))
        except WireError:
            pass


def test_our_own_oversized_message_is_our_own_bug() -> None:
    with pytest.raises(AssertionError, match="bytes"):
        encode(message.PlanGive(bytes(FRAME_BYTES_MAX + 1)))
