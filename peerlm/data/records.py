"""What of each text is read, where a run has several; and which texts those are.

A run reads one text, or a mixture of several (`data.mixture`). Each has a record of its own (`data.passes`), by which it goes
through its passes at its own pace. A node's own text has one too, which stays there; a text that is in another mixture, or alone, is the same text with the same record. With
them goes the *order*, a few bytes that say how far the drawing of rows from texts is: the worker's alone to read.

Of one text the bytes are those of its record, as they were before there were mixtures.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from peerlm.config import Plan, mixture
from peerlm.data import passes
from peerlm.data.passes import TEXT_BYTES, Lane, Passes, is_own, own_text_of, text_of

FILE = "passes"
"""Its name in a checkpoint."""

ORDER_BYTES_MAX = 32 + 8 * mixture.CORPORA_MAX

_MARK = b"several".ljust(TEXT_BYTES, b"\0")
"""Where a single record has its text."""
_HEAD = struct.Struct(f"<{TEXT_BYTES}sBB")
"""Mark, records, bytes of the order."""
_LENGTH = struct.Struct("<I")

BYTES_MAX = _HEAD.size + ORDER_BYTES_MAX + mixture.CORPORA_MAX * (_LENGTH.size + passes.BYTES_MAX)


class Part(NamedTuple):
    """One text of those that a plan names."""

    name: str
    """For people."""
    weight: int
    places: range
    """Of its shards among all."""
    text: bytes
    """As records and messages have it."""

    @property
    def is_own(self) -> bool:
        """It is this node's own, and nobody else's."""
        return is_own(self.text)

    def own(self, shards: Iterable[int]) -> list[int]:
        """Which of these, by their places among all, are its own, by their places in it."""
        return [place - self.places.start for place in shards if place in self.places]


def parts_of(plan: Plan, shards: Sequence[str] | None = None) -> tuple[Part, ...]:
    """What is to be read, one text or several.

    Args:
        shards: Names of all shards, in order: those of the plan, then those of the node's own text, if it has any and the plan
            mixes it in. Without them the node's own text is there, by a name that says nothing, and with no shards.
    """
    names = tuple(plan.data.shards if shards is None else shards)
    source = plan.data.source
    if not source.startswith(mixture.STORED):
        named_as = own_text_of if source == mixture.OWN else text_of
        return (Part(source, 1, range(len(names)), named_as(names, plan)),)
    named, counts = mixture.parse(source, "data.source"), plan.data.parts or (len(names),)
    at, stored, found = 0, sum(counts), []
    for (name, weight), count in zip(named, counts, strict=True):
        if name == mixture.OWN and len(named) > 1:
            if shards is None or len(names) > stored:
                own = range(stored, len(names))
                found.append(Part(name, weight, own, own_text_of(names[stored:], plan)))
            continue
        of_this = names[at : at + count]
        found.append(Part(name, weight, range(at, at + count), text_of(of_this, plan)))
        at += count
    return tuple(found)


class Record(NamedTuple):
    """What of a text is read."""

    passes: Passes
    lanes: Sequence[Lane] = ()


def encode(records: Sequence[Record], order: bytes = b"") -> bytes:
    """One record or several. Of one the order goes without saying."""
    assert 0 < len(records) <= mixture.CORPORA_MAX, len(records)
    assert len(order) <= ORDER_BYTES_MAX, len(order)
    encoded = [record.passes.encode(record.lanes) for record in records]
    if len(encoded) == 1:
        return encoded[0]
    head = _HEAD.pack(_MARK, len(encoded), len(order))
    return head + order + b"".join(_LENGTH.pack(len(data)) + data for data in encoded)


def decode(data: bytes) -> tuple[list[Record], bytes]:
    """(records, order) as `encode` had them. Raises `ValueError`, in one line, for anything else."""
    if data[:TEXT_BYTES] != _MARK:
        return [Record(*passes.decode(data))], b""
    try:
        _, count, order_bytes = _HEAD.unpack_from(data)
        at = _HEAD.size + order_bytes
        order, found = data[_HEAD.size : at], []
        if not 0 < count <= mixture.CORPORA_MAX or order_bytes > ORDER_BYTES_MAX:
            raise ValueError("records of what is read: a number that they cannot have")
        for _ in range(count):
            (length,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size
            found.append(Record(*passes.decode(data[at : at + length])))
            at += length
    except struct.error:
        raise ValueError(f"records of what is read: cut off at {len(data)} bytes") from None
    if at != len(data):
        raise ValueError("records of what is read: more or fewer bytes than they say")
    return found, order
