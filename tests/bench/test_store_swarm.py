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

from bench import store_swarm
from bench.store_flips import flip, is_whole
from bench.store_swarm import Kills
from peerlm.store.manifest import Chunk
from peerlm.types import ObjectHash


def digest(data: bytes) -> ObjectHash:
    return ObjectHash(blake3(data).digest())


def test_a_checkpoint_is_held_beside_its_hashes_and_a_file_beside_what_was_added(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chunks = [Chunk(digest(data), len(data)) for data in (b"one", b"other")]
    kept = {chunks[0].hash: b"one", chunks[1].hash: b"other"}

    @contextmanager
    def desk(node: Any) -> Iterator[Any]:
        yield SimpleNamespace(
            manifest=lambda name: SimpleNamespace(chunks=chunks),
            read=lambda wanted, size, timeout_s: kept[wanted],
        )

    monkeypatch.setattr(store_swarm, "_desk", desk)
    kills = Kills(SimpleNamespace(nodes=[None]), tmp_path, 1)  # type: ignore[arg-type]
    kills.acknowledged = {"file-0": digest(b"oneother"), "file-1": digest(b"x"), "kept-2": None}
    assert kills.counted() == (2, 1)
    assert kills.lost() == 1
    kept[chunks[1].hash] = b"0ther"
    assert kills.lost() == 3


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
