"""How long a suspicion lasts before it becomes a verdict.

A node suspected by one accuser gets a long time to refute; each independent accuser shortens it,
logarithmically, down to a floor. So a sick accuser alone harms nobody for long, and a real crash,
which everyone sees, is known after the floor. After Lifeguard (Dadgar, Phillips, Currey 2017,
"dynamic suspicion timeout") with memberlist's formulas, as free functions of plain numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from peerlm.membership.profile import Profile
from peerlm.types import Instant, PeerId, after


def shortest_s(mult: int, n_members: int, probe_interval_s: float) -> float:
    """mult · max(1, log10 N) · interval: the floor of a suspicion, in seconds."""
    return mult * max(1.0, math.log10(max(1, n_members))) * probe_interval_s


def confirmations_wanted(mult: int, n_members: int) -> int:
    """Independent accusers that bring a suspicion to its floor; 0 where there are too few nodes."""
    wanted = mult - 2
    return wanted if n_members - 2 >= wanted else 0


def duration_s(confirmations: int, wanted: int, shortest: float, longest: float) -> float:
    """longest − (longest − shortest) · ln(c + 1) / ln(wanted + 1), at least the shortest."""
    if wanted < 1:
        return shortest
    share = math.log(confirmations + 1) / math.log(wanted + 1)
    return max(shortest, longest - (longest - shortest) * share)


@dataclass(slots=True)
class Suspicion:
    """The timer of one suspected member. The first accuser starts it, others confirm."""

    started: Instant
    wanted: int
    shortest: float
    longest: float
    accusers: dict[PeerId, None] = field(default_factory=dict)
    """In order of arrival; the first one confirms nothing."""

    def confirm(self, accuser: PeerId) -> bool:
        """Count an accuser. True if it is new and was still wanted: then it is worth telling."""
        if accuser in self.accusers or len(self.accusers) > self.wanted:
            return False
        self.accusers[accuser] = None
        return True

    def push(self, seconds: float) -> None:
        """We were deaf for this long and could not have heard a refutation."""
        self.started = after(self.started, seconds)

    def deadline(self) -> Instant:
        confirmations = min(len(self.accusers) - 1, self.wanted)
        length = duration_s(confirmations, self.wanted, self.shortest, self.longest)
        return after(self.started, length)


def begin_suspicion(profile: Profile, n_members: int, accuser: PeerId, now: Instant) -> Suspicion:
    """A suspicion that starts now in a swarm of `n_members` (this node included)."""
    floor = shortest_s(profile.suspicion_mult, n_members, profile.probe_interval_s)
    wanted = confirmations_wanted(profile.suspicion_mult, n_members)
    return Suspicion(now, wanted, floor, floor * profile.suspicion_max_mult, {accuser: None})
