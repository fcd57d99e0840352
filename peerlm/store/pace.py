"""How long a pull of some size usually takes now, told from those that ended lately.

The median over all donors, so that one that crawls, or one that is next door, says little. A small object is all
latency, so it says nothing about a large one: only what is at least a quarter as large, or a mebibyte, counts. What
is larger than those takes longer in proportion, what is smaller no less than they did.

Pure: no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import exp, inf

from peerlm.types import Instant

RATE_WINDOW_S = 5.0
"""The rate shown is a mean over about this time. Longer: steadier, slower to follow."""

PULLS_MAX = 32
"""So many of the latest count. More: steadier, slower to follow."""
PULLS_MIN = 2
"""With fewer nothing is known."""
AGE_S = 60.0
"""Older ones tell nothing about now."""
SIZES_MAX = 64
"""Remembered at once, of which it was worked out."""

SPEAKS_FOR_ALL_BYTES = 1 << 20
"""An object of this size tells the rate of any that is larger."""


class Pace:
    def __init__(self) -> None:
        self._ended: deque[tuple[Instant, int, float]] = deque(maxlen=PULLS_MAX)
        self._usual_s: dict[int, float] = {}
        """Of sizes that were asked for since anything changed: the same one is, for each pull at each look."""

    def add(self, size_bytes: int, took_s: float, now: Instant) -> None:
        """A pull has brought its object."""
        self._ended.append((now, max(1, size_bytes), took_s))
        self._usual_s.clear()

    def forget_old(self, now: Instant) -> None:
        while self._ended and now - self._ended[0][0] > AGE_S:
            self._ended.popleft()
            self._usual_s.clear()

    def usual_bytes(self) -> int:
        """Of an object, where nobody has said; 0: none has come lately."""
        return int(_median([size for _, size, _ in self._ended])) if self._ended else 0

    def usual_s(self, size_bytes: int) -> float:
        """Infinite: not known."""
        if (known := self._usual_s.get(size_bytes)) is not None:
            return known
        if len(self._usual_s) >= SIZES_MAX:
            self._usual_s.clear()
        usual_s = self._usual_s[size_bytes] = self._worked_out_s(size_bytes)
        return usual_s

    def _worked_out_s(self, size_bytes: int) -> float:
        enough = min(size_bytes / 4, SPEAKS_FOR_ALL_BYTES)
        took = [s * max(1.0, size_bytes / size) for _, size, s in self._ended if size >= enough]
        return _median(took) if len(took) >= PULLS_MIN else inf


def _median(values: Sequence[float]) -> float:
    """Of an even number the larger of the two in the middle: in doubt a pull is not slow."""
    return sorted(values)[len(values) // 2]


class Rate:
    """Bytes per second, older ones counting exponentially less; fair from the first second on."""

    def __init__(self, now: Instant) -> None:
        self._began = self._last = now
        self._sum = 0.0

    def add(self, count_bytes: int, now: Instant) -> None:
        self._sum = self._decayed(now) + count_bytes
        self._last = now

    def at(self, now: Instant) -> float:
        weight_s = RATE_WINDOW_S * (1 - exp(-(now - self._began) / RATE_WINDOW_S))
        return self._decayed(now) / weight_s if weight_s > 0 else 0.0

    def _decayed(self, now: Instant) -> float:
        return self._sum * exp(-(now - self._last) / RATE_WINDOW_S)
