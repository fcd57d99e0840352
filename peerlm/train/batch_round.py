"""One batch on its way around the ring, as the node that reads its text sees it.

The batch is cut into microbatches. A few are under way at once; each goes forward, comes around, is sent back as a
gradient, and is done when its gradient is home. One that gets lost before it came around is sent again under a new
number; one that gets lost later is given up, for some hosts have its gradient already. The batch is over when
nothing is left to send and nothing under way. Pure.
"""

from __future__ import annotations

from collections import deque

from peerlm.model.stages import WINDOW

TRIES = 3

__all__ = ["TRIES", "WINDOW", "BatchRound"]


class BatchRound:
    """Of a batch of so many `parts`. `number`: of its first microbatch; later ones count up from there.

    done: parts whose gradient is home. next_number: of the next batch.
    """

    def __init__(self, parts: int, number: int) -> None:
        self.done: list[int] = []
        self.next_number = number
        self._waiting = deque((part, 1) for part in range(parts))
        self._part: dict[int, tuple[int, int]] = {}
        """Part and try of each microbatch under way."""
        self._around: set[int] = set()

    @property
    def is_over(self) -> bool:
        return not self._waiting and not self._part

    @property
    def may_enter(self) -> bool:
        return bool(self._waiting) and len(self._part) < WINDOW

    def enter(self) -> tuple[int, int]:
        """Part and number of the next microbatch."""
        part, tries = self._waiting.popleft()
        number, self.next_number = self.next_number, self.next_number + 1
        self._part[number] = (part, tries)
        return part, number

    def part_of(self, number: int) -> int | None:
        """The part that is under way as `number`; None: none, or it has come around already."""
        return None if number in self._around or number not in self._part else self._part[number][0]

    def is_around(self, number: int) -> bool:
        """It came around, and its gradient may come home."""
        return number in self._around

    def came_around(self, number: int) -> None:
        self._around.add(number)

    def came_home(self, number: int) -> None:
        part, _ = self._part.pop(number)
        self._around.discard(number)
        self.done.append(part)

    def lost(self, number: int) -> None:
        """It will not come home."""
        if number not in self._part:
            return
        part, tries = self._part.pop(number)
        if number in self._around or tries >= TRIES:
            self._around.discard(number)
        else:
            self._waiting.appendleft((part, tries + 1))
