"""How much memory a node says it offers for stages, by readings that waver.

What is free moves with everything else that the machine does, and every word about it makes others think. So what is
said follows coarsely: it changes when some readings in a row lie an eighth off it, all on one side, and then by no more
than the nearest of them. What the stages that are held take is never taken back: they have it, and a node that dropped
one because a person began something else would leave a hole at once, and want it back a little later. So readings
decide what may come besides; only its owner can have a node hold less. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from peerlm.types import Memory

READINGS = 3
"""In a row."""

NOTICED = 1 / 8
"""By which they have to differ from what is said."""


class Offering:
    """`said`: what the node says it offers, bytes held already not taken off."""

    def __init__(self, said: Memory) -> None:
        self.said = said
        self._readings: deque[Memory] = deque(maxlen=READINGS)

    def read(self, offered: Memory, held: Memory) -> bool:
        """One more reading: what could be offered if nothing were held. `held`: what is held takes. Whether something else is said now.
        A reading without the device that was there says nothing of it."""
        self._readings.append(offered)
        if len(self._readings) < READINGS:
            return False
        has_device = self.said.device is not None
        need = held.host if has_device else held.total()
        host = _followed(self.said.host, [r.host for r in self._readings], need)
        device, read = self.said.device, [r.device for r in self._readings if r.device is not None]
        if device is not None and len(read) == READINGS:
            device = _followed(device, read, held.device or 0)
        before, self.said = self.said, Memory(device, host)
        return before != self.said


def _followed(said: int, readings: Sequence[int], need: int) -> int:
    if min(readings) > said * (1 + NOTICED):
        return min(readings)
    if max(readings) < said * (1 - NOTICED):
        return max(max(readings), min(said, need))
    return said
