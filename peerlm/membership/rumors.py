"""The rumors this node still has to tell.

Facts ride on probes, answers and gossip rounds. The least told goes first, and after a number of
tellings that grows with log N a rumor is dropped: by then everyone has it with high probability,
and anti-entropy repairs the rest. A newer fact on a subject replaces the older one, so the queue
holds one rumor per subject. After SWIM section 4.1 and memberlist's broadcast queue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from peerlm.types import PeerId
from peerlm.wire.message import Alive, Dead, PlanNews, Pulse, Revoked, Rumor, Suspect

SUBJECTS_MAX = 4096
"""Rumors queued at once. Over it the most told, oldest one goes; anti-entropy still carries it."""

TELLINGS_PER_PEER = 2
"""The same rumor goes to the same peer at most this often: once, and once more in case the link
broke under the first."""

COUNT_MAX = 200
"""Rumors in one message; the catalogue allows 256."""


def sends_limit(mult: int, n_members: int, sends_min: int) -> int:
    """How often one node tells a rumor: mult · ceil(log10(N + 1)), at least `sends_min`."""
    return max(sends_min, mult * math.ceil(math.log10(n_members + 1)))


def rumor_bytes(rumor: Rumor) -> int:
    """Upper estimate of a rumor's encoded size, without encoding it."""
    match rumor:
        case Alive():
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
    order: int
    sends_max: int | None
    sends: int = 0
    rounds: int = 0
    told: dict[PeerId, int] = field(default_factory=dict)
    """How often each peer was told; who told us need not hear it."""


class RumorQueue:
    """Bounded; one rumor per subject."""

    def __init__(self, subjects_max: int = SUBJECTS_MAX) -> None:
        self._subjects_max = subjects_max
        self._entries: dict[bytes, _Told] = {}
        self._order = 0

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
        self._entries.pop(subject, None)
        if len(self._entries) >= self._subjects_max:
            worn = max(
                self._entries, key=lambda s: (self._entries[s].sends, -self._entries[s].order)
            )
            del self._entries[worn]
        self._order += 1
        told = {} if teller is None else {teller: TELLINGS_PER_PEER}
        size = rumor_bytes(rumor)
        self._entries[subject] = _Told(rumor, size, self._order, sends_max, told=told)

    def drop(self, subject: bytes) -> None:
        """Stop telling it, if we do."""
        self._entries.pop(subject, None)

    def take(
        self, to: PeerId, bytes_max: int, limit: int, count_max: int = COUNT_MAX
    ) -> tuple[Rumor, ...]:
        """Rumors for one message to this peer, least told and then newest first. Each counts as
        told and goes when told `limit` times; one that does not fit waits for a larger message."""
        taken: list[Rumor] = []
        room = bytes_max
        ordered = sorted(self._entries.items(), key=lambda item: (item[1].sends, -item[1].order))
        for subject, entry in ordered:
            if len(taken) >= count_max:
                break
            if entry.size > room or entry.told.get(to, 0) >= TELLINGS_PER_PEER:
                continue
            room -= entry.size
            taken.append(entry.rumor)
            entry.sends += 1
            entry.told[to] = entry.told.get(to, 0) + 1
            if entry.sends >= _least(limit, entry.sends_max):
                del self._entries[subject]
        return tuple(taken)

    def end_round(self, limit: int) -> None:
        """A gossip round is over. In a small swarm a rumor has soon been told to all; it goes
        after as many rounds as it may have tellings."""
        for subject, entry in list(self._entries.items()):
            entry.rounds += 1
            if entry.rounds >= limit:
                del self._entries[subject]


def _least(limit: int, sends_max: int | None) -> int:
    return limit if sends_max is None else min(limit, sends_max)
