"""What `exchange.Exchanges` keeps of each exchange that is not over, and of this node itself.

Plain data: the rules by which it changes are all in exchange.py. Only `Standing` is written from
outside, by `node`, which knows whether this node has state and how far the run is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from peerlm.types import FragmentId, Instant, PeerId, TransferId


class Phase(StrEnum):
    ASKING = "asking"
    WAITING = "waiting"
    MOVING = "moving"


@dataclass(frozen=True, slots=True)
class Wish:
    """What an outer step asks for: one exchange of `fragment`, and `further` ones after it."""

    fragment: FragmentId
    partners: tuple[PeerId, ...]
    further: int = 0
    tries: int = 0
    tried: tuple[PeerId, ...] = ()
    """Asked for this exchange, in vain."""
    met: tuple[PeerId, ...] = ()
    """Mixed with already in this outer step; not asked again."""


@dataclass(slots=True)
class Initiated:
    """An exchange this node started."""

    wish: Wish
    phase: Phase
    asked: Instant
    deadline: Instant
    transfer: TransferId
    peer: PeerId
    share: float
    """Of `mix.weight`, as the sampler wants it for this pair."""
    codecs: tuple[str, str]
    keys: tuple[bytes, bytes]

    @property
    def fragment(self) -> FragmentId:
        return self.wish.fragment


@dataclass(slots=True)
class Served:
    """An exchange a peer started and this node accepted."""

    fragment: FragmentId
    peer: PeerId
    version: int
    """Of the peer's fragment: the outer steps behind it."""
    deadline: Instant
    ramp: float
    """Ours as it was told: what the peer gives ours, however often it has to ask."""


@dataclass(slots=True)
class Standing:
    """What has to be known of this node to answer a request; kept up by `node`."""

    active: bool = False
    """It has state of this run's lineage."""
    frozen: bool = True
    """Its weights may not move: installing state, or settled for good."""
    ramp: float = 1.0
    """Share of the usual weight to be given to it; below 1 for its first outer steps."""
    plan_hash: bytes = bytes(32)
    settling: bool = False
    """At the budget: mix without learning."""
