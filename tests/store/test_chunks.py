"""What is kept for the swarm's store: durable, found by its hash, never returned damaged, and only dropped on purpose."""

from __future__ import annotations

import errno
import os
import random
import resource
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from peerlm.errors import ChunkCorrupt, PeerlmError, StateError, Vanished
from peerlm.store import disk, room
from peerlm.store.layout import Layout, StateDirectory
from peerlm.store.manifest import MANIFEST_BYTES_MAX
from peerlm.store.objects import PIECE_BYTES, Arriving, Objects, Partial
from peerlm.types import ObjectHash

DATA = random.Random(1).randbytes(3000)
OTHER = random.Random(2).randbytes(500)


def name_of(data: bytes) -> ObjectHash:
    return ObjectHash(blake3(data).digest())


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    StateDirectory(tmp_path).close()
    return Layout(tmp_path)


@pytest.fixture
def objects(layout: Layout) -> Objects:
    return Objects(layout)


def kept(layout: Layout) -> list[str]:
    return sorted(os.listdir(layout.chunks))


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def one_line(call: Callable[[], object], says: str) -> StateError:
    with pytest.raises(StateError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value


# --------------------------------------------------------------------------------------- keeping


def test_a_chunk_is_found_after_a_restart_in_a_folder_of_its_own(
    layout: Layout, objects: Objects
) -> None:
    name = objects.put_chunk(DATA)
    assert name == name_of(DATA) == objects.put_chunk(DATA)
    assert kept(layout) == [name.hex()]
    assert (layout.chunks / name.hex()).stat().st_mode & 0o777 == 0o600
    for each in (objects, Objects(layout)):
        assert each.chunks == ((name, len(DATA)),)
        assert each.files == ()
        assert each.has(name)
        assert each.has_chunk(name)
        assert each.size_bytes(name) == len(DATA)
        assert each.path(name) == layout.chunks / name.hex()
        assert each.read(name, 7, 5) == DATA[7:12]
        out = bytearray(len(DATA))
        each.read_into(name, memoryview(out))
        assert out == DATA == each.read_verified(name) == each.read_verified(name, from_device=True)
        each.verify(name)


def test_a_chunk_is_durable_before_its_name_is_returned(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = []
    fsync, rename = os.fsync, os.rename

    def traced_fsync(fd: int) -> None:
        trace.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    monkeypatch.setattr(disk.os, "fsync", traced_fsync)
    monkeypatch.setattr(disk.os, "rename", lambda *a: (trace.append("rename"), rename(*a)))
    objects.put_chunk(DATA)
    assert trace == ["file", "rename", "directory"]


def test_a_chunk_can_be_pulled(layout: Layout, objects: Objects) -> None:
    whole = random.Random(3).randbytes(PIECE_BYTES + 9)
    partial = objects.begin(name_of(whole), len(whole), is_chunk=True)
    partial.write_at(PIECE_BYTES, whole[PIECE_BYTES:])
    assert not objects.has(name_of(whole))
    partial.write_at(0, whole[:PIECE_BYTES])
    partial.finish()
    assert objects.chunks == ((name_of(whole), len(whole)),)
    assert objects.read_verified(name_of(whole)) == whole
    assert kept(layout) == [name_of(whole).hex()]


def test_what_is_an_object_already_gets_a_second_name(layout: Layout, objects: Objects) -> None:
    name = objects.put(DATA)
    objects.put_chunk(DATA)
    assert (layout.chunks / name.hex()).samefile(layout.objects / name.hex())
    assert objects.files == (name,)
    objects.remove(name)
    assert objects.files == ()
    assert objects.read_verified(name) == DATA
    assert Objects(layout).chunks == ((name, len(DATA)),)


@pytest.mark.parametrize("how", ["rotten", "no links"])
def test_what_cannot_be_linked_is_written(
    layout: Layout, objects: Objects, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    name = objects.put(DATA)
    if how == "rotten":
        spoil(layout.objects / name.hex())
    else:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    objects.put_chunk(DATA)
    assert (layout.chunks / name.hex()).read_bytes() == DATA
    assert objects.read_verified(name) == DATA


def test_dropping_and_removing_touch_one_folder_each(layout: Layout, objects: Objects) -> None:
    name = objects.put(DATA)
    objects.put_chunk(DATA)
    objects.drop_chunk(name)
    assert objects.chunks == ()
    assert kept(layout) == []
    assert objects.read_verified(name) == DATA
    objects.put_chunk(DATA)
    objects.remove(name)
    objects.remove(name)
    assert objects.chunks == ((name, len(DATA)),), "only drop_chunk takes from the store"
    objects.drop_chunk(name)
    objects.drop_chunk(name)
    assert not objects.has(name)
    one_line(lambda: objects.read_verified(name), "is not kept here")


def test_nothing_larger_than_a_manifest_is_kept(objects: Objects) -> None:
    line = "too many for the store"
    one_line(lambda: objects.put_chunk(bytes(MANIFEST_BYTES_MAX + 1)), line)
    one_line(lambda: objects.begin(name_of(b""), MANIFEST_BYTES_MAX + 1, True), line)
    objects.begin(name_of(b""), MANIFEST_BYTES_MAX + 1).discard()


# ---------------------------------------------------------------------------- damage and absence


def test_a_damaged_chunk_is_never_returned_and_goes(layout: Layout, objects: Objects) -> None:
    name, good = objects.put_chunk(DATA), objects.put_chunk(OTHER)
    spoil(layout.chunks / name.hex())
    with pytest.raises(ChunkCorrupt, match="has changed"):
        objects.read_verified(name)
    assert kept(layout) == [good.hex()]
    assert objects.chunks == ((good, len(OTHER)),)
    one_line(lambda: objects.read_verified(name), "is not kept here")
    objects.put_chunk(DATA)
    assert objects.read_verified(name) == DATA


def test_what_two_names_share_goes_under_both(layout: Layout, objects: Objects) -> None:
    name = objects.put(DATA)
    objects.put_chunk(DATA)
    spoil(layout.chunks / name.hex())
    with pytest.raises(ChunkCorrupt):
        objects.verify(name)
    assert not objects.has(name)
    assert os.listdir(layout.objects) == kept(layout) == []


@pytest.mark.parametrize("size", [0, 1, len(DATA) - 1, len(DATA) + 1, 5_000_000])
def test_a_torn_file_is_damaged_while_running_and_after_a_start(layout: Layout, size: int) -> None:
    objects = Objects(layout)
    name = objects.put_chunk(DATA)
    os.truncate(layout.chunks / name.hex(), size)
    with pytest.raises(ChunkCorrupt):
        objects.read_verified(name)
    (layout.chunks / name.hex()).write_bytes(DATA[:size])
    again = Objects(layout)
    assert len(again.chunks) == (size > 0), "an empty file is no chunk"
    if 0 < size < len(DATA):
        with pytest.raises(ChunkCorrupt):
            again.read_verified(name)
    again.put_chunk(DATA)
    assert again.read_verified(name) == DATA


def test_a_chunk_that_was_torn_unseen_is_put_anew(layout: Layout, objects: Objects) -> None:
    name = objects.put_chunk(DATA)
    os.truncate(layout.chunks / name.hex(), 10)
    objects.put_chunk(DATA)
    assert objects.read_verified(name) == DATA


def test_a_vanished_chunk_is_said_once_and_forgotten(layout: Layout, objects: Objects) -> None:
    for read in (objects.read_verified, lambda name: objects.read(name, 0, 1), objects.verify):
        name = objects.put_chunk(DATA)
        (layout.chunks / name.hex()).unlink()
        error = one_line(lambda read=read, name=name: read(name), "is not kept here")
        assert isinstance(error, Vanished)
        assert objects.chunks == ()
        error = one_line(lambda read=read, name=name: read(name), "is not kept here")
        assert not isinstance(error, Vanished)
    objects.put_chunk(DATA)
    assert objects.read_verified(name) == DATA


def test_a_file_that_vanished_from_one_folder_is_read_from_the_other(
    layout: Layout, objects: Objects
) -> None:
    name = objects.put(DATA)
    objects.put_chunk(DATA)
    (layout.objects / name.hex()).unlink()
    assert objects.read(name, 0, 9) == DATA[:9]
    assert objects.files == ()


def test_what_is_no_chunk_is_left_alone(layout: Layout) -> None:
    odd = [name_of(str(i).encode()).hex() for i in range(4)]
    (layout.chunks / odd[0]).mkdir()
    (layout.chunks / odd[1]).symlink_to("/etc/passwd")
    os.mkfifo(layout.chunks / odd[2])
    (layout.chunks / odd[3]).touch()
    (layout.chunks / "notes.txt").write_text("somebody's")
    (layout.chunks / odd[3].upper()).write_text("shouted")
    objects = Objects(layout, disk_limit_bytes=10**9)
    assert objects.chunks == ()
    name = objects.put_chunk(DATA)
    assert objects.read_verified(name) == DATA
    assert len(kept(layout)) == 7
    one_line(lambda: objects.put_chunk(b"0"), "cannot write .*: Is a directory")


@pytest.mark.parametrize("what", ["folder", "pipe", "link to nowhere"])
def test_something_else_in_a_chunks_place_is_a_loss(
    layout: Layout, objects: Objects, what: str
) -> None:
    name = objects.put_chunk(DATA)
    path = layout.chunks / name.hex()
    path.unlink()
    match what:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case _:
            path.symlink_to("nowhere")
    assert isinstance(one_line(lambda: objects.read_verified(name), "is not kept here"), Vanished)
    assert objects.chunks == ()


@pytest.mark.parametrize(("code", "is_lost"), [(errno.EIO, True), (errno.EMFILE, False)])
def test_a_bad_spot_is_a_loss_and_want_of_descriptors_is_none(
    layout: Layout, objects: Objects, monkeypatch: pytest.MonkeyPatch, code: int, is_lost: bool
) -> None:
    name = objects.put_chunk(DATA)

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(disk.os, "preadv", refuse)
    monkeypatch.setattr(disk.os, "pread", refuse)
    error = one_line(lambda: objects.read_verified(name), "cannot read")
    monkeypatch.undo()
    assert isinstance(error, Vanished) == is_lost
    assert objects.has_chunk(name) != is_lost
    assert kept(layout) == [name.hex()], "whatever it is, the file stays"
    objects.put_chunk(DATA)
    assert objects.read_verified(name) == DATA


def test_damage_that_cannot_be_removed_is_not_returned_either(
    layout: Layout, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = objects.put_chunk(DATA)
    spoil(layout.chunks / name.hex())

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ChunkCorrupt):
        objects.read_verified(name)
    assert not objects.has(name)


# ------------------------------------------------------------------------------- the disk refuses


def test_a_full_disk_is_one_line_and_nothing_is_lost(small_disk: Path) -> None:
    StateDirectory(small_disk).close()
    objects = Objects(Layout(small_disk))
    names = [objects.put_chunk(random.Random(i).randbytes(1 << 20)) for i in range(3)]
    one_line(lambda: objects.put_chunk(bytes(4 << 20)), "no room for .* free some space")
    one_line(lambda: objects.begin(name_of(b""), 4 << 20, True), "no room for")
    (small_disk / "filler").write_bytes(bytes(4 << 20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "check_room", lambda *_: None)
        one_line(lambda: objects.put_chunk(bytes(3 << 20)), "the disk is full; free some space")
    assert len(kept(Layout(small_disk))) == 3
    assert all(name_of(objects.read_verified(name)) == name for name in names)


def test_a_limit_on_file_sizes_is_one_line_and_nothing_is_lost(
    layout: Layout, objects: Objects
) -> None:
    name = objects.put_chunk(DATA)
    with file_size_limit(100_000):
        one_line(lambda: objects.put_chunk(bytes(200_000)), "limit on file sizes; raise it")
        one_line(lambda: objects.begin(name_of(b""), 200_000, True), "limit on file sizes")
    assert kept(layout) == [name.hex()]
    assert objects.read_verified(name) == DATA


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_read_only_disk_is_one_line_and_still_serves(small_disk: Path) -> None:
    StateDirectory(small_disk).close()
    objects = Objects(Layout(small_disk))
    name, bad = objects.put_chunk(DATA), objects.put_chunk(OTHER)
    spoil(Layout(small_disk).chunks / bad.hex())
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    says = "the file system is read-only; remount it"
    one_line(lambda: objects.put_chunk(b"new"), says)
    one_line(lambda: objects.begin(name_of(b"new"), 3, True), says)
    one_line(lambda: objects.drop_chunk(name_of(b"new")), says)
    assert objects.read_verified(name) == DATA
    with pytest.raises(ChunkCorrupt):
        objects.read_verified(bad)
    assert not objects.has(bad)


@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename"])
def test_a_write_that_tears_leaves_nothing_and_takes_no_room(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    objects = Objects(layout, disk_limit_bytes=9000)
    name = objects.put_chunk(DATA)

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for _ in range(5):
        monkeypatch.setattr(disk.os, call, refuse)
        one_line(lambda: objects.put_chunk(bytes(3000)), "the disk reports an I/O error")
        monkeypatch.undo()
    assert kept(layout) == [name.hex()]
    objects.put_chunk(bytes(3000))


# ------------------------------------------------------------------------------------------ room


def test_the_limit_holds_for_chunks_and_for_what_is_on_its_way(layout: Layout) -> None:
    objects = Objects(layout, disk_limit_bytes=10_000)
    (layout.root / "history").write_bytes(bytes(1000))
    first = objects.begin(name_of(DATA), 3000, is_chunk=True)
    objects.put_chunk(bytes(4000))
    says = r"limits\.disk_bytes"
    one_line(lambda: objects.put_chunk(bytes(3000)), says)
    one_line(lambda: objects.begin(name_of(b""), 3000), says)
    first.discard()
    first.discard()
    second = objects.begin(name_of(b""), 4000)
    (layout.snapshots / "snapshot").write_bytes(bytes(2000))
    one_line(lambda: objects.put(b"more"), says)
    second.discard()
    objects.drop_chunk(name_of(bytes(4000)))
    objects.put_chunk(bytes(6000))
    assert disk.usage_bytes(layout.root) <= 10_000


def test_what_is_known_is_what_is_there(layout: Layout) -> None:
    limit, rng = 60_000, random.Random(5)
    objects = Objects(layout, limit)
    names: list[ObjectHash] = []
    refused = 0
    for i in range(300):
        data = random.Random(rng.randrange(40)).randbytes(rng.randrange(1, 4000))
        try:
            match rng.randrange(6):
                case 0:
                    names.append(objects.put(data))
                case 1 | 2:
                    names.append(objects.put_chunk(data))
                case 3 if names:
                    objects.drop_chunk(rng.choice(names))
                case 4 if names:
                    objects.remove(rng.choice(names))
                case _ if names:
                    spoil(objects.path(name)) if objects.has(name := rng.choice(names)) else None
                    objects.read_verified(name)
        except PeerlmError:
            refused += 1
        used = disk.usage_bytes(layout.root)
        assert used <= limit
        if i % 50 == 0:
            known = sum(size for _, size in objects.chunks) + sum(
                map(objects.size_bytes, objects.files)
            )
            assert known == used - disk.usage_bytes(layout.root, ("objects", "chunks"))
    assert refused


def test_what_others_lay_there_counts_until_they_take_it_away(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "RECOUNT_MIN", 4)
    (layout.chunks / "notes").write_bytes(bytes(3000))
    (layout.objects / "folder").mkdir()
    (layout.objects / "folder" / "more").write_bytes(bytes(3000))
    objects = Objects(layout, disk_limit_bytes=10_000)
    one_line(lambda: objects.put_chunk(bytes(4500)), r"limits\.disk_bytes")
    (layout.chunks / "notes").unlink()
    objects.put_chunk(bytes(4500))
    objects.drop_chunk(name_of(bytes(4500)))
    (layout.chunks / "notes").write_bytes(bytes(3000))
    for _ in range(6):
        objects.begin(name_of(b""), 10).discard()
    one_line(lambda: objects.put_chunk(bytes(4500)), r"limits\.disk_bytes")


def test_room_is_found_without_a_look_at_what_is_kept(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(200):
        (layout.chunks / name_of(b"%d" % i).hex()).write_bytes(b"x")
    objects = Objects(layout, disk_limit_bytes=10**9)
    looked: list[str] = []
    lstat = os.lstat
    monkeypatch.setattr(disk.os, "lstat", lambda path: (looked.append(path), lstat(path))[1])
    objects.put_chunk(DATA)
    assert len(looked) < 20


# --------------------------------------------------------------------------------------- threads


def test_many_threads_put_spoil_read_and_drop(layout: Layout) -> None:
    objects = Objects(layout, disk_limit_bytes=10**9)
    texts = [random.Random(i).randbytes(2000) for i in range(4)]
    wrong: list[str] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            data = rng.choice(texts)
            name = name_of(data)
            try:
                match rng.randrange(5):
                    case 0:
                        objects.drop_chunk(name)
                    case 1:
                        path = layout.chunks / name.hex()
                        path.unlink(missing_ok=True)
                    case 2:
                        if objects.read_verified(name) != data:
                            wrong.append("damaged bytes were returned")
                    case _:
                        objects.put_chunk(data)
            except (ChunkCorrupt, StateError):
                pass
            except BaseException as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for data in texts:
        objects.put_chunk(data)
        assert objects.read_verified(name_of(data)) == data
    assert sorted(name.hex() for name, _ in objects.chunks) == kept(layout)
    one_line(lambda: Objects(layout, 9000).put_chunk(bytes(2000)), r"limits\.disk_bytes")
    assert sum(size for _, size in objects.chunks) == disk.usage_bytes(layout.chunks)


def test_a_good_file_that_replaced_a_damaged_one_stays(
    layout: Layout, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = objects.put_chunk(DATA)
    spoil(layout.chunks / name.hex())
    pull = objects.begin(name, len(DATA), is_chunk=True)
    pull.write_at(0, DATA)
    read_at = disk.ReadFile.read_at

    def read_while_it_is_replaced(file: disk.ReadFile, offset: int, length: int) -> bytes:
        data = read_at(file, offset, length)
        monkeypatch.undo()
        pull.finish()
        return data

    monkeypatch.setattr(disk.ReadFile, "read_at", read_while_it_is_replaced)
    assert objects.read_verified(name) == DATA
    assert objects.read_verified(name) == DATA


def test_what_is_put_again_while_it_is_being_dropped_stays(
    layout: Layout, objects: Objects
) -> None:
    name, other = objects.put_chunk(DATA), objects.put_chunk(OTHER)
    objects.condemn_chunks([name, other])
    assert objects.chunks == ()
    objects.put_chunk(DATA)
    objects.remove_condemned([name, other])
    assert objects.read_verified(name) == DATA
    assert kept(layout) == [name.hex()]
    assert dict(objects.chunks) == {name: len(DATA)}


def test_what_is_pulled_again_while_it_is_being_dropped_stays(
    layout: Layout, objects: Objects
) -> None:
    name = objects.put_chunk(DATA)
    partial = objects.begin(name, len(DATA), is_chunk=True)
    objects.condemn_chunks([name])
    partial.write_at(0, DATA)
    partial.finish()
    objects.remove_condemned([name])
    assert objects.read_verified(name) == DATA
    objects.condemn_chunks([name])
    objects.remove_condemned([name])
    assert kept(layout) == []


@pytest.mark.parametrize("second_is", ["whole", "cancelled", "late"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_two_pulls_of_one_object_at_once_do_not_meet(
    objects: Objects, layout: Layout, in_memory: bool, second_is: str
) -> None:
    def begun() -> Arriving | Partial:
        if in_memory:
            arriving = objects.await_chunk(name_of(DATA), len(DATA))
            arriving.values[:] = DATA
            return arriving
        partial = objects.begin(name_of(DATA), len(DATA), is_chunk=True)
        partial.write_at(0, DATA)
        return partial

    first, second = begun(), begun()
    if second_is == "cancelled":
        second.discard()
    first.finish()
    if second_is == "late":
        second.discard()
    if second_is == "whole":
        second.finish()
    assert objects.read_verified(name_of(DATA)) == DATA
    assert objects.chunks == ((name_of(DATA), len(DATA)),)
    assert kept(layout) == [name_of(DATA).hex()]
    assert objects._room._coming_bytes == 0
