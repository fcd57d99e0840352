"""Frames of the bulk plane: what only the two ends of a transfer can make, on a TCP connection.

The bulk port is open to everybody, so each frame carries its own proof. Keys are fresh for every
transfer and direction and were handed over the encrypted control plane. Frames are numbered, though
the numbers are not sent: a connection keeps their order, so one that was forged, changed, repeated,
left out or moved fails its check, and the connection is over. After KEEP the same begins again for
another transfer, with keys of its own and numbers from one.

    dialler:   preface (27 B, in the clear)   BEGIN   DATA …   END
    listener:                                         DATA …   END   KEEP

    frame:     kind (1), length of the body (4), body, tag (16)

`aead`: AES-256-GCM; nonce = stream (4 bytes) ‖ number (8 bytes), associated data = kind and length.
`plain`: the body in the clear, with a keyed BLAKE3 tag of 16 bytes over all of that: whoever has no
key cannot change it, but can read it. For networks that are trusted wholly.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from peerlm.errors import ChunkCorrupt, WireError
from peerlm.types import TransferId

CHUNK_BYTES = 256 * 1024
"""What is moved of an object at a time, the last one less."""

BODY_BYTES_MAX = 1 << 20
TAG_BYTES = 16
REASON_BYTES_MAX = 200
ATTEMPTS_MAX = 1 << 16

_MAGIC = b"pb"
_VERSION = 2
_PREFACE = struct.Struct("!2sB16sQ")
PREFACE_BYTES = _PREFACE.size
_HEADER = struct.Struct("!BI")
HEADER_BYTES = _HEADER.size
FRAME_BYTES_MAX = HEADER_BYTES + BODY_BYTES_MAX + TAG_BYTES

UP, DOWN = 1, 2
"""Streams: from the initiator, from the responder."""

Buffer = bytes | bytearray | memoryview


class Kind(IntEnum):
    BEGIN = 1
    """The dialler's first: proves that it has the key. The body is the number (8 bytes) of the
    first chunk it wants to hear."""
    DATA = 2
    """The next chunk."""
    END = 3
    """I have said all, and all that I heard was good."""
    ABORT = 4
    """I give up; the body says why, in UTF-8."""
    KEEP = 5
    """The listener's last, after both have said END: another transfer may begin on this connection."""


_KINDS = {kind.value: kind for kind in Kind}
_BODY_BYTES_MAX = {
    Kind.BEGIN: 8,
    Kind.DATA: BODY_BYTES_MAX,
    Kind.END: 0,
    Kind.ABORT: REASON_BYTES_MAX,
    Kind.KEEP: 0,
}


@dataclass(frozen=True, slots=True)
class Preface:
    """Which transfer a connection is for. `attempt` grows with each connection for one transfer, so
    that no number is used twice under a key."""

    transfer: TransferId
    attempt: int

    def pack(self) -> bytes:
        return _PREFACE.pack(_MAGIC, _VERSION, self.transfer, self.attempt)

    @staticmethod
    def parse(data: Buffer) -> Preface:
        """Raises `WireError` for anything but a sound one."""
        if len(data) != PREFACE_BYTES:
            raise WireError(f"bulk preface of {len(data)} bytes, must be {PREFACE_BYTES}")
        magic, version, transfer, attempt = _PREFACE.unpack(data)
        if magic != _MAGIC or version != _VERSION:
            raise WireError("not a bulk connection of our version")
        if attempt >= ATTEMPTS_MAX:
            raise WireError(f"attempt {attempt} of a bulk transfer")
        return Preface(TransferId(transfer), attempt)


def parse_header(data: Buffer) -> tuple[Kind, int]:
    """(kind, bytes of the body without its tag). Raises `WireError`."""
    kind, length = _HEADER.unpack(data[:HEADER_BYTES])
    known = _KINDS.get(kind)
    if known is None:
        raise WireError(f"bulk frame of unknown kind {kind}")
    if length > _BODY_BYTES_MAX[known]:
        raise WireError(f"bulk frame {known.name} with a body of {length} bytes")
    return known, length


class Cipher:
    """Seals, or opens, the frames of one direction of one connection, in place and in order.

    `key` has 32 bytes; `security` is aead or plain.
    """

    def __init__(self, key: bytes, stream: int, attempt: int, security: str) -> None:
        assert len(key) == 32, f"a key of {len(key)} bytes"
        assert security in ("aead", "plain"), security
        assert 0 <= attempt < ATTEMPTS_MAX, attempt
        self._key = key
        self._stream = (stream << 16 | attempt).to_bytes(4, "big")
        self._number = 0
        self._aead = AESGCM(key) if security == "aead" else None

    def seal(self, kind: Kind, frame: memoryview, body: Buffer) -> int:
        """Write a frame of `body` to `frame`; returns its length. The body may stand in its place,
        `frame[HEADER_BYTES:]`, already."""
        self._number += 1
        length = len(body)
        _HEADER.pack_into(frame, 0, kind, length)
        head, end = bytes(frame[:HEADER_BYTES]), HEADER_BYTES + length
        sealed = frame[HEADER_BYTES : end + TAG_BYTES]
        if self._aead is not None:
            self._aead.encrypt_into(self._nonce(), body, head, sealed)
        else:
            sealed[:length] = body
            sealed[length:] = self._tag(head, body)
        return end + TAG_BYTES

    def open(self, frame: memoryview, into: memoryview | None = None) -> memoryview:
        """The body of a whole frame, written to `into`, or over the frame. Raises `ChunkCorrupt`;
        `into` may then hold anything."""
        self._number += 1
        head, sealed = bytes(frame[:HEADER_BYTES]), frame[HEADER_BYTES:]
        body = sealed[: len(sealed) - TAG_BYTES] if into is None else into
        if self._aead is None:
            here = sealed[: len(body)]
            if not hmac.compare_digest(self._tag(head, here), sealed[len(body) :]):
                raise ChunkCorrupt("the tag does not fit")
            body[:] = here
            return body
        try:
            self._aead.decrypt_into(self._nonce(), sealed, head, body)
        except InvalidTag:
            raise ChunkCorrupt("the tag does not fit") from None
        return body

    def _nonce(self) -> bytes:
        return self._stream + self._number.to_bytes(8, "big")

    def _tag(self, head: bytes, body: Buffer) -> bytes:
        hasher = blake3(key=self._key)
        hasher.update(self._nonce())
        hasher.update(head)
        hasher.update(body)
        return bytes(hasher.digest(length=TAG_BYTES))
