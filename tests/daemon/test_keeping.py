"""The disk side of a node: what fails there is an event, never the end of the daemon."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from peerlm import config, events
from peerlm.daemon.keeping import Keeping
from peerlm.daemon.slow_weights import SlowWeights
from peerlm.data import shards
from peerlm.effects import InstallObjects
from peerlm.errors import ChunkCorrupt, StateError
from peerlm.events import Event
from peerlm.identity.root import create_run, sign_plan
from peerlm.mix.fragment import SlowFragment
from peerlm.mix.sketch import sketch
from peerlm.model.plan import FragmentSpec, fragments
from peerlm.store import disk, snapshot
from peerlm.store.disk import StateDirectory
from peerlm.store.objects import Objects
from peerlm.store.snapshot import Contents, FragmentState, Snapshot
from peerlm.types import FragmentId, WallTime

KEPT = b"a shard that the plan names"


class Scene:
    """A `Keeping` on a folder, its posts and what it was told to have moved."""

    def __init__(self, folder: Path, pool: ThreadPoolExecutor) -> None:
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
        }
        plan = config.with_changes(config.preset("tiny"), changes, "scene")
        self.specs = fragments(plan)
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
    asyncio.run(scene.keeping.prepare_corpus())
    assert scene.posted == [events.CorpusUnusable("shard x: shorter than a header")]


def test_of_a_corpus_that_is_not_all_here_what_is_here_is_told(scene: Scene) -> None:
    texts = [shards.shard_bytes(np.full(n, 7, np.uint16), 256) for n in (5000, 600, 400)]
    names = [scene.objects.put(text) for text in texts]
    sizes = {"data.shards": [n.hex() for n in names], "data.shard_tokens": [5000, 600, 400]}
    root, plan = create_run("scene"), config.with_changes(scene.keeping.plan.plan, sizes, "scene")
    scene.keeping.plan = sign_plan(root, plan, revision=2)
    path = scene.objects.path(names[1])
    path.write_bytes(texts[1][:-1] + b"x")  # it rots
    asyncio.run(scene.keeping.prepare_corpus())
    here = tuple((names[i], len(texts[i])) for i in (0, 2))
    assert scene.posted == [events.CorpusMissing((names[1],), here)]
    assert not path.exists()

    scene.posted.clear()
    wrong = config.with_changes(plan, {"data.shard_tokens": [5000, 600, 401]}, "scene")
    scene.keeping.plan = sign_plan(root, wrong, revision=3)
    asyncio.run(scene.keeping.prepare_corpus())
    (told,) = scene.posted
    assert isinstance(told, events.CorpusUnusable)
    assert "shard 2 of the corpus has 400 tokens" in told.reason


def test_state_that_an_interrupted_fetch_left_goes_and_the_corpus_stays(scene: Scene) -> None:
    left = scene.objects.put(b"a fragment of long ago")
    scene.keeping.drop_leftovers()
    assert not scene.objects.has(left)
    assert not scene.objects.path(left).exists()
    assert len(scene.objects.files) == 1
    assert scene.objects.read(scene.objects.files[0], 0, len(KEPT)) == KEPT


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
