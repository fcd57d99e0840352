"""The memory of what was verified (`store.verified`), on the disk: read at the start, written whenever something was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from peerlm.errors import StateError
from peerlm.store.disk import read_file, write_atomic
from peerlm.store.verified import BYTES_MAX, Verified
from peerlm.types import ObjectHash, WallTime


class Verifying:
    """`pool`: threads that may touch the disk."""

    def __init__(self, path: Path, pool: Executor, wall: Callable[[], WallTime]) -> None:
        self._path, self._pool, self._wall = path, pool, wall
        self._known = Verified(_memory(path))

    def said(self, manifest: ObjectHash) -> dict[str, Any]:
        """For a name's record."""
        reading = self._known.of(manifest)
        return {
            "verified_at": reading.at if reading else None,
            "verified_missing": reading.missing if reading else None,
        }

    async def note(self, manifest: ObjectHash, missing: int, named: Collection[ObjectHash]) -> None:
        """Until it is on the disk. Raises `StateError`: the disk does not take it; it is known until the daemon ends."""
        self._known.note(manifest, missing, named, self._wall())
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._pool, write_atomic, self._path, self._known.encode())


def _memory(path: Path) -> bytes:
    """What cannot be read counts as none: it says when somebody has looked, and no more."""
    try:
        return read_file(path, BYTES_MAX) if path.exists() else b""
    except StateError:
        return b""
