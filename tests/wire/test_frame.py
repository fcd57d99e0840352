from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlm.errors import ChunkCorrupt, WireError
from peerlm.types import TransferId
from peerlm.wire.frame import (
    ATTEMPTS_MAX,
    BODY_BYTES_MAX,
    CHUNK_BYTES,
    DOWN,
    FRAME_BYTES_MAX,
    HEADER_BYTES,
    PREFACE_BYTES,
    REASON_BYTES_MAX,
    TAG_BYTES,
    UP,
    Cipher,
    Kind,
    Preface,
    parse_header,
)

ID = TransferId(bytes(range(16)))
KEY = bytes(range(32))
BODY = b"secret words" * 4
SECURITIES = pytest.mark.parametrize("security", ["aead", "plain"])

MOST = {
    Kind.BEGIN: 8,
    Kind.DATA: BODY_BYTES_MAX,
    Kind.END: 0,
    Kind.ABORT: REASON_BYTES_MAX,
    Kind.KEEP: 0,
}

ids = st.binary(min_size=16, max_size=16).map(TransferId)
attempts = st.integers(0, ATTEMPTS_MAX - 1)
streams = st.sampled_from([UP, DOWN])
kinds = st.sampled_from(Kind)


def cipher(security: str = "aead", key: bytes = KEY, stream: int = UP, attempt: int = 1) -> Cipher:
    return Cipher(key, stream, attempt, security)


def sealed(by: Cipher, body: bytes, kind: Kind = Kind.DATA) -> bytes:
    frame = memoryview(bytearray(FRAME_BYTES_MAX if len(body) > 1000 else 1100))
    return bytes(frame[: by.seal(kind, frame, body)])


def opened(by: Cipher, frame: bytes) -> bytes:
    return bytes(by.open(memoryview(bytearray(frame))))


# ------------------------------------------------------------------------------------ to the last bit


LAID_OUT_ANEW = (
    "the bulk plane has other bytes than nodes of the version before write and read: "
    "wire/versions.py has to follow, and only then what is written here"
)

FROZEN = {
    "aead": "02 00000007 9e28efffa5e365 7654e56eaadf599b83414294aee9c482",
    "plain": "02 00000007 61206368756e6b 270d8154f866b37fd6779722abc818be",
}
"""The second frame that the responder sends on connection 3: kind, length, body, tag."""


def second_of(security: str) -> Cipher:
    by = cipher(security, stream=DOWN, attempt=3)
    sealed(by, b"the first")
    return by


@SECURITIES
def test_a_frame_has_the_bytes_that_other_nodes_know(security: str) -> None:
    frame = bytes.fromhex(FROZEN[security])
    assert sealed(second_of(security), b"a chunk") == frame, LAID_OUT_ANEW
    assert opened(second_of(security), frame) == b"a chunk", LAID_OUT_ANEW


def test_the_rest_of_a_connection_has_the_bytes_that_other_nodes_know() -> None:
    preface = bytes.fromhex("706202 000102030405060708090a0b0c0d0e0f 0000000000000103")
    assert Preface(ID, 0x103).pack() == preface, LAID_OUT_ANEW
    kinds = {"BEGIN": 1, "DATA": 2, "END": 3, "ABORT": 4, "KEEP": 5}
    assert {kind.name: kind.value for kind in Kind} == kinds, LAID_OUT_ANEW
    assert CHUNK_BYTES == 262_144, LAID_OUT_ANEW


# ---------------------------------------------------------------------------------------- preface


@given(ids, attempts)
def test_prefaces_survive_the_wire(transfer: TransferId, attempt: int) -> None:
    preface = Preface(transfer, attempt)
    assert len(preface.pack()) == PREFACE_BYTES
    assert Preface.parse(preface.pack()) == preface
    assert Preface.parse(bytearray(preface.pack())) == preface


@given(st.binary(max_size=60))
def test_noise_is_no_preface(noise: bytes) -> None:
    with pytest.raises(WireError):
        Preface.parse(noise)


@given(st.integers(0, 2 * PREFACE_BYTES).filter(lambda length: length != PREFACE_BYTES))
def test_a_preface_has_its_length(length: int) -> None:
    with pytest.raises(WireError, match=f"{length} bytes"):
        Preface.parse((Preface(ID, 1).pack() * 2)[:length])


@given(ids, attempts, st.integers(0, 8 * PREFACE_BYTES - 1))
def test_a_flipped_bit_is_a_wire_error_or_another_sound_preface(
    transfer: TransferId, attempt: int, bit: int
) -> None:
    flipped = with_flipped(Preface(transfer, attempt).pack(), bit)
    try:
        other = Preface.parse(flipped)
    except WireError:
        return
    assert other != Preface(transfer, attempt)
    assert other.attempt < ATTEMPTS_MAX
    assert bit >= 8 * 3, "another magic, or version, was taken"


@pytest.mark.parametrize("attempt", [ATTEMPTS_MAX, 2**63, 2**64 - 1])
def test_attempts_that_would_repeat_a_nonce_are_refused(attempt: int) -> None:
    with pytest.raises(WireError, match="attempt"):
        Preface.parse(Preface(ID, attempt).pack())


# ----------------------------------------------------------------------------------------- header


