"""Writers one by one: what is in their files, what a death or a full disk leaves, what is asked of others' libraries."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from peerlm.config import WRITERS as OFFERED
from peerlm.config import NodeSettings, with_changes
from peerlm.daemon.writers import PACKAGES, require_packages
from peerlm.daemon.writers.csv import HEAD, CsvWriter
from peerlm.daemon.writers.process import REST_S, WRITERS, written
from peerlm.daemon.writers.tensorboard import TensorboardWriter
from peerlm.daemon.writers.wandb import WandbWriter
from peerlm.errors import ConfigError, StateError
from peerlm.observe.curves import Origin, Reading

ORIGIN = Origin("plays", "aa" * 16, "bb" * 16)


def reading(at: float, tokens: int = 0, **values: float) -> Reading:
    return Reading(at, {"swarm_tokens": tokens or int(at), **values})


def rows_of(path: Path) -> list[dict[str, str]]:
    data = path.read_bytes()
    assert data.startswith(HEAD)
    assert data.endswith(b"\n")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert all(None not in row and None not in row.values() for row in rows), "whole rows"
    return rows


# ------------------------------------------------------------------------------------------ CSV


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "curves" / "bbbbbbbb.csv"


@pytest.fixture
def writer(table: Path) -> CsvWriter:
    return CsvWriter(ORIGIN, table.parent)


def test_rows_have_all_columns_and_what_is_not_known_is_empty(
    writer: CsvWriter, table: Path
) -> None:
    writer.write(reading(10.5, 7, loss=2.25))
    writer.write(reading(20.0, 8))
    rows = rows_of(table)
    assert [(r["time"], r["swarm_tokens"], r["loss"]) for r in rows] == [
        ("10.5", "7", "2.25"),
        ("20.0", "8", ""),
    ]


def test_another_life_goes_on_in_the_same_file(writer: CsvWriter, table: Path) -> None:
    writer.write(reading(1.0))
    writer.close()
    CsvWriter(ORIGIN, table.parent).write(reading(2.0))
    assert [r["time"] for r in rows_of(table)] == ["1.0", "2.0"]


@pytest.mark.parametrize("cut", [1, 2, 5, len(HEAD) // 2])
def test_a_torn_line_goes_when_the_next_comes(writer: CsvWriter, table: Path, cut: int) -> None:
    for at in (1.0, 2.0):
        writer.write(reading(at, loss=0.123456789, bytes_sent=10**60))
    os.truncate(table, table.stat().st_size - min(cut, 60))
    writer.write(reading(3.0))
    assert [r["time"] for r in rows_of(table)] == ["1.0", "3.0"]


@pytest.mark.parametrize("left", [0, 1, 40, len(HEAD) - 1, len(HEAD)])
def test_a_torn_head_is_written_anew(writer: CsvWriter, table: Path, left: int) -> None:
    writer.write(reading(1.0))
    os.truncate(table, left)
    writer.write(reading(2.0))
    assert [r["time"] for r in rows_of(table)] == ["2.0"]


def test_other_columns_are_left_alone_and_the_next_number_is_taken(
    writer: CsvWriter, table: Path
) -> None:
    table.parent.mkdir()
    old = b"time,swarm_tokens\n1.0,1\n2.0,"
    table.write_bytes(old)
    for at in (3.0, 4.0):
        writer.write(reading(at))
    assert table.read_bytes() == old
    assert [r["time"] for r in rows_of(table.with_name("bbbbbbbb-2.csv"))] == ["3.0", "4.0"]


def test_a_file_may_be_moved_away_at_any_moment(writer: CsvWriter, table: Path) -> None:
    writer.write(reading(1.0))
    table.rename(table.with_suffix(".old"))
    writer.write(reading(2.0))
    assert [r["time"] for r in rows_of(table)] == ["2.0"]


def test_a_disk_that_takes_half_a_row(
    writer: CsvWriter, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.write(reading(1.0))
    real = os.write

    def full(fd: int, data: Any) -> int:
        monkeypatch.setattr(os, "write", refuses)
        return real(fd, bytes(data)[: len(data) // 2])

    def refuses(fd: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StateError, match=r"cannot write .*bbbbbbbb.csv: the disk is full"):
        writer.write(reading(2.0))
    assert not table.read_bytes().endswith(b"\n")
    monkeypatch.setattr(os, "write", real)
    writer.write(reading(3.0))
    assert [r["time"] for r in rows_of(table)] == ["1.0", "3.0"]


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    how = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(how, capture_output=True).returncode:
        pytest.skip("may not mount here")
    try:
        writer = CsvWriter(ORIGIN, tmp_path)
        answers = list(written(lambda: writer, (reading(float(n), n) for n in range(1, 5000))))
        assert answers[0] == ""
        assert "the disk is full" in answers[-1]
        assert len({a for a in answers if a}) == 1
        table = tmp_path / "bbbbbbbb.csv"
        table.rename(tmp_path / "away")
        (tmp_path / "away").unlink()
        writer.write(reading(9e9))
        assert len(rows_of(table)) == 1
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot write"):
        CsvWriter(ORIGIN, tmp_path / "file").write(reading(1.0))


# ------------------------------------------------------------------------- failing and coming back


class Flaky:
    """Fails while `ails`; `made` counts lives, `closed` ends."""

    ails = ""
    made = 0
    closed = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.seen: list[float] = []

    def write(self, reading: Reading) -> None:
        if self.ails:
            raise RuntimeError(self.ails)
        self.seen.append(reading.at)

    def close(self) -> None:
        type(self).closed += 1
        raise OSError("even closing fails")


def test_a_writer_that_fails_rests_is_made_again_and_nothing_is_raised() -> None:
    class Ours(Flaky):
        pass

    def readings() -> Iterator[Reading]:
        yield reading(1.0)
        Ours.ails = "no\nroute"
        yield reading(2.0)
        Ours.ails = ""
        yield reading(2.0 + REST_S / 2)
        yield reading(2.0 + REST_S)
        yield reading(3.0 + REST_S)

    answers = list(written(Ours, readings()))
    said = "RuntimeError: no route"
    assert answers == ["", said, said, "", ""]
    assert (Ours.made, Ours.closed) == (2, 2)


def test_a_writer_that_cannot_be_made_is_tried_again_also_when_the_clock_goes_back() -> None:
    tries = []

    def make() -> Any:
        tries.append(1)
        raise ImportError("broken")

    times = [100.0, 101.0, 100.0 + REST_S, 5.0, 6.0]
    answers = list(written(make, map(reading, times)))
    assert answers == ["ImportError: broken"] * 5
    assert len(tries) == 3


# ----------------------------------------------------------------------------- missing packages


def test_what_is_offered_can_be_made() -> None:
    assert tuple(WRITERS) == tuple(PACKAGES) == OFFERED


def settings(*writers: str) -> NodeSettings:
    return with_changes(NodeSettings(), {"observe.writers": list(writers)}, "here")


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_one_line_with_the_cure(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(Path(os.__file__).parent)])
    monkeypatch.delitem(sys.modules, package, raising=False)
    (tmp_path / package).mkdir()  # such as wandb leaves where it was run: no package
    require_packages(settings("csv"))
    with pytest.raises(ConfigError) as caught:
        require_packages(settings("csv", package))
    line = f"observe.writers has {package}, and its package is not installed: "
    assert str(caught.value) == f"{line}{sys.executable} -m pip install {package}"
    (tmp_path / package / "__init__.py").write_text("raise AssertionError('imported')")
    require_packages(settings("csv", package))


# --------------------------------------------------------------------------- others' libraries, faked


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **what: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(what)
    monkeypatch.setitem(sys.modules, name, module)


def test_what_is_asked_of_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    run = SimpleNamespace(
        log=lambda values, step: asked.append((values, step)),
        finish=lambda: asked.append("finish"),
    )

    def init(**how: Any) -> Any:
        asked.append(how)
        return run

    stand_in(monkeypatch, "wandb", init=init, Settings=SimpleNamespace)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    writer = WandbWriter(ORIGIN, tmp_path / "curves")
    writer.write(reading(1.0, 500, loss=2.0))
    writer.close()
    how, logged, end = asked
    assert (how["project"], how["id"], how["resume"]) == ("peerlm", "aaaaaaaa-bbbbbbbb", "allow")
    assert (how["name"], how["group"]) == ("plays bbbbbbbb", "plays aaaaaaaa")
    assert how["dir"] == str(tmp_path / "curves")
    assert Path(how["dir"]).is_dir()
    assert "key" not in str(how)
    assert logged == ({"swarm_tokens": 500, "loss": 2.0}, 500)
    assert end == "finish"
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    WandbWriter(ORIGIN, tmp_path / "curves")
    assert asked[-1]["project"] == "mine"


class FakeEvent(SimpleNamespace):
    def SerializeToString(self) -> bytes:
        return repr(sorted(self.__dict__.items())).encode()


class FakeSummary(SimpleNamespace):
    Value = SimpleNamespace


class FakeRecords:
    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        self._file.write(b"<" + data + b">\n")


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    event, summary = SimpleNamespace(Event=FakeEvent), SimpleNamespace(Summary=FakeSummary)
    for name in ("tensorboard", "tensorboard.compat", "tensorboard.summary"):
        stand_in(monkeypatch, name)
    stand_in(monkeypatch, "tensorboard.summary.writer")
    stand_in(monkeypatch, "tensorboard.compat.proto", event_pb2=event, summary_pb2=summary)
    stand_in(monkeypatch, "tensorboard.summary.writer.record_writer", RecordWriter=FakeRecords)


@pytest.mark.usefixtures("tensorboard")
def test_what_is_asked_of_tensorboard(tmp_path: Path) -> None:
    for at in (1.5, 2.5):
        writer = TensorboardWriter(ORIGIN, tmp_path)
        writer.write(reading(at, 500, loss=2.0))
        seen = sorted((tmp_path / "bbbbbbbb").iterdir())[-1].read_text()
        writer.close()
        version, scalars = seen.splitlines()
        assert "('file_version', 'brain.Event:2')" in version
        assert (
            f"('step', 500), ('summary', FakeSummary(value=[namespace(tag='swarm_tokens', simple_value=500), namespace(tag='loss', simple_value=2.0)])), ('wall_time', {at})"
            in scalars
        )
    assert len(list((tmp_path / "bbbbbbbb").glob("events.out.tfevents.*"))) == 2


@pytest.mark.usefixtures("tensorboard")
def test_tensorboard_and_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = TensorboardWriter(ORIGIN, tmp_path)

    def refuses(fd: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", refuses)
    with pytest.raises(StateError, match="the disk is full"):
        writer.write(reading(1.0))
    with pytest.raises(StateError, match="the disk is full"):
        TensorboardWriter(ORIGIN, tmp_path)
    writer.close()
