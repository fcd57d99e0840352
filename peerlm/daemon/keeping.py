"""What a node keeps on disk, and how it gets it into memory: snapshots, corpus, the finished model.

Carries out the disk effects on a thread pool and reports back; decides nothing. Slow weights are
read one fragment at a time, each under its own turn, so a snapshot never holds up an exchange for
longer than one fragment takes to copy, and needs no second copy of the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from peerlm import events
from peerlm.config import NodeSettings, Plan
from peerlm.config.mixture import OWN, has_own
from peerlm.daemon.slow_weights import SlowWeights
from peerlm.data import shards, tokenizer
from peerlm.data.mixture import lanes_of
from peerlm.data.records import parts_of
from peerlm.effects import InstallObjects, PrepareCorpus, Rehost, WriteSnapshot
from peerlm.errors import ChunkCorrupt, ConfigError, PeerlmError, StateError, Vanished
from peerlm.events import Event
from peerlm.identity.root import SignedPlan
from peerlm.mix.sketch import distance, sketch
from peerlm.model.plan import FragmentSpec, fragments
from peerlm.store import disk, snapshot
from peerlm.store.layout import StateDirectory
from peerlm.store.objects import Objects
from peerlm.store.snapshot import Contents, FragmentState, Snapshot
from peerlm.types import FragmentId, ObjectHash, PeerId, RunId, WallTime

R = TypeVar("R")

SKETCH_TOLERANCE = 1e-3
"""Relative distance between a donor's sketch and one of what it sent: rounding, nothing else."""

SNAPSHOTS_DONATED = 2
"""Snapshots whose objects can still be pulled: the newest, and the one a joiner may be half through."""


_OWN_TEXT = "node.toml: data.local"


