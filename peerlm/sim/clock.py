"""A virtual clock: a heap of actions by the time they are due, and by order where times are equal.

Time passes only by taking the next action from the heap, so an hour without events costs nothing,
and the same actions at the same times always run in the same order.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from peerlm.types import Instant

LOOK_EVERY_S = 0.05
"""How often `run` asks whether what it waits for has come true."""


class Clock:
    """`now` starts at 0."""

    def __init__(self) -> None:
        self.now = Instant(0.0)
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0

    def at(self, delay_s: float, action: Callable[..., None], *args: Any) -> None:
        """Do this `delay_s` from now."""
        self.on(self.now + delay_s, action, *args)

    def on(self, when: float, action: Callable[..., None], *args: Any) -> None:
        """Do this at that time, which is not over; after whatever was asked for at the same time."""
        self._order += 1
        heapq.heappush(self._heap, (when, self._order, action, args))

    def run(
        self, seconds: float, until: Callable[[], bool] | None = None, every_s: float = LOOK_EVERY_S
    ) -> float:
        """Let time pass, at most so long; stops once `until` holds. Returns how long it took."""
        began, look_at = self.now, self.now
        end = Instant(began + seconds)
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= end:
            if until is not None and heap[0][0] >= look_at:
                if until():
                    return self.now - began
                look_at = Instant(heap[0][0] + every_s)
            at, _, action, args = pop(heap)
            self.now = Instant(at)
            action(*args)
        self.now = end
        return seconds
