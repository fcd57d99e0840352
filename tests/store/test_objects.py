"""Objects: only whole and right bytes get a name, and a name serves from wherever they lie."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from peerlm.errors import ChunkCorrupt, StateError, WireError
from peerlm.model.plan import FragmentSpec
from peerlm.store import snapshot
from peerlm.store.layout import Layout, StateDirectory
from peerlm.store.objects import PIECE_BYTES, Objects
from peerlm.store.snapshot import Contents, FragmentState, Snapshot
from peerlm.types import FragmentId, ObjectHash, RunId, WallTime

TEXT = random.Random(1).randbytes(2 * PIECE_BYTES + 17)


def name_of(data: bytes) -> ObjectHash:
    return ObjectHash(blake3(data).digest())


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    StateDirectory(tmp_path).close()
    return Layout(tmp_path)


@pytest.fixture
def objects(layout: Layout) -> Objects:
    return Objects(layout)


def pieces(data: bytes) -> list[tuple[int, bytes]]:
    return [(at, data[at : at + PIECE_BYTES]) for at in range(0, len(data), PIECE_BYTES)]


def snapshot_of(layout: Layout, *values: float) -> Snapshot:
    """A snapshot with a fragment of ten equal values for each value."""
    specs = [FragmentSpec(FragmentId(i), f"f{i}", "m", (), 10) for i in range(len(values))]
    states = [
        FragmentState(spec.id, 1, np.full(10, v, np.float32), np.full(10, 2 * v, np.float32), ())
        for spec, v in zip(specs, values, strict=True)
    ]
    contents = Contents(RunId(b"r" * 16), b"p" * 32, 1, {}, 0, 1, WallTime(0.0))
    return snapshot.write(layout, contents, specs, states)


def test_kept_bytes_are_found_by_their_hash_after_a_restart(
    layout: Layout, objects: Objects
) -> None:
    name = objects.put(b"to be or not to be")
    assert name == name_of(b"to be or not to be")
    assert objects.put(b"to be or not to be") == name
    again = Objects(layout)
    assert again.has(name)
    assert again.size_bytes(name) == 18
    assert again.read(name, 3, 2) == b"be"
    assert again.path(name).read_bytes() == b"to be or not to be"


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (0, 19), (18, 1), (3, -1), (2**63, 1)])
def test_a_peer_cannot_read_past_an_object(objects: Objects, offset: int, length: int) -> None:
    name = objects.put(b"to be or not to be")
    with pytest.raises(WireError, match="it has 18 bytes"):
        objects.read(name, offset, length)


def test_what_is_not_here_is_said(objects: Objects) -> None:
    missing = name_of(b"missing")
    assert not objects.has(missing)
    with pytest.raises(StateError, match="is not kept here"):
        objects.read(missing, 0, 1)
    with pytest.raises(StateError, match="is not kept here"):
        objects.size_bytes(missing)


def test_pieces_arrive_in_any_order_and_twice(objects: Objects) -> None:
    partial = objects.begin(name_of(TEXT), len(TEXT))
    for offset, data in reversed(pieces(TEXT)):
        assert not partial.is_complete
        partial.write_at(offset, data)
        partial.write_at(offset, data)
    assert partial.is_complete
    assert not objects.has(name_of(TEXT))
    partial.finish()
    assert objects.read(name_of(TEXT), 0, len(TEXT)) == TEXT


def test_an_empty_object_is_an_object(objects: Objects) -> None:
    objects.begin(name_of(b""), 0).finish()
    assert objects.read(name_of(b""), 0, 0) == b""


@pytest.mark.parametrize(
    ("offset", "length"),
    [(1, PIECE_BYTES), (0, PIECE_BYTES - 1), (0, PIECE_BYTES + 1), (-PIECE_BYTES, PIECE_BYTES),
     (2 * PIECE_BYTES, 18), (3 * PIECE_BYTES, 1), (3 * PIECE_BYTES, 0)],
)  # fmt: skip
def test_what_is_no_piece_is_the_peers_fault(objects: Objects, offset: int, length: int) -> None:
    partial = objects.begin(name_of(TEXT), len(TEXT))
    with pytest.raises(WireError, match="are no piece of object"):
        partial.write_at(offset, bytes(length))
    assert partial.received_bytes == 0
    partial.discard()


def test_wrong_or_missing_bytes_are_discarded(layout: Layout, objects: Objects) -> None:
    wrong = bytearray(TEXT)
    wrong[-1] ^= 1
    partial = objects.begin(name_of(TEXT), len(TEXT))
    for offset, data in pieces(bytes(wrong)):
        partial.write_at(offset, data)
    with pytest.raises(ChunkCorrupt, match="does not hash to its name"):
        partial.finish()
    partial = objects.begin(name_of(TEXT), len(TEXT))
    partial.write_at(*pieces(TEXT)[0])
    with pytest.raises(ChunkCorrupt, match=f"after {PIECE_BYTES} of {len(TEXT)} bytes"):
        partial.finish()
    assert os.listdir(layout.objects) == []
    assert not objects.has(name_of(TEXT))


def test_a_rotten_object_is_found_and_removed(objects: Objects) -> None:
    good, bad = objects.put(b"good"), objects.put(b"bad!")
    objects.path(bad).write_bytes(b"rot!")
    objects.verify(good)
    with pytest.raises(ChunkCorrupt, match="has changed"):
        objects.read_into(bad, memoryview(bytearray(4)))
    with pytest.raises(ChunkCorrupt, match="has changed"):
        objects.verify(bad)
    assert not objects.has(bad)
    with pytest.raises(ChunkCorrupt, match="has 4 bytes, not 5"):
        objects.read_into(good, memoryview(bytearray(5)))


def test_the_disk_limit_holds_for_objects_too(layout: Layout) -> None:
    objects = Objects(layout, disk_limit_bytes=1000)
    objects.put(bytes(900))
    with pytest.raises(StateError, match=r"limits\.disk_bytes"):
        objects.begin(name_of(TEXT), len(TEXT))
    with pytest.raises(StateError, match=r"limits\.disk_bytes"):
        objects.put(bytes(901))


def test_what_is_on_its_way_counts_against_the_limit(layout: Layout) -> None:
    objects = Objects(layout, disk_limit_bytes=3 * len(TEXT) // 2)
    first = objects.begin(name_of(TEXT), len(TEXT))
    with pytest.raises(StateError, match=r"limits\.disk_bytes"):
        objects.begin(name_of(b"another"), len(TEXT))
    first.discard()
    objects.begin(name_of(b"another"), len(TEXT)).discard()


# ------------------------------------------------------------------------ fragments of snapshots


def test_a_snapshots_fragments_are_objects(layout: Layout, objects: Objects) -> None:
    written = snapshot_of(layout, 3.0, 5.0)
    objects.register_snapshot(written)
    second = written.manifest.fragments[1]
    assert objects.size_bytes(second.phi.hash) == 40
    assert objects.read(second.phi.hash, 4, 8) == np.full(2, 5.0, "f4").tobytes()
    with pytest.raises(WireError):
        objects.read(second.phi.hash, 0, 41)
    out = np.empty(10, np.float32)
    objects.read_into(second.momentum.hash, out.data.cast("B"))
    assert (out == 10.0).all()


def test_donation_goes_on_after_the_snapshot_was_removed(layout: Layout, objects: Objects) -> None:
    objects.register_snapshot(snapshot_of(layout, 3.0, 7.0))
    first = snapshot.load(layout).snapshot
    assert first is not None
    for value in (4.0, 5.0, 6.0):
        objects.register_snapshot(snapshot_of(layout, value, 7.0))
    assert not first.path.exists()
    moved, constant = (record.phi.hash for record in first.manifest.fragments)
    assert objects.read(moved, 0, 4) == np.float32(3.0).tobytes()
    assert objects.registered_snapshots == (1, 2, 3, 4)
    objects.retire_snapshot(1)
    assert not objects.has(moved)
    assert objects.has(constant), "a later snapshot has the same bytes"
    objects.retire_snapshot(1)


def test_readers_in_other_threads_survive_retirement(layout: Layout, objects: Objects) -> None:
    written = snapshot_of(layout, 3.0)
    name = written.manifest.fragments[0].phi.hash
    expected = np.full(10, 3.0, "f4").tobytes()
    answers: set[bytes | str] = set()

    def read_often() -> None:
        for _ in range(300):
            try:
                answers.add(objects.read(name, 0, 40))
            except StateError as error:
                answers.add(str(error))

    reader = threading.Thread(target=read_often)
    reader.start()
    while reader.is_alive():
        objects.register_snapshot(written)
        objects.retire_snapshot(written.manifest.number)
    reader.join()
    assert answers <= {expected, f"object {name.hex()[:8]} is not kept here"}
