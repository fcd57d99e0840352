"""Which correction is in which boundary, while both are on their way between device and memory.

The daemon takes a boundary to hold the corrections up to the one that it names, and hears of a correction that it does
not hold only afterwards. So a correction that has landed while an older boundary of its fragment is on its way is told after
that boundary: told before, it would make the boundary void, and an outer step be lost. Pure.
"""

from __future__ import annotations

from collections import defaultdict

from peerlm.train.protocol import Applied, Boundary, Message
from peerlm.train.staging import Landed, Way
from peerlm.types import FragmentId


class Crossings:
    def __init__(self) -> None:
        self._applied_seq: defaultdict[FragmentId, int] = defaultdict(int)
        self._coming_seq: defaultdict[FragmentId, int] = defaultdict(int)
        self._read: dict[FragmentId, Boundary] = {}
        """Boundaries that are on their way to memory."""
        self._held_back: dict[FragmentId, Applied] = {}

    def read(self, fragment: FragmentId, steps: int) -> None:
        """θ of this fragment is on its way to memory, as it is after so many steps."""
        self._read[fragment] = Boundary(fragment, self._applied_seq[fragment], steps)

    def comes(self, fragment: FragmentId, seq: int) -> None:
        """A correction is on its way to the device."""
        self._coming_seq[fragment] = seq

    def landed(self, landed: Landed) -> list[Message]:
        """What the daemon is to be told now."""
        fragment = landed.fragment
        if landed.way is Way.OUT:
            held_back = self._held_back.pop(fragment, None)
            return [self._read.pop(fragment), *([held_back] if held_back else [])]
        applied = self.applied(fragment)
        if fragment not in self._read:
            return [applied]
        self._held_back[fragment] = applied
        return []

    def applied(self, fragment: FragmentId) -> Applied:
        """The correction that came is in θ."""
        seq = self._applied_seq[fragment] = self._coming_seq[fragment]
        return Applied(fragment, seq)
