"""Long vectors that are used again and again, for a fresh one costs more than what it is for.

The kernel hands out memory page by page, zeroed, at the first touch: for a vector of some megabytes that
takes several times as long as copying it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from peerlm.mix.vector import Vector

KEPT_BYTES_MAX = 64 << 20
"""What is kept for later, at most."""


class Spare:
    """Vectors of up to `size_max` to be lent. From any thread.

    All are of that size, so that each does for every request; what is never touched of one costs
    nothing.
    """

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._kept: list[Vector] = []
        self._lock = threading.Lock()

    @contextmanager
    def lent(self, size: int) -> Iterator[Vector]:
        """A vector [size] of anything. It is not used again if this is left by an exception, for
        then somebody else may still be writing to it."""
        with self._lock:
            vector = self._kept.pop() if self._kept else np.empty(self._size_max, np.float32)
        yield vector[:size]
        with self._lock:
            if (len(self._kept) + 1) * vector.nbytes <= KEPT_BYTES_MAX:
                self._kept.append(vector)
