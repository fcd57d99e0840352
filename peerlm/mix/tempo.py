"""How often a node mixes: as often as its share of the line carries.

A step of the outer loop costs the line about as much however many inner steps lie between two. So the
number of inner steps between two outer steps (H) is what is steered: on a fast line a node mixes every few
steps, on a slow one rarely, and nobody has to know how fast lines are. What is looked at is the time in
which tensors of an exchange were on their way, our own or a partner's, as a share of all time. It includes
whatever keeps them: the line, a ceiling, a slow partner, a busy processor.

    H ← H · (share of time that exchanges took) ÷ `mix.bandwidth_share`

once in a while, at least a whole outer step apart, at most by a factor of two, within bounds. Nothing is
agreed with others: each node has its own H. Pure: is told the time and whether anything moves.
"""

from __future__ import annotations

from peerlm.config import MixSection
from peerlm.types import Instant

PERIOD_S = 5.0
"""What the line's use is averaged over, at least."""

FACTOR_MAX = 2.0
"""By which H changes at a time, at most."""

TOLERANCE = 0.05
"""A change smaller than this share of H is not made."""


class Tempo:
    """One node's H, from `mix` and what its exchanges take.

    inner_steps: H, for the worker.
    use: share of the last period's time in which exchanges moved; None before the first one is over.
    """

    def __init__(self, mix: MixSection, now: Instant) -> None:
        self._mix = mix
        self.inner_steps = self._bounded(mix.inner_steps)
        self.use: float | None = None
        self._moving = False
        self._since = now
        self._moved_s = 0.0
        self._began = now

    def follow(self, mix: MixSection, now: Instant) -> None:
        """The plan has changed. H begins anew if it was about that."""
        old, self._mix = self._mix, mix
        if _bounds(old) != _bounds(mix):
            self.inner_steps = self._bounded(mix.inner_steps)
            self.begin(now)

    def begin(self, now: Instant) -> None:
        """Count from here: before, other things than the line held up exchanges, or the worker."""
        self._began = self._since = now
        self._moved_s = 0.0

    def note(self, now: Instant, *, moving: bool) -> None:
        """Whether tensors of any exchange are on their way from here on."""
        if moving != self._moving:
            self._count(now)
            self._moving = moving

    def look(self, step_s: float, now: Instant) -> None:
        """Change H if it is time to. `step_s`: seconds an inner step takes."""
        elapsed_s = now - self._began
        if elapsed_s < max(PERIOD_S, self.inner_steps * step_s):
            return
        self._count(now)
        self.use = min(1.0, self._moved_s / elapsed_s)
        self.begin(now)
        share = self._mix.bandwidth_share
        if not share or not self.use:  # without exchanges there is nothing to go by
            return
        factor = min(max(self.use / share, 1 / FACTOR_MAX), FACTOR_MAX)
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
