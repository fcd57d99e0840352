"""`peerlm://RUN/NAME/PATH`: the swarm's store for programs, here with a desk that only a dictionary is behind."""

from __future__ import annotations

import errno
import os
import pickle
import socket
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from cli_scene import answer_of, sample_summary, serving
from desk_scene import FakeDesk

import peerlm
from peerlm.cli import nodes_here
from peerlm.errors import PeerlmError, StateError
from peerlm.filesystem import CHUNKS_KEPT, PeerlmFileSystem
from peerlm.store.layout import Layout
from peerlm.store.manifest import CHUNK_BYTES

TABLE = b"play,words\nHamlet,30557\nOthello,26450\n"
PLAYS, LAWS = f"plays-{os.getpid()}", f"laws-{os.getpid()}"
BIG = [bytes([n]) * CHUNK_BYTES for n in range(6)] + [b"end"]


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> FakeDesk:
    fake = FakeDesk()
    monkeypatch.setattr("peerlm.filesystem.Client", fake.open)
    monkeypatch.setattr("peerlm.filesystem.node_of", lambda run, state: Layout(Path("/none")))
    fake.has("table", [("words.csv", [TABLE])])
    fake.has("texts", [("a.txt", [b"to be"]), ("sub/b.txt", [b"or not"]), ("sub/deep/c", [])])
    fake.has("big", [("big", BIG), ("other", [b"x"])])
    return fake


@pytest.fixture
def fs(desk: FakeDesk) -> PeerlmFileSystem:
    fsspec.register_implementation("peerlm", PeerlmFileSystem, clobber=True)
    PeerlmFileSystem.clear_instance_cache()
    return fsspec.filesystem("peerlm")


def test_a_run_has_names_and_a_name_has_files(fs: PeerlmFileSystem) -> None:
    assert fs.ls("peerlm://plays", detail=False) == ["plays/big", "plays/table", "plays/texts"]
    assert [(i["name"], i["type"]) for i in fs.ls("plays/texts")] == [
        ("plays/texts/a.txt", "file"),
        ("plays/texts/sub", "directory"),
    ]
    assert fs.find("plays/texts") == [
        "plays/texts/a.txt",
        "plays/texts/sub/b.txt",
        "plays/texts/sub/deep/c",
    ]
    assert fs.glob("peerlm://plays/texts/**/*.txt") == [
        "plays/texts/a.txt",
        "plays/texts/sub/b.txt",
    ]
    told = fs.info("plays/texts/sub/b.txt")
    tag = told.pop("ETag")
    assert told == {"name": "plays/texts/sub/b.txt", "size": 6, "type": "file"}
    assert tag != fs.info("plays/texts/a.txt")["ETag"], "another content"
    assert fs.info("plays/texts")["kind"] == "files"
    assert fs.isdir("plays/texts/sub")
    assert fs.cat("plays/texts/sub/deep/c") == b""
    assert fs.du("plays/texts") == 11


def test_a_name_with_one_file_is_that_file(fs: PeerlmFileSystem, tmp_path: Path) -> None:
    assert fs.isfile("plays/table")
    assert fs.cat("peerlm://plays/table") == fs.cat("plays/table/words.csv") == TABLE
    fs.get("plays/table", str(tmp_path / "copy.csv"))
    assert (tmp_path / "copy.csv").read_bytes() == TABLE
    with fsspec.open("peerlm:///table", "rt") as file:
        assert file.readline() == "play,words\n"
    with pytest.raises(IsADirectoryError):
        fs.open("plays/texts")
    with pytest.raises(IsADirectoryError):
        fs.cat("plays/texts/sub")


def test_parts_of_a_file_cost_the_chunks_they_lie_in(fs: PeerlmFileSystem, desk: FakeDesk) -> None:
    whole = b"".join(BIG)
    fs.ls("plays")
    desk.reads.clear()
    edge = 2 * CHUNK_BYTES
    assert fs.cat_file("plays/big/big", edge - 3, edge + 2) == whole[edge - 3 : edge + 2]
    assert fs.cat_file("plays/big/big", -5) == whole[-5:]
    assert fs.cat_file("plays/big/big", len(whole) + 5, len(whole) + 9) == b""
    assert len(desk.reads) == 4
    paths = ["plays/big/big"] * 3
    assert fs.cat_ranges(paths, [0, edge, 5], [1, edge + 1, 6]) == [b"\0", b"\2", b"\0"]
    assert len(desk.reads) == 5
    with fs.open("plays/big/big") as file:
        file.seek(edge)
        assert file.read(2) == b"\2\2"
        again = pickle.loads(pickle.dumps(file))
        assert again.tell() == edge + 2
        assert file.seek(0, 2) == len(whole)
    assert len(fs._chunks) <= CHUNKS_KEPT


def test_trees_and_files_are_copied(fs: PeerlmFileSystem, tmp_path: Path) -> None:
    fs.get("plays/texts", str(tmp_path / "out"), recursive=True)
    assert (tmp_path / "out" / "sub" / "b.txt").read_bytes() == b"or not"
    fs.get("plays/big/big", str(tmp_path / "big"))
    assert (tmp_path / "big").read_bytes() == b"".join(BIG)


def test_what_is_not_there(fs: PeerlmFileSystem, desk: FakeDesk) -> None:
    assert fs.exists("plays/table/words.csv")
    for path in ("plays/poems", "plays/texts/x", "plays/table/words.csv/x", "plays/texts/a.txt/"):
        missing = path.rstrip("/") == "plays/texts/a.txt"
        assert fs.exists(path) is missing
        if not missing:
            with pytest.raises(FileNotFoundError, match=r"plays/"):
                fs.open(path)
    desk.lost = set(desk.chunks)
    with pytest.raises(PeerlmError, match="is not here"):
        fs.cat("plays/big/other")


