"""A machine's disk: what a process finds when it starts again.

The daemon writes, syncs and renames, so a file is the old one or the new one. What the simulated
disk adds is time (a write takes `WRITE_S`, and a death before that leaves the old file) and lies:
`power_cut` may take back the last write although it was reported durable, or leave it torn. A torn file fails its seal and is not read: then the snapshot before it counts, an
address book is begun anew, and a boot epoch repeats itself.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from peerlm.identity.chain import Chain
from peerlm.mix.vector import Vector
from peerlm.types import FragmentId, ObjectHash, PeerId

WRITE_S = 0.02

Offer = tuple[FragmentId, int, ObjectHash, int, tuple[float, ...]]
"""(fragment, version, object hash, bytes, sketch), as `events.SnapshotWritten` has it."""


State = tuple[Vector, Vector, int]
"""φ, m and version of a fragment."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    number: int
    tallies: tuple[tuple[PeerId, int, int], ...]
    final: bool
    fragments: Mapping[FragmentId, State]
    """Of each that was held."""
    offers: tuple[Offer, ...]

    @property
    def tokens(self) -> int:
        return sum(tally[2] for tally in self.tallies)


@dataclass(slots=True)
class Disk:
    """What `kill -9` leaves."""

    plan: bytes
    chain: Chain = ()
    origin: bool = False
    epoch: int = 0
    book: bytes = b""
    passes: bytes = b""
    placement: bytes = b""
    revocations: tuple[bytes, ...] = ()
    objects: dict[ObjectHash, Vector | bytes] = field(default_factory=dict)
    """Whole and verified: a fragment's φ, or bytes of the corpus."""
    snapshots: list[Snapshot] = field(default_factory=list)
    """The newest last; the one before it is kept."""
    models: list[list[Vector]] = field(default_factory=list)

    def power_cut(self, rng: random.Random) -> str:
        """The last write of some file was not as durable as the disk said. Returns what was hit."""
        hit = rng.choice(["snapshot", "address_book", "epoch", "nothing"])
        if hit == "snapshot" and len(self.snapshots) > 1:
            self.snapshots.pop()
        elif hit == "address_book":
            self.book = b""
        elif hit == "epoch" and self.epoch > 0:
            self.epoch -= 1
        return hit
