"""Checkpoints carried out: fragments into chunks, and the manifest that makes a model of them.

The files of a checkpoint are those that `peerlm export` writes, so whoever reads the one reads the other. The weights'
file is a header, and then the fragments' values in the plan's order, each cut into chunks by itself: what did not
change since the last checkpoint is the same chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from peerlm import events
from peerlm.daemon.keeping import Keeping
from peerlm.daemon.slow_weights import SlowWeights
from peerlm.effects import CutFragments, WriteCheckpoint
from peerlm.errors import PeerlmError
from peerlm.store.manifest import CHUNK_BYTES, Chunk, Kind, Manifest, of_files
from peerlm.store.objects import Objects
from peerlm.types import FragmentId, ObjectHash, RunId

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from concurrent.futures import Executor

NOTHING = ObjectHash(bytes(32))


class Cutting:
    """Args:
    post: takes events, on the loop.
    pool: threads of its own, which may be long at the disk.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        post: Callable[[events.Event], None],
        objects: Objects,
        run_id: RunId,
        pool: Executor,
    ) -> None:
        self._loop, self._post, self._pool = loop, post, pool
        self._objects, self._run_id = objects, run_id

    def cut(self, effect: CutFragments, slow: SlowWeights) -> None:
        """→ `FragmentCut` for each, as many at a time as there are threads."""
        held = set(slow)
        for fragment in effect.fragments:
            self._pool.submit(self._cut, effect.slot, fragment, slow if fragment in held else None)

    def write(self, effect: WriteCheckpoint, keeping: Keeping) -> None:
        """→ `CheckpointWritten`."""
        self._pool.submit(self._write, effect, keeping)

    def _tell(self, event: events.Event) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._post, event)

    def _cut(self, slot: bytes, fragment: FragmentId, slow: SlowWeights | None) -> None:
        version, chunks = 0, list[Chunk]()
        if slow is not None:
            try:
                version, chunks = self._chunks_of(fragment, slow)
            except PeerlmError:
                chunks = []  # the disk is full, say: another node is asked
        named = tuple((chunk.hash, chunk.size) for chunk in chunks)
        self._tell(events.FragmentCut(slot, fragment, version, named))

    def _chunks_of(self, fragment: FragmentId, slow: SlowWeights) -> tuple[int, list[Chunk]]:
        version, phi = slow.now(fragment, lambda f: (f.version, f.phi.copy()))
        return version, [self._put(data) for data in _pieces(phi.data.cast("B"))]

    def _put(self, data: memoryview | bytes) -> Chunk:
        chunk = Chunk(self._objects.put_chunk(data), len(data))
        self._tell(events.ObjectKept(*chunk))
        return chunk

    def _write(self, effect: WriteCheckpoint, keeping: Keeping) -> None:
        try:
            encoded = self._manifest(effect, keeping).encode()
            manifest = self._objects.put_chunk(encoded)
        except PeerlmError as error:
            self._tell(events.CheckpointWritten(effect.slot, NOTHING, 0, str(error)))
            return
        self._tell(events.ObjectKept(manifest, len(encoded)))
        self._tell(events.CheckpointWritten(effect.slot, manifest, len(encoded)))

    def _manifest(self, effect: WriteCheckpoint, keeping: Keeping) -> Manifest:
        from peerlm.model.export import PLAN, TOKENIZER, WEIGHTS, render_plan, weights_header

        plan = keeping.plan.plan
        about = {"run": self._run_id.hex(), "tokens": str(effect.tokens)}
        header = weights_header(plan, about)
        parts = [Chunk(*chunk) for part in effect.parts for chunk in part.chunks]
        files = [
            (WEIGHTS, [*(self._put(data) for data in _pieces(memoryview(header))), *parts]),
            (PLAN, [self._put(data) for data in _pieces(memoryview(render_plan(plan).encode()))]),
        ]
        if (tokenizer := keeping.tokenizer_file()) is not None:
            pieces = _pieces(memoryview(tokenizer))
            files.append((TOKENIZER, [self._put(data) for data in pieces]))
        meta = {
            "run": self._run_id.hex(),
            "tokens": effect.tokens,
            "plan_hash": keeping.plan.plan_hash.hex(),
            "versions": [part.version for part in effect.parts],
            "makers": sorted({part.peer.hex() for part in effect.parts}),
            "before": effect.before.hex(),
        }
        return of_files(Kind.CHECKPOINT, files, meta)


def _pieces(data: memoryview) -> Iterator[memoryview]:
    return (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))