@given(kinds, st.data())
def test_headers_within_bounds_are_read(kind: Kind, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, MOST[kind]))
    header = header_of(kind, length)
    assert parse_header(header) == (kind, length)
    assert parse_header(memoryview(header + b"what comes next")) == (kind, length)


@given(kinds, st.data())
def test_lengths_beyond_bounds_are_refused(kind: Kind, data: st.DataObject) -> None:
    length = data.draw(st.integers(MOST[kind] + 1, 2**32 - 1))
    with pytest.raises(WireError, match=kind.name):
        parse_header(header_of(kind, length))


@given(st.integers(0, 255).filter(lambda kind: kind not in MOST), st.integers(0, 2**32 - 1))
def test_unknown_kinds_are_refused(kind: int, length: int) -> None:
    with pytest.raises(WireError, match=f"unknown kind {kind}"):
        parse_header(header_of(kind, length))


def test_a_chunk_of_an_object_and_any_frame_fit() -> None:
    assert CHUNK_BYTES <= BODY_BYTES_MAX == max(MOST.values())
    assert FRAME_BYTES_MAX == HEADER_BYTES + BODY_BYTES_MAX + TAG_BYTES


# ----------------------------------------------------------------------------------------- frames


@SECURITIES
@given(
    stream=streams,
    attempt=attempts,
    said=st.lists(st.tuples(kinds, st.binary(max_size=300)), max_size=6),
)
def test_what_is_sealed_opens_in_its_order(
    security: str, stream: int, attempt: int, said: list[tuple[Kind, bytes]]
) -> None:
    ours = cipher(security, stream=stream, attempt=attempt)
    theirs = cipher(security, stream=stream, attempt=attempt)
    for kind, body in said:
        frame = sealed(ours, body, kind)
        assert len(frame) == HEADER_BYTES + len(body) + TAG_BYTES
        assert frame[:HEADER_BYTES] == header_of(kind, len(body))
        assert opened(theirs, frame) == body


@SECURITIES
def test_frames_are_sealed_and_opened_in_place(security: str) -> None:
    """The buffers are those of the bulk thread, filled as much as they can be."""
    body = np.random.default_rng(0).bytes(BODY_BYTES_MAX)
    frame = np.zeros(FRAME_BYTES_MAX + 1, np.uint8).data
    assert cipher(security).seal(Kind.DATA, frame, body) == FRAME_BYTES_MAX
    assert frame[-1] == 0, "written beyond its end"
    got = cipher(security).open(frame[:FRAME_BYTES_MAX])
    assert got == body
    frame[HEADER_BYTES] ^= 1
    assert got[0] == body[0] ^ 1, "a body that is a copy"


@SECURITIES
def test_every_flipped_bit_is_found(security: str) -> None:
    frame = sealed(cipher(security), BODY)
    for bit in range(8 * len(frame)):
        with pytest.raises(ChunkCorrupt):
            opened(cipher(security), with_flipped(frame, bit))


@SECURITIES
@given(order=st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_only_what_comes_next_opens(security: str, order: list[int]) -> None:
    """Frames that are moved, repeated or left out."""
    ours, theirs = cipher(security), cipher(security)
    frames = [sealed(ours, bytes([number]) * 20) for number in range(5)]
    for place, number in enumerate(order):
        if number != place:
            with pytest.raises(ChunkCorrupt):
                opened(theirs, frames[number])
            return
        assert opened(theirs, frames[number]) == bytes([number]) * 20


@SECURITIES
@pytest.mark.parametrize(
    "change", ["key", "stream", "attempt", "security", "short", "long", "kind"]
)
def test_a_frame_opens_only_as_what_it_was_sealed(security: str, change: str) -> None:
    frame, theirs = sealed(cipher(security), BODY), cipher(security)
    match change:
        case "key":
            theirs = cipher(security, key=bytes(32))
        case "stream":
            theirs = cipher(security, stream=DOWN)
        case "attempt":
            theirs = cipher(security, attempt=2)
        case "security":
            theirs = cipher("plain" if security == "aead" else "aead")
        case "short":
            frame = frame[:-1]
        case "long":
            frame += b"\0"
        case "kind":
            frame = bytes([Kind.ABORT]) + frame[1:]
    with pytest.raises(ChunkCorrupt):
        opened(theirs, frame)


@given(streams, attempts, streams, attempts)
def test_no_two_connections_share_a_nonce(
    stream: int, attempt: int, other_stream: int, other_attempt: int
) -> None:
    one = sealed(cipher("plain", stream=stream, attempt=attempt), BODY)
    other = sealed(cipher("plain", stream=other_stream, attempt=other_attempt), BODY)
    assert (one == other) == ((stream, attempt) == (other_stream, other_attempt))


@SECURITIES
def test_the_same_words_are_never_sealed_alike(security: str) -> None:
    ours = cipher(security)
    assert len({sealed(ours, BODY) for _ in range(100)}) == 100


def test_aead_hides_and_plain_does_not() -> None:
    assert b"secret" not in sealed(cipher("aead"), BODY)
    assert b"secret" in sealed(cipher("plain"), BODY)


def header_of(kind: int, length: int) -> bytes:
    return bytes([kind]) + length.to_bytes(4, "big")


def with_flipped(data: bytes, bit: int) -> bytes:
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)
