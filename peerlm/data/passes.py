"""What of the text is read: for each pass over it the ranges that are finished, all their windows read, by whomever.

The record only grows: a range that is finished stays so, and what two peers know is joined by taking both. So it does not
matter in which order, how often or by whom it is told, and all come to know the same (a state-based CRDT; Shapiro et al.
2011). A pass is over when all its ranges are finished, and what is known is kept for the lowest pass that is not, and
for `PASSES_AHEAD` in all: that is how far the fast may be ahead of the slow.

Whatever is told can only say of text that it was read. The worst that a false word does is that text is skipped in passes that
it names, so it needs no proof: who may say it are members that train, and they could do worse with weights.

Between daemon and worker, and on the disk, a record is bytes, and with it are the *lanes*: ranges that this node's worker is
in the midst of. They are nobody else's business.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

from peerlm.config import Plan

RANGES_MAX = 1 << 16
"""Most ranges of a corpus. At 64 peers a share is then 1024 ± 32 ranges, and finding it takes some 50 ms."""

PASSES_AHEAD = 4
"""Passes that are read at the same time, at most."""

NUMBER_MAX = 1 << 40
"""Of a pass that a peer can tell of. Nobody gets there by reading."""

LANES_MAX = 1 << 16

NO_RANGE = (1 << 32) - 1
"""The place of a lane that is in the midst of nothing: it keeps the order of the others."""

TEXT_BYTES = 32
_OWN_MARK = b"own text"
_HEAD = struct.Struct("<32sIQHI")
"""Text, ranges, lowest pass, passes, lanes."""
_LENGTH = struct.Struct("<I")
_LANE = struct.Struct("<QII")

BYTES_MAX = _HEAD.size + PASSES_AHEAD * (_LENGTH.size + RANGES_MAX // 8) + LANES_MAX * _LANE.size


class Lane(NamedTuple):
    """A range that is being read."""

    number: int
    """Of the pass."""
    place: int
    """Of the range in it."""
    read: int
    """Windows of it that are read."""


def text_of(names: Sequence[str], plan: Plan) -> bytes:
    """What a record is about: 32 bytes that are others where there is other text, or it is cut otherwise.

    Args:
        names: Of the corpus' shards, in order.
    """
    about = (*names, plan.data.val_fraction, plan.model.context, plan.run.rng_seed)
    return hashlib.blake2b(repr(about).encode(), digest_size=TEXT_BYTES).digest()


def own_text_of(names: Sequence[str], plan: Plan) -> bytes:
    """As `text_of`, of text that is a node's own."""
    return as_own(text_of(names, plan))


def as_own(text: bytes) -> bytes:
    """Marked as a node's own, which all can tell from any other, so that nobody tells of it."""
    return _OWN_MARK + text[len(_OWN_MARK) :]


def is_own(text: bytes) -> bool:
    """It is a node's own: nobody else's business."""
    return text.startswith(_OWN_MARK)


