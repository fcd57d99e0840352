"""How fast the swarm trains, as this node sees its tokens being added.

Tokens that it learns of at once because it had missed them (those of a swarm that it has just come to) were not trained on in
a moment, and do not count.
"""

from __future__ import annotations

from peerlm.swarm.vitals import Ledger
from peerlm.types import Instant

WINDOW_S = 10.0
"""What the rate is averaged over."""


class Rate:
    """`tokens_per_s`: 0 until it was looked at for a second."""

    def __init__(self, ledger: Ledger, now: Instant) -> None:
        self._ledger = ledger
        self.tokens_per_s = 0.0
        self._seen = (now, self._watched())

    def look(self, now: Instant) -> None:
        """Call it a few times a second."""
        seen_at, seen = self._seen
        if now - seen_at >= 1.0:
            rate = (self._watched() - seen) / (now - seen_at)
            share = min(1.0, (now - seen_at) / WINDOW_S)
            self.tokens_per_s += share * (rate - self.tokens_per_s) if self.tokens_per_s else rate
            self._seen = (now, self._watched())

    def _watched(self) -> int:
        return self._ledger.total() - self._ledger.hearsay
