"""How much repair may fetch: so many bytes a second on the average, with two seconds' worth at once at the most."""

from __future__ import annotations

from peerlm.types import Instant


class Ceiling:
    """`bytes_s`: 0 means that there is none."""

    def __init__(self, bytes_s: float, now: Instant) -> None:
        self._bytes_s = bytes_s
        self._left, self._at = 0.0, now

    def accrue(self, now: Instant) -> None:
        self._left = min(2.0 * self._bytes_s, self._left + (now - self._at) * self._bytes_s)
        self._at = now

    def may_spend(self, size: int) -> bool:
        """Whether it leaves room, which is then taken; it may be passed by one chunk."""
        if not self._bytes_s:
            return True
        if self._left <= 0:
            return False
        self._left -= size
        return True

    def give_back(self, size: int) -> None:
        """It was not fetched after all."""
        self._left += size