class Passes:
    """The record of one text. `ranges`: in a pass; 0 while that is not known, and then no pass is ever over."""

    def __init__(self, text: bytes = bytes(TEXT_BYTES), ranges: int = 0, lowest: int = 0) -> None:
        assert len(text) == TEXT_BYTES, text
        assert 0 <= ranges <= RANGES_MAX, ranges
        self.text, self.ranges = text, ranges
        self.lowest = lowest
        """The lowest pass that is not over."""
        self._bits: dict[int, int] = {}
        """A bit for each finished range."""

    # ------------------------------------------------------------------------------ what is known

    def bits(self, number: int) -> int:
        """Of pass `number`, bit i stands for range i."""
        return self._all if number < self.lowest else self._bits.get(number, 0)

    def is_finished(self, number: int, index: int) -> bool:
        return number < self.lowest or bool(self._bits.get(number, 0) >> index & 1)

    def numbers(self) -> list[int]:
        """The passes of which something is known, sorted; those that are over are not among them."""
        return sorted(self._bits)

    def window(self) -> range:
        """The passes that may be read now."""
        return range(self.lowest, self.lowest + PASSES_AHEAD)

    @property
    def position(self) -> float:
        """Share of the lowest pass that is finished."""
        return self._bits.get(self.lowest, 0).bit_count() / self.ranges if self.ranges else 0.0

    @property
    def _all(self) -> int:
        return (1 << (self.ranges or RANGES_MAX)) - 1

    # ------------------------------------------------------------------------------- what is learnt

    def finish(self, number: int, index: int) -> None:
        """A range is read to its end."""
        self.add(number, 1 << index)

    def add(self, number: int, bits: int) -> int:
        """These ranges are finished. Returns which of them were not known to be; those of a pass that is over or too far
        ahead, and ranges that there are not, count for nothing."""
        if number not in self.window():
            return 0
        known = self._bits.get(number, 0)
        new = bits & self._all & ~known
        if new:
            self._bits[number] = known | new
            self._close()
        return new

    def reach(self, lowest: int) -> None:
        """All passes below are over."""
        if lowest > self.lowest:
            self.lowest = lowest
            self._bits = {n: b for n, b in self._bits.items() if n >= lowest}
            self._close()

    def merge(self, other: Passes) -> None:
        """All that the other record knows."""
        assert other.text == self.text, "another text"
        self.reach(other.lowest)
        for number in other.numbers():
            self.add(number, other.bits(number))

    def cut_into(self, ranges: int) -> None:
        """It is known now how many there are."""
        assert 0 < ranges <= RANGES_MAX, ranges
        assert self.ranges in (0, ranges), (self.ranges, ranges)
        self.ranges = ranges
        self._bits = {n: kept for n, b in self._bits.items() if (kept := b & self._all)}
        self._close()

    def _close(self) -> None:
        while self.ranges and self._bits.get(self.lowest) == self._all:
            del self._bits[self.lowest]
            self.lowest += 1

    # ------------------------------------------------------------------------------------ to bytes

    def encode(self, lanes: Sequence[Lane] = ()) -> bytes:
        """The record, and the lanes with it."""
        lanes = lanes[:LANES_MAX]
        last = max(self._bits, default=self.lowest - 1)
        passes = range(self.lowest, last + 1)
        parts = [_HEAD.pack(self.text, self.ranges, self.lowest, len(passes), len(lanes))]
        for number in passes:
            raw = to_bytes(self.bits(number))
            parts += [_LENGTH.pack(len(raw)), raw]
        return b"".join((*parts, *(_LANE.pack(*lane) for lane in lanes)))


def decode(data: bytes) -> tuple[Passes, list[Lane]]:
    """What `encode` made. Raises `ValueError`, in one line, for anything else."""
    try:
        text, ranges, lowest, count, n_lanes = _HEAD.unpack_from(data)
        if ranges > RANGES_MAX or lowest >> 62 or count > PASSES_AHEAD or n_lanes > LANES_MAX:
            raise ValueError("a record of what is read: a number that it cannot have")
        at, found = _HEAD.size, Passes(text, ranges, lowest)
        for number in range(lowest, lowest + count):
            (length,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size
            if length > RANGES_MAX // 8 or at + length > len(data):
                raise ValueError("a record of what is read: cut off, or too long")
            found.add(number, from_bytes(data[at : at + length]))
            at += length
        lanes = [Lane(*_LANE.unpack_from(data, at + i * _LANE.size)) for i in range(n_lanes)]
    except struct.error:
        raise ValueError(f"a record of what is read: cut off at {len(data)} bytes") from None
    if at + n_lanes * _LANE.size != len(data):
        raise ValueError("a record of what is read: more bytes than it says")
    return found, lanes


def to_bytes(bits: int) -> bytes:
    """Bit i in place i % 8 of byte i // 8, as few bytes as it takes."""
    return bits.to_bytes(-(-bits.bit_length() // 8), "little")


def from_bytes(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def indices(bits: int) -> list[int]:
    """The places of the bits that are set, ascending."""
    return [
        8 * at + i
        for at, byte in enumerate(to_bytes(bits))
        if byte
        for i in range(8)
        if byte >> i & 1
    ]
