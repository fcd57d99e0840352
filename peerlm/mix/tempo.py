"""How often a node mixes: as often as its share of the line carries.

A step of the outer loop costs the line about as much however many inner steps lie between two. So the
number of inner steps between two outer steps (H) is what is steered: on a fast line a node mixes every few
steps, on a slow one rarely, and nobody has to know how fast lines are. Three things are looked at:

    line   bytes that exchanges sent ÷ what the line would have carried, as TCP has measured it
    time   in which tensors of an exchange were on their way, our own or a partner's
    work   processor time that they took here

    H ← H · the largest of   line ÷ share,   time ÷ (1 + share)/2,   work ÷ its bound

once in a while, at least a whole outer step apart, at most by a factor of two, within bounds. The line is
what a user gives a share of, `mix.bandwidth_share`. Time holds where exchanges wait rather than send: long
ways, slow partners. Work holds where nothing else would: on loopback, or where a fast line meets processors that
train. Nothing is agreed with others: each node has its own H. Pure: is told the time and what exchanges cost.
"""

from __future__ import annotations

from collections import deque

from peerlm.config import MixSection
from peerlm.types import Instant

PERIOD_S = 5.0
"""What the line's use is averaged over, at least."""

FACTOR_MAX = 2.0
"""By which H changes at a time, at most."""

TOLERANCE = 0.05
"""A change smaller than this share of H is not made."""

LINES = 32
"""Newest measurements of the line, the largest of which counts: short exchanges do not fill it."""

WORK_MAX, WORK_MAX_TRAINING = 0.5, 0.05
"""Of one processor's time, for exchanges; and where the same processors train."""


class Tempo:
    """One node's H, from `mix` and what its exchanges take.

    inner_steps: H, for the worker.
    use: share of what the line would have carried, or of the time while that is not known, in the last
        period; None before the first one is over.
    """

    def __init__(self, mix: MixSection, now: Instant) -> None:
        self._mix = mix
        self.inner_steps = self._bounded(mix.inner_steps)
        self.use: float | None = None
        self._lines: deque[float] = deque(maxlen=LINES)
        self._moving = False
        self.begin(now)

    @property
    def line_bytes_s(self) -> float | None:
        """What the line carries of ours; None while nothing has measured it."""
        return max(self._lines, default=None)

    def follow(self, mix: MixSection, now: Instant) -> None:
        """The plan has changed. H begins anew if it was about that."""
        old, self._mix = self._mix, mix
        if _bounds(old) != _bounds(mix):
            self.inner_steps = self._bounded(mix.inner_steps)
            self.begin(now)

    def begin(self, now: Instant) -> None:
        """Count from here: before, other things than exchanges held up the worker."""
        self._began = self._since = now
        self._moved_s = self._work_s = 0.0
        self._sent = 0

    def note(self, now: Instant, *, moving: bool) -> None:
        """Whether tensors of any exchange are on their way from here on."""
        if moving != self._moving:
            self._count(now)
            self._moving = moving

    def exchanged(self, sent: int, work_s: float, line_bytes_s: float) -> None:
        """One has gone well, our own or a partner's. `line_bytes_s`: 0 if it is not known."""
        self._sent += sent
        self._work_s += work_s
        if line_bytes_s > 0:
            self._lines.append(line_bytes_s)

    def look(self, step_s: float, now: Instant, *, trains_on_cpu: bool = False) -> None:
        """Change H if it is time to. `step_s`: seconds an inner step takes."""
        elapsed_s = now - self._began
        if elapsed_s < max(PERIOD_S, self.inner_steps * step_s):
            return
        self._count(now)
        time, work = min(1.0, self._moved_s / elapsed_s), self._work_s / elapsed_s
        line = self.line_bytes_s
        self.use = time if line is None else min(1.0, self._sent / elapsed_s / line)
        self.begin(now)
        share = self._mix.bandwidth_share
        if not share or not time:  # without exchanges there is nothing to go by
            return
        work_max = WORK_MAX_TRAINING if trains_on_cpu else WORK_MAX
        wanted = max(self.use / share, time / ((1 + share) / 2), work / work_max)
        self._change(min(max(wanted, 1 / FACTOR_MAX), FACTOR_MAX))

    def _change(self, factor: float) -> None:
        wanted = self._bounded(round(self.inner_steps * factor))
        if abs(wanted - self.inner_steps) > TOLERANCE * self.inner_steps:
            self.inner_steps = wanted

    def _count(self, now: Instant) -> None:
        if self._moving:
            self._moved_s += now - self._since
        self._since = now

    def _bounded(self, inner_steps: int) -> int:
        mix = self._mix
        if not mix.bandwidth_share:
            return mix.inner_steps
        lowest = min(mix.inner_steps_min, mix.inner_steps)
        highest = max(mix.inner_steps_max, mix.inner_steps)
        return min(max(inner_steps, lowest), highest)


def _bounds(mix: MixSection) -> tuple[float, ...]:
    return mix.bandwidth_share, mix.inner_steps, mix.inner_steps_min, mix.inner_steps_max
