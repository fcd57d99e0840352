"""What a sampler is asked and what it answers."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from peerlm.types import FragmentId, PeerId


@dataclass(frozen=True, slots=True)
class Choice:
    """A partner, and the share of `mix.weight` with which the two are mixed, in (0, 1].

    Both ends must use the same share, or the sum of all slow weights bends; so who asks says it.
    """

    peer: PeerId
    share: float = 1.0


class Sampler(Protocol):
    """Chooses a partner from `candidates` (sorted, without this node), or None."""

    def choose(
        self,
        candidates: Sequence[PeerId],
        me: PeerId,
        fragment: FragmentId,
        round: int,
        rng: random.Random,
        exclude: Collection[PeerId] = (),
    ) -> Choice | None:
        """`exclude`: candidates not to be taken this time (busy, tried, distrusted). A schedule
        wants them there and not left out of `candidates`, or the two ends see different swarms."""
        ...

    def answered(self, peer: PeerId, seconds: float) -> None:
        """A question to `peer` was answered after so long."""
        ...
