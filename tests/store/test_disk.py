"""Files that survive kill -9, and a directory with one owner."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sudden_death import kill_after

from peerlm.cli.state import ORIGIN
from peerlm.daemon.ports import PORTS
from peerlm.errors import StateError
from peerlm.identity import files
from peerlm.store import disk
from peerlm.store.disk import AtomicFile, ReadFile, read_file, sweep, write_atomic
from peerlm.store.layout import NAMES, Layout, StateDirectory, require_own
from peerlm.types import WallTime


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_a_written_file_replaces_the_old_one_with_the_mode_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    write_atomic(path, b"one")
    write_atomic(path, memoryview(b"two"), mode=0o640)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["plan"]


def test_data_are_durable_before_the_name_and_the_name_before_we_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = []
    fsync, rename = os.fsync, os.rename

    def traced_fsync(fd: int) -> None:
        trace.append("sync directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync file")
        fsync(fd)

    monkeypatch.setattr(disk.os, "fsync", traced_fsync)
    monkeypatch.setattr(disk.os, "rename", lambda *a: (trace.append("rename"), rename(*a)))
    write_atomic(tmp_path / "plan", b"new")
    assert trace == ["sync file", "rename", "sync directory"]


def test_an_error_while_writing_leaves_the_old_version_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    write_atomic(path, b"old")

    def fail_half_way() -> None:
        with AtomicFile(path) as file:
            file.write(b"half of the ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["plan"]


def test_two_writers_of_one_path_leave_each_others_temporary_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins when the first has renamed its file, and so gets the temporary name that the first had."""
    first, second = AtomicFile(tmp_path / "chunk"), []
    sync = disk.sync_directory

    def begin_another(directory: Path) -> None:
        second.append(AtomicFile(tmp_path / "chunk"))
        sync(directory)

    monkeypatch.setattr(disk, "sync_directory", begin_another)
    first.commit()
    monkeypatch.undo()
    second[0].write(b"whole")
    second[0].commit()
    assert (tmp_path / "chunk").read_bytes() == b"whole"
    assert names(tmp_path) == ["chunk"]


def test_kill_9_at_any_instant_leaves_a_whole_version(tmp_path: Path) -> None:
    path, rng = tmp_path / "state", random.Random(5)
    write_atomic(path, b"0" * 20_000)

    def write_for_ever() -> None:
        for version in count(1):
            write_atomic(path, str(version % 10).encode() * (20_000 + version))

    litter = 0
    for _ in range(60):
        kill_after(rng.uniform(0.0, 0.006), write_for_ever)
        data = path.read_bytes()
        assert len(data) >= 20_000
        assert data == data[:1] * len(data), "two versions are mixed"
        assert int(data[:1]) == (len(data) - 20_000) % 10, "a version is cut short"
        litter += len(sweep(tmp_path))
        assert names(tmp_path) == ["state"]
    assert litter > 5, "the kills never hit a write: the test proves nothing"


