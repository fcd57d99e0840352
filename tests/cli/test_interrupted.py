"""Commands of the store that are cut off, or that two begin at once: one line, its code, and nothing that is half there."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_scene import Cli, assert_one_line
from desk_scene import FakeDesk, chunk_of, desk
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from peerlm.cli.data_job import Shared
from peerlm.cli.leash import Interrupted, aside, interruption
from peerlm.cli.whole_files import Folder
from peerlm.daemon.control import NoDaemon
from peerlm.daemon.desk_client import Client
from peerlm.errors import StateError
from peerlm.store.layout import Layout
from peerlm.store.manifest import FILE as MANIFEST
from peerlm.store.manifest import Chunk, Kind, of_files
from peerlm.types import ObjectHash

__all__ = ["desk"]


def sends(number: signal.Signals) -> Callable[..., Any]:
    """What a desk does that is asked just when somebody ends the command."""

    def send(*_: object, **__: object) -> Any:
        os.kill(os.getpid(), number)
        threading.Event().wait(5.0)
        raise StateError("nobody has ended it")

    return send


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_command_that_is_ended_says_what_becomes_of_it(
    number: signal.Signals, code: int, peerlm: Cli, desk: FakeDesk
) -> None:
    desk.checkpoint = sends(number)  # type: ignore[attr-defined]
    before = signal.getsignal(number)
    made = peerlm("checkpoint", "make")
    assert_one_line(made, code, "interrupted; the checkpoint is made all the same")
    assert signal.getsignal(number) is before


def test_what_is_said_inside_is_not_said_again(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(Interrupted) as ended,
        interruption("the whole command"),
        interruption("the job goes on"),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.number == signal.SIGTERM
    assert capsys.readouterr().err == "peerlm: interrupted; the job goes on\n"


def test_a_library_that_hears_no_signals_is_not_waited_for() -> None:
    assert aside(lambda: 5) == 5
    with pytest.raises(StateError, match="no text"):
        aside(lambda: _refuse("no text"))
    never = threading.Event()

    def hears_none() -> None:
        """It is ended when the handler is there: else the signal would end the tests."""
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        never.wait(10.0)

    with pytest.raises(Interrupted), interruption("…"):
        aside(hears_none)
    never.set()


def _refuse(why: str) -> Any:
    raise StateError(why)


# ------------------------------------------------------------------------------------ data get


def test_a_folder_that_another_get_writes_to_is_left_to_it(
    peerlm: Cli, desk: FakeDesk, tmp_path: Path
) -> None:
    desk.has("plays", [("a", [b"1" * 9, b"2" * 9])])
    part = tmp_path / ".a.peerlm-part"
    with part.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"1" * 9)
        other.flush()
        refused = peerlm("data", "get", "plays", tmp_path)
        assert_one_line(refused, 3, str(part), "another `peerlm data get`", "another folder")
        assert part.read_bytes() == b"1" * 9
    assert peerlm("data", "get", "plays", tmp_path).code == 0
    assert (tmp_path / "a").read_bytes() == b"1" * 9 + b"2" * 9


def has_ended(part: Path) -> None:
    part.write_bytes(b"1" * 9 + b"2" * 9)
    part.replace(part.with_name("a"))


def has_begun_anew(part: Path) -> None:
    part.write_bytes(b"1" * 5)


@pytest.mark.parametrize(
    ("other", "left"),
    [(has_ended, {"a": b"1" * 9 + b"2" * 9}), (has_begun_anew, {".a.peerlm-part": b"1" * 5})],
)
def test_a_part_that_another_get_has_taken_since_it_was_looked_at_is_left_to_it(
    other: Callable[[Path], None],
    left: dict[str, bytes],
    peerlm: Cli,
    desk: FakeDesk,
    tmp_path: Path,
) -> None:
    desk.has("plays", [("0", [b"0"]), ("a", [b"1" * 9, b"2" * 9])])
    part = tmp_path / ".a.peerlm-part"
    part.write_bytes(b"1" * 9)
    read = desk.read

    def read_late(wanted: ObjectHash, *asked: Any) -> bytes:
        if wanted == chunk_of(b"0").hash:
            other(part)
        return read(wanted, *asked)

    desk.read = read_late  # type: ignore[method-assign]
    refused = peerlm("data", "get", "plays", tmp_path)
    assert_one_line(refused, 3, str(part), "another `peerlm data get`", "another folder")
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {"0": b"0", **left}
    desk.read = read  # type: ignore[method-assign]
    assert peerlm("data", "get", "plays", tmp_path).code == 0
    assert (tmp_path / "a").read_bytes() == b"1" * 9 + b"2" * 9


def test_a_target_that_cannot_be_written_is_not_taken_for_the_node(
    peerlm: Cli, desk: FakeDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.has("plays", [("a", [b"1" * 9])])

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("peerlm.cli.data_get.os.fsync", full)
    got = peerlm("data", "get", "plays", tmp_path / "out")
    assert_one_line(got, 3, "the disk is full; free some space or use another folder")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".a.peerlm-part"]


# --------------------------------------------------------------------------- checkpoint export


def a_checkpoint(desk: FakeDesk) -> None:
    files = [("model.safetensors", [b"w" * 50, b"v" * 50]), ("plan.toml", [b"p" * 9])]
    listed = [(path, [Chunk(desk.put(d), len(d)) for d in parts]) for path, parts in files]
    desk.publish("first", of_files(Kind.CHECKPOINT, listed, {}), replaces=False)


def test_an_export_that_ends_midway_leaves_no_half_model_and_goes_again(
    peerlm: Cli, desk: FakeDesk, tmp_path: Path
) -> None:
    a_checkpoint(desk)
    out = tmp_path / "out"
    wanted = list(desk.chunks)[1]
    desk.lost = {wanted}
    export = ("checkpoint", "export", "first", out)
    assert_one_line(peerlm(*export), 3, "model.safetensors: object", "is not here")
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST, "plan.toml"]
    desk.lost = set()
    assert peerlm(*export).code == 0
    assert (out / "model.safetensors").read_bytes() == b"w" * 50 + b"v" * 50
    assert_one_line(peerlm(*export), 2, "holds a model already")
    assert peerlm(*export, "--force").code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        MANIFEST,
        "model.safetensors",
        "plan.toml",
    ]


def test_a_model_that_is_replaced_is_never_beside_the_plan_of_another(
    peerlm: Cli, desk: FakeDesk, tmp_path: Path
) -> None:
    a_checkpoint(desk)
    out = tmp_path / "out"
    assert peerlm("checkpoint", "export", "first", out).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    files = [("model.safetensors", [b"x" * 50]), ("plan.toml", [b"q" * 9])]
    listed = [(path, [Chunk(desk.put(d), len(d)) for d in parts]) for path, parts in files]
    desk.publish("second", of_files(Kind.CHECKPOINT, listed, {}), replaces=False)
    export = ("checkpoint", "export", "second", out, "--force")
    desk.lost = {chunk_of(b"q" * 9).hash}
    assert_one_line(peerlm(*export), 3, "plan.toml: object")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    desk.lost = {chunk_of(b"x" * 50).hash}
    assert_one_line(peerlm(*export), 3, "model.safetensors: object")
    second = {"plan.toml": b"q" * 9, MANIFEST: desk.manifest("second").encode()}
    assert {path.name: path.read_bytes() for path in out.iterdir()} == second
    desk.lost = set()
    assert peerlm(*export).code == 0
    assert (out / "model.safetensors").read_bytes() == b"x" * 50


def test_a_daemon_that_dies_is_no_fault_of_the_url(
    peerlm: Cli, desk: FakeDesk, tmp_path: Path
) -> None:
    a_checkpoint(desk)

    def dies(*_: object) -> bytes:
        raise NoDaemon("the daemon hung up")

    desk.read = dies  # type: ignore[method-assign]
    done = peerlm("checkpoint", "export", "first", tmp_path / "out")
    assert_one_line(done, 3, "peerlm: the daemon hung up")


def give_up_half(fs: Any, path: str) -> None:
    with Folder(fs, path) as folder, folder.writing("model") as out:
        out.write(b"half of a model")
        raise KeyboardInterrupt


def test_a_file_has_its_name_when_it_is_whole() -> None:
    fs = MemoryFileSystem()
    fs.makedirs("/whole", exist_ok=True)
    fs.pipe_file("/whole/model", b"old")
    with pytest.raises(KeyboardInterrupt):
        give_up_half(fs, "/whole")
    assert {path: fs.cat_file(path) for path in fs.find("/whole")} == {"/whole/model": b"old"}
    with Folder(fs, "/whole") as folder, folder.writing("model") as out:
        out.write(b"new")
    assert {path: fs.cat_file(path) for path in fs.find("/whole")} == {"/whole/model": b"new"}


class Objects(AbstractFileSystem):
    """An object store: what is closed is there."""

    protocol = "objects"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.there: dict[str, bytes] = {}

    def exists(self, path: str, **options: Any) -> bool:
        return path in self.there

    def rm_file(self, path: str) -> None:
        del self.there[path]

    def _open(self, path: str, mode: str = "rb", **options: Any) -> AbstractBufferedFile:
        return Object(self, path, mode, block_size=4)


class Object(AbstractBufferedFile):
    def _initiate_upload(self) -> None:
        self.parts: list[bytes] = []

    def _upload_chunk(self, final: bool = False) -> bool:
        self.parts.append(self.buffer.getvalue())
        if final:
            self.fs.there[self.path] = b"".join(self.parts)
        return True


def test_an_object_that_was_given_up_is_never_there() -> None:
    fs = Objects(skip_instance_cache=True)
    with pytest.raises(KeyboardInterrupt):
        give_up_half(fs, "bucket/x")
    gc.collect()
    assert fs.there == {}
    with Folder(fs, "bucket/x") as folder, folder.writing("model") as out:
        out.write(b"a whole model")
    assert fs.there == {"bucket/x/model": b"a whole model"}
    with Folder(fs, "bucket/x", "model") as folder, folder.writing("plan") as out:
        out.write(b"another")
    assert fs.there == {"bucket/x/plan": b"another"}


# ---------------------------------------------------------------------------------- the daemon


def test_a_daemon_that_answers_no_more_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setattr("peerlm.daemon.control.dial", lambda *_: ours)
    with theirs, Client(Layout(tmp_path)) as client:
        with pytest.raises(StateError, match=r"has not answered `names` in 0\.01 s"):
            client.ask("names", timeout_s=0.01)
        with pytest.raises(NoDaemon, match="start it with `peerlm up` if it has ended"):
            client.ask("names")


# --------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["", "../x", "A b", "x" * 97])
def test_a_name_that_cannot_be_one_is_refused_before_anything_is_read(
    name: str, peerlm: Cli, desk: FakeDesk, tmp_path: Path
) -> None:
    desk.has("plays", [("a", [b"1"])])
    for command in (("checkpoint", "make"), ("data", "add", tmp_path)):
        done = peerlm(*command, f"--name={name}")
        assert_one_line(done, 2, f"{name[:96]}", "cannot be a name in the store")


def test_a_name_of_other_things_is_not_watched_as_a_job(desk: FakeDesk) -> None:
    desk.has("job-plays", [("a", [b"1"])])
    with pytest.raises(StateError, match="the name job-plays is taken"):
        Shared(desk, "https://host/a", "plays")  # type: ignore[arg-type]