class Keeping:
    """The disk side of one node. `restored` is the newest valid snapshot found at the start; `moved`
    is told of fragments that were replaced, so that a worker's θ follows. `reads`: the corpus; who does not needs its
    tokenizer all the same, for texts that are asked for here."""

    def __init__(
        self,
        post: Callable[[Event], None],
        state: StateDirectory,
        objects: Objects,
        run_id: RunId,
        plan: SignedPlan,
        specs: tuple[FragmentSpec, ...],
        settings: NodeSettings,
        epoch: int,
        compute: Executor,
        wall: Callable[[], WallTime],
        moved: Callable[[FragmentId], None],
        *,
        reads: bool = True,
    ) -> None:
        self.plan = plan
        self._reads = reads
        self.notes: tuple[str, ...] = ()
        self.restored: Snapshot | None = None
        self._post = post
        self._state = state
        self._objects = objects
        self._run_id = run_id
        self._specs = specs
        self._spec = {spec.id: spec for spec in specs}
        self._settings = settings
        self._epoch = epoch
        self._compute = compute
        self._wall = wall
        self._moved = moved
        self._local_shards: tuple[Path, ...] = ()
        self._writes = Lock()
        """Snapshots are written one at a time: each takes the next number."""
        self._is_left = False
        """The last snapshot that is to be written here is: of what is held next."""

    # ------------------------------------------------------------------------------- snapshots

    def find_snapshot(self) -> None:
        """Look for the newest valid snapshot; a damaged one is passed over and said so.

        Raises:
            StateError: the newest snapshot is another run's, or of another model.
        """
        found = snapshot.load(self._state)
        self.notes = found.notes
        if found.snapshot is None:
            return
        manifest = found.snapshot.manifest
        if manifest.contents.run_id != self._run_id:
            raise StateError(
                f"{found.snapshot.path}: is of run {manifest.contents.run_id.hex()[:8]}, this state "
                f"directory is of run {self._run_id.hex()[:8]}; move the file away or use another --state"
            )
        sizes = {spec.id: spec.size for spec in fragments(self.plan.plan)}
        shapes = {record.id: record.phi.size // 4 for record in manifest.fragments}
        if any(sizes.get(fragment) != size for fragment, size in shapes.items()):
            raise StateError(f"{found.snapshot.path}: holds another model than the plan describes")
        if any(fragment not in shapes for fragment in self._spec):
            line = "lacks stages that this node is to hold; they are fetched from peers"
            self.notes = (*self.notes, f"{found.snapshot.path}: {line}")
            return
        self.restored = found.snapshot
        self._objects.register_snapshot(found.snapshot)
        for number in found.damaged:
            try:
                snapshot.remove(self._state, number)
            except StateError as error:
                self.notes = (*self.notes, str(error))

    async def install_snapshot(self, slow: SlowWeights) -> None:
        """→ `StateInstalled("snapshot")`."""
        assert self.restored is not None, "no snapshot was found at the start"
        await self._on_pool(self._read_snapshot, self.restored, slow)
        self._post(events.StateInstalled("snapshot"))

    def _read_snapshot(self, found: Snapshot, slow: SlowWeights) -> None:
        file = found.open()
        for record in (r for r in found.manifest.fragments if r.id in self._spec):
            fragment = slow.before_work(record.id)
            snapshot.read_array(file, record.phi, fragment.phi)
            snapshot.read_array(file, record.momentum, fragment.momentum)
            fragment.version = record.version

    async def write_snapshot(self, effect: WriteSnapshot, slow: SlowWeights) -> None:
        """→ `SnapshotWritten` or `SnapshotFailed`; nothing once `write_for` has written what this node goes on with."""
        contents = self._contents(effect)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            written = await self._on_pool(self._write_snapshot, contents, slow)
        except PeerlmError as error:
            self._post(events.SnapshotFailed(str(error)))
            return
        if written is None:
            return
        offers = tuple(
            (r.id, r.version, r.phi.hash, r.phi.size, r.sketch) for r in written.manifest.fragments
        )
        number, seconds = written.manifest.number, loop.time() - began
        done = events.SnapshotWritten(number, effect.tokens, offers, seconds, written.trouble)
        self._post(done)

    def _contents(self, effect: WriteSnapshot) -> Contents:
        return Contents(
            run_id=self._run_id,
            plan_hash=self.plan.plan_hash,
            plan_revision=self.plan.revision,
            tokens={(peer, epoch): tokens for peer, epoch, tokens in effect.tallies},
            own_tokens=effect.own_tokens,
            epoch=self._epoch,
            wall=self._wall(),
            final=effect.final,
        )

    def _write_snapshot(self, contents: Contents, slow: SlowWeights) -> Snapshot | None:
        with self._writes:
            if self._is_left:
                return None
            return self._write(contents, self._specs, self._states(slow))

    def _write_last(
        self, contents: Contents, specs: Sequence[FragmentSpec], states: Iterator[FragmentState]
    ) -> None:
        """A newer one, of what is held until now alone, would hide it at the next start."""
        with self._writes:
            self._write(contents, specs, states)
            self._is_left = True

    def _write(
        self, contents: Contents, specs: Sequence[FragmentSpec], states: Iterator[FragmentState]
    ) -> Snapshot:
        limit = self._settings.limits.disk_bytes
        written = snapshot.write(self._state, contents, specs, states, limit)
        self._objects.register_snapshot(written)
        for number in sorted(self._objects.registered_snapshots)[:-SNAPSHOTS_DONATED]:
            self._objects.retire_snapshot(number)
        return written

    def _states(self, slow: SlowWeights) -> Iterator[FragmentState]:
        for spec in self._specs:
            yield self._state_of(spec, slow)

    def _state_of(self, spec: FragmentSpec, slow: SlowWeights) -> FragmentState:
        state = slow.now(spec.id, lambda fragment: fragment.state())
        shown = tuple(float(x) for x in sketch(state.phi, self.plan.plan.run.rng_seed, spec.id))
        return FragmentState(spec.id, state.version, state.phi, state.momentum, shown)

    async def write_for(self, wanted: Rehost, slow: SlowWeights) -> None:
        """A snapshot of what is held, if there is anything, and of the objects that are to be held next.
        Raises `StateError`, `ChunkCorrupt`."""
        pulled = {fragment: (v, h, shown) for fragment, v, h, shown in wanted.objects}
        held = self._spec if wanted.is_installed else {}
        specs = [s for s in fragments(self.plan.plan) if s.id in held or s.id in pulled]
        if not pulled:
            specs = list(held.values())

        def states() -> Iterator[FragmentState]:
            for spec in specs:
                if spec.id in pulled:
                    version, object_hash, shown = pulled[spec.id]
                    values = self._values(spec, object_hash, shown)
                    yield FragmentState(spec.id, version, values, np.zeros_like(values), shown)
                else:
                    yield self._state_of(spec, slow)

        if specs:
            await self._on_pool(self._write_last, self._contents(wanted.snapshot), specs, states())

    # ---------------------------------------------------------------------- state from peers

    async def install_objects(self, effect: InstallObjects, slow: SlowWeights) -> None:
        """→ `StateInstalled("peers")`, or `StateRejected` when values are not what was shown."""
        for fragment, version, object_hash, shown in effect.objects:
            reason = await self._on_pool(
                self._install_object, slow, fragment, version, object_hash, shown
            )
            if reason:
                self._post(events.StateRejected(fragment, reason))
                return
        await self._on_pool(self._drop_objects, [entry[2] for entry in effect.objects])
        await self._on_pool(self._forget_moments)
        for entry in effect.objects:
            self._moved(entry[0])
        self._post(events.StateInstalled("peers"))

    def moments_of(self, fragment: FragmentId) -> list[memoryview]:
        """What the worker has kept of the optimizer's state of a fragment, as a checkpoint has it, on the calling thread.
        Raises `ConfigError`, `StateError`: there is nothing, or it is not what the plan asks for."""
        from peerlm.model.moments import open_moments, part_of

        plan = self.plan.plan
        parts = part_of(self._spec[fragment], plan, open_moments(self._state.moments, plan))
        if not all(np.isfinite(part).all() for part in parts):
            raise ConfigError(f"{self._state.moments}: holds values that are not finite")
        return [part.data.cast("B") for part in parts if part.size]

    def _forget_moments(self) -> None:
        """They are of weights that these have replaced, unless a person has put them beside a node that had none."""
        with suppress(StateError):  # then the next worker begins with old ones: they are no harm
            if snapshot.newest(self._state):
                disk.remove(self._state.moments)

    def _install_object(
        self,
        slow: SlowWeights,
        fragment: FragmentId,
        version: int,
        object_hash: ObjectHash,
        shown: tuple[float, ...],
    ) -> str:
        try:
            values = self._values(self._spec[fragment], object_hash, shown)
        except PeerlmError as error:
            return str(error)
        slow.now(fragment, lambda f: f.install(values, version))
        return ""

    def _values(
        self, spec: FragmentSpec, object_hash: ObjectHash, shown: tuple[float, ...]
    ) -> NDArray[np.float32]:
        """A fragment that was pulled. Raises `StateError`, `ChunkCorrupt`: it is not there, or not what was shown."""
        values = np.empty(spec.size, np.float32)
        try:
            self._objects.read_into(object_hash, values.data.cast("B"))
        except PeerlmError as error:
            raise type(error)(f"{spec.name}: {error}") from None
        if not np.isfinite(values).all():
            raise ChunkCorrupt(f"{spec.name}: holds values that are not finite")
        seed = self.plan.plan.run.rng_seed
        if distance(sketch(values, seed, spec.id), shown) > SKETCH_TOLERANCE:
            raise ChunkCorrupt(f"{spec.name}: is not what its donor had shown")
        return values

    async def drop_objects(self, hashes: Sequence[ObjectHash]) -> None:
        await self._on_pool(self._drop_objects, hashes)

    def _drop_objects(self, hashes: Sequence[ObjectHash]) -> None:
        """Fetched state is in memory; what is kept of it is our own next snapshot."""
        for object_hash in hashes:
            with suppress(StateError):  # then the next start drops it
                self._objects.remove(object_hash)

    def drop_leftovers(self, kept: Collection[ObjectHash] = ()) -> None:
        """Remove fetched state that an interrupted fetch has left: no donor has it for ever, and
        nobody asks for it again. `kept`: but for these. Call at the start. Raises: StateError."""
        token_shards, others = corpus_objects(self.plan.plan)
        for object_hash in set(self._objects.files) - {*token_shards, *others, *kept}:
            self._objects.remove(object_hash)

    # ----------------------------------------------------------------------------------- corpus

    def corpus_paths(self) -> tuple[Path, ...]:
        """Token shards in order, for the worker: those of the plan, then those of this node's own text."""
        return self._paths(self.plan.plan)

    def _paths(self, plan: Plan) -> tuple[Path, ...]:
        shared = tuple(self._objects.path(h) for h in corpus_objects(plan)[0])
        return (*shared, *self._local_shards) if has_own(plan.data.source) else shared

    async def prepare_corpus(self, effect: PrepareCorpus) -> None:
        """→ `CorpusReady`, `CorpusMissing` or `CorpusUnusable`, of the plan as it is now."""
        self._reads |= effect.is_kept
        try:
            event = await self._on_pool(
                self._check_corpus, self.plan.plan, effect.number, effect.anew
            )
        except (PeerlmError, OSError) as error:
            event = events.CorpusUnusable(str(error), effect.number)
        self._post(event)

    def _check_corpus(self, plan: Plan, number: int, anew: bool) -> Event:
        token_shards, others = corpus_objects(plan)
        wanted = (*token_shards, *others) if self._reads else others
        missing = tuple(h for h in wanted if not self._is_whole(h, anew))
        gone = frozenset(missing)
        here = tuple((h, self._objects.size_bytes(h)) for h in wanted if h not in gone)
        if self._reads and gone.isdisjoint(others):
            self._prepare_local(plan)
        if missing:
            absent = [place for place, h in enumerate(token_shards) if h in gone]
            is_any = self._local_shards or len(absent) < len(token_shards)
            if self._reads and plan.data.shard_tokens and is_any:
                self._require_text(plan, absent)
            return events.CorpusMissing(missing, here, number)
        if self._reads:
            self._require_text(plan)
        return events.CorpusReady(here, number)

    def _require_text(self, plan: Plan, absent: Collection[int] = ()) -> None:
        """Each text is long enough for what a worker draws of it at once. Raises `ConfigError`, `ChunkCorrupt`: it is not, or
        what is here is not what the plan says."""
        data, paths = plan.data, self._paths(plan)
        sizes = data.shard_tokens
        parts = parts_of(plan, [path.name for path in paths])
        lanes = lanes_of(parts, plan.train.batch * self._settings.train.local_workers)
        for part, rows in zip(parts, lanes, strict=True):
            own, gaps = slice(part.places.start, part.places.stop), part.own(absent)
            corpus = shards.Corpus.open(paths[own], data.vocab, data.val_fraction, sizes[own], gaps)
            where = part.name if len(parts) > 1 else "corpus"
            if part.is_own:
                where = _OWN_TEXT
            context = plan.model.context
            shards.require_one_batch(corpus.tokens, data.val_fraction, rows, context, where)

    def _is_whole(self, object_hash: ObjectHash, anew: bool) -> bool:
        if not self._objects.has(object_hash):
            return False
        try:
            self._objects.verify(object_hash, anew=anew)
        except (ChunkCorrupt, Vanished):
            return False
        return True

    def _prepare_local(self, plan: Plan) -> None:
        """This node's own text, if the plan names it, cut into shards that are in no list of objects and never leave. Who has
        none does without where there is other text."""
        source = self._settings.data.local
        if not has_own(plan.data.source) or (not source and plan.data.source != OWN):
            return
        if not source:
            raise ConfigError(
                f"{_OWN_TEXT} is empty, but the plan says data.source = local: name this "
                "node's own text there"
            )
        if self._local_shards and all(path.is_file() for path in self._local_shards):
            return
        directory = self._state.local_text
        made = shards.prepare(
            source, self.tokenizer(), directory, vocab=plan.data.vocab, where=_OWN_TEXT
        )
        self._local_shards = tuple(shard.path for shard in made)

    def tokenizer(self) -> tokenizer.Tokenizer:
        data = self.tokenizer_file()
        return tokenizer.ByteTokenizer() if data is None else tokenizer.JsonTokenizer(data)

    def tokenizer_file(self) -> bytes | None:
        """The plan's tokenizer, or None for bytes."""
        _, others = corpus_objects(self.plan.plan)
        if not others:
            return None
        return self._objects.read(others[0], 0, self._objects.size_bytes(others[0]))

    # ------------------------------------------------------------------------------------ model

    async def write_model(self, tokens: int, slow: SlowWeights) -> None:
        """→ `ModelWritten` or `ModelFailed`."""
        try:
            directory = await self._on_pool(self._write_model, tokens, slow)
        except PeerlmError as error:
            self._post(events.ModelFailed(str(error)))
            return
        self._post(events.ModelWritten(str(directory)))

    def _write_model(self, tokens: int, slow: SlowWeights) -> Path:
        from peerlm.model.export import write_model  # its libraries are needed once in a run

        directory = self._state.model
        values = [slow.now(spec.id, lambda fragment: fragment.phi.copy()) for spec in self._specs]
        about = {"run": self._run_id.hex(), "tokens": str(tokens)}
        write_model(directory, self.plan.plan, values, self.tokenizer_file(), about)
        return directory

    async def _on_pool(self, call: Callable[..., R], *arguments: Any) -> R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._compute, call, *arguments)


def corpus_objects(plan: Plan) -> tuple[tuple[ObjectHash, ...], tuple[ObjectHash, ...]]:
    """(token shards in order, other objects the corpus needs: the tokenizer's file)."""
    token_shards = tuple(ObjectHash(bytes.fromhex(name)) for name in plan.data.shards)
    if plan.data.tokenizer == "bytes":
        return token_shards, ()
    return token_shards, (ObjectHash(bytes.fromhex(plan.data.tokenizer)),)


def tallies_of(found: Snapshot | None) -> tuple[tuple[PeerId, int, int], ...]:
    """The swarm's token count a snapshot knows of."""
    if found is None:
        return ()
    tokens = found.manifest.contents.tokens
    return tuple((peer, epoch, count) for (peer, epoch), count in sorted(tokens.items()))
