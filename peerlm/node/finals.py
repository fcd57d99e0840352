"""One finished model, though two halves of a swarm may have finished apart.

While a network is split, each half can reach the budget by itself and settle. When they meet again
both are done, with different weights, and a finished node neither learns nor mixes. So whoever is
done compares its finished weights, by their sketches, with those of all others who are done. The
model that most of them hold stays; of two that equally many hold, the one that had seen more tokens
(then the one with the smallest id). The others fetch it. A single node that lies about its weights
thus changes nobody's.
"""

from __future__ import annotations

from collections.abc import Sequence

from peerlm.effects import Effect, Send
from peerlm.mix.sketch import distance
from peerlm.types import Instant, PeerId, after
from peerlm.wire.message import StateAsk, StateGive

ASK_AGAIN_S = 2.0
"""A peer that is done but has not written its finished weights yet is asked again so often."""

SPREADS = 3.0
"""Sketches of one settled swarm may differ by this many times the spread it settled to: a sketch
is an estimate. Halves that were apart for a while differ by far more."""


class Finals:
    """Comparisons of a node that is done. Bounded by the members there are."""

    def __init__(self) -> None:
        self.outdone = False
        """Another finished model takes the place of ours."""
        self._ask_at: dict[PeerId, Instant] = {}
        self._shown: dict[PeerId, StateGive] = {}

    def forget(self) -> None:
        """Our weights are not the ones that were compared."""
        self.outdone = False
        self._ask_at.clear()
        self._shown.clear()

    def ask(self, done: Sequence[PeerId], now: Instant) -> list[Effect]:
        """Ask those who are done and whose weights we have not seen; `done` is sorted."""
        self._shown = {p: give for p, give in self._shown.items() if p in done}
        self._ask_at = {p: at for p, at in self._ask_at.items() if p in done}
        asked = [p for p in done if p not in self._shown and self._ask_at.get(p, now) <= now]
        for peer in asked:
            self._ask_at[peer] = after(now, ASK_AGAIN_S)
        return [Send(peer, StateAsk()) for peer in asked]

    def shown(
        self, me: PeerId, ours: StateGive, peer: PeerId, theirs: StateGive, spread: float
    ) -> None:
        """A peer we asked has shown its weights; `ours` is what we would show."""
        if theirs.final and not ours.final and theirs.plan_hash == ours.plan_hash:
            self.outdone = True  # we had run out of time to settle
            return
        if not (theirs.final and ours.final) or theirs.plan_hash != ours.plan_hash:
            return
        if peer in self._ask_at:
            self._shown[peer] = theirs
        if len(self._shown) == len(self._ask_at):
            self._decide(me, ours, SPREADS * spread)

    def _decide(self, me: PeerId, ours: StateGive, distance_max: float) -> None:
        same, other = [(-ours.tokens, me)], list[tuple[int, PeerId]]()
        for peer, give in self._shown.items():
            like_ours = agree(ours, give, distance_max)
            (same if like_ours else other).append((-give.tokens, peer))
        if other:
            self.outdone = (-len(other), min(other)) < (-len(same), min(same))


def agree(a: StateGive, b: StateGive, distance_max: float) -> bool:
    """Whether the fragments that are in both offers are, by their sketches, no farther apart."""
    sketches = {offer.fragment: offer.sketch for offer in b.fragments}
    return all(
        distance(offer.sketch, sketches[offer.fragment]) <= distance_max
        for offer in a.fragments
        if offer.fragment in sketches
    )
