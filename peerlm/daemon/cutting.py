"""Checkpoints carried out: fragments into chunks, and the manifest that makes a model of them.

The files of a checkpoint are those that `peerlm export` writes, so whoever reads the one reads the other. The weights'
file is a header, and then the fragments' values in the plan's order, each cut into chunks by itself: what did not
change since the last checkpoint is the same chunks. The optimizer's state, where the plan wants it, is a file of its own
(`model.moments`), made likewise from what workers have kept; what of the text is read another (`data.records`), for a run
that goes on from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from peerlm import events
from peerlm.config import Plan
from peerlm.daemon.keeping import Keeping
from peerlm.daemon.slow_weights import SlowWeights
from peerlm.data.records import FILE as PASSES_FILE
from peerlm.effects import MOMENTS, PASSES, CutFragments, WriteCheckpoint
from peerlm.errors import ConfigError, PeerlmError
from peerlm.model.plan import fragments
from peerlm.store.manifest import CHUNK_BYTES, NOBODY, Chunk, Kind, Manifest, of_files
from peerlm.store.objects import Objects
from peerlm.types import FragmentId, ObjectHash, RunId

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from concurrent.futures import Executor

NOTHING = ObjectHash(bytes(32))

Values = Sequence[memoryview]


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

    def cut(self, effect: CutFragments, slow: SlowWeights, keeping: Keeping) -> None:
        """→ `FragmentCut` for each, as many at a time as there are threads."""
        held = set(slow)
        for fragment in effect.fragments:
            of = FragmentId(fragment % MOMENTS)
            if fragment == PASSES:
                record = [memoryview(effect.passes)]
                self._pool.submit(self._cut, effect.slot, fragment, partial(_as_it_is, record))
            elif of not in held:
                self._tell(events.FragmentCut(effect.slot, fragment, 0, ()))
            elif fragment == of:
                self._pool.submit(self._cut, effect.slot, fragment, partial(self._phi, of, slow))
            else:
                self._pool.submit(
                    self._cut, effect.slot, fragment, partial(self._moments, of, keeping)
                )

    def write(self, effect: WriteCheckpoint, keeping: Keeping) -> None:
        """→ `CheckpointWritten`."""
        self._pool.submit(self._write, effect, keeping)

    def _tell(self, event: events.Event) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._post, event)

    def _cut(
        self, slot: bytes, fragment: FragmentId, values_of: Callable[[], tuple[int, Values]]
    ) -> None:
        try:
            version, values = values_of()
        except PeerlmError:  # there is nothing: another node is asked
            self._tell(events.FragmentCut(slot, fragment, 0, ()))
            return
        try:
            chunks = [self._put(data) for part in values for data in _pieces(part)]
        except PeerlmError as error:  # the disk is full, say
            self._tell(events.FragmentCut(slot, fragment, 0, (), str(error)))
            return
        named = tuple((chunk.hash, chunk.size) for chunk in chunks)
        self._tell(events.FragmentCut(slot, fragment, version, named))

    def _phi(self, fragment: FragmentId, slow: SlowWeights) -> tuple[int, Values]:
        version, phi = slow.now(fragment, lambda f: (f.version, f.phi.copy()))
        return version, [phi.data.cast("B")]

    def _moments(self, fragment: FragmentId, keeping: Keeping) -> tuple[int, Values]:
        return 0, keeping.moments_of(fragment)

    def _put(self, data: memoryview | bytes) -> Chunk:
        chunk = Chunk(self._objects.put_chunk(data), len(data))
        self._tell(events.ObjectKept(*chunk))
        return chunk

    def _write(self, effect: WriteCheckpoint, keeping: Keeping) -> None:
        try:
            made, lacks = self._manifest(effect, keeping)
            encoded = made.encode()
            manifest = self._objects.put_chunk(encoded)
        except PeerlmError as error:
            self._tell(events.CheckpointWritten(effect.slot, NOTHING, 0, str(error)))
            return
        self._tell(events.ObjectKept(manifest, len(encoded)))
        self._tell(events.CheckpointWritten(effect.slot, manifest, len(encoded), "", lacks))

    def _manifest(self, effect: WriteCheckpoint, keeping: Keeping) -> tuple[Manifest, str]:
        """And why it is without the optimizer's state, if it should not be."""
        from peerlm.model.export import PLAN, TOKENIZER, WEIGHTS, render_plan, weights_header
        from peerlm.model.moments import FILE as MOMENTS_FILE

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
        lacks = ""
        if effect.moments:
            try:
                files.append((MOMENTS_FILE, self._file_of_moments(effect, plan)))
            except ConfigError as error:
                lacks = str(error)
        if effect.passes is not None:
            files.append((PASSES_FILE, [Chunk(*chunk) for chunk in effect.passes.chunks]))
        makers = sorted({part.peer.hex() for part in effect.parts})
        made = [[makers.index(part.peer.hex()), len(part.chunks)] for part in effect.parts]
        meta = {
            "run": self._run_id.hex(),
            "tokens": effect.tokens,
            "plan_hash": keeping.plan.plan_hash.hex(),
            "versions": [part.version for part in effect.parts],
            "makers": makers,
            "made": [[NOBODY, len(files[0][1]) - len(parts)], *made],
            "before": effect.before.hex(),
        }
        if plan.run.continues:
            meta["continues"] = plan.run.continues
        if effect.moments and not lacks:
            meta["optimizer"] = plan.train.optimizer
        return of_files(Kind.CHECKPOINT, files, meta), lacks

    def _file_of_moments(self, effect: WriteCheckpoint, plan: Plan) -> list[Chunk]:
        """Raises `ConfigError`: a part is not what the plan says; who made it may go by another one."""
        from peerlm.model.moments import moments_header, part_bytes

        kinds: tuple[list[Chunk], ...] = ([], [], [])
        specs = fragments(plan)
        for spec, part in zip(specs, effect.moments, strict=True):
            left = [Chunk(*chunk) for chunk in part.chunks]
            for chunks, size in zip(kinds, part_bytes(spec, plan), strict=True):
                count = -(-size // CHUNK_BYTES)
                mine, left = left[:count], left[count:]
                if sum(chunk.size for chunk in mine) != size:
                    raise ConfigError(f"{spec.name}: another optimizer's state than the plan's")
                chunks += mine
            if left:
                raise ConfigError(f"{spec.name}: more of the optimizer's state than the plan has")
        header = [self._put(data) for data in _pieces(memoryview(moments_header(plan)))]
        return [*header, *(chunk for chunks in kinds for chunk in chunks)]


def _as_it_is(values: Values) -> tuple[int, Values]:
    return 0, values


def _pieces(data: memoryview) -> Iterator[memoryview]:
    return (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))
