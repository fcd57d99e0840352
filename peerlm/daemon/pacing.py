"""How fast bulk data goes out to a host: as fast as the way there takes it without a queue that everybody else's words
have to wait in.

A TCP stream alone fills whatever buffers lie on its way, and then a probe of a hundred bytes comes after half a second of
tensors. How long the queue is shows in the time that answers take, beyond the least that they ever took. When it is longer
than `QUEUE_S` we go a little slower than what has arrived lately, so that it drains, and when it is not, a little
faster each time, so that what the line has is used (the idea of LEDBAT, RFC 6817, with the kernel's own measurements
and its pacing in place of our own window).

A queue is not always ours. When we have gone down to half and it is as long as before, it is somebody else's, or no queue but
the way's own wavering, and going slower would only hand over the line: we take our rate back, and for a while only what comes on top
of it counts. What is wide is left alone: there such times tell how busy the processors are. Pure.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import NamedTuple

from peerlm.types import Instant

QUEUE_S = 0.020
"""Longest queue that we may stand in. Shorter: less of the line is used when times waver."""

SLOWER = 0.85
"""At a look, times so much when the queue is too long: what was too much in one look goes in the next."""

FASTER, FASTER_MAX = 1 / 8, 0.25
"""When there is no queue a look adds a share of the rate that makes one of so much of `QUEUE_S` by the next look, and less the
nearer the queue is to it; but `FASTER_MAX` at most."""

RECENT_S = 5.0
"""The most that arrived lately is what the line can do: single looks tell of beginnings and pauses, too."""

WIDE_BYTES_S = 50e6
"""Where more arrives than this nothing is held back: a queue of so many bytes is gone in a moment."""

LEAST_BYTES_S = 131_072.0
"""Whoever waits for a frame would else take us for dead. Ways that carry less are not held back."""

STUBBORN = 0.6
"""A queue that is still so much of what it was when the rate is half is not ours."""

ARRIVES = 0.8
"""Of what we send: when less arrives the way has become narrower, and the queue is ours however stubborn."""

OTHERS_S = 20.0
"""What others make is taken for theirs so long, and then tried again."""

FORGOTTEN_S = 60.0
"""What was found about the way to a host is taken for true so long."""


class Line(NamedTuple):
    """What the system says of a connection."""

    rtt_s: float
    """Of late."""
    least_rtt_s: float
    delivered_bytes_s: float
    """Lately; 0: not known."""
    is_filled: bool
    """There was always more to send: what was delivered is what the way takes."""
    acked_bytes: int
    """Since it began."""


UNKNOWN = Line(0.0, 0.0, 0.0, is_filled=False, acked_bytes=0)


class Pace:
    """Of each connection with one host. rate_bytes_s: at most; infinite where nothing is held back."""

    def __init__(self) -> None:
        self.rate_bytes_s = inf
        self._next_at = Instant(-inf)
        self._queue_s = 0.0
        self._slowing: tuple[float, float] | None = None
        """(rate, queue) when we began to go slower."""
        self._others_s, self._others_until = 0.0, Instant(-inf)
        """Of the queue, what is not ours."""
        self._delivered: deque[tuple[Instant, float]] = deque()

    def look(self, line: Line, now: Instant) -> None:
        """At most once in the time of an answer counts, and if there was enough to send: who sends less makes no queue, and
        needs no more."""
        if now < self._next_at or not line.is_filled:
            return
        if line.delivered_bytes_s <= 0.0 or line.least_rtt_s <= 0.0:
            return
        self._next_at = Instant(now + line.rtt_s)
        can = self._most_of(line.delivered_bytes_s, now)
        # One late answer says that somebody was late, two that there is a queue.
        seen_s = max(0.0, line.rtt_s - line.least_rtt_s)
        queue_s, self._queue_s = min(seen_s, self._queue_s), seen_s
        if now >= self._others_until:
            self._others_s = 0.0
        queue_s = max(0.0, queue_s - self._others_s)
        if can > WIDE_BYTES_S:
            self.rate_bytes_s = inf
        elif queue_s > QUEUE_S:
            self._go_slower(queue_s, can, line.delivered_bytes_s, now)
        else:
            if self._slowing and self.rate_bytes_s >= self._slowing[0]:
                self._slowing = None
            step = min(FASTER_MAX, FASTER * QUEUE_S / line.least_rtt_s)
            faster = self.rate_bytes_s * (1.0 + step * (1.0 - queue_s / QUEUE_S))
            self.rate_bytes_s = faster if faster < WIDE_BYTES_S else inf

    def _go_slower(self, queue_s: float, can: float, delivered: float, now: Instant) -> None:
        before = min(self.rate_bytes_s, can)
        if before <= LEAST_BYTES_S:
            self.rate_bytes_s = max(self.rate_bytes_s, LEAST_BYTES_S)
            return
        self.rate_bytes_s = max(LEAST_BYTES_S, SLOWER * before)
        if delivered < ARRIVES * before:
            self._slowing = None
            return
        rate, queue = self._slowing = self._slowing or (before, queue_s)
        if self.rate_bytes_s > rate / 2:
            return
        self._slowing = None
        if queue_s > STUBBORN * queue:
            self.rate_bytes_s = rate
            self._others_s, self._others_until = self._others_s + queue_s, Instant(now + OTHERS_S)

    def _most_of(self, delivered_bytes_s: float, now: Instant) -> float:
        while self._delivered and now - self._delivered[0][0] > RECENT_S:
            self._delivered.popleft()
        while self._delivered and self._delivered[-1][1] <= delivered_bytes_s:
            self._delivered.pop()
        self._delivered.append((now, delivered_bytes_s))
        return self._delivered[0][1]

    def is_late(self, now: Instant) -> bool:
        """Nothing was found for long."""
        return now - self._next_at > FORGOTTEN_S


class Paces:
    """One for each host, while something is known of it."""

    def __init__(self) -> None:
        self._paces: dict[str, Pace] = {}

    def of(self, host: str, now: Instant) -> Pace:
        for late in [name for name, pace in self._paces.items() if pace.is_late(now)]:
            del self._paces[late]
        return self._paces.setdefault(host, Pace())
