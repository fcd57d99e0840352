"""How a node's own progress moves its slow weights, and how much a partner's may.

An algorithm is three small decisions. `outer` turns progress (Δ: where the inner steps arrived minus φ)
into a step of φ. `coefficient` says which share of a decoded difference a node moves in an exchange, and
`through_momentum` whether that moves φ at once or by way of the momentum. Everything else (corrections, codecs, clipping, the protocol) is the same for all and knows none of
them by name. Algorithms hold no state: the momentum is the fragment's, the settings are the plan's.
"""

from __future__ import annotations

from typing import Protocol

from peerlm.config import MixSection
from peerlm.errors import ConfigError
from peerlm.mix.algorithms.adpsgd import AdPsgd
from peerlm.mix.algorithms.dgd import Dgd
from peerlm.mix.algorithms.local import Local
from peerlm.mix.algorithms.noloco import NoLoCo
from peerlm.mix.algorithms.outer_mix import OuterMix
from peerlm.mix.vector import Vector

RAMP_STEPS = 3


class Algorithm(Protocol):
    """What the rest of peerlm needs to know of an algorithm."""

    @property
    def mixes(self) -> bool:
        """Whether its nodes exchange at all."""
        ...

    @property
    def through_momentum(self) -> bool:
        """Whether an exchange adds to m instead of φ, which then moves in the next outer step."""
        ...

    def outer(self, phi: Vector, momentum: Vector, progress: Vector, mix: MixSection) -> None:
        """Move `phi` and `momentum` in place by `progress`, which may be overwritten.

        All three are [n], any piece of a fragment: work element by element only. What m means is
        the algorithm's own affair.
        """
        ...

    def coefficient(self, mix: MixSection, ramp: float, meetings: float | None = None) -> float:
        """Share c of d̂ that this node moves towards a partner, in [0, 1].

        `ramp` is the partner's (see `ramp`), times the sampler's share for this pair. `meetings` is
        how many exchanges a fragment takes part in between two outer steps; None: as many as
        nodes on their own clocks do, which start `mix.exchanges` and are asked for as many.
        """
        ...


ALGORITHMS: dict[str, Algorithm] = {
    "outer_mix": OuterMix(),
    "noloco": NoLoCo(),
    "adpsgd": AdPsgd(),
    "dgd": Dgd(),
    "local": Local(),
}


def get(name: str) -> Algorithm:
    """The algorithm of that name. Raises `ConfigError` naming those there are."""
    if name not in ALGORITHMS:
        raise ConfigError(f"mix.algorithm = {name!r}: must be one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]


def ramp(outer_steps: int) -> float:
    """Share of the usual weight for a node that has taken so many outer steps since it joined, or came back.

    A newcomer brings no progress of its own, and who comes back with a snapshot brings an old one: it should be
    pulled towards the swarm, not the swarm towards it. What the ramp withholds bends the swarm's sum, and that is intended.
    """
    return min(1.0, max(1, outer_steps) / RAMP_STEPS)
