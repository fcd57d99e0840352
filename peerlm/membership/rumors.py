"""The rumors this node still has to tell.

Facts ride on probes, answers and gossip rounds. The least told goes first, and after a number of
tellings that grows with log N a rumor is dropped: by then everyone has it with high probability,
and anti-entropy repairs the rest. A newer fact on a subject replaces the older one, so the queue
holds one rumor per subject. After SWIM section 4.1 and memberlist's broadcast queue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

from peerlm.types import PeerId
from peerlm.wire.message import Alive, Dead, Named, PlanNews, Pulse, Revoked, Rumor, Suspect

SUBJECTS_MAX = 4096
"""Rumors queued at once. Over it the most told, oldest one goes; anti-entropy still carries it."""

TELLINGS_PER_PEER = 2
"""The same rumor goes to the same peer at most this often: once, and once more in case the link
broke under the first."""

COUNT_MAX = 200
"""Rumors in one message; the catalogue allows 256."""


@lru_cache(maxsize=256)
def sends_limit(mult: int, n_members: int, sends_min: int) -> int:
    """How often one node tells a rumor: mult · ceil(log10(N + 1)), at least `sends_min`."""
    return max(sends_min, mult * math.ceil(math.log10(n_members + 1)))


def rumor_bytes(rumor: Rumor) -> int:
    """Upper estimate of a rumor's encoded size, without encoding it."""
    match rumor:
        case Alive() | Named():
            return 96 + len(rumor.record) + sum(len(link) + 4 for link in rumor.chain)
        case Suspect() | Dead():
            return 64
        case Pulse():
            return 80 + len(rumor.vitals)
        case Revoked():
            return 16 + len(rumor.blob)
        case PlanNews():
            return 64


@dataclass(slots=True)
class _Told:
    rumor: Rumor
    size: int
    since: int
    """The round in which it was put."""
    sends_max: int | None
    sends: int = 0
    told: list[PeerId] = field(default_factory=list)
    """Whom, once for each telling; who told us need not hear it."""


class RumorQueue:
    """Bounded; one rumor per subject. Kept in tiers by tellings, so that no message needs a sort."""

    def __init__(self, subjects_max: int = SUBJECTS_MAX) -> None:
        self._subjects_max = subjects_max
        self._entries: dict[bytes, _Told] = {}
        """In order of arrival."""
        self._tiers: list[dict[bytes, _Told]] = []
        """By tellings so far, in each the one moved there last comes last."""
        self._round = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, subject: bytes) -> bool:
        return subject in self._entries

    def put(
        self,
        subject: bytes,
        rumor: Rumor,
        teller: PeerId | None = None,
        sends_max: int | None = None,
    ) -> None:
        """Tell this from now on, instead of anything older on the subject. `sends_max`: fewer
        tellings than the limit, for news that will soon be old anyway."""
        self.drop(subject)
        if len(self._entries) >= self._subjects_max:
            most_told = next(tier for tier in reversed(self._tiers) if tier)
            self.drop(next(iter(most_told)))
        told = [] if teller is None else [teller] * TELLINGS_PER_PEER
        entry = _Told(rumor, rumor_bytes(rumor), self._round, sends_max, told=told)
        self._entries[subject] = entry
        self._tier(0)[subject] = entry

    def drop(self, subject: bytes) -> None:
        """Stop telling it, if we do."""
        entry = self._entries.pop(subject, None)
        if entry is not None:
            del self._tiers[entry.sends][subject]

    def take(
        self, to: PeerId, bytes_max: int, limit: int, count_max: int = COUNT_MAX
    ) -> tuple[Rumor, ...]:
        """Rumors for one message to this peer, least told and then newest first. Each counts as
        told and goes when told `limit` times; one that does not fit waits for a larger message."""
        taken: list[tuple[bytes, _Told]] = []
        room = bytes_max
        for tier in self._tiers:
            if not tier:
                continue
            for subject, entry in reversed(tier.items()):
                if len(taken) >= count_max:
                    break
                if entry.size <= room and entry.told.count(to) < TELLINGS_PER_PEER:
                    room -= entry.size
                    taken.append((subject, entry))
        for subject, entry in reversed(taken):
            self._count(subject, entry, to, limit)
        return tuple([entry.rumor for _, entry in taken])

    def end_round(self, limit: int) -> None:
        """A gossip round is over. In a small swarm a rumor has soon been told to all; it goes
        after as many rounds as it may have tellings."""
        self._round += 1
        while self._entries:
            oldest = next(iter(self._entries))
            if self._round - self._entries[oldest].since < limit:
                break
            self.drop(oldest)

    def check(self) -> None:
        """Assert that no more is waiting to be told than promised, and each once."""
        assert len(self._entries) <= self._subjects_max, "too many rumors"
        assert sum(map(len, self._tiers)) == len(self._entries), "a rumor in two tiers, or in none"

    def _count(self, subject: bytes, entry: _Told, to: PeerId, limit: int) -> None:
        """It was told once more: a tier up, or out."""
        del self._tiers[entry.sends][subject]
        entry.sends += 1
        entry.told.append(to)
        if entry.sends >= (limit if entry.sends_max is None else min(limit, entry.sends_max)):
            del self._entries[subject]
        else:
            self._tier(entry.sends)[subject] = entry

    def _tier(self, sends: int) -> dict[bytes, _Told]:
        while len(self._tiers) <= sends:
            self._tiers.append({})
        return self._tiers[sends]
