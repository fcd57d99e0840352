"""Frames of the store's desk: a length of four bytes, then a msgpack list; what is read of one is checked first.

Whoever speaks is a process of this machine and of this user, or one that the folder's group lets in: it may be wrong, so
what it says is held against a bound before it is taken into memory, and against a type before it is used.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack

from peerlm.daemon.desk_client import LENGTH
from peerlm.errors import StateError, WireError
from peerlm.store.manifest import MANIFEST_BYTES_MAX
from peerlm.types import ObjectHash

FRAME_BYTES_MAX = MANIFEST_BYTES_MAX + (1 << 20)


def packed(*frame: Any) -> tuple[bytes, bytes]:
    """An answer: its length, and its bytes, which are many where it is a chunk."""
    data: bytes = msgpack.packb(list(frame))
    return LENGTH.pack(len(data)), data


async def read_frame(reader: asyncio.StreamReader) -> list[Any]:
    """The next request. Raises `WireError`: where the one after it begins is not known; `IncompleteReadError` at the end."""
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    if length > FRAME_BYTES_MAX:
        raise WireError(f"a frame of {length} bytes; at most {FRAME_BYTES_MAX}")
    return _unpacked(await reader.readexactly(length))


def _unpacked(data: bytes) -> list[Any]:
    try:
        value = msgpack.unpackb(data, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError):
        raise WireError("a frame that is no msgpack") from None
    if not isinstance(value, list) or not value:
        raise WireError("a frame that is no list")
    return value


def as_hash(raw: Any) -> ObjectHash:
    """Raises `StateError`."""
    if not isinstance(raw, bytes) or len(raw) != 32:
        raise StateError("a hash has 32 bytes")
    return ObjectHash(raw)
