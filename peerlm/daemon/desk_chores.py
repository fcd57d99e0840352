"""What the store's core wants of the disk, and somebody has to wait for: manifests read, chunks dropped, proofs made.

Each is done on threads, and what came of it is told as an event. A manifest is what anybody may have written: it is
read only where it is what its hash says, and of its notes only what has the right form counts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

from blake3 import blake3

from peerlm import effects as fx
from peerlm import events
from peerlm.errors import ChunkCorrupt, StateError, Vanished
from peerlm.store.manifest import SWEEPS, TASKS_MAX, Kind, Manifest, read_manifest
from peerlm.store.objects import Objects
from peerlm.types import ObjectHash, PeerId

MAKERS_MAX = 64
"""Of one manifest, who are believed to have what it names."""

MADE_CHUNKS_MAX = 65_536
"""Of a larger one it is not kept who made which chunk."""


class Chores:
    """`pool`: threads that may touch the disk."""

    def __init__(
        self, objects: Objects, pool: Executor, post: Callable[[events.Event], None]
    ) -> None:
        self._objects, self._pool, self._post = objects, pool, post
        self._reading = asyncio.Lock()
        """One manifest after the other: a large one takes ten times its size of memory while it is read."""

    async def _on_pool(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *arguments)

    async def read_manifest(self, manifest: ObjectHash) -> None:
        try:
            async with self._reading:
                encoded: bytes = await self._on_pool(self._objects.read_verified, manifest)
        except (StateError, ChunkCorrupt) as error:
            self._post(events.ManifestRead(manifest, (), str(error)))
            return
        try:
            async with self._reading:
                found: Manifest = await self._on_pool(read_manifest, encoded)
        except ChunkCorrupt as error:
            self._post(events.ManifestRead(manifest, (), str(error), is_wrong=True))
            return
        makers = tuple(_peers(found.meta.get("makers")))
        made = _made_by(found, makers)
        tasks, replaces, sweep = _as_job(found)
        read = events.ManifestRead(
            manifest,
            found.chunks,
            makers=makers,
            made=made,
            tasks=tasks,
            replaces=replaces,
            sweep=sweep,
        )
        self._post(read)

    async def drop(self, hashes: tuple[ObjectHash, ...]) -> None:
        with contextlib.suppress(StateError):  # it is found, and dropped, at a later start
            await self._on_pool(self._objects.remove_condemned, hashes)

    async def prove(self, effect: fx.MakeProof) -> None:
        def proof() -> bytes:
            data = self._objects.read_verified(effect.object_hash)
            return blake3(effect.nonce).update(data).digest()

        digest = b""
        try:
            digest = await self._on_pool(proof)
        except (ChunkCorrupt, Vanished) as error:
            self._post(events.ObjectLost(effect.object_hash, str(error)))
        except StateError:
            pass
        made = events.ProofMade(effect.peer, effect.object_hash, effect.nonce, digest)
        self._post(made)


def _made_by(found: Manifest, makers: Sequence[PeerId]) -> Mapping[ObjectHash, PeerId]:
    """By a checkpoint's list of runs of chunks, in their order, each with its maker's number. Whoever wrote it may lie: then
    others are asked in vain once."""
    runs, made, at = found.meta.get("made"), dict[ObjectHash, PeerId](), 0
    if not isinstance(runs, list) or len(found.chunks) > MADE_CHUNKS_MAX:
        return made
    for run in runs[:MADE_CHUNKS_MAX]:
        match run:
            case [int(number), int(count)] if 0 <= count <= len(found.chunks) - at:
                if 0 <= number < len(makers):
                    made |= dict.fromkeys(
                        [c.hash for c in found.chunks[at : at + count]], makers[number]
                    )
                at += count
            case _:
                break
    return made


def _peers(names: Any) -> list[PeerId]:
    """Of a manifest's meta, which anybody may have written."""
    try:
        return [PeerId(bytes.fromhex(name)) for name in names][:MAKERS_MAX]
    except (TypeError, ValueError):
        return []


def _as_job(manifest: Manifest) -> tuple[int, bool, str]:
    """(tasks, whether what is made replaces what has its name, its sweep before that of tokens); no tasks: it is no job."""
    tasks, replaces = manifest.meta.get("tasks"), manifest.meta.get("replaces")
    if manifest.kind is not Kind.JOB or type(tasks) is not int or not 0 < tasks <= TASKS_MAX:
        return 0, False, ""
    sweep = manifest.meta.get("sweep")
    return tasks, replaces is True, sweep if sweep in SWEEPS else ""
