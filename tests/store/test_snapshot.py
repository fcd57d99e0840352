"""Slow weights on disk: whatever dies or rots, a complete snapshot is left."""

from __future__ import annotations

import errno
import os
import random
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from safetensors.numpy import load_file
from sudden_death import kill_after

from peerlm.errors import ChunkCorrupt, StateError
from peerlm.store import disk, snapshot
from peerlm.store.layout import Layout, StateDirectory
from peerlm.store.snapshot import Contents, FragmentState, LoadResult, Snapshot
from peerlm.types import FragmentId, PeerId, RunId, WallTime

ALICE, BOB = PeerId(b"a" * 16), PeerId(b"b" * 16)


@dataclass(frozen=True)
class Shape:
    id: FragmentId
    name: str
    size: int


SHAPES = [Shape(FragmentId(0), "embedding", 700), Shape(FragmentId(1), "blocks.0.attention", 301)]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    StateDirectory(tmp_path).close()
    return Layout(tmp_path)


def contents_at(tokens: int) -> Contents:
    return Contents(
        run_id=RunId(b"r" * 16),
        plan_hash=b"p" * 32,
        plan_revision=3,
        tokens={(ALICE, 7): tokens, (BOB, 1): 10},
        own_tokens=tokens,
        epoch=7,
        wall=WallTime(1_800_000_000.25),
    )


def states_of(version: int, shapes: list[Shape] = SHAPES) -> Iterator[FragmentState]:
    """Weights in which every value tells the version, so that a mixture is seen."""
    for shape in shapes:
        phi = np.full(shape.size, version, np.float32)
        yield FragmentState(shape.id, version, phi, -phi, (version / 3, 1e-30))


def commit(layout: Layout, version: int) -> Snapshot:
    return snapshot.write(layout, contents_at(version), SHAPES, states_of(version))


def loaded(result: LoadResult) -> int:
    """The version in a loaded snapshot, after every value in it has been compared."""
    assert result.snapshot is not None, result.notes
    manifest, file = result.snapshot.manifest, result.snapshot.open()
    version = manifest.fragments[0].version
    assert manifest.contents == contents_at(version)
    for shape, record in zip(SHAPES, manifest.fragments, strict=True):
        assert (record.id, record.name, record.version) == (shape.id, shape.name, version)
        assert record.sketch == (version / 3, 1e-30)
        phi, momentum = np.empty((2, shape.size), np.float32)
        snapshot.read_array(file, record.phi, phi)
        snapshot.read_array(file, record.momentum, momentum)
        assert (phi == version).all()
        assert (momentum == -version).all()
    return version


def names(layout: Layout) -> list[str]:
    return sorted(os.listdir(layout.snapshots))


def test_what_is_written_is_loaded(layout: Layout) -> None:
    assert snapshot.load(layout) == LoadResult(None, (), ())
    written = commit(layout, 1)
    result = snapshot.load(layout)
    assert result == LoadResult(written, (), ())
    assert loaded(result) == 1
    assert result.snapshot is not None
    assert result.snapshot.manifest.contents.swarm_tokens == 11


def test_the_data_file_is_a_safetensors_file(layout: Layout) -> None:
    tensors = load_file(commit(layout, 4).path)
    assert sorted(tensors) == [
        "momentum.blocks.0.attention", "momentum.embedding", "phi.blocks.0.attention", "phi.embedding",
    ]  # fmt: skip
    assert (tensors["phi.blocks.0.attention"] == np.full(301, 4, np.float32)).all()
    assert (tensors["momentum.embedding"] == np.full(700, -4, np.float32)).all()


def test_the_newest_two_are_kept_and_numbers_only_rise(layout: Layout) -> None:
    for version in range(1, 5):
        commit(layout, version)
    assert [name for name in names(layout) if name.endswith(".manifest")] == [
        "snapshot-00000003.manifest",
        "snapshot-00000004.manifest",
    ]
    assert len(names(layout)) == 4


def test_an_old_one_that_cannot_be_removed_keeps_no_new_one_from_being_written(
    layout: Layout,
) -> None:
    for version in (1, 2):
        commit(layout, version)
    (layout.snapshots / "snapshot-00000001.manifest").unlink()
    (layout.snapshots / "snapshot-00000001.manifest").mkdir()
    written = commit(layout, 3)
    assert "cannot remove" in written.trouble
    assert loaded(snapshot.load(layout)) == 3
    assert commit(layout, 4).trouble
    assert "snapshot-00000002.manifest" not in names(layout), "the others are removed"


