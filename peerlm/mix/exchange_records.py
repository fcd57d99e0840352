"""What `exchange.Exchanges` keeps of each exchange and each fragment, and what it tells of them.

Plain data: the rules by which it changes are all in exchange.py. Only `Standing` is written from
outside, by `node`, which knows whether this node has state and how far the run is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from peerlm.mix.robust import ClipTracker
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


@dataclass(frozen=True, slots=True)
class Totals:
    """What has become of all exchanges since the daemon started, for people and tests."""

    initiated_ok: int
    served_ok: int
    busy: int
    refused: int
    timed_out: int
    replayed: int
    reasons: Mapping[str, int]
    bytes_sent: int
    bytes_received: int
    clipped: int
    clip_booked: float
    """Norm of what clipping has kept back, summed over exchanges: how far Σφ may have bent."""


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
    """At the budget: mix in fp32."""


@dataclass(slots=True)
class FragmentState:
    """What exchanges have taught about one fragment."""

    clip: ClipTracker
    phi_norm: float = 0.0
    version: int = 0
    rounds: int = 0
    distance: float | None = None
    """Relative distance to partners: an average over recent exchanges."""
    last: dict[PeerId, float] = field(default_factory=dict)
    """Relative distance at the last exchange with each partner, and how far we have moved since: where
    both ends say less than x, they are within 2x."""
