"""How fast bulk data goes out to a host: as fast as the way there takes it without a queue that everybody else's words
have to wait in.

A TCP stream alone fills whatever buffers lie on its way, and then a probe of a hundred bytes comes after half a second of
tensors. How long the queue is shows in the time that answers take, beyond the least that they ever took. When it is longer
than `QUEUE_S` we go a little slower than what has arrived lately, so that it drains, and when it is not, a little
faster each time, so that what the line has is used (the idea of LEDBAT, RFC 6817, with the kernel's own measurements
and its pacing in place of our own window).

What is wide is left alone: there such times tell how busy the processors are. Pure.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from peerlm.types import Instant

QUEUE_S = 0.020
"""Longest queue that we may stand in. Shorter: less of the line is used when times waver."""

SLOWER, FASTER = 0.85, 1.05
"""At each look. What was too much in one look goes in the next."""

USED = 0.7
"""Of the rate: who sends less does not need more."""

WIDE_BYTES_S = 50e6
"""Where more arrives than this nothing is held back: a queue of so many bytes is gone in a moment."""

LEAST_BYTES_S = 8_192.0

FORGOTTEN_S = 60.0
"""What was found about the way to a host is taken for true so long."""


class Line(NamedTuple):
    """What the system says of a connection."""

    rtt_s: float
    """Of late."""
    least_rtt_s: float
    delivered_bytes_s: float
    """Lately, idle times aside; 0: not known."""


class Pace:
    """Of one connection. rate_bytes_s: at most; infinite where nothing is held back."""

    def __init__(self, rate_bytes_s: float = inf) -> None:
        self.rate_bytes_s = rate_bytes_s
        self._next_at = Instant(-inf)
        self._sent_bytes = 0

    def look(self, line: Line, sent_bytes: int, now: Instant) -> bool:
        """Whether the rate is another now. At most once in the time of an answer counts, and if something was sent.

        Args:
            sent_bytes: on this connection, so far.
        """
        if now < self._next_at or sent_bytes == self._sent_bytes:
            return False
        if line.delivered_bytes_s <= 0.0 or line.least_rtt_s <= 0.0:
            return False
        before, queue_s = self.rate_bytes_s, line.rtt_s - line.least_rtt_s
        self._next_at, self._sent_bytes = Instant(now + line.rtt_s), sent_bytes
        if line.delivered_bytes_s > WIDE_BYTES_S:
            self.rate_bytes_s = inf
        elif queue_s > QUEUE_S:
            slower = SLOWER * min(line.delivered_bytes_s, before)
            self.rate_bytes_s = max(LEAST_BYTES_S, slower)
        elif before * FASTER > WIDE_BYTES_S:
            self.rate_bytes_s = inf
        elif line.delivered_bytes_s > USED * before:
            self.rate_bytes_s = before * FASTER
        return self.rate_bytes_s != before


class Paces:
    """What was found about hosts lately, for the next connection with one."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, Instant]] = {}

    def begin(self, host: str, now: Instant) -> Pace:
        rate, at = self._found.get(host, (inf, now))
        return Pace(rate if now - at < FORGOTTEN_S else inf)

    def found(self, host: str, pace: Pace, now: Instant) -> None:
        self._found[host] = (pace.rate_bytes_s, now)
        late = [host for host, (_, at) in self._found.items() if now - at >= FORGOTTEN_S]
        for host in late:
            del self._found[host]
