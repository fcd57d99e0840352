"""How a fragment is cut for its way to a partner: chunks of so many elements, each encoded by itself."""

from __future__ import annotations

from peerlm.mix.codec import encoded_size
from peerlm.mix.vector import PIECE

CHUNK = 4 * PIECE
"""Elements: a MiB of fp32. Measured: smaller ones cost more turns of the bulk thread than the caches give
back, larger ones gain nothing more."""


def chunk_count(size: int) -> int:
    """How many chunks a fragment of `size` elements has."""
    return -(-size // CHUNK)


def chunk_at(index: int, size: int) -> slice:
    """Which elements of a fragment of `size` a chunk has."""
    return slice(index * CHUNK, min((index + 1) * CHUNK, size))


def chunk_bytes(codec: str, index: int, size: int) -> int:
    """Bytes that a chunk takes, encoded."""
    part = chunk_at(index, size)
    return encoded_size(codec, part.stop - part.start)


def stream_bytes(codec: str, size: int) -> int:
    """Bytes of all chunks of a fragment. Raises `ValueError` for an unknown codec."""
    whole, rest = divmod(size, CHUNK)
    return whole * encoded_size(codec, CHUNK) + (encoded_size(codec, rest) if rest else 0)
