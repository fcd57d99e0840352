"""A ceiling on bytes a second, with a reserve of two seconds; it may be passed by what is taken last."""

from __future__ import annotations

from peerlm.types import Instant

RESERVE_S = 2.0


class Ceiling:
    """`bytes_s` 0: there is none."""

    def __init__(self, bytes_s: int, now: Instant) -> None:
        self._bytes_s, self._left, self._at = bytes_s, 0.0, now

    def accrue(self, now: Instant) -> None:
        earned = (now - self._at) * self._bytes_s
        self._left, self._at = min(RESERVE_S * self._bytes_s, self._left + earned), now

    def take(self, size: int) -> bool:
        """Whether so many bytes may be had now."""
        if not self._bytes_s:
            return True
        if self._left <= 0:
            return False
        self._left -= size
        return True

    def give_back(self, size: int) -> None:
        """They were taken, and not needed."""
        self._left += size if self._bytes_s else 0
