"""Names in the swarm's store: a register that everybody has, in which the last word holds.

A *name* stands for a manifest. Whoever writes it signs its record, hash and all, and every node keeps all records. Of two
records of a name the one with the larger (lamport, writer) holds, so any order of hearing gives the same register
(last-writer-wins; Shapiro et al. 2011). A writer that was set back to an older state of its disk may give one number twice:
then a removal holds against what stands for something, and among equals a hash of the record decides. A removed name keeps its record without a manifest, its *tombstone*, for
thirty days, or else whoever was away would bring it back; who was away for longer is not believed (`store.current`). Records are told as rumors; what a rumor missed comes by comparing digests.

Checkpoints come and go by the hour, and their tombstones would fill the register. They are a *series*: a name has its number, the
swarm's tokens, and the oldest ones go. So one record says it of all of them, the *floor*, whose lamport is a number: a
checkpoint below it that was written once and never pinned is gone, and is taken from nobody. The floor only rises, it is
a record like any other, and no clock is in it: who comes back after two months hears of it and drops what it covers,
and until then nobody takes from it what is covered. What was pinned or written again is not covered, and goes with a
tombstone of its own: its (lamport, writer) tells it from what the floor may take.

Whose signature stands under a record, and whether it may, is checked before it comes here.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf
from typing import NamedTuple

from blake3 import blake3

from peerlm.store.manifest import Kind
from peerlm.wire.codec import encode
from peerlm.wire.message import Named, NameDigest, NameRecord

NAMES_MAX = 10_000
"""Tombstones included. A new name beyond is refused."""

FLOOR_NAME = "checkpoint-floor"
"""Its record removes nothing that has this name; its lamport is the floor."""

SERIES = re.compile(r"checkpoint-([0-9]{12,18})")
"""A checkpoint's usual name: the swarm's tokens."""

ONCE, REMOVED_ONCE, AFTER_FLOOR = 1, 2, 3
"""Lamports of a name that was written for the first time; of its tombstone; of the first record of a name below the floor,
which is not covered."""

LOWEST, HIGHEST = bytes(8), b"\xff" * 8

PAGE_MAX = 2048
"""Digests in one message."""


Rank = tuple[int, bytes, bytes]
"""(lamport, writer, tie): the larger holds."""


class Entry(NamedTuple):
    record: NameRecord
    proof: Named
    tie: bytes

    @property
    def rank(self) -> Rank:
        return self.record.lamport, self.record.writer, self.tie


def digest_of(name: str) -> bytes:
    return blake3(name.encode()).digest(length=8)


class Names:
    """All names, by the digest of each."""

    def __init__(self) -> None:
        self._entries: dict[bytes, Entry] = {}
        self._order: list[bytes] = []
        """Digests, sorted."""
        self.version = 0
        """Grows with every change."""
        self._ended = -inf
        """Tombstones of before are dropped."""

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return (self._entries[digest] for digest in self._order)

    def get(self, name: str) -> Entry | None:
        """Its latest record, a tombstone too."""
        return self._entries.get(digest_of(name))

    def is_news(self, record: NameRecord) -> bool:
        """Whether `merge` would take it: only then look at its signature, and pass it on."""
        known = self.get(record.name)
        if is_covered(record, self.floor):
            return False
        if known is None:
            has_room = len(self._entries) < NAMES_MAX or record.name == FLOOR_NAME
            return has_room and not self._has_ended(record)
        if self._has_ended(record) and known.record.wall > record.wall:
            return False  # the name was written anew, and counts from one again
        return (record.lamport, record.writer, tie_of(record)) > known.rank

    def merge(self, record: NameRecord, proof: Named) -> bool:
        """Take a record that was checked. True: it was news."""
        if not self.is_news(record):
            return False
        digest = digest_of(record.name)
        if digest not in self._entries:
            self._order.insert(bisect_left(self._order, digest), digest)
        self._entries[digest] = Entry(record, proof, tie_of(record))
        self.version += 1
        if record.name == FLOOR_NAME:
            self._drop_covered()
        return True

    def end(self, before: float) -> None:
        """Drop tombstones that were written before, and from now on take none that removes nothing older."""
        self._ended = before
        self._drop([d for d, entry in self._entries.items() if self._has_ended(entry.record)])

    def _has_ended(self, record: NameRecord) -> bool:
        is_tombstone = not record.manifest and record.name != FLOOR_NAME
        return is_tombstone and record.wall < self._ended

    def prune(
        self,
        low: bytes,
        high: bytes,
        theirs: Sequence[NameDigest],
        before: float,
        may_go: Callable[[Entry], bool],
    ) -> None:
        """Drop records that were written before, which another that is current does not know, as it knows just `theirs` of the
        digests from `low` to `high`, or knows by an older record: they, or what it has, were removed long ago."""
        old = (self._entries[digest] for digest in self._ahead_of(low, high, theirs))
        doomed = [e.record.name for e in old if e.record.wall < before and may_go(e)]
        self._drop([digest_of(name) for name in doomed if name != FLOOR_NAME])

    def _drop(self, digests: Sequence[bytes]) -> None:
        for digest in digests:
            del self._entries[digest]
        if digests:
            self._order = sorted(self._entries)
            self.version += 1

    @property
    def floor(self) -> int:
        """Checkpoints of the series with smaller numbers are gone, but for those that were pinned or written again."""
        entry = self._entries.get(_FLOOR_DIGEST)
        return 0 if entry is None else entry.record.lamport

    def _drop_covered(self) -> None:
        floor = self.floor
        self._drop([d for d, entry in self._entries.items() if is_covered(entry.record, floor)])

    def next_lamport(self, name: str) -> int:
        """Larger than any that is known of this name. Those of others do not count: one that somebody has set to the largest
        there is would end the writing of all names. Of one below the floor it is so large that the floor lets it be: the swarm's
        tokens may go back when all nodes have started anew."""
        known = self.get(name)
        if known is None:
            return AFTER_FLOOR if number_of(name) < self.floor else ONCE
        return 1 + known.record.lamport

    # ------------------------------------------------------------------------------ anti-entropy

    def digests(self) -> list[tuple[bytes, bytes, tuple[NameDigest, ...]]]:
        """What is known, in pages: (lowest digest, highest, those between). Pages cover everything there could be."""
        pages = []
        low = LOWEST
        starts = range(0, max(1, len(self._order)), PAGE_MAX)
        for start in starts:
            page = self._order[start : start + PAGE_MAX]
            is_last = start == starts[-1]
            high = HIGHEST if is_last else page[-1]
            pages.append((low, high, tuple(self._digest(digest) for digest in page)))
            low = following(high) if not is_last else low
        return pages

    def newer_than(self, low: bytes, high: bytes, theirs: Sequence[NameDigest]) -> list[Named]:
        """What another lacks who knows just `theirs` of the digests from `low` to `high`."""
        return [self._entries[digest].proof for digest in self._ahead_of(low, high, theirs)]

    def _ahead_of(self, low: bytes, high: bytes, theirs: Sequence[NameDigest]) -> list[bytes]:
        known = {entry.name: entry for entry in theirs}
        mine = self._order[bisect_left(self._order, low) : bisect_right(self._order, high)]
        return [
            digest
            for digest in mine
            if digest not in known or _is_older(known[digest], self._entries[digest].rank)
        ]

    def is_behind(self, theirs: Iterable[NameDigest]) -> bool:
        """Whether another who knows these has something newer."""
        for entry in theirs:
            mine = self._entries.get(entry.name)
            if mine is None or _is_newer(entry, mine.rank):
                return True
        return False

    def _digest(self, digest: bytes) -> NameDigest:
        return NameDigest(digest, *self._entries[digest].rank)

    def check(self) -> None:
        """Raises: AssertionError when an invariant is broken."""
        assert self._order == sorted(self._entries), "names out of order"
        assert len(self._entries) <= NAMES_MAX + 1, "too many names"
        floor = self.floor
        assert not any(is_covered(entry.record, floor) for entry in self), "a name below the floor"


def following(digest: bytes) -> bytes:
    """The next one that there could be."""
    return (int.from_bytes(digest, "big") + 1).to_bytes(8, "big")


def tie_of(record: NameRecord) -> bytes:
    """Eight bytes of the record's hash, the first bit set where the name was removed. Of its own fields, not of the bytes that
    came: the signature is under these, and they are the same wherever the record is."""
    digest = blake3(encode(record)).digest(length=8)
    return bytes([digest[0] >> 1 | (not record.manifest) << 7]) + digest[1:]


_FLOOR_DIGEST = digest_of(FLOOR_NAME)


def number_of(name: str) -> float:
    """In the series; infinite: it is not of it."""
    found = SERIES.fullmatch(name)
    return int(found[1]) if found else inf


def is_covered(record: NameRecord, floor: float) -> bool:
    """A checkpoint that the floor removes."""
    if record.kind != Kind.CHECKPOINT or record.is_pinned or number_of(record.name) >= floor:
        return False
    return record.lamport <= (ONCE if record.manifest else REMOVED_ONCE)


def _rank(theirs: NameDigest, mine: Rank) -> Rank:
    """A node of an older release says nothing of ties: then it has what we have."""
    return theirs.lamport, theirs.writer, theirs.tie or mine[2]


def _is_older(theirs: NameDigest, mine: Rank) -> bool:
    return _rank(theirs, mine) < mine


def _is_newer(theirs: NameDigest, mine: Rank) -> bool:
    return _rank(theirs, mine) > mine
