"""Frames of the bulk plane: a fixed header in the clear and a body that only the two ends can make.

The bulk port is open to everybody, so each frame carries its own proof. Keys are fresh for every
transfer and direction and were handed over the encrypted control plane. The number of a frame
(`serial`) is never used twice under a key, and the header is bound to the body, so a frame cannot be
forged, changed, replayed or moved to another place.

`aead`: AES-256-GCM; nonce = stream (4 bytes) ‖ serial (8 bytes), associated data = the header.
`plain`: the body in the clear, with a keyed BLAKE3 tag of 16 bytes over header ‖ body: whoever has
no key cannot change it, but can read it. For networks that are trusted wholly.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from peerlm.errors import ChunkCorrupt, WireError
from peerlm.types import TransferId

CHUNK_BYTES = 256 * 1024
"""What is moved at a time, the last one of a transfer less. Larger is no faster, and on a slow line
each is a longer silence."""

TAG_BYTES = 16
REASON_BYTES_MAX = 200
TOTAL_BYTES_MAX = 1 << 40

_MAGIC = b"pb"
_VERSION = 1
_HEADER = struct.Struct("!2sBB16sQQQI")
HEADER_BYTES = _HEADER.size

Buffer = bytes | bytearray | memoryview


class Kind(IntEnum):
    HAIL = 1
    """Are you there, and how far are you? `total`: bytes the sender has to give (initiator)."""
    WAIT = 2
    """Answer to the hail numbered `ref`: here, nothing to give yet."""
    READY = 3
    """Here, and `total` bytes can be asked for. `ref`: the hail it answers, 0 for none."""
    GET = 4
    """Send me chunk `ref`."""
    DATA = 5
    """Chunk `ref` of `total` bytes."""
    DONE = 6
    """I have all I wanted: forget this transfer."""
    ABORT = 7
    """I give up; the body says why, in UTF-8."""


@dataclass(frozen=True, slots=True)
class Header:
    """`length` is of the body without its tag."""

    kind: Kind
    transfer: TransferId
    serial: int
    ref: int
    total: int
    length: int

    def pack(self) -> bytes:
        return _HEADER.pack(
            _MAGIC,
            _VERSION,
            self.kind,
            self.transfer,
            self.serial,
            self.ref,
            self.total,
            self.length,
        )


def parse(data: Buffer) -> Header:
    """The header in a frame's first part. Raises `WireError` for anything but a sound one."""
    if len(data) != HEADER_BYTES:
        raise WireError(f"bulk header of {len(data)} bytes, must be {HEADER_BYTES}")
    magic, version, kind, transfer, serial, ref, total, length = _HEADER.unpack(data)
    if magic != _MAGIC or version != _VERSION:
        raise WireError("not a bulk frame of our version")
    if kind not in Kind._value2member_map_:
        raise WireError(f"bulk frame of unknown kind {kind}")
    if total > TOTAL_BYTES_MAX:
        raise WireError(f"bulk transfer of {total} bytes, at most {TOTAL_BYTES_MAX}")
    if not _length_fits(Kind(kind), ref, total, length):
        raise WireError(f"bulk frame {Kind(kind).name} with a body of {length} bytes")
    return Header(Kind(kind), TransferId(transfer), serial, ref, total, length)


def chunk_count(total: int) -> int:
    """How many chunks `total` bytes are."""
    return -(-total // CHUNK_BYTES)


def chunk_bytes(ref: int, total: int) -> int:
    """Bytes of chunk `ref` of `total` bytes; not positive when there is no such chunk."""
    return min(CHUNK_BYTES, total - ref * CHUNK_BYTES)


def _length_fits(kind: Kind, ref: int, total: int, length: int) -> bool:
    if kind is Kind.DATA:
        return 0 < length == chunk_bytes(ref, total)
    return length <= (REASON_BYTES_MAX if kind is Kind.ABORT else 0)


class Cipher:
    """Seals, or opens, the frames of one direction of one transfer.

    `key` has 32 bytes and `stream` is the direction's number; `security` is aead or plain. Whoever
    seals must never use a serial twice.
    """

    def __init__(self, key: bytes, stream: int, security: str) -> None:
        assert len(key) == 32, f"a key of {len(key)} bytes"
        assert security in ("aead", "plain"), security
        self._key = key
        self._stream = stream.to_bytes(4, "big")
        self._aead = AESGCM(key) if security == "aead" else None
        # Since cryptography 47 or so; without them a chunk is allocated and copied once more.
        self._in_place = hasattr(AESGCM, "encrypt_into")

    def seal(self, header: Header, body: Buffer) -> tuple[bytes, Buffer]:
        """Both parts of a frame: the packed header, and the body with its tag."""
        assert len(body) == header.length, (len(body), header)
        packed = header.pack()
        if self._aead is not None and not self._in_place:
            return packed, self._aead.encrypt(self._nonce(header), body, packed)
        sealed = np.empty(len(body) + TAG_BYTES, np.uint8).data
        if self._aead is not None:
            self._aead.encrypt_into(self._nonce(header), body, packed, sealed)
        else:
            sealed[: len(body)] = body
            sealed[len(body) :] = self._tag(packed, body)
        return packed, sealed

    def open(self, header: Header, packed: Buffer, sealed: Buffer, into: memoryview) -> None:
        """Check a frame and write its body to `into`, which has `header.length` bytes.

        Raises `ChunkCorrupt`; `into` may then hold anything.
        """
        if len(sealed) != header.length + TAG_BYTES:
            raise ChunkCorrupt(f"{len(sealed)} bytes where {header.length + TAG_BYTES} belong")
        if self._aead is None:
            body = memoryview(sealed)[: header.length]
            if not hmac.compare_digest(self._tag(packed, body), sealed[header.length :]):
                raise ChunkCorrupt("the tag does not fit")
            into[:] = body
            return
        try:
            if self._in_place:
                self._aead.decrypt_into(self._nonce(header), sealed, bytes(packed), into)
            else:
                into[:] = self._aead.decrypt(self._nonce(header), sealed, bytes(packed))
        except InvalidTag:
            raise ChunkCorrupt("the tag does not fit") from None

    def _nonce(self, header: Header) -> bytes:
        return self._stream + header.serial.to_bytes(8, "big")

    def _tag(self, packed: Buffer, body: Buffer) -> bytes:
        hasher = blake3(key=self._key)
        hasher.update(self._stream)
        hasher.update(packed)
        hasher.update(body)
        return bytes(hasher.digest(length=TAG_BYTES))


def cookie(key: bytes) -> bytes:
    """What opens the bulk port for one transfer: shown in the clear, says nothing of the key."""
    return blake3(b"peerlm bulk cookie", key=key).hexdigest(length=16).encode()