def test_a_name_that_changes_is_read_anew(
    fs: PeerlmFileSystem, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerlm.filesystem.NAMES_S", 0.0)
    before, key = fs.open("plays/table"), fs.ukey("plays/table")
    desk.has("table", [("words.csv", [b"other"])])
    assert fs.cat("plays/table") == b"other"
    assert fs.ukey("plays/table") != key
    assert before.read() == TABLE


@pytest.mark.parametrize(
    "write",
    [
        lambda fs: fs.open("plays/new", "wb"),
        lambda fs: fs.pipe("plays/new", b"x"),
        lambda fs: fs.rm("plays/table"),
        lambda fs: fs.mkdir("plays/new"),
        lambda fs: fs.makedirs("plays/new"),
        lambda fs: fs.touch("plays/new"),
        lambda fs: fs.cp("plays/table", "plays/new"),
        lambda fs: fs.put(__file__, "plays/new"),
        lambda fs: fs.mv("plays/table", "plays/new"),
    ],
)
def test_it_is_read_only_and_says_how_to_write(fs: PeerlmFileSystem, write: Any) -> None:
    with pytest.raises(OSError, match="`peerlm data add` puts files into the store") as caught:
        write(fs)
    assert caught.value.errno == errno.EROFS


def test_many_threads_read_and_wait_for_a_free_connection(
    fs: PeerlmFileSystem, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = iter([True, False, True] * 50)

    def dial(*_: object) -> FakeDesk:
        if next(refusals):
            raise PeerlmError("too many such connections; end one, or try again")
        return desk.open()

    monkeypatch.setattr("peerlm.filesystem.Client", dial)
    monkeypatch.setattr("peerlm.filesystem.PAUSE_S", 0.001)
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(fs.cat("plays/texts/a.txt"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"to be"] * 8
    assert desk.connections == 0


def test_pandas_and_pyarrow_read_it(fs: PeerlmFileSystem, desk: FakeDesk, tmp_path: Path) -> None:
    import pandas
    import pyarrow.dataset
    import pyarrow.parquet

    frame = pandas.read_csv("peerlm://plays/table")
    assert list(frame["words"]) == [30557, 26450]
    for number in range(2):
        pyarrow.parquet.write_table(
            pyarrow.table({"n": [number, number + 10]}), tmp_path / f"{number}.parquet"
        )
    parts = [(f"{n}.parquet", [(tmp_path / f"{n}.parquet").read_bytes()]) for n in range(2)]
    desk.has("numbers", parts)
    desk.has("one", parts[:1])
    fs._names.clear()
    read = pandas.read_parquet("peerlm://plays/numbers")
    assert sorted(read["n"]) == [0, 1, 10, 11]
    assert sorted(pandas.read_parquet("peerlm://plays/one")["n"]) == [0, 10]
    table = pyarrow.dataset.dataset("plays/numbers", filesystem=fs).to_table()
    assert table.num_rows == 4


def test_it_is_registered_under_its_scheme() -> None:
    project = Path(peerlm.__file__).parents[1] / "pyproject.toml"
    specs = tomllib.loads(project.read_text())["project"]["entry-points"]["fsspec.specs"]
    module, _, name = specs["peerlm"].partition(":")
    assert (module, name) == (PeerlmFileSystem.__module__, PeerlmFileSystem.__name__)


# ------------------------------------------------------------------------- the node that is asked


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[dict[str, Layout]]:
    """Daemons that only answer, of two runs. Others may run on the machine, so these have names of their own."""
    layouts = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
        servers = []
        for name in (PLAYS, LAWS):
            layouts[name] = Layout(tmp_path / name)
            layouts[name].root.mkdir()
            summary = sample_summary(run_name=name, run_id=name.encode().rjust(16, b"."))

            async def handle(command: str, _: Any, summary: Any = summary) -> dict[str, Any]:
                return answer_of(summary)

            servers.append(serving(layouts[name], handle))
        try:
            yield layouts
        finally:
            for server in servers:
                server.__exit__()


def test_a_run_is_found_among_the_nodes_that_run_here(
    two_nodes: dict[str, Layout], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, layout in two_nodes.items():
        assert nodes_here.node_of(name).root == layout.root
    assert nodes_here.node_of(LAWS.encode().rjust(16, b".").hex()[:24]).root == two_nodes[LAWS].root
    with pytest.raises(
        StateError, match=r"no node of a run 'no such poems' runs on this machine.*PEERLM_STATE"
    ):
        nodes_here.node_of("no such poems")
    assert nodes_here.node_of("", str(tmp_path / "x")).root == tmp_path / "x"
    assert nodes_here.node_of("").root == tmp_path / "xdg" / "peerlm"
    monkeypatch.setenv("PEERLM_STATE", str(two_nodes[LAWS].root))
    assert nodes_here.node_of("").root == two_nodes[LAWS].root
    with pytest.raises(StateError, match="is of another run"):
        nodes_here.node_of(PLAYS)
    assert nodes_here.node_of(PLAYS, str(two_nodes[PLAYS].root)).root == two_nodes[PLAYS].root


def test_two_runs_of_one_name_have_to_be_told_apart(
    two_nodes: dict[str, Layout], tmp_path: Path
) -> None:
    other = Layout(tmp_path / "other")
    other.root.mkdir()

    async def handle(command: str, _: Any) -> dict[str, Any]:
        return answer_of(sample_summary(run_name=PLAYS))

    with serving(other, handle), pytest.raises(StateError, match="several runs are called"):
        nodes_here.node_of(PLAYS)


def test_sockets_that_are_no_daemons_are_passed_over(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))
        assert tmp_path not in {layout.root for layout in nodes_here.nodes_here()}
