"""What kills of two at once lose of the store is found, of files and of checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from blake3 import blake3

from bench import store_swarm
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
