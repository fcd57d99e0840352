"""The swarm's store from end to end: real nodes that train nothing, killed two at a time, and damaged on disk.

Four nodes offer room and one has none. Whatever a scene does to them, it ends with all of them up and everything back in
three replicas, so the next one begins where this one began.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest
from swarm import (
    PEERLM,
    Node,
    Swarm,
    assert_refused,
    environment,
    init,
    peerlm,
    succeed,
    wait_for,
)

from peerlm.daemon.desk_client import Client
from peerlm.errors import StateError
from peerlm.filesystem import PeerlmFileSystem
from peerlm.observe.store import store_of
from peerlm.store.manifest import CHUNK_BYTES, Chunk, Manifest
from peerlm.types import ObjectHash

pytestmark = pytest.mark.timeout(120)

RUN = f"store-{os.getpid()}"

STORE = {
    "train.enabled": "false",
    "page.enabled": "false",
    "store.bytes": "500_000_000",
    "store.repair_after_s": "2",
    "store.repair_bytes_s": "0",
    "store.checkpoint_every_s": "0",
}
ROOMLESS = {"store.enabled": "false"}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    """Four with room, and one without."""
    swarm = Swarm(tmp_path_factory.mktemp("store"))
    founder = swarm.node()
    init(founder.folder, "--name", RUN, **STORE)
    founder.up()
    founder.wait(lambda s: s["address"], "the founder can be dialled")
    token = swarm.token
    for more in (STORE, STORE, STORE, STORE | ROOMLESS):
        swarm.join(founder, token, **more)
    for node in swarm.nodes:
        wait_for(lambda node=node: _live(node) == 4, "it sees all that offer room")
    yield swarm.nodes
    swarm.close()


@pytest.fixture
def roomless(nodes: list[Node]) -> Node:
    return nodes[4]


def _live(node: Node) -> int:
    try:
        with Client(node.layout) as desk:
            return sum(other["is_live"] for other in desk.status()["nodes"])
    except StateError:
        return 0


def files(folder: Path, count: int, seed: int) -> Path:
    """Files of a chunk or a bit more, which no two seeds share."""
    rng = random.Random(seed)
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.bin").write_bytes(rng.randbytes(CHUNK_BYTES // 4 + number))
    return folder


def add(node: Node, folder: Path, name: str, *more: object) -> str:
    return succeed("data", "add", folder, "--as", "files", "--name", name, *more, "--state", node.folder)  # fmt: skip


def adding(node: Node, folder: Path, name: str) -> subprocess.Popen[str]:
    command = ["data", "add", folder, "--as", "files", "--name", name, "--wait", "3"]
    return subprocess.Popen(
        [*PEERLM, *map(str, command), "--state", str(node.folder)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def manifest_of(node: Node, name: str) -> Manifest:
    with Client(node.layout) as desk:
        return desk.manifest(name)


def read(node: Node, chunks: Sequence[Chunk]) -> bytes:
    with Client(node.layout) as desk:
        return b"".join(desk.read(chunk.hash, chunk.size, 30.0) for chunk in chunks)


def assert_readable(node: Node, name: str, folder: Path) -> None:
    manifest = manifest_of(node, name)
    assert {file.path for file in manifest.files} == {path.name for path in folder.iterdir()}
    for file in manifest.files:
        assert read(node, manifest.chunks_of(file)) == (folder / file.path).read_bytes()


def wait_whole(node: Node, name: str) -> None:
    """Everything of a name is in three replicas, as all nodes say."""
    manifest = manifest_of(node, name)
    hashes = [ObjectHash(bytes.fromhex(_record(node, name)["manifest"]))]
    hashes += [chunk.hash for chunk in manifest.chunks]

    def is_whole() -> bool:
        with Client(node.layout) as desk:
            return min(desk.survey(hashes).counts) >= 3

    wait_for(is_whole, f"{name} is in three replicas")


def _record(node: Node, name: str) -> dict[str, str]:
    with Client(node.layout) as desk:
        return next(record for record in desk.names() if record["name"] == name)


def kill(*some: Node) -> None:
    """At once."""
    for node in some:
        node.signal(9)  # type: ignore[arg-type]
    for node in some:
        node.wait_end()


def again(*some: Node) -> None:
    for node in some:
        node.up()
    for node in some:
        wait_for(lambda node=node: _live(node) == 4, "it is back, and sees all others")


def replica(node: Node, chunk: Chunk) -> Path:
    return node.layout.chunks / chunk.hash.hex()


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))


# ------------------------------------------------------------------------------------- scenes


def test_what_is_added_on_one_is_read_on_another_that_has_no_room(
    nodes: list[Node], roomless: Node, tmp_path: Path
) -> None:
    folder = files(tmp_path / "in", 6, seed=1)
    (folder / "empty").touch()
    said = add(nodes[0], folder, "first", "--wait", "3")
    assert "durable: " in said
    assert "first: 7 files" in said
    out = tmp_path / "out"
    assert "7 files" in succeed("data", "get", "first", out, "--state", roomless.folder)
    for path in folder.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    fs = PeerlmFileSystem(skip_instance_cache=True)
    assert fs.cat_file(f"peerlm://{RUN}/first/3.bin", -9) == (folder / "3.bin").read_bytes()[-9:]
    fsspec.register_implementation("peerlm", PeerlmFileSystem, clobber=True)
    with fsspec.open("peerlm:///first/0.bin", state=str(roomless.folder)) as file:
        assert file.read() == (folder / "0.bin").read_bytes()
    wait_whole(nodes[2], "first")
    wait_for(lambda: _standing(roomless)["is_whole"], "all say that they lack nothing")
    shown = json.loads(succeed("store", "status", "--json", "--state", roomless.folder))
    assert (shown["capacity_bytes"], shown["names"], shown["replicas_wanted"]) == (0, 1, 3)
    status = nodes[1].status()["store"]
    assert (status["names"], status["is_full"], status["lacking"]) == (1, False, 0)


DATASETS = """
import sys
from datasets import load_dataset
told = {"split": "train", "storage_options": {"state": sys.argv[1]}}
below = "peerlm://" + sys.argv[2] + "/tables/"
print(load_dataset("text", data_files=below + "a.txt", **told)["text"][:])
print(load_dataset("json", data_files=below + "b.jsonl", **told)["n"][:])
print(load_dataset("parquet", data_files=below + "**/*.parquet", **told)["w"][:])
print([row["w"] for row in load_dataset("parquet", data_files=below + "*/c.parquet", streaming=True, **told)])
"""


def test_datasets_reads_it(nodes: list[Node], roomless: Node, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    pandas = pytest.importorskip("pandas")
    folder = tmp_path / "tables"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("one\ntwo\n")
    (folder / "b.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    pandas.DataFrame({"w": ["p", "q"]}).to_parquet(folder / "sub" / "c.parquet")
    add(nodes[0], folder, "tables")
    wait_for(lambda: any(n["name"] == "tables" for n in _names(roomless)), "the name is known")
    quiet = {"HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DATASETS, str(roomless.folder), RUN],
        env=environment(HF_HOME=str(tmp_path / "hf"), **quiet),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['one', 'two']", "[1, 2]", "['p', 'q']", "['p', 'q']"]
    succeed("data", "rm", "tables", "--yes", "--state", nodes[0].folder)


OF_TABLES = """
import sys
import fsspec, pandas, pyarrow.dataset, pyarrow.parquet
run, state = sys.argv[1:]
told = {"state": state}
below = "peerlm://" + run + "/library/"
words = pandas.read_csv(below + "words.csv", storage_options=told)
print(words["word"].tolist(), words["n"].sum())
print(pandas.read_parquet(below + "sub/a.parquet", storage_options=told)["n"].tolist())
print(pandas.read_json(below + "b.jsonl", lines=True, storage_options=told)["n"].tolist())
fs = fsspec.filesystem("peerlm", state=state)
data = pyarrow.dataset.dataset(run + "/library/sub", filesystem=fs, format="parquet")
print(data.count_rows(), data.to_table(filter=pyarrow.dataset.field("n") > 2390)["n"].to_pylist())
print(pyarrow.parquet.read_table(run + "/library/sub/b.parquet", filesystem=fs, columns=["w"]).num_rows)
print(fs.cat_file(run + "/library/large.bin", (4 << 20) - 2, (4 << 20) + 2).hex())
"""


@pytest.mark.timeout(240)
def test_pandas_and_pyarrow_read_it(nodes: list[Node], roomless: Node, tmp_path: Path) -> None:
    """At a node that keeps none of it, in a process of their own: files of several chunks, some of their columns, and parts of them."""
    pandas = pytest.importorskip("pandas")
    folder = tmp_path / "library"
    (folder / "sub").mkdir(parents=True)
    (folder / "words.csv").write_text("word,n\nto,1\nbe,2\n")
    (folder / "b.jsonl").write_text('{"n": 7}\n{"n": 8}\n')
    for name, first in (("a", 0), ("b", 1200)):
        numbers = range(first, first + 1200)
        table = pandas.DataFrame(
            {"n": numbers, "w": [random.Random(n).randbytes(2000).hex() for n in numbers]}
        )
        table.to_parquet(folder / "sub" / f"{name}.parquet", compression=None)
    large = random.Random(9).randbytes(CHUNK_BYTES + 1000)
    (folder / "large.bin").write_bytes(large)
    assert (folder / "sub" / "a.parquet").stat().st_size > CHUNK_BYTES
    add(nodes[0], folder, "library")
    wait_for(lambda: any(n["name"] == "library" for n in _names(roomless)), "the name is known")
    done = subprocess.run(
        [sys.executable, "-c", OF_TABLES, RUN, str(roomless.folder)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "['to', 'be'] 3",
        str(list(range(1200))),
        "[7, 8]",
        f"2400 {list(range(2391, 2400))}",
        "1200",
        large[CHUNK_BYTES - 2 : CHUNK_BYTES + 2].hex(),
    ]
    succeed("data", "rm", "library", "--yes", "--state", nodes[0].folder)


def _names(node: Node) -> list[dict[str, Any]]:
    with Client(node.layout) as desk:
        return desk.names()


def _standing(node: Node) -> dict[str, Any]:
    with Client(node.layout) as desk:
        return store_of(desk.status(), desk.names())


def test_names_that_are_none_or_anothers(nodes: list[Node], roomless: Node, tmp_path: Path) -> None:
    state = ("--state", roomless.folder)
    assert_refused(peerlm("data", "show", "poems", *state), 3, "nothing of the name poems")
    assert_refused(peerlm("data", "get", "../etc", tmp_path, *state), 3, "nothing of the name")
    folder = files(tmp_path / "in", 1, seed=2)
    wrong = ("data", "add", folder, "--as", "files", "--name", "first", *state)
    assert_refused(peerlm(*wrong), 3, "the name first is taken")
    fs = PeerlmFileSystem(state=str(roomless.folder), skip_instance_cache=True)
    with pytest.raises(FileNotFoundError):
        fs.open(f"{RUN}/poems")
    with Client(roomless.layout) as desk, pytest.raises(StateError, match="has not come in"):
        desk.read(ObjectHash(bytes(32)), 10, 0.5)


def test_a_flipped_byte_is_never_served_and_is_mended(
    nodes: list[Node], roomless: Node, tmp_path: Path
) -> None:
    folder = files(tmp_path / "in", 1, seed=3)
    add(nodes[0], folder, "flipped", "--wait", "3")
    wait_whole(nodes[0], "flipped")
    (chunk, *_) = manifest_of(nodes[0], "flipped").chunks
    found, *others = [node for node in nodes[1:4] if replica(node, chunk).exists()]  # it is theirs
    data = replica(found, chunk).read_bytes()
    flip(replica(found, chunk))
    scrubbed = json.loads(succeed("store", "scrub", "--json", "--state", found.folder))
    assert scrubbed["damaged"] == 1
    wait_for(lambda: _holds(found, chunk, data), "it has a sound one again")
    for node in others:
        flip(replica(node, chunk))
    assert read(roomless, [chunk]) == data
    for node in others:
        assert read(node, [chunk]) == data
        wait_for(lambda node=node: _holds(node, chunk, data), "and so have the others")
    assert "damaged" not in succeed("data", "verify", "flipped", "--state", roomless.folder)
    wait_whole(roomless, "flipped")


def _holds(node: Node, chunk: Chunk, data: bytes) -> bool:
    path = replica(node, chunk)
    return path.exists() and path.read_bytes() == data


def test_two_of_four_die_at_once_while_something_is_added(
    nodes: list[Node], roomless: Node, tmp_path: Path
) -> None:
    folder = files(tmp_path / "in", 24, seed=4)
    process = adding(nodes[0], folder, "during")
    wait_for(_has_some(nodes[0], folder), "it is at it")
    kill(nodes[1], nodes[2])
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "durable: " in out
    assert_readable(roomless, "during", folder)
    again(nodes[1], nodes[2])
    wait_whole(roomless, "during")


def test_who_adds_dies_with_another_and_the_same_command_ends_it(
    nodes: list[Node], roomless: Node, tmp_path: Path
) -> None:
    folder = files(tmp_path / "in", 24, seed=5)
    process = adding(nodes[0], folder, "cut-short")
    wait_for(_has_some(nodes[0], folder), "it is at it")
    kill(nodes[0], nodes[3])
    _, err = process.communicate(timeout=60)
    if process.returncode == 0:  # it was faster
        assert_readable(roomless, "cut-short", folder)
    else:
        assert process.returncode == 3
        assert "hung up" in err
    again(nodes[0], nodes[3])
    add(nodes[0], folder, "cut-short", "--wait", "3")
    assert_readable(roomless, "cut-short", folder)
    wait_whole(roomless, "cut-short")


def test_two_of_four_die_at_once_after_it_and_nothing_is_lost(
    nodes: list[Node], roomless: Node, tmp_path: Path
) -> None:
    folder = files(tmp_path / "in", 8, seed=6)
    add(nodes[0], folder, "after", "--wait", "3")
    kill(nodes[0], nodes[2])
    assert_readable(roomless, "after", folder)
    left = manifest_of(roomless, "after")
    hashes = [chunk.hash for chunk in left.chunks]

    def both_have_all() -> bool:
        with Client(nodes[1].layout) as desk:
            return min(desk.survey(hashes).counts) >= 2

    wait_for(both_have_all, "the two that are left keep everything")
    again(nodes[0], nodes[2])
    wait_whole(roomless, "after")
    succeed("data", "rm", "after", "--yes", "--state", nodes[1].folder)
    gone = [node.layout.chunks / wanted.hex() for node in nodes[:4] for wanted in hashes]
    wait_for(lambda: not any(path.exists() for path in gone), "what was removed is dropped")


def _has_some(node: Node, folder: Path) -> Callable[[], bool]:
    """Of the files' chunks, some are on the node's disk."""
    from blake3 import blake3

    names = [blake3(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())]
    return lambda: sum((node.layout.chunks / name).exists() for name in names) >= 3
