"""Scrubbing: reading what is kept for the store again and again, before rot is found by somebody who needs it.

When a chunk's turn comes depends on its hash, on a number of this node's own and on the wall clock alone: a phase within
the period, moved in each round by up to a tenth of it either way. So two turns of a chunk lie four to six fifths of a
period apart, turns are spread evenly over it, and the other nodes that keep the same chunk read it at other times. All
that has to be remembered is the node's number and up to when turns have been taken; without it every chunk still
has its turn within six fifths of a period. (Schwarz et al., "Disk Scrubbing in Large Archival Storage Systems", MASCOTS 2004,
on why reading beats waiting.)

What is late, after a night off or under a budget that is too small, is read in the order in which it was due; a
round then takes as long as the budget makes it. Turns that were missed by more than a round are not made up for.
Pure: chunks, times and chance are arguments.
"""

from __future__ import annotations

import heapq
import random
import struct
from collections.abc import Sequence
from typing import NamedTuple

from peerlm.types import ObjectHash, WallTime

JITTER = 0.1
"""Share of the period by which a turn is moved, either way."""

ROUND = 1 + 2 * JITTER
"""Periods within which every chunk has a turn."""

DAY_S = 86_400.0

_STATE = struct.Struct("<4sQdd")
_MAGIC = b"scr2"
_FIRST_STATE, _FIRST_MAGIC = struct.Struct("<4sQd"), b"scr1"
"""As it was before it said since when no turn was missed."""
_MASK = (1 << 64) - 1


class Turn(NamedTuple):
    at: float
    """Wall time at which it is due."""
    object_hash: ObjectHash
    size: int


class Scrub:
    """Args:
    period_s: between two readings of a chunk, give or take a fifth.
    bytes_s: most that is read in a second.
    state: what `state` was when it was last kept; what cannot be read counts as none.
    rng: draws the node's own number, where there is no state.
    """

    def __init__(
        self, period_s: float, bytes_s: float, rng: random.Random, now: WallTime, state: bytes = b""
    ) -> None:
        assert period_s > 0, "what is never scrubbed needs no plan"
        assert bytes_s > 0, "nothing can be read"
        self.period_s, self.bytes_s = period_s, bytes_s
        self._own, self._until = rng.getrandbits(64), float(now)
        self._since = self._until
        """No turn was missed from here to `_until`."""
        known = _read(state)
        if known is not None:
            self._own, self._until, self._since = known
            self._skip_to(now - ROUND * period_s)

    @property
    def state(self) -> bytes:
        """To be kept, now and then: what is lost of it is read twice."""
        return _STATE.pack(_MAGIC, self._own, self._until, self._since)

    def is_enough(self, total_bytes: int) -> bool:
        """Whether the budget does for so much in every period."""
        return total_bytes <= self.bytes_s * self.period_s * (1 - 2 * JITTER)

    def pause_s(self, size: int) -> float:
        """From the beginning of reading so many bytes until the next reading may begin."""
        return size / self.bytes_s

    def turns(
        self, chunks: Sequence[tuple[ObjectHash, int]], now: WallTime, count: int
    ) -> list[Turn]:
        """The next turns of these chunks, late ones first; a chunk is among them once at most."""
        self._mind(now, sum(size for _, size in chunks))
        due = (Turn(self.due(name, self._until), name, size) for name, size in chunks)
        turns = heapq.nsmallest(count, due)
        if not turns or turns[0].at > now:
            self._until = float(
                now
            )  # what comes from here on waits for a turn that is still to come
        return turns

    def taken(self, turn: Turn) -> None:
        """Call in the order of turns, whether or not the chunk was still there."""
        self._until = max(self._until, turn.at)

    def due(self, object_hash: ObjectHash, after: float) -> float:
        """Wall time of the chunk's first turn later than `after`."""
        phase = self._drawn(object_hash[:8], 0)
        number = int((after / self.period_s - phase - JITTER) // 1)
        while True:
            moved = JITTER * (2 * self._drawn(object_hash[8:16], number) - 1)
            at = (number + phase + moved) * self.period_s
            if at > after:
                return at
            number += 1

    def last(self, object_hash: ObjectHash) -> float | None:
        """Wall time of the chunk's last turn that was taken; it may have come only after it. None: that is not known."""
        round_s, before = ROUND * self.period_s, None
        at = self.due(object_hash, self._until - round_s)
        while at <= self._until:
            before, at = at, self.due(object_hash, at)
        return before if before is not None and before > self._since else None

    def _mind(self, now: WallTime, total_bytes: int) -> None:
        """The clock was put back, or the machine slept for rounds."""
        self._until = min(self._until, now)
        if self.is_enough(total_bytes):
            self._skip_to(now - ROUND * self.period_s)

    def _skip_to(self, at: float) -> None:
        if at > self._until:
            self._until = self._since = at

    def _drawn(self, part: bytes, number: int) -> float:
        """In [0, 1): of a hash and the node's own number, the same each time (splitmix64)."""
        x = (int.from_bytes(part, "little") ^ self._own) + number * 0x9E3779B97F4A7C15 & _MASK
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
        return float((x ^ x >> 31) >> 11) / (1 << 53)


def _read(state: bytes) -> tuple[int, float, float] | None:
    """(own number, until, since) of what `Scrub.state` was."""
    if len(state) == _STATE.size:
        magic, own, until, since = _STATE.unpack(state)
        is_known = magic == _MAGIC
    elif len(state) == _FIRST_STATE.size:
        magic, own, until = _FIRST_STATE.unpack(state)
        is_known, since = magic == _FIRST_MAGIC, until
    else:
        return None
    return (own, until, since) if is_known and since <= until else None  # else not a number