def test_one_fragment_at_a_time_is_taken_from_the_caller(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = []
    write_at = disk.AtomicFile.write_at
    monkeypatch.setattr(
        disk.AtomicFile, "write_at", lambda *a: (trace.append("write"), write_at(*a))[1]
    )

    def one_by_one() -> Iterator[FragmentState]:
        for state in states_of(1):
            trace.append("take")
            yield state

    snapshot.write(layout, contents_at(1), SHAPES, one_by_one())
    assert trace == ["write", "take", "write", "write", "take", "write", "write", "write"]


def test_neither_writing_nor_loading_makes_a_second_copy(layout: Layout) -> None:
    large = [Shape(FragmentId(0), "large", 3 << 20)]
    states = list(states_of(1, large))
    tracemalloc.start()
    snapshot.write(layout, contents_at(1), large, states)
    assert snapshot.load(layout).snapshot is not None
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2 * disk.BLOCK_BYTES


def test_kill_9_at_any_instant_leaves_the_last_committed_or_the_one_in_the_making(
    layout: Layout,
) -> None:
    shapes_seen, rng = set(), random.Random(11)
    commit(layout, 1)
    begun = time.perf_counter()
    commit(layout, 2)
    one_write_s = time.perf_counter() - begun

    for _ in range(60):
        before = loaded(snapshot.load(layout))
        told, tell = os.pipe()

        def write_for_ever(first: int = before + 1, tell: int = tell) -> None:
            for version in range(first, 1 << 20):
                commit(layout, version)
                os.write(tell, b"!")

        kill_after(rng.uniform(0, min(0.05, 3 * one_write_s)), write_for_ever)
        os.close(tell)
        committed = before + len(os.read(told, 1 << 16))
        os.close(told)

        result = snapshot.load(layout)
        assert loaded(result) in (committed, committed + 1)
        assert result.notes == (), "a death is no damage"
        shapes_seen.add(tuple(name.split(".")[-1] for name in names(layout)))
    assert len(shapes_seen) > 2, "the kills never hit a write: the test proves nothing"

    last = loaded(snapshot.load(layout))
    commit(layout, last + 1)
    assert len(names(layout)) == 4, "litter of the dead is swept"


def test_a_flipped_bit_anywhere_falls_back_to_the_one_before_and_says_so(layout: Layout) -> None:
    commit(layout, 1)
    newest = commit(layout, 2)
    rng = random.Random(2)
    manifest = layout.snapshots / "snapshot-00000002.manifest"
    for path in (newest.path, manifest):
        whole = path.read_bytes()
        places = {0, 7, 8, len(whole) - 1, *rng.sample(range(len(whole)), 150)}
        for place in sorted(places):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            result = snapshot.load(layout)
            assert loaded(result) == 1, f"bit flip at {place} of {path.name} went unseen"
            assert result.damaged == (2,)
            assert result.notes[0].startswith("snapshot 2 cannot be used: ")
            assert result.notes[1] == "going on from snapshot 1, taken at 11 tokens of the swarm"
            assert not any("\n" in note for note in result.notes)
        path.write_bytes(whole)
    assert loaded(snapshot.load(layout)) == 2


@pytest.mark.parametrize("suffix", ["safetensors", "manifest"])
@pytest.mark.parametrize("keep", [0, 1, 100, -1, None])
def test_a_truncated_missing_or_longer_file_falls_back(
    layout: Layout, suffix: str, keep: int | None
) -> None:
    commit(layout, 1)
    commit(layout, 2)
    path = layout.snapshots / f"snapshot-00000002.{suffix}"
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" if keep is None else whole[:keep])
    result = snapshot.load(layout)
    assert loaded(result) == 1
    assert len(result.notes) == 2
    if suffix == "safetensors":
        path.unlink()
        assert loaded(snapshot.load(layout)) == 1


def test_when_all_are_damaged_there_is_none_and_nothing_is_removed(layout: Layout) -> None:
    for version in (1, 2):
        commit(layout, version).path.write_bytes(b"rot")
    result = snapshot.load(layout)
    assert result.snapshot is None
    assert result.damaged == (2, 1)
    assert len(result.notes) == 2
    assert len(names(layout)) == 4


def test_the_damaged_one_can_be_removed_so_that_the_good_one_outlives_the_next(
    layout: Layout,
) -> None:
    commit(layout, 1)
    commit(layout, 2).path.write_bytes(b"rot")
    for number in snapshot.load(layout).damaged:
        snapshot.remove(layout, number)
    commit(layout, 3).path.write_bytes(b"rot too")
    assert loaded(snapshot.load(layout)) == 1


def test_another_format_is_named(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "FORMAT", "peerlm-snapshot-9")
    commit(layout, 1)
    monkeypatch.undo()
    (note,) = snapshot.load(layout).notes
    assert "is of format peerlm-snapshot-9, this peerlm reads peerlm-snapshot-1" in note


def test_a_manifest_of_another_shape_is_damage_and_no_traceback(layout: Layout) -> None:
    commit(layout, 1)
    text = b'{"format": "peerlm-snapshot-1", "number": []}'
    manifest = blake3(text).hexdigest().encode() + b"\n" + text
    (layout.snapshots / "snapshot-00000001.manifest").write_bytes(manifest)
    (note,) = snapshot.load(layout).notes
    assert "is not a manifest: KeyError('run_id')" in note


def test_an_array_that_changes_after_loading_is_noticed(layout: Layout) -> None:
    written = commit(layout, 1)
    record = written.manifest.fragments[0]
    with written.path.open("r+b") as file:
        file.seek(record.phi.offset + 9)
        file.write(b"\xff")
    with pytest.raises(ChunkCorrupt, match="have changed"):
        snapshot.read_array(written.open(), record.phi, np.empty(700, np.float32))


# ------------------------------------------------------------------------------ when it cannot


def test_no_room_is_said_before_anything_is_written(small_disk: Path) -> None:
    StateDirectory(small_disk).close()
    layout = Layout(small_disk)
    commit(layout, 1)
    large = [Shape(FragmentId(0), "large", 1 << 20)]
    with pytest.raises(StateError, match=r"no room for a snapshot .* it needs 8\.4 MB"):
        snapshot.write(layout, contents_at(2), large, states_of(2, large))
    assert loaded(snapshot.load(layout)) == 1
    assert len(names(layout)) == 2


def test_a_disk_that_fills_up_meanwhile_leaves_the_previous_one(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    StateDirectory(small_disk).close()
    layout = Layout(small_disk)
    commit(layout, 1)
    monkeypatch.setattr(disk, "check_room", lambda *_: None)
    large = [Shape(FragmentId(0), "large", 1 << 20)]
    with pytest.raises(StateError, match="the disk is full; free some space"):
        snapshot.write(layout, contents_at(2), large, states_of(2, large))
    assert loaded(snapshot.load(layout)) == 1
    assert len(names(layout)) == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename"])
def test_any_call_may_fail_at_any_time(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    commit(layout, 1)
    whole = getattr(os, call)
    for allowed in range(20):
        left = [allowed]

        def refuse(*args: object, left: list[int] = left) -> object:
            if not left[0]:
                raise OSError(code, os.strerror(code))
            left[0] -= 1
            return whole(*args)

        monkeypatch.setattr(disk.os, call, refuse)
        with suppress(StateError):
            commit(layout, 2)
            monkeypatch.undo()
            break
        monkeypatch.undo()
        assert loaded(snapshot.load(layout)) in (1, 2)
        assert not any(name.endswith(".tmp") for name in names(layout))
    assert allowed > 1, "the failures never hit the write"
    assert loaded(snapshot.load(layout)) == 2


def test_the_disk_limit_skips_the_snapshot_and_says_so(layout: Layout) -> None:
    commit(layout, 1)
    used = disk.usage_bytes(layout.root)
    with pytest.raises(StateError, match=r"limits\.disk_bytes allows"):
        snapshot.write(layout, contents_at(2), SHAPES, states_of(2), disk_limit_bytes=used + 9000)
    assert loaded(snapshot.load(layout)) == 1
    snapshot.write(layout, contents_at(2), SHAPES, states_of(2), disk_limit_bytes=used + 90_000)
    assert loaded(snapshot.load(layout)) == 2


def test_fragments_out_of_order_are_our_own_bug_and_commit_nothing(layout: Layout) -> None:
    with pytest.raises(AssertionError, match="came where 0 was due"):
        snapshot.write(layout, contents_at(1), SHAPES, reversed(list(states_of(1))))
    wrong = [replace(state, phi=state.phi.astype(np.float64)) for state in states_of(1)]
    with pytest.raises(AssertionError, match="not float32"):
        snapshot.write(layout, contents_at(1), SHAPES, wrong)
    assert names(layout) == []
