"""The same crashes and the same partition in the simulator, for bench.truth to hold against reality."""

from __future__ import annotations

from dataclasses import dataclass

from bench.truth_told import Samples


@dataclass(frozen=True, slots=True)
class Reality:
    """What was done to the real swarm, and what the machine it ran on is like. Medians, in seconds."""

    nodes: int
    profile: str
    apart_s: float
    """How long the halves were apart."""
    round_trip_s: float
    """Of a probe and its answer, both event loops included."""
    reset_seen_s: float
    """From a crash to LinkDown where the peer had dialled the crashed node."""
    silence_seen_s: float
    """From a silent crash to LinkDown where the peer had dialled the crashed node."""
    introduced_s: float
    """From a node's wish to be introduced to its link."""


def simulated(reality: Reality, seed: int) -> Samples:
    """Samples by figure, as `truth_told.FIGURES` names them; empty for what is not simulated."""
    return {}
