"""A token bucket: what keeps a rate on average and lets a short burst pass.

Pure: time is an argument. A taker may take more than is there and leave a debt, so that a chunk
larger than the burst still passes, and the next one waits the longer for it.
"""

from __future__ import annotations

from peerlm.types import Instant


class TokenBucket:
    """`rate` tokens a second (0: no limit), of which at most `burst` are saved up."""

    def __init__(self, rate: float, burst: float, now: Instant) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at = now

    @property
    def is_limited(self) -> bool:
        return self._rate > 0

    def least(self, rate: float) -> float:
        """Of a rate and the limit, if there is one."""
        return min(rate, self._rate) if self._rate else rate

    def delay_s(self, now: Instant) -> float:
        """Seconds until something may be taken; 0 if it may be now."""
        if not self._rate:
            return 0.0
        self._fill(now)
        return max(0.0, -self._level / self._rate)

    def take(self, tokens: float, now: Instant) -> None:
        """Take tokens, into debt if need be. Ask `delay_s` first."""
        self._fill(now)
        self._level -= tokens

    def try_take(self, tokens: float, now: Instant) -> bool:
        """Take tokens if all of them are there."""
        if not self._rate:
            return True
        self._fill(now)
        if self._level < tokens:
            return False
        self._level -= tokens
        return True

    def _fill(self, now: Instant) -> None:
        if now > self._at:
            self._level = min(self._burst, self._level + (now - self._at) * self._rate)
            self._at = now
