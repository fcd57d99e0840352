"""Whether what this node knows of the store's names is of late: only then do tombstones end here, and are old names taken from it.

A tombstone is dropped thirty days after it was written. Whoever was away for longer has not heard it, and may still have what it
removed. So a register is *current* if it was compared with a current one in the last twenty days, whole, and again a minute later,
when what was lacking had come. One that is not

- keeps its tombstones, and is believed by nobody that is current about records older than `OLD_S`;
- drops those of its own that a current one has not, or has removed (`Names.prune`). What is younger it brings along.

What an ended tombstone had removed is older than it, and so is one or the other.

Where all were away, nobody is current, and all tell each other all. Those that have been in company for an hour without hearing of
anybody who is current go on with what they know together. Alone nobody becomes current, and who was keeps its tombstones from then
on: a machine that is cut off is not the swarm, and one that was left alone by all others has for each of them what it missed. (Two
halves of a swarm that are apart for thirty days are both current: what one has removed comes back from the other.)
"""

from __future__ import annotations

from collections.abc import Collection

from peerlm.store.names import HIGHEST, LOWEST, following
from peerlm.types import Instant, PeerId, WallTime

DAY_S = 86_400.0

ENDS_S = 30 * DAY_S
"""So long after it was written a tombstone is dropped."""

OLD_S = 29 * DAY_S
"""What was written before that may have been removed by a tombstone that has ended. Clocks may be a day apart."""

CURRENT_S = 20 * DAY_S
"""Since the last comparison. What was removed ten days before it has spread."""

SETTLED_S = 60.0
"""Between two comparisons: what the first has shown to be lacking has come."""

COMPANY_S = 3600.0
"""In company for so long, and nobody is current: those that are to come back first are there."""


class Current:
    """Of one node. `since`: when it was last compared, if ever."""

    def __init__(self, since: WallTime | None) -> None:
        self.since = since
        self._whole_at: Instant | None = None
        """First compared."""
        self._alone_at: Instant | None = None
        """In company, and of nobody who is current was heard since."""
        self._pages: dict[PeerId, bytes] = {}
        """Where the next page of each has to begin."""

    def holds(self, wall: WallTime) -> bool:
        return self.since is not None and -DAY_S <= wall - self.since < CURRENT_S

    @property
    def day(self) -> int:
        """Worth saving when it changes."""
        return -1 if self.since is None else int(self.since // DAY_S)

    def heard(self, peer: PeerId, low: bytes, high: bytes, wall: WallTime, now: Instant) -> None:
        """One that is current has shown what it knows from `low` to `high`, the next page after the last."""
        self._alone_at = now
        if low != LOWEST and self._pages.pop(peer, None) != low:
            return
        if high != HIGHEST:
            self._pages[peer] = following(high)
        elif self._whole_at is None:
            self._whole_at = now
        elif now - self._whole_at >= SETTLED_S:
            self.since = wall

    def look(self, linked: Collection[PeerId], wall: WallTime, now: Instant) -> None:
        """From time to time. `linked`: who could have told us something."""
        self._pages = {peer: low for peer, low in self._pages.items() if peer in linked}
        if not linked:
            self._whole_at = self._alone_at = None
        elif self._alone_at is None:
            self._alone_at = now
        elif now - self._alone_at >= COMPANY_S and not self.holds(wall):
            self.since = wall
