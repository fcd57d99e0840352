"""What processes of this machine wait for from the swarm's store, and whether this node's disk is in their way.

A disk that takes nothing is known from the last pull that it took or did not take, so what is known grows old: by the next pull
it may be mended. So who waits goes by what has gone wrong since it began to wait, and by nothing before. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from peerlm.effects import Effect, TellReaders
from peerlm.types import Instant, ObjectHash


class Awaited:
    """Of one node. As a container: the objects."""

    def __init__(self) -> None:
        self._objects: set[ObjectHash] = set()
        self.trouble, self._since = "", Instant(-inf)
        """Why this node's disk did not take what was last pulled, and since when this is known; empty: it did."""

    def __contains__(self, object_hash: object) -> bool:
        return object_hash in self._objects

    def add(self, object_hash: ObjectHash) -> None:
        self._objects.add(object_hash)

    def discard(self, object_hash: ObjectHash) -> None:
        """Nobody waits for it any more."""
        self._objects.discard(object_hash)

    def came(self, hashes: Iterable[ObjectHash]) -> list[Effect]:
        """They are here: tell those that wait."""
        waited = tuple(object_hash for object_hash in hashes if object_hash in self._objects)
        self._objects.difference_update(waited)
        return [TellReaders(waited)] if waited else []

    def disk_was(self, trouble: str, now: Instant) -> None:
        """It has just taken something, or not, and why."""
        self.trouble, self._since = trouble, now

    def trouble_since(self, began: Instant) -> str:
        """What has gone wrong since then; empty: nothing that is known."""
        return self.trouble if self._since >= began else ""
