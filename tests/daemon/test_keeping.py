"""The disk side of a node: what fails there is an event, never the end of the daemon."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from peerlm import config, events
from peerlm.daemon.keeping import Keeping
from peerlm.daemon.slow_weights import SlowWeights
from peerlm.data import shards
from peerlm.data.mixture import Mixture
from peerlm.effects import InstallObjects, PrepareCorpus, Rehost, Send, WriteSnapshot
from peerlm.errors import ChunkCorrupt, ConfigError, StateError
from peerlm.events import Event
from peerlm.identity.root import create_run, sign_plan
from peerlm.mix.fragment import SlowFragment
from peerlm.mix.sketch import sketch
from peerlm.model.plan import FragmentSpec
from peerlm.model.stages import held_fragments
from peerlm.node.snapshots import Snapshots
from peerlm.store import disk, snapshot
from peerlm.store.layout import StateDirectory
from peerlm.store.objects import Objects
from peerlm.store.snapshot import Contents, FragmentState, Snapshot
from peerlm.types import FragmentId, Instant, ObjectHash, PeerId, WallTime
from peerlm.wire.message import PullAnswer, PullRequest

KEPT = b"a shard that the plan names"
ALL = range(100)


class Scene:
    """A `Keeping` on a folder, its posts and what it was told to have moved; of these stages, or of all."""

    def __init__(
        self, folder: Path, pool: ThreadPoolExecutor, held: range = ALL, **more: object
    ) -> None:
        self.posted: list[Event] = []
        self.moved: list[FragmentId] = []
        self.pool = pool
        self.state = StateDirectory(folder)
        self.objects = Objects(self.state)
        name = self.objects.put(KEPT).hex()
        changes = {
            "model.dim": 16,
            "model.heads": 2,
            "model.hidden": 16,
            "model.blocks": ["feedforward"],
            "data.shards": [name],
            **more,
        }
        plan = config.with_changes(config.preset("tiny"), changes, "scene")
        self.specs = held_fragments(plan, held)
        self.slow = SlowWeights(
            {s.id: SlowFragment(np.zeros(s.size, np.float32)) for s in self.specs}, pool
        )
        root = create_run("scene")
        self.keeping = Keeping(
            self.posted.append,
            self.state,
            self.objects,
            root.run_id,
            sign_plan(root, plan, revision=1),
            self.specs,
            config.NodeSettings(),
            1,
            pool,
            lambda: WallTime(0.0),
            self.moved.append,
        )


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with ThreadPoolExecutor(2) as pool:
        scene = Scene(tmp_path / "node", pool)
        yield scene
        scene.state.close()


def test_a_full_disk_at_the_end_of_the_run_is_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "pwrite", full)
        asyncio.run(scene.keeping.write_model(7, scene.slow))
    asyncio.run(scene.keeping.write_model(7, scene.slow))
    failed, written = scene.posted
    assert isinstance(failed, events.ModelFailed)
    assert "the disk is full" in failed.reason
    assert written == events.ModelWritten(str(scene.state.model))
    assert {p.stat().st_mode & 0o777 for p in scene.state.model.iterdir()} == {0o600}
    assert scene.state.model.stat().st_mode & 0o777 == 0o700


def test_a_corpus_that_is_no_corpus_is_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupt(*_: object) -> None:
        raise ChunkCorrupt("shard x: shorter than a header")

    monkeypatch.setattr(shards.Corpus, "open", corrupt)
    asyncio.run(scene.keeping.prepare_corpus(PrepareCorpus(number=1)))
    assert scene.posted == [events.CorpusUnusable("shard x: shorter than a header", 1)]


def test_of_a_corpus_that_is_not_all_here_what_is_here_is_told(scene: Scene) -> None:
    texts = [shards.shard_bytes(np.full(n, 7, np.uint16), 256) for n in (5000, 600, 400)]
    names = [scene.objects.put(text) for text in texts]
    sizes = {"data.shards": [n.hex() for n in names], "data.shard_tokens": [5000, 600, 400]}
    root, plan = create_run("scene"), config.with_changes(scene.keeping.plan.plan, sizes, "scene")
    scene.keeping.plan = sign_plan(root, plan, revision=2)
    path = scene.objects.path(names[1])
    path.write_bytes(texts[1][:-1] + b"x")  # it rots
    asyncio.run(scene.keeping.prepare_corpus(PrepareCorpus(number=1)))
    here = tuple((names[i], len(texts[i])) for i in (0, 2))
    assert scene.posted == [events.CorpusMissing((names[1],), here, 1)]
    assert not path.exists()

    scene.posted.clear()
    wrong = config.with_changes(plan, {"data.shard_tokens": [5000, 600, 401]}, "scene")
    scene.keeping.plan = sign_plan(root, wrong, revision=3)
    asyncio.run(scene.keeping.prepare_corpus(PrepareCorpus(number=1)))
    (told,) = scene.posted
    assert isinstance(told, events.CorpusUnusable)
    assert "shard 2 of the corpus has 400 tokens" in told.reason


def test_text_is_hashed_once_while_its_files_stay_as_they_are(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not each time a worker dies."""
    texts = [shards.shard_bytes(np.full(n, 7, np.uint16), 256) for n in (5000, 600)]
    names = [scene.objects.put(text) for text in texts]
    sizes = {"data.shards": [n.hex() for n in names], "data.shard_tokens": [5000, 600]}
    plan = config.with_changes(scene.keeping.plan.plan, sizes, "scene")
    scene.keeping.plan = sign_plan(create_run("scene"), plan, revision=2)
    hashed: list[str] = []
    hash_of = disk.ReadFile.hash

    def counted(file: disk.ReadFile, offset: int, length: int) -> ObjectHash:
        hashed.append(file.path.name)
        return hash_of(file, offset, length)

    monkeypatch.setattr(disk.ReadFile, "hash", counted)

    def check(*, anew: bool = False) -> type[Event]:
        scene.posted.clear()
        hashed.clear()
        asyncio.run(scene.keeping.prepare_corpus(PrepareCorpus(anew=anew)))
        return type(scene.posted[0])

    both = [name.hex() for name in names]
    assert (check(), hashed) == (events.CorpusReady, both)
    assert (check(), hashed) == (events.CorpusReady, [])
    assert (check(anew=True), hashed) == (events.CorpusReady, both)
    path = scene.objects.path(names[1])
    times = path.stat()
    path.write_bytes(texts[1][:-1] + b"x")  # of the same size, and as old as before
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (check(), hashed) == (events.CorpusMissing, both[1:])
    scene.objects.put(texts[1])
    assert (check(), hashed) == (events.CorpusReady, both[1:]), "what came is hashed, once"
    assert (check(), hashed) == (events.CorpusReady, [])


