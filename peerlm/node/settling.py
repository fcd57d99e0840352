"""The end of a run: mix without learning until the weights of all are as good as the same.

Each fragment is mixed with partners it is not yet near to, until it is within half the agreed spread of
three of them, or of all there are. Two nodes that are both within half of it of a third are within
the whole of it of each other. The first exchange of a fragment is as coarse as those before, the
others are in fp32. Nobody decides for the others: whether everybody has settled is seen from what
they say of themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from peerlm.effects import Effect
from peerlm.mix.exchange import Exchanges
from peerlm.mix.outcomes import Outcomes
from peerlm.types import FragmentId, Instant, PeerId, after

PAUSE_S = 0.05
"""Between two settling exchanges of one fragment, so that the network breathes."""

ALONE_S = 3.0
"""A node that has lost sight of everybody that holds a fragment waits this long before it settles it alone."""

PARTNERS = 3
"""Partners a fragment must be near to; more would not make it nearer to the rest."""

Distances = Mapping[PeerId, float]
"""Relative distance of one fragment to each partner it was lately mixed with."""


class Settling:
    """How far one node has settled. `since`: when it began; None while it does not settle."""

    def __init__(self) -> None:
        self.since: Instant | None = None
        self._company_at: dict[FragmentId, Instant] = {}
        self._looked_at = Instant(0.0)
        self._due: dict[FragmentId, Instant] = {}

    def begin(self, outcomes: Outcomes, now: Instant) -> None:
        """How near partners are counts from here on, by exchanges yet to come."""
        self.since = now
        self._company_at = dict.fromkeys(outcomes.fragments, now)
        self._due.clear()
        for state in outcomes.fragments.values():
            state.last.clear()

    def end(self) -> None:
        self.since = None

    def is_overdue(self, deadline_s: float, now: Instant) -> bool:
        return self.since is not None and now - self.since > deadline_s

    def go_on(
        self,
        exchanges: Exchanges,
        partners_of: Callable[[FragmentId], Sequence[PeerId]],
        spread: float,
        now: Instant,
    ) -> tuple[list[Effect], bool]:
        """Mix every idle fragment that is not yet close to those it could be compared with. Returns
        also whether all are close."""
        self._looked_at = now
        effects: list[Effect] = []
        is_all_close = True
        for fragment, state in exchanges.outcomes.fragments.items():
            partners = partners_of(fragment)
            if partners:
                self._company_at[fragment] = now
            if self._is_close(fragment, state.last, partners, spread):
                continue
            is_all_close = False
            if not exchanges.is_busy(fragment):
                unmet = self._to_mix_with(fragment, state.last, partners, spread)
                effects += exchanges.start(fragment, unmet, now)
        return effects, is_all_close

    def _is_close(
        self, fragment: FragmentId, last: Distances, partners: Sequence[PeerId], spread: float
    ) -> bool:
        """Whether a fragment is near enough to enough partners."""
        if not partners:
            return self._looked_at - self._company_at[fragment] >= ALONE_S
        near = sum(_is_near(last.get(p), spread) for p in partners)
        return near >= min(PARTNERS, len(partners))

    def _to_mix_with(
        self, fragment: FragmentId, last: Distances, partners: Sequence[PeerId], spread: float
    ) -> Sequence[PeerId]:
        """Whom an idle fragment should be mixed with now; nobody while it pauses."""
        now = self._looked_at
        if self._due.get(fragment, now) > now:
            return ()
        self._due[fragment] = after(now, PAUSE_S)
        return [p for p in partners if not _is_near(last.get(p), spread)] or partners

    def deadline(self) -> Instant | None:
        """When a fragment's pause ends next."""
        if self.since is None:
            return None
        return min((at for at in self._due.values() if at > self._looked_at), default=None)


def _is_near(distance: float | None, spread: float) -> bool:
    return distance is not None and distance < spread / 2
