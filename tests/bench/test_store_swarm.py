"""What kills of two at once lose of the store is found, of files and of checkpoints; what is flipped is flipped."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from blake3 import blake3

from bench import store_kills
from bench.store_flips import flip, is_whole
from bench.store_kills import Kills
from peerlm.errors import StateError
from peerlm.store.manifest import Chunk
from peerlm.types import ObjectHash


def digest(data: bytes) -> ObjectHash:
    return ObjectHash(blake3(data).digest())


def kills_of(
    monkeypatch: pytest.MonkeyPatch, folder: Path, names: list[str], kept: dict[Chunk, bytes]
) -> Kills:
    """Of a swarm that lists these names, each of all these chunks."""
    bytes_of = {chunk.hash: data for chunk, data in kept.items()}

    def manifest(name: str) -> Any:
        if name not in names:
            raise StateError("nothing of the name")
        return SimpleNamespace(chunks=list(kept))

    @contextmanager
    def desk(node: Any) -> Iterator[Any]:
        yield SimpleNamespace(
            names=lambda: [{"name": name} for name in names],
            manifest=manifest,
            read=lambda wanted, size, timeout_s: bytes_of[wanted],
        )

    monkeypatch.setattr(store_kills, "_desk", desk)
    return Kills(SimpleNamespace(nodes=[None]), folder, 1)  # type: ignore[arg-type]


def test_a_checkpoint_is_held_beside_its_hashes_and_a_file_beside_what_was_added(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chunks = [Chunk(digest(data), len(data)) for data in (b"one", b"other")]
    names = ["file-0", "file-1", "kept-2"]
    kills = kills_of(
        monkeypatch, tmp_path, names, dict(zip(chunks, (b"one", b"other"), strict=True))
    )
    kills.begun = {"file-0": digest(b"oneother"), "file-1": digest(b"x"), "kept-2": None}
    kills.acknowledged = {"file-0", "file-1", "kept-2"}
    assert kills.counted() == (2, 1)
    assert kills.lost() == 1
    kills_of(monkeypatch, tmp_path, names, dict(zip(chunks, (b"one", b"0ther"), strict=True)))
    assert kills.lost() == 3


def test_what_is_listed_is_read_though_nobody_acknowledged_it_and_what_was_acknowledged_must_be_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = {Chunk(digest(b"one"), 3): b"one"}
    kills = kills_of(monkeypatch, tmp_path, ["file-0"], kept)
    kills.begun = {"file-0": digest(b"other")}
    assert kills.lost() == kills.listed == 1
    kills.begun = {"file-0": digest(b"one"), "file-1": digest(b"one")}
    assert kills.lost() == 0
    kills.acknowledged = {"file-0", "file-1"}
    assert kills.lost() == 1


@pytest.mark.parametrize(
    ("listed", "data", "found"),
    [([], b"one", (0, 0)), (["file-0"], b"one", (1, 0)), (["file-0"], b"other", (1, 1))],
)
def test_what_was_refused_and_is_listed_is_read_before_it_is_said_again(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    listed: list[str],
    data: bytes,
    found: tuple[int, int],
) -> None:
    kills = kills_of(monkeypatch, tmp_path, listed, {Chunk(digest(b"one"), 3): b"one"})
    kills.begun = {"file-0": digest(data)}
    looked: list[tuple[int, int]] = []

    def said(*_: object) -> bool:
        looked.append((kills.listed_refused, kills.lost_refused))
        return True

    monkeypatch.setattr(kills, "_said", said)
    kills._say_again("file-0", [])
    assert (looked, kills.refused, kills.done_again) == ([found], 1, 1)


def test_of_each_chunk_one_copy_of_those_there_are_gets_one_other_byte(tmp_path: Path) -> None:
    rng = random.Random(1)
    nodes: list[Any] = [
        SimpleNamespace(layout=SimpleNamespace(root=tmp_path / name)) for name in "abc"
    ]
    kept = {digest(data): data for data in (rng.randbytes(50 + i) for i in range(20))}
    for node in nodes:
        (node.layout.root / "chunks").mkdir(parents=True)
    for name, data in kept.items():
        for node in rng.sample(nodes, 2):
            (node.layout.root / "chunks" / name.hex()).write_bytes(data)
    chunks = [Chunk(name, len(data)) for name, data in kept.items()]
    flipped = flip(nodes, chunks, rng)
    assert sorted(flipped.values()) == sorted(kept)
    for path, whole in flipped.items():
        found = path.read_bytes()
        assert sum(a != b for a, b in zip(found, kept[ObjectHash(whole)], strict=True)) == 1
    files = [path for node in nodes for path in (node.layout.root / "chunks").iterdir()]
    assert len(files) == 40
    assert sum(digest(path.read_bytes()).hex() != path.name for path in files) == 20
    assert not any(is_whole(one) for one in flipped.items())
