"""How long a suspicion lasts before it becomes a verdict.

A node suspected by one accuser gets a long time to refute; each independent accuser shortens it,
logarithmically, down to a floor. So a sick accuser alone harms nobody for long, and a real crash,
which everyone sees, is known after the floor. After Lifeguard (Dadgar, Phillips, Currey 2017,
"dynamic suspicion timeout") with memberlist's formulas, as free functions of plain numbers.

memberlist's floor grows with log N, because a refutation must find its way to everybody. Who has
asked the suspect itself need not wait for that way: the suspect answers it directly. So a node that
is itself one of many accusers ends a suspicion after a time that does not depend on N, and its
verdict, as all verdicts, is everybody's. Those who only heard of the suspicion keep to the floor.
"""

from __future__ import annotations

import math

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


class Suspicion:
    """The timer of one suspected member. The first accuser starts it, others confirm.

    It runs from `longest` down to `shortest` with `wanted` confirmations. With `early` accusers of
    whom we are one (0: never) it ends at `least`; in no case sooner.
    """

    def __init__(
        self,
        started: Instant,
        wanted: int,
        shortest: float,
        longest: float,
        *,
        early: int = 0,
        least: float = 0.0,
    ) -> None:
        self._started = started
        self._wanted, self._shortest, self._longest = wanted, shortest, longest
        self._early, self._least = early, least
        self.accusers: dict[PeerId, None] = {}
        """In order of arrival; the first one confirms nothing."""
        self.is_ours = False
        """We asked the suspect ourselves, and it was silent."""
        self._length = longest

    def accuse(self, accuser: PeerId, *, is_us: bool = False) -> bool:
        """Count an accuser. True if it is new and was still wanted: then it is worth telling."""
        if accuser in self.accusers:
            return False
        is_wanted = len(self.accusers) < max(self._wanted + 1, self._early)
        if is_wanted or is_us:
            self.accusers[accuser] = None
            self.is_ours |= is_us
            self._length = self._length_now()
        return is_wanted

    def push(self, seconds: float) -> None:
        """We were deaf for this long and could not have heard a refutation."""
        self._started = after(self._started, seconds)

    def deadline(self) -> Instant:
        return after(self._started, self._length)

    def _length_now(self) -> float:
        if self._early and self.is_ours and len(self.accusers) >= self._early:
            return self._least
        confirmations = min(len(self.accusers) - 1, self._wanted)
        length = duration_s(confirmations, self._wanted, self._shortest, self._longest)
        return max(length, self._least)


def begin_suspicion(profile: Profile, n_members: int, now: Instant) -> Suspicion:
    """A suspicion that starts now in a swarm of `n_members` (this node included); its first accuser
    is yet to be named."""
    floor = shortest_s(profile.suspicion_mult, n_members, profile.probe_interval_s)
    wanted = confirmations_wanted(profile.suspicion_mult, n_members)
    longest = floor * profile.suspicion_max_mult
    if not profile.early_accusers:
        return Suspicion(now, wanted, floor, longest)
    early = max(1, min(profile.early_accusers, n_members - 1))
    return Suspicion(now, wanted, floor, longest, early=early, least=profile.verdict_min_s)
