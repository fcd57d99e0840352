"""Room in a state directory, without measuring all of it for each object.

`limits.disk_bytes` bounds the directory as a whole. Of the shelves (`store.shelf`), which may hold a hundred thousand files,
the size is known; what is on its way to them is counted from before its first byte is written; the few other
files are measured each time. What others have laid on the shelves is counted at the start, again after as many
objects as lie there, and again before anything is refused on its account. So there is never more than the limit
allows, and room costs the same whatever is kept. A file with two names counts twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from peerlm.store import disk
from peerlm.store.shelf import Shelf

RECOUNT_MIN = 256
"""Objects between two counts of what is foreign, at least."""


class Room:
    def __init__(self, root: Path, disk_limit_bytes: int, shelves: Sequence[Shelf]) -> None:
        """`disk_limit_bytes`: 0 means no limit. Raises: StateError."""
        self._root = root
        self._limit_bytes = disk_limit_bytes
        self._shelves = tuple(shelves)
        self._lock = Lock()
        self._coming_bytes = 0
        self._foreign_bytes = 0
        self._since_count = 0
        if disk_limit_bytes:
            self._count_foreign()

    def take(self, needed_bytes: int, what: str) -> None:
        """Room for `what` until `give_back`, which is due once it is known to its shelf, or given up.

        Raises: StateError when there is none.
        """
        self._count_coming(needed_bytes)
        try:
            disk.check_room(self._root, needed_bytes, 0, what)
            if self._limit_bytes:
                self._check_limit(needed_bytes, what)
        except BaseException:
            self.give_back(needed_bytes)
            raise

    def give_back(self, taken_bytes: int) -> None:
        self._count_coming(-taken_bytes)

    def _count_coming(self, more_bytes: int) -> None:
        with self._lock:
            self._coming_bytes += more_bytes

    def _check_limit(self, needed_bytes: int, what: str) -> None:
        self._since_count += 1
        if self._since_count > max(RECOUNT_MIN, sum(map(len, self._shelves))):
            self._count_foreign()
        if self._used_bytes() > self._limit_bytes and self._foreign_bytes:
            self._count_foreign()
        used_bytes = self._used_bytes() - needed_bytes
        disk.check_limit(self._root, needed_bytes, used_bytes, self._limit_bytes, what)

    def _used_bytes(self) -> int:
        """With what is coming. Never too little: what arrives meanwhile is counted twice."""
        names = {shelf.directory.name for shelf in self._shelves}
        others = disk.usage_bytes(self._root, without=names)
        coming = self._coming_bytes
        return others + coming + sum(s.size_bytes for s in self._shelves) + self._foreign_bytes

    def _count_foreign(self) -> None:
        self._since_count = 0
        self._foreign_bytes = sum(shelf.foreign_bytes() for shelf in self._shelves)
