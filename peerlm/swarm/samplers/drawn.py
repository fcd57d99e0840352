"""Partners drawn at random, without anybody's agreement.

`Uniform` draws any candidate. A round in which everybody is paired so leaves ½(1 − 1/(n − 1)) of the
variance (Boyd, Ghosh, Prabhakar, Shah 2006), whatever the number of nodes.

`LatencyBiased` prefers who answers quickly, with a weight of one over the round trip. A fifth of its
draws are uniform all the same: they keep distant parts of a swarm together, which fast links alone
would let drift apart, and keep the round trips up to date.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from peerlm.swarm.samplers.choice import Choice
from peerlm.types import FragmentId, PeerId

UNIFORM_SHARE = 0.2
"""Part of the draws of `latency_biased` that do not look at round trips."""

QUICKEST_S = 0.001
"""Round trips below this count as this: on one network it is not they that make an exchange slow."""

NEWS = 0.3
"""Weight of a new round trip in the running average."""

KNOWN_MAX = 4096
"""Peers whose round trips are kept; beyond it the one heard from longest ago is forgotten."""


class Uniform:
    """Any candidate with equal probability."""

    def choose(
        self,
        candidates: Sequence[PeerId],
        me: PeerId,
        fragment: FragmentId,
        round: int,
        rng: random.Random,
        exclude: Collection[PeerId] = (),
    ) -> Choice | None:
        able = [peer for peer in candidates if peer not in exclude]
        return Choice(rng.choice(able)) if able else None

    def answered(self, peer: PeerId, seconds: float) -> None:
        pass


class LatencyBiased:
    """Near candidates more often; one that has never answered counts as the nearest, to be tried."""

    def __init__(self) -> None:
        self._seconds: dict[PeerId, float] = {}

    def choose(
        self,
        candidates: Sequence[PeerId],
        me: PeerId,
        fragment: FragmentId,
        round: int,
        rng: random.Random,
        exclude: Collection[PeerId] = (),
    ) -> Choice | None:
        able = [peer for peer in candidates if peer not in exclude]
        if not able:
            return None
        if rng.random() < UNIFORM_SHARE:
            return Choice(rng.choice(able))
        known = [self._seconds[peer] for peer in able if peer in self._seconds]
        nearest = min(known, default=QUICKEST_S)
        weights = [1 / self._seconds.get(peer, nearest) for peer in able]
        return Choice(rng.choices(able, weights)[0])

    def answered(self, peer: PeerId, seconds: float) -> None:
        seconds = max(seconds, QUICKEST_S)
        old = self._seconds.get(peer, seconds)
        self._seconds.pop(peer, None)
        self._seconds[peer] = old + NEWS * (seconds - old)
        if len(self._seconds) > KNOWN_MAX:
            del self._seconds[next(iter(self._seconds))]