def test_sweep_spares_a_file_in_the_making_and_files_of_others(tmp_path: Path) -> None:
    (tmp_path / ".state.1-0.tmp").write_bytes(b"of a writer long dead")
    (tmp_path / "kept.tmp").write_bytes(b"not ours")
    with AtomicFile(tmp_path / "state") as file:
        file.write(b"new")
        assert sweep(tmp_path) == [".state.1-0.tmp"]
    assert names(tmp_path) == ["kept.tmp", "state"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "I/O error"),
        (errno.EROFS, "read-only"),
    ],
)
@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename"])
def test_what_the_disk_refuses_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, says: str
) -> None:
    path = tmp_path / "plan"
    write_atomic(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(disk.os, call, refuse)
    with pytest.raises(StateError, match=says) as caught:
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["plan"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(disk.os, "pwrite", lambda fd, data, at: whole(fd, data[:7], at))
    write_atomic(tmp_path / "plan", b"0123456789" * 5)
    assert (tmp_path / "plan").read_bytes() == b"0123456789" * 5


def test_a_file_stays_readable_after_its_removal_and_says_when_it_is_short(tmp_path: Path) -> None:
    path = tmp_path / "data"
    write_atomic(path, b"0123456789")
    file = ReadFile(path)
    disk.remove(path)
    assert file.read_at(3, 4) == b"3456"
    with pytest.raises(StateError, match="ends 2 bytes too early"):
        file.read_at(8, 4)
    with pytest.raises(StateError, match="cannot read"):
        ReadFile(path)


def test_a_pipe_or_a_folder_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(StateError, match="not a file"):
            read_file(path, 100)


def test_all_that_a_node_keeps_is_known_to_be_its_own(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    places = [name for name, value in vars(Layout).items() if isinstance(value, property)]
    kept = {getattr(layout, name).relative_to(tmp_path).parts[0] for name in places}
    kept |= {files.IDENTITY, files.CHAIN, files.ROOT, files.INVITER, files.REVOCATIONS, files.PLAN}
    assert kept | {ORIGIN, PORTS} <= NAMES


def test_a_full_disk_is_found_before_and_while_writing(small_disk: Path) -> None:
    with pytest.raises(StateError, match="no room for a snapshot"):
        disk.check_room(small_disk, 5 << 20, 0, "a snapshot")
    disk.check_room(small_disk, 3 << 20, 0, "a snapshot")
    with pytest.raises(StateError, match="the disk is full"):
        write_atomic(small_disk / "big", bytes(9 << 20))
    assert names(small_disk) == []


def test_the_limit_counts_everything_in_the_directory(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "a").write_bytes(bytes(600))
    disk.check_room(tmp_path, 400, 1000, "a snapshot")
    with pytest.raises(StateError, match=r"limits\.disk_bytes"):
        disk.check_room(tmp_path, 401, 1000, "a snapshot")


# ------------------------------------------------------------------------- the state directory


def test_a_new_state_directory_is_private_and_has_its_rooms(tmp_path: Path) -> None:
    with StateDirectory(tmp_path / "a" / "state") as state:
        assert state.root.stat().st_mode & 0o777 == 0o700
        assert state.snapshots.is_dir()
        assert state.objects.is_dir()


def test_an_open_directory_is_narrowed_but_keeps_its_groups_passage(tmp_path: Path) -> None:
    root = tmp_path / "state"
    root.mkdir()
    root.chmod(0o755)
    StateDirectory(root).close()
    assert root.stat().st_mode & 0o777 == 0o710


def test_the_second_opener_hears_who_holds_it(tmp_path: Path) -> None:
    owner = StateDirectory(tmp_path)
    with pytest.raises(StateError, match=f"in use by process {os.getpid()} .peerlm up.; stop"):
        StateDirectory(tmp_path)
    owner.close()
    StateDirectory(tmp_path).close()


def test_a_killed_owner_leaves_no_lock_and_no_litter(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from peerlm.store.disk import *\n"
            "from peerlm.store.layout import StateDirectory\n"
            "state = StateDirectory(Path(sys.argv[1])); AtomicFile(state.plan).write(b'half')\n"
            "file = AtomicFile(state.snapshots / 'x'); print('held', flush=True); input()",
            str(tmp_path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(StateError, match=f"in use by process {owner.pid}"):
        StateDirectory(tmp_path)
    owner.kill()
    owner.communicate()
    with StateDirectory(tmp_path) as state:
        assert names(state.snapshots) == []
        assert [name for name in names(tmp_path) if name.endswith(".tmp")] == []


def test_a_file_in_its_place_or_too_long_a_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match="cannot use"):
        StateDirectory(tmp_path / "file")
    with pytest.raises(StateError, match="shorter --state"):
        StateDirectory(tmp_path / ("x" * 100))


def test_a_read_only_directory_is_refused_in_one_line(small_disk: Path) -> None:
    StateDirectory(small_disk).close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StateError, match="read-only; remount it or use another --state") as caught:
        StateDirectory(small_disk)
    assert "\n" not in str(caught.value)


def test_a_directory_we_may_not_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.os, "access", lambda *_: False)
    with pytest.raises(StateError, match="permission denied"):
        StateDirectory(tmp_path)


def test_epochs_only_rise_whatever_the_clock_does(tmp_path: Path) -> None:
    with StateDirectory(tmp_path) as state:
        assert state.next_epoch(WallTime(1000.9)) == 1000
        assert state.next_epoch(WallTime(1000.9)) == 1001
        assert state.next_epoch(WallTime(3.0)) == 1002
    with StateDirectory(tmp_path) as state:
        assert state.next_epoch(WallTime(3.0)) == 1003
        state.epoch.write_bytes(b"\x00garbage")
        assert state.next_epoch(WallTime(2000.0)) == 2000


def test_giving_up_says_why_even_when_the_litter_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    def write() -> None:
        with AtomicFile(tmp_path / "plan") as file:
            monkeypatch.setattr(Path, "unlink", refuse)
            with disk.explained("write", file.path):
                raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StateError, match="the disk is full"):
        write()


def test_folders_made_by_earlier_versions_are_swept_and_narrowed(tmp_path: Path) -> None:
    for name in ("model", "local"):
        (tmp_path / name).mkdir(mode=0o755)
        (tmp_path / name / ".plan.toml.1-0.tmp").write_bytes(b"left by a dead writer")
    StateDirectory(tmp_path).close()
    for name in ("model", "local"):
        assert names(tmp_path / name) == []
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700


# ---------------------------------------------------------------------------- root in a service's folder


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder that belongs to a service's user, where we are root."""
    if os.geteuid() != 0:
        pytest.skip("only root can be led astray")
    folder = tmp_path / "node"
    folder.mkdir()
    os.chown(folder, 4711, 4711)
    return folder


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_root_writes_to_no_lock_that_leads_elsewhere(foreign: Path, link: Any) -> None:
    victim = foreign.parent / "shadow"
    victim.write_text("precious")
    link(victim, foreign / "lock")
    with pytest.raises(StateError):
        StateDirectory(foreign)
    assert victim.read_text() == "precious"


def test_root_goes_through_no_folder_that_is_a_link(foreign: Path) -> None:
    elsewhere = foreign.parent / "etc"
    elsewhere.mkdir()
    elsewhere.chmod(0o755)
    (elsewhere / ".x.1-0.tmp").write_text("a leftover, by its name")
    (foreign / "objects").symlink_to(elsewhere)
    StateDirectory(foreign).close()
    assert elsewhere.stat().st_mode & 0o777 == 0o755
    assert (elsewhere / ".x.1-0.tmp").exists()


def test_root_runs_no_node_in_a_services_folder(foreign: Path) -> None:
    with pytest.raises(StateError, match="belongs to another user: a service runs it"):
        require_own(foreign)
    require_own(foreign.parent)


def test_a_file_that_was_given_up_is_not_written_on(tmp_path: Path) -> None:
    """Its number is another file's by now, and would take what was meant for it."""
    file = AtomicFile(tmp_path / "shard")
    file.write(b"some")
    file.abort()
    with (tmp_path / "catalog").open("w+b") as other:
        with pytest.raises(StateError, match="given up"):
            file.write_at(4, b"more")
        assert other.read() == b""
    assert names(tmp_path) == ["catalog"]