def test_a_check_is_of_one_plan_though_another_comes_while_it_goes_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shards.shard_bytes(np.full(5000, 7, np.uint16), 256)
    sizes = {"data.shards": [scene.objects.put(text).hex()], "data.shard_tokens": [5000]}
    root, plan = create_run("scene"), config.with_changes(scene.keeping.plan.plan, sizes, "scene")
    later = sign_plan(root, scene.keeping.plan.plan, revision=3)
    scene.keeping.plan = sign_plan(root, plan, revision=2)
    is_whole = scene.keeping._is_whole

    def meanwhile(object_hash: ObjectHash, anew: bool) -> bool:
        scene.keeping.plan = later
        return is_whole(object_hash, anew)

    monkeypatch.setattr(scene.keeping, "_is_whole", meanwhile)
    asyncio.run(scene.keeping.prepare_corpus(PrepareCorpus(number=7)))
    name = ObjectHash(bytes.fromhex(plan.data.shards[0]))
    assert scene.posted == [events.CorpusReady(((name, len(text)),), 7)]


@pytest.mark.parametrize("is_all_here", [True, False])
def test_of_a_mixture_each_text_must_do_for_its_own_rows_of_a_batch(
    scene: Scene, is_all_here: bool
) -> None:
    """A node with several devices draws a batch for each at a time."""
    before, rows = scene.keeping.plan.plan, 8 * 4
    window = before.model.context + 1
    counts = [12 * rows * window, (rows // 8 + 1) * window, 99]
    texts = [shards.shard_bytes(np.full(n, 7, np.uint16), before.data.vocab) for n in counts]
    names = [scene.objects.put(text) for text in texts]
    if not is_all_here:
        scene.objects.path(names[2]).unlink()
        scene.objects = scene.keeping._objects = Objects(scene.state)
    changes = {
        "data.source": "swarm:much*7+little*1",
        "data.shards": [name.hex() for name in names],
        "data.shard_tokens": counts,
        "data.parts": [1, 2],
        "data.val_fraction": 0.0,
        "train.batch": 8,
    }
    plan = config.with_changes(before, changes, "scene")
    scene.keeping.plan = sign_plan(create_run("scene"), plan, revision=2)
    for devices, is_enough in ((4, True), (8, False)):
        train = replace(scene.keeping._settings.train, local_workers=devices)
        scene.keeping._settings = replace(scene.keeping._settings, train=train)
        paths, me = scene.keeping.corpus_paths(), PeerId(bytes(16))
        absent = () if is_all_here else (2,)
        if is_enough:
            Mixture.open(paths, plan, me, 8 * devices, absent)
        else:
            with pytest.raises(ConfigError, match="shorter than one batch"):
                Mixture.open(paths, plan, me, 8 * devices, absent)
        scene.posted.clear()
        asyncio.run(scene.keeping.prepare_corpus(PrepareCorpus()))
        (told,) = scene.posted
        assert isinstance(told, events.CorpusUnusable) is not is_enough
        if isinstance(told, events.CorpusUnusable):
            assert "little is shorter than one batch" in told.reason


def test_state_that_an_interrupted_fetch_left_goes_and_the_corpus_stays(scene: Scene) -> None:
    left = scene.objects.put(b"a fragment of long ago")
    scene.keeping.drop_leftovers()
    assert not scene.objects.has(left)
    assert not scene.objects.path(left).exists()
    assert len(scene.objects.files) == 1
    assert scene.objects.read(scene.objects.files[0], 0, len(KEPT)) == KEPT


def test_text_of_ones_own_is_given_to_nobody_who_knows_its_hash(
    scene: Scene, tmp_path: Path
) -> None:
    """Nor is it on a shelf from which something else could give it, now or after a start."""
    text = tmp_path / "letters.txt"
    text.write_text("Dear Sir, this is between the two of us.\n" * 4000)
    local = {"data.source": "local", "data.shards": []}
    plan = config.with_changes(scene.keeping.plan.plan, local, "scene")
    scene.keeping.plan = sign_plan(create_run("scene"), plan, revision=2)
    scene.keeping._settings = replace(
        scene.keeping._settings, data=config.LocalDataSection(local=str(text))
    )
    asyncio.run(scene.keeping.prepare_corpus(PrepareCorpus(number=1)))
    assert scene.posted == [events.CorpusReady((), 1)], "nothing of it is told"
    (shard,) = scene.keeping.corpus_paths()
    secret = ObjectHash(blake3(shard.read_bytes()).digest())
    assert scene.state.local_text in shard.parents

    snapshots = Snapshots(60.0, None, Instant(0.0))
    snapshots.corpus = scene.posted[0].objects
    asked = PullRequest(b"t" * 16, secret, b"u" * 32, b"d" * 32)
    (refused,) = snapshots.donate(PeerId(b"p" * 16), asked, Instant(0.0), active=True, taken=False)
    assert isinstance(refused, Send)
    assert refused.message == PullAnswer(asked.transfer, "refuse", "no such object", 0)
    for objects in (scene.objects, Objects(scene.state)):
        assert not objects.has(secret)
        assert not objects.has_chunk(secret)
        with pytest.raises(StateError):
            objects.read(secret, 0, 16)


@pytest.mark.parametrize("is_all_here", [True, False])
def test_text_of_ones_own_comes_after_the_shards_of_the_others(
    scene: Scene, tmp_path: Path, is_all_here: bool
) -> None:
    """Who has none reads the others alone, and what is too short is said, also before the others are here."""
    letters = tmp_path / "letters.txt"
    letters.write_text("Dear Sir, this is between the two of us.\n" * 4000)
    before = scene.keeping.plan.plan
    text = shards.shard_bytes(np.full(50_000, 7, np.uint16), before.data.vocab)
    name = scene.objects.put(text)
    if not is_all_here:
        scene.objects.path(name).unlink()
        scene.objects = scene.keeping._objects = Objects(scene.state)
    changes = {
        "data.source": "swarm:plays*7+local*3",
        "data.shards": [name.hex()],
        "data.shard_tokens": [50_000],
        "data.parts": [1, 0],
    }
    plan = config.with_changes(before, changes, "scene")
    scene.keeping.plan = sign_plan(create_run("scene"), plan, revision=2)
    settings = scene.keeping._settings

    def told(source: str) -> Event:
        data = config.LocalDataSection(local=source)
        scene.keeping._settings = replace(settings, data=data)
        scene.posted.clear()
        asyncio.run(scene.keeping.prepare_corpus(PrepareCorpus()))
        (event,) = scene.posted
        return event

    here = events.CorpusReady(((name, len(text)),))
    expected = here if is_all_here else events.CorpusMissing((name,))
    shared = scene.objects.path(name)
    assert told("") == expected
    assert scene.keeping.corpus_paths() == (shared,)
    (tmp_path / "short.txt").write_text("Dear Sir,\n")
    short = told(str(tmp_path / "short.txt"))
    assert isinstance(short, events.CorpusUnusable)
    assert "node.toml: data.local is shorter than one batch" in short.reason
    scene.keeping._local_shards = ()
    assert told(str(letters)) == expected, "nothing of it is told"
    first, own = scene.keeping.corpus_paths()
    assert first == shared
    assert own.parent == scene.state.local_text
    mixture = Mixture.open((first, own), plan, PeerId(bytes(16)), 8, () if is_all_here else (0,))
    assert mixture.shares == (0.7, 0.3)
    letters.unlink()
    assert told(str(letters)) == expected, "it is read once"


def test_weights_from_peers_reach_a_worker_that_runs(scene: Scene) -> None:
    seed = scene.keeping.plan.plan.run.rng_seed
    entries = []
    for spec in scene.specs:
        values = np.full(spec.size, 0.5, np.float32)
        shown = tuple(float(x) for x in sketch(values, seed, spec.id))
        entries.append((spec.id, 3, scene.objects.put(values.tobytes()), shown))
    told = []
    scene.keeping._post = lambda event: told.append((event, tuple(scene.moved)))
    asyncio.run(scene.keeping.install_objects(InstallObjects(tuple(entries)), scene.slow))
    every = tuple(spec.id for spec in scene.specs)
    assert told == [(events.StateInstalled("peers"), every)]


def test_an_optimizer_is_of_the_weights_that_it_was_kept_beside(scene: Scene) -> None:
    """Others in their place make it void, unless a person has put it beside a node that had none."""
    scene.state.moments.write_bytes(b"of a checkpoint")
    seed, values = scene.keeping.plan.plan.run.rng_seed, np.zeros(scene.specs[0].size, np.float32)
    shown = tuple(float(x) for x in sketch(values, seed, scene.specs[0].id))

    async def installed() -> bool:
        entry = (scene.specs[0].id, 3, scene.objects.put(values.tobytes()), shown)
        await scene.keeping.install_objects(InstallObjects((entry,)), scene.slow)
        return scene.state.moments.exists()

    assert asyncio.run(installed())
    with_snapshot_of(scene, list(scene.specs))
    assert scene.state.moments.exists()
    assert not asyncio.run(installed())


# ----------------------------------------------------------- a snapshot, and another holding


def with_snapshot_of(scene: Scene, held: list[FragmentSpec]) -> Snapshot:
    """Leave a snapshot of these fragments behind, as an earlier start with another holding did."""
    states = (FragmentState(s.id, 3, *2 * (np.full(s.size, s.id, np.float32),), ()) for s in held)
    contents = Contents(scene.keeping._run_id, b"p" * 32, 1, {}, 0, 1, WallTime(0.0), False)
    return snapshot.write(scene.state, contents, held, states, 1 << 40)


def test_a_snapshot_of_more_than_is_held_now_is_gone_on_from(scene: Scene) -> None:
    with_snapshot_of(scene, list(scene.specs))
    kept = scene.specs[1:]
    scene.keeping._specs, scene.keeping._spec = kept, {s.id: s for s in kept}
    slow = SlowWeights({s.id: SlowFragment(np.zeros(s.size, np.float32)) for s in kept}, scene.pool)
    scene.keeping.find_snapshot()
    assert scene.keeping.restored is not None
    asyncio.run(scene.keeping.install_snapshot(slow))
    assert scene.posted == [events.StateInstalled("snapshot")]
    for spec in kept:
        fragment = slow.now(spec.id, lambda f: (f.version, float(f.phi[0]), float(f.momentum[0])))
        assert fragment == (3, spec.id, spec.id)


def test_a_snapshot_that_lacks_what_is_held_now_is_passed_over_with_a_note(scene: Scene) -> None:
    written = with_snapshot_of(scene, list(scene.specs[1:]))
    scene.keeping.find_snapshot()
    assert scene.keeping.restored is None
    (note,) = scene.keeping.notes
    assert str(written.path) in note
    assert "fetched from peers" in note
    assert written.path.exists()


def test_a_snapshot_of_another_model_ends_the_start(scene: Scene) -> None:
    one, *others = scene.specs
    with_snapshot_of(scene, [replace(one, size=one.size + 1), *others])
    with pytest.raises(StateError, match="another model"):
        scene.keeping.find_snapshot()


def test_what_a_node_goes_on_with_is_its_newest_snapshot(scene: Scene) -> None:
    """Another that falls due while it moves to other stages lacks what it is to hold."""

    async def run() -> None:
        await scene.keeping.write_snapshot(WriteSnapshot(5, 5, False, ()), scene.slow)
        last = WriteSnapshot(7, 7, False, ())
        await scene.keeping.write_for(Rehost(0, 1, (), True, last), scene.slow)
        await scene.keeping.write_snapshot(WriteSnapshot(9, 9, False, ()), scene.slow)

    asyncio.run(run())
    assert [type(event) for event in scene.posted] == [events.SnapshotWritten]
    found = snapshot.load(scene.state).snapshot
    assert found is not None
    assert (found.manifest.number, found.manifest.contents.own_tokens) == (2, 7)
