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
    """Vectors to be lent. From any thread."""

    def __init__(self) -> None:
        self._kept: list[Vector] = []
        self._lock = threading.Lock()

    @contextmanager
    def lent(self, size: int) -> Iterator[Vector]:
        """A vector [size] of anything. It is not used again if this is left by an exception, for
        then somebody else may still be writing to it."""
        vector = self._take(size)
        yield vector
        with self._lock:
            self._kept.append(vector)
            while sum(v.nbytes for v in self._kept) > KEPT_BYTES_MAX:
                self._kept.pop(0)

    def _take(self, size: int) -> Vector:
        with self._lock:
            for index, vector in enumerate(self._kept):
                if vector.size == size:
                    return self._kept.pop(index)
        return np.empty(size, np.float32)
