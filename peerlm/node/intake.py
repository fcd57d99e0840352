"""Manifests on their way from the disk into the catalog: one after the other, a long one part by part.

One of 800,000 chunks takes seconds to learn. It is done in steps of some hundredths, and between them the node answers
peers and mixes; nothing of a manifest counts before its last step (`store.catalog`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import StrEnum

from peerlm.events import ManifestRead
from peerlm.store.catalog import CHUNKS_MAX, Catalog, Learning
from peerlm.types import ObjectHash


class Outcome(StrEnum):
    LEARNT = "learnt"
    NAMELESS = "nameless"
    """No name stands for it any more."""
    TOO_MANY = "too many chunks"
    """More than can be known with all others."""


Taken = tuple[ManifestRead, int, Outcome]
"""What was read, in how many replicas it is wanted, and what has become of it."""


class Intake:
    """Of one node.

    Args:
        replicas_of: of a manifest; 0: no name stands for it.
    """

    def __init__(self, catalog: Catalog, replicas_of: Callable[[ObjectHash], int]) -> None:
        self._catalog, self._replicas_of = catalog, replicas_of
        self._waiting: deque[ManifestRead] = deque()
        self._now: tuple[Learning, ManifestRead, int] | None = None

    @property
    def is_busy(self) -> bool:
        return self._now is not None or bool(self._waiting)

    def add(self, read: ManifestRead) -> None:
        self._waiting.append(read)

    def step(self) -> Taken | None:
        """Go on. None: there is more of it, or nothing to do."""
        if self._now is None:
            if not self._waiting:
                return None
            read = self._waiting.popleft()
            replicas = self._replicas_of(read.manifest)
            if not replicas:
                return read, 0, Outcome.NAMELESS
            if len(read.chunks) + self._catalog.rows > CHUNKS_MAX:
                return read, replicas, Outcome.TOO_MANY
            learning = self._catalog.learn(read.manifest, read.chunks, replicas)
            self._now = (learning, read, replicas)
        learning, read, replicas = self._now
        if not self._replicas_of(read.manifest):
            self._now = None
            learning.give_up()
            return read, 0, Outcome.NAMELESS
        if not learning.step():
            return None
        self._now = None
        return read, replicas, Outcome.LEARNT
