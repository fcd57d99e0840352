from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlm.errors import ChunkCorrupt, WireError
from peerlm.wire.frame import (
    CHUNK_BYTES,
    HEADER_BYTES,
    REASON_BYTES_MAX,
    TAG_BYTES,
    TOTAL_BYTES_MAX,
    Cipher,
    Header,
    Kind,
    chunk_bytes,
    chunk_count,
    cookie,
    parse,
)

ID = bytes(range(16))
KEY = bytes(range(32))
SECURITIES = pytest.mark.parametrize("security", ["aead", "plain"])

small = st.integers(0, 2**64 - 1)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    kind = draw(st.sampled_from(Kind))
    total = draw(st.integers(1, TOTAL_BYTES_MAX))
    ref, length = draw(small), 0
    if kind is Kind.DATA:
        ref = draw(st.integers(0, chunk_count(total) - 1))
        length = chunk_bytes(ref, total)
    elif kind is Kind.ABORT:
        length = draw(st.integers(0, REASON_BYTES_MAX))
    return Header(kind, draw(st.binary(min_size=16, max_size=16)), draw(small), ref, total, length)


def data_header(body: bytes, serial: int = 1) -> Header:
    return Header(Kind.DATA, ID, serial, 0, len(body), len(body))


@given(headers())
def test_headers_survive_the_wire(header: Header) -> None:
    packed = header.pack()
    assert len(packed) == HEADER_BYTES <= 64
    assert parse(packed) == header


@given(st.binary(max_size=200))
def test_noise_is_a_wire_error(noise: bytes) -> None:
    with pytest.raises(WireError):
        parse(noise)


@given(headers(), st.integers(0, HEADER_BYTES - 1))
def test_a_cut_header_is_a_wire_error(header: Header, length: int) -> None:
    with pytest.raises(WireError):
        parse(header.pack()[:length])


@given(headers(), st.integers(0, 8 * HEADER_BYTES - 1))
def test_a_flipped_bit_is_a_wire_error_or_another_sound_header(header: Header, bit: int) -> None:
    flipped = bytearray(header.pack())
    flipped[bit // 8] ^= 1 << bit % 8
    try:
        other = parse(flipped)
    except WireError:
        return
    assert other != header
    assert other.length <= CHUNK_BYTES
    assert other.total <= TOTAL_BYTES_MAX


@pytest.mark.parametrize(
    "header",
    [
        Header(Kind.DATA, ID, 1, 0, 10, 11),
        Header(Kind.DATA, ID, 1, 1, 10, 10),
        Header(Kind.DATA, ID, 1, 0, 0, 0),
        Header(Kind.DATA, ID, 1, 2**64 - 1, 10, 10),
        Header(Kind.DATA, ID, 1, 0, 2 * CHUNK_BYTES, CHUNK_BYTES - 1),
        Header(Kind.GET, ID, 1, 0, 0, 1),
        Header(Kind.ABORT, ID, 1, 0, 0, REASON_BYTES_MAX + 1),
        Header(Kind.HAIL, ID, 1, 0, TOTAL_BYTES_MAX + 1, 0),
    ],
)
def test_lengths_that_cannot_be_are_refused(header: Header) -> None:
    with pytest.raises(WireError):
        parse(header.pack())


@pytest.mark.parametrize("total", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 10 * CHUNK_BYTES - 1])
def test_chunks_cover_the_total(total: int) -> None:
    lengths = [chunk_bytes(ref, total) for ref in range(chunk_count(total))]
    assert sum(lengths) == total
    assert all(length > 0 for length in lengths)
    assert chunk_bytes(chunk_count(total), total) <= 0


@SECURITIES
@given(body=st.binary(max_size=300), serial=small)
def test_what_is_sealed_opens(security: str, body: bytes, serial: int) -> None:
    header = Header(Kind.ABORT, ID, serial, 0, 0, len(body))
    packed, sealed = Cipher(KEY, 1, security).seal(header, body)
    into = bytearray(len(body))
    Cipher(KEY, 1, security).open(header, packed, sealed, memoryview(into))
    assert into == body
    assert len(sealed) == len(body) + TAG_BYTES


@SECURITIES
@given(bit=st.integers(0, 8 * (40 + TAG_BYTES) - 1))
def test_a_flipped_bit_in_the_body_is_found(security: str, bit: int) -> None:
    header = data_header(b"x" * 40)
    packed, sealed = Cipher(KEY, 1, security).seal(header, b"x" * 40)
    flipped = bytearray(sealed)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ChunkCorrupt):
        Cipher(KEY, 1, security).open(header, packed, flipped, memoryview(bytearray(40)))


@SECURITIES
@pytest.mark.parametrize("change", ["key", "stream", "header", "short", "long", "empty"])
def test_a_frame_opens_only_as_what_it_was_sealed(security: str, change: str) -> None:
    header = data_header(b"x" * 40)
    packed, sealed = Cipher(KEY, 1, security).seal(header, b"x" * 40)
    cipher = Cipher(KEY, 1, security)
    match change:
        case "key":
            cipher = Cipher(bytes(32), 1, security)
        case "stream":
            cipher = Cipher(KEY, 2, security)
        case "header":
            packed = data_header(b"x" * 40, serial=2).pack()
        case "short":
            sealed = bytes(sealed)[:-1]
        case "long":
            sealed = bytes(sealed) + b"\0"
        case "empty":
            sealed = b""
    with pytest.raises(ChunkCorrupt):
        cipher.open(header, packed, sealed, memoryview(bytearray(40)))


def test_a_moved_serial_is_found() -> None:
    header, other = data_header(b"x" * 40), data_header(b"x" * 40, serial=2)
    packed, sealed = Cipher(KEY, 1, "aead").seal(header, b"x" * 40)
    with pytest.raises(ChunkCorrupt):
        Cipher(KEY, 1, "aead").open(other, packed, sealed, memoryview(bytearray(40)))


def test_ciphers_without_in_place_calls_speak_the_same() -> None:
    old, new = Cipher(KEY, 1, "aead"), Cipher(KEY, 1, "aead")
    old._in_place = False
    header = data_header(b"x" * 40)
    for a, b in ((old, new), (new, old)):
        packed, sealed = a.seal(header, b"x" * 40)
        into = bytearray(40)
        b.open(header, packed, sealed, memoryview(into))
        assert into == b"x" * 40


def test_aead_hides_and_plain_does_not() -> None:
    header = data_header(b"secret words" * 4)
    assert b"secret" not in bytes(Cipher(KEY, 1, "aead").seal(header, b"secret words" * 4)[1])
    assert b"secret" in bytes(Cipher(KEY, 1, "plain").seal(header, b"secret words" * 4)[1])


def test_cookies_differ_by_key_and_are_words() -> None:
    assert cookie(KEY) != cookie(bytes(32))
    assert cookie(KEY) == cookie(KEY)
    assert len(cookie(KEY)) == 32
    assert cookie(KEY).isalnum()
