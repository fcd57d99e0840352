"""Anti-entropy: two members compare digests and hand each other what is newer.

Rumors are pushed and can be missed; a push-pull every half minute with a random member (sooner and
more often at first), and one on each new link, makes sure that what one of two knows both know. A digest names for each member its
incarnation, state and vitals version, without proof. So it may raise doubts (a member the other
side holds dead becomes *suspect* here, and refutes if it lives) but never decides: records and
vitals travel with their signatures in the gossip that follows. A death is not relayed to those who
never knew the dead, or the list would hold it for ever.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Protocol

from peerlm.membership.member import Member, State
from peerlm.membership.profile import Profile
from peerlm.membership.rumors import COUNT_MAX, rumor_bytes
from peerlm.types import PeerId
from peerlm.wire.message import DigestEntry, Gossip, Pulse, Rumor, Suspect

BATCH_BYTES_MAX = 60_000
"""Rumors in one message of a reply, so that the message stays below 64 KiB."""

BATCHES_MAX = 32
"""Messages in one reply; what is left comes with the next push-pull."""


class VitalsShelf(Protocol):
    """Where signed vitals are kept (`swarm.vitals.Ledger`)."""

    @property
    def version(self) -> int:
        """Grows whenever an answer of the two below may change."""
        ...

    def version_of(self, peer: PeerId) -> tuple[int, int]:
        """(epoch, version) of the newest vitals held; (0, 0) for none."""
        ...

    def pulses_since(self, peer: PeerId, epoch: int, version: int) -> list[Pulse]:
        """Signed vitals newer than that, of later epochs too, oldest first."""
        ...


class NoVitals:
    """An empty shelf."""

    version = 0

    def version_of(self, peer: PeerId) -> tuple[int, int]:
        return (0, 0)

    def pulses_since(self, peer: PeerId, epoch: int, version: int) -> list[Pulse]:
        return []


def interval_s(profile: Profile, n_members: int, rng: random.Random) -> float:
    """Time to the next push-pull: the profile's, stretched above 32 members, ± 20 %."""
    return profile.sync_interval_s * stretch(n_members) * rng.uniform(0.8, 1.2)


def stretch(n_members: int) -> int:
    """How much rarer tables are compared in a swarm of this size: digests grow with it."""
    return 1 if n_members <= 32 else math.ceil(math.log2(n_members) - 5) + 1


def digest(members: Iterable[Member], vitals: VitalsShelf) -> tuple[DigestEntry, ...]:
    """One entry per member, sorted by PeerId. Include this node's own entry in `members`."""
    return tuple(
        _entry(m.peer, *m.incarnation, int(m.state), *vitals.version_of(m.peer))
        for m in sorted(members, key=lambda m: m.peer)
    )


@lru_cache(maxsize=4096)
def _entry(
    peer: PeerId, epoch: int, counter: int, state: int, vitals_epoch: int, vitals_version: int
) -> DigestEntry:
    """Shared: most of a digest is as it was in the last one."""
    return DigestEntry(peer, epoch, counter, state, vitals_epoch, vitals_version)


def newer_than(
    theirs: Mapping[PeerId, DigestEntry],
    ours: Iterable[Member],
    vitals: VitalsShelf,
    me: PeerId,
) -> list[Rumor]:
    """What the sender of a digest lacks, in the order it should learn it: records first."""
    records: list[Rumor] = []
    doubts: list[Rumor] = []
    pulses: list[Rumor] = []
    for member in sorted(ours, key=lambda m: m.peer):
        entry = theirs.get(member.peer)
        if entry is None and not member.is_live:
            continue
        if entry is None or _is_older(entry, member):
            records.append(member.alive)
            if member.state in (State.SUSPECT, State.DEAD):
                doubts.append(Suspect(member.peer, *member.incarnation, accuser=me))
        known = (entry.vitals_epoch, entry.vitals_version) if entry else (0, 0)
        if vitals.version_of(member.peer) > known:
            pulses += vitals.pulses_since(member.peer, *known)
    return records + doubts + pulses


def _is_older(entry: DigestEntry, member: Member) -> bool:
    theirs = (entry.epoch, entry.state == State.LEFT, entry.counter)
    return theirs < (member.record.epoch, member.record.left, member.record.counter)


def in_batches(rumors: list[Rumor]) -> list[Gossip]:
    """The rumors as messages of bounded size and number."""
    batches: list[Gossip] = []
    batch: list[Rumor] = []
    room = BATCH_BYTES_MAX
    for rumor in rumors:
        size = rumor_bytes(rumor)
        if batch and (size > room or len(batch) == COUNT_MAX):
            batches.append(Gossip(tuple(batch)))
            batch, room = [], BATCH_BYTES_MAX
        batch.append(rumor)
        room -= size
    if batch:
        batches.append(Gossip(tuple(batch)))
    return batches[:BATCHES_MAX]
