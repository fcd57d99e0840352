"""Weights to be kept to ourselves: nobody should have them from us until it is known who is right.

Two kinds go astray. Weights that others have left behind, found so by them: nobody mixes with such,
so mixing never makes it good. And initial ones of our own that nobody has mixed yet, while others turn
out to be far ahead. A stray neither learns nor mixes until somebody gives it better weights; if for a
while nobody is there who has any, its own are the best there are.

What counts as behind or far ahead is told from outside; this is the memory of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from peerlm.node.lifecycle import FRESH_GRACE_S
from peerlm.types import Instant, PeerId


class Straying:
    """Whether one node is a stray. `since`: when it was found to be one; None while it is none.
    `is_fresh`: its weights are initial ones of its own."""

    def __init__(self) -> None:
        self.since: Instant | None = None
        self.is_fresh = False

    def installed(self, *, fresh: bool) -> None:
        """There are other weights now; `fresh`: initial ones of our own."""
        self.is_fresh, self.since = fresh, None

    def begins(self, now: Instant, *, is_behind: bool, is_outrun: bool) -> bool:
        """Whether we are a stray from now on. `is_behind`: others have found our weights to be of a
        time gone by; `is_outrun`: nobody has mixed them, and others are far ahead."""
        if not is_behind and not (self.is_fresh and is_outrun):
            return False
        self.since = now
        return True

    def ends(self, donors: Sequence[PeerId], now: Instant) -> bool:
        """Whether we are none any more, because nobody has better weights."""
        if self.since is None or donors or now - self.since < FRESH_GRACE_S:
            return False
        self.since, self.is_fresh = None, False
        return True
