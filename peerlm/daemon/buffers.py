"""Buffers of frames that wait for their next stream: fresh memory costs more than what it is for.

A stream has two, one to receive into and one to send from, and they are all the memory that it holds. Used in the bulk
thread only.
"""

from __future__ import annotations

import numpy as np

from peerlm.wire.frame import FRAME_BYTES_MAX

KEPT = 16
"""Beyond these, what comes back is let go."""


class Buffers:
    def __init__(self) -> None:
        self._kept: list[memoryview] = []

    def lend(self) -> tuple[memoryview, memoryview]:
        """Two of `FRAME_BYTES_MAX` each, of whatever was in them."""
        while len(self._kept) < 2:
            self._kept.append(np.empty(FRAME_BYTES_MAX, np.uint8).data)
        return self._kept.pop(), self._kept.pop()

    def take_back(self, buffers: tuple[memoryview, memoryview]) -> None:
        self._kept += buffers
        del self._kept[KEPT:]
