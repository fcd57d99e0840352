"""What it takes to hand something to another node: the way there, and what its line carries.

A node measures the way to whom it probes, and says of itself how far its neighbours usually are and what its line carries.
From that follows what a hop takes before it was ever tried. What has been tried is known better; these are for choosing
whom to try, and for weighing hops that nobody has measured by themselves. Nothing that is not known counts. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

HOP_S_MAX = 60.0
"""Whatever somebody says of itself, a hop is not taken to last longer, so it is tried now and then."""


class Way(NamedTuple):
    """To a peer. 0: not known.

    delay_s: one way from here. usual_s: one way between it and its neighbours, the middle one, by its own word.
    line_bytes_s: what its line carries, by its own word, or ours, if that is less.
    """

    delay_s: float = 0.0
    usual_s: float = 0.0
    line_bytes_s: float = 0.0

    def hop_s(self, size: float) -> float:
        """Seconds until so many bytes are there."""
        return min(HOP_S_MAX, (self.delay_s or self.usual_s) + self._on_line_s(size))

    def onward_s(self, size: float) -> float:
        """The same of a hop between it and somebody else."""
        return min(HOP_S_MAX, self.usual_s + self._on_line_s(size))

    def _on_line_s(self, size: float) -> float:
        return size / self.line_bytes_s if self.line_bytes_s else 0.0


UNKNOWN = Way()
