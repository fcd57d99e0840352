"""Whom to ask for an exchange: the plan's sampler names somebody, among those whom it is of use to ask.

Of no use is who cannot be dialled, and who has excluded us or is excluded by us. Of less use is who was asked in vain for
this very exchange, or has failed lately: such are asked when there is nobody else, so that a node whose only partner
stumbles goes on mixing with it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product

from peerlm.mix.exchange_records import Wish
from peerlm.mix.outcomes import Outcomes
from peerlm.swarm.sampler import Choice, Sampler
from peerlm.swarm.samplers.drawn import Uniform
from peerlm.types import Instant, PeerId

ANYBODY = Uniform()


class Partners:
    """Of one node. `endpoint`: where a peer's bulk port can be dialled, or None if it cannot."""

    def __init__(
        self,
        me: PeerId,
        sampler: Sampler,
        endpoint: Callable[[PeerId], tuple[str, int] | None],
        outcomes: Outcomes,
        rng: random.Random,
    ) -> None:
        self._me, self._sampler, self._endpoint = me, sampler, endpoint
        self._outcomes, self._rng = outcomes, rng

    def choose(self, wish: Wish, now: Instant, *, settling: bool) -> Choice | None:
        """Somebody new and in good standing if there is one, else somebody asked before."""
        never = [p for p in wish.partners if not self.is_able(p, wish, now)]
        tried = [p for p in wish.partners if p in wish.tried]
        avoided = [p for p in wish.partners if self._outcomes.scores.avoided(p, now)]
        rounds = self._outcomes.fragments[wish.fragment].rounds
        # While settling, partners are chosen by need: a schedule over a few of them has no meaning.
        sampler = ANYBODY if settling else self._sampler
        samplers = [sampler]
        if any(self._is_closed(p, now) for p in wish.partners):
            samplers.append(ANYBODY)  # whom a schedule names may be closed to us for long
        for sampler, spared in product(samplers, (tried + avoided, tried, avoided, [])):
            exclude = (*never, *spared)
            choice = sampler.choose(
                wish.partners, self._me, wish.fragment, rounds, self._rng, exclude
            )
            if choice is not None:
                return choice
        return None

    def has_untried(self, wish: Wish, now: Instant) -> bool:
        """Somebody could be asked who was not asked for this exchange."""
        return any(p not in wish.tried and self.is_able(p, wish, now) for p in wish.partners)

    def is_able(self, peer: PeerId, wish: Wish, now: Instant) -> bool:
        return peer not in wish.met and not self._is_closed(peer, now)

    def _is_closed(self, peer: PeerId, now: Instant) -> bool:
        """Whether it is of no use to ask: we cannot dial it, or one of us has excluded the other."""
        return self._endpoint(peer) is None or self._outcomes.scores.at_odds(peer, now)

    def answered(self, peer: PeerId, seconds: float) -> None:
        """It took so long to answer a request, one way or another."""
        self._sampler.answered(peer, seconds)
