"""How often a peer may ask for what is large: a plan, an offer of state.

An answer of half a MiB costs its asker thirty bytes, and one that is not fetched waits in this node's memory. Those who
follow the protocol ask when they meet, and again after seconds; for them there is always an answer.
"""

from __future__ import annotations

from peerlm.types import Instant, PeerId

BURST = 8.0
"""Answers at once."""

EVERY_S = 2.0
"""One more each so many seconds."""

PEERS_MAX = 4096
"""Remembered; whoever asked longest ago is forgotten, and could ask anew by then."""


class Asks:
    def __init__(self) -> None:
        self._left: dict[PeerId, tuple[float, Instant]] = {}
        """Answers left to each, when it last asked; in the order in which they asked."""

    def may(self, peer: PeerId, now: Instant) -> bool:
        """Whether it gets an answer; which is then counted."""
        left, at = self._left.pop(peer, (BURST, now))
        left = min(BURST, left + (now - at) / EVERY_S)
        self._left[peer] = (left - 1.0 if left >= 1.0 else left, now)
        if len(self._left) > PEERS_MAX:
            del self._left[next(iter(self._left))]
        return left >= 1.0
