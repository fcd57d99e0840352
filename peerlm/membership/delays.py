"""How far other members are, by the answers to probes.

An answer waits for whatever else runs at both ends, so of the newest few round trips the least counts, and half of it is
the way. What is known of a peer changes only when it is off by a quarter: whoever goes by it should not be told of each
millisecond. Pure.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence

from peerlm.types import PeerId

TRIPS = 8
"""Newest round trips of a peer, of which the least counts."""

NOTICED, NOTICED_S = 0.25, 0.0005
"""What is known changes if it is off by so much, of itself and in seconds."""


class Delays:
    """One way, in seconds, to those who have answered."""

    def __init__(self) -> None:
        self._trips: dict[PeerId, deque[float]] = {}
        self._known: dict[PeerId, float] = {}
        self._middle = 0.0

    def answered(self, peer: PeerId, round_trip_s: float) -> None:
        trips = self._trips.setdefault(peer, deque(maxlen=TRIPS))
        trips.append(max(0.0, round_trip_s))
        self._known[peer] = _followed(self._known.get(peer, 0.0), min(trips) / 2)

    def forget(self, peer: PeerId) -> None:
        self._trips.pop(peer, None)
        self._known.pop(peer, None)

    def to(self, peer: PeerId) -> float | None:
        """None: it has not answered yet."""
        return self._known.get(peer)

    def middle(self, peers: Sequence[PeerId]) -> float | None:
        """The middle one of the ways to these; None: none of them is known."""
        known = [self._known[peer] for peer in peers if peer in self._known]
        if not known:
            return None
        self._middle = _followed(self._middle, statistics.median(known))
        return self._middle


def _followed(known_s: float, new_s: float) -> float:
    is_news = abs(new_s - known_s) > max(NOTICED * known_s, NOTICED_S) or not known_s
    return new_s if is_news else known_s
