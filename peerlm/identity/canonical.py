"""One value, one byte string: the encoding under every signature.

Values are msgpack arrays of plain scalars. Decoding is bounded and strict: what comes back, encoded
again, must be the very bytes that came in. So a signed thing has a single encoding, and its hash can
serve as its name. `seal` adds a short checksum where bytes pass through people's hands or age on
disks: it tells damage from forgery, it is no protection against the latter.

Never decodes to anything but msgpack's plain types, and never raises anything but `AuthError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
from blake3 import blake3

from peerlm.errors import AuthError

CHECKSUM_BYTES = 4

ITEMS_MAX = 8192
"""Of one array: more shard hashes than the longest plan has room for. Arrays within arrays that claim
a million items each would otherwise take gigabytes before the first is found to be missing."""

CONTAINERS_MAX = 64
"""Arrays and maps in one value: a plan has the most, one a section and a few in them."""


def encode(value: Any) -> bytes:
    """The canonical bytes of lists, dicts, strings, bytes, ints, floats and bools."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def decode(raw: bytes, limit_bytes: int, what: str, items_max: int = ITEMS_MAX) -> Any:
    """The value whose canonical encoding is `raw`; lists stay lists. Its shape is for the caller to check.

    Raises:
        AuthError: `too_long` past the limit, `malformed` if `raw` is not canonical msgpack.
    """
    if len(raw) > limit_bytes:
        raise AuthError("too_long", f"{what}: {len(raw)} bytes, at most {limit_bytes} are allowed")
    try:
        count = _counted()
        value = msgpack.unpackb(
            raw,
            raw=False,
            strict_map_key=True,
            timestamp=3,
            ext_hook=_no_extensions,
            list_hook=count,
            object_hook=count,
            max_array_len=min(items_max, len(raw)),
            max_map_len=min(items_max, len(raw)),
        )
        is_canonical = encode(value) == raw
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
        is_canonical = False
    if not is_canonical:
        raise AuthError(
            "malformed", f"{what}: not canonical msgpack; damaged, or not what it claims to be"
        )
    return value


def _counted() -> Callable[[Any], Any]:
    """Sees every array and map when it is complete; raises `ValueError` when there are too many."""
    left = CONTAINERS_MAX

    def count(found: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {CONTAINERS_MAX} arrays and maps")
        return found

    return count


def _no_extensions(code: int, data: bytes) -> None:
    """Extension types are refused here; timestamps become datetimes, which `encode` refuses."""
    raise ValueError(f"extension type {code}")


def hash32(raw: bytes) -> bytes:
    """BLAKE3-256 of `raw`."""
    return blake3(raw).digest()


def hash16(raw: bytes) -> bytes:
    """The first half of BLAKE3-256: how nodes, runs and serials are named."""
    return blake3(raw).digest(16)


def seal(raw: bytes) -> bytes:
    """`raw` followed by the first four bytes of its BLAKE3."""
    return raw + blake3(raw).digest(CHECKSUM_BYTES)


def unseal(sealed: bytes, complaint: str) -> bytes:
    """Undo `seal`. Raises `AuthError` `malformed` with `complaint` if the checksum does not fit."""
    raw = sealed[:-CHECKSUM_BYTES]
    if not raw or seal(raw) != sealed:
        raise AuthError("malformed", complaint)
    return raw
