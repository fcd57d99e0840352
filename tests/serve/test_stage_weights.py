"""A host answers texts with the newest snapshot that can be read, and tries again what could not be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serve_scene import INIT, put_snapshot

from peerlm.cli.main import main
from peerlm.cli.plan import current_plan
from peerlm.errors import StateError
from peerlm.serve import stage_weights
from peerlm.serve.engine import Slots
from peerlm.serve.stage_weights import READ_AGAIN_S, READ_AGAIN_S_MAX, Reader, Weights
from peerlm.store import snapshot
from peerlm.store.layout import Layout
from peerlm.types import Instant


class Scene:
    """A reader, asked at times that a test says."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout(folder / "node")
        assert main(["init", "--state", str(self.layout.root), *INIT]) == 0
        plan = current_plan(self.layout).plan
        slots = Slots(plan, 2, 1 << 30)
        self.reader, self.now = Reader(self.layout, plan, range(1), slots), 100.0

    def read(self, after_s: float = 0.0) -> Weights | None:
        self.now += after_s
        self.reader.look(Instant(self.now), wait=True)
        return self.reader.found(Instant(self.now))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def failing(times: int, error: BaseException) -> Callable[..., Any]:
    real, left = stage_weights.held_values, [times]

    def held_values(*given: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return real(*given)

    return held_values


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        StateError("snapshot-1: cannot be read"),
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nSee documentation"),
    ],
)
def test_what_could_not_be_read_is_read_later(
    error: BaseException,
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_snapshot(scene.layout, 100)
    monkeypatch.setattr(stage_weights, "held_values", failing(2, error))
    assert scene.read() is None
    assert scene.reader.trouble.startswith("snapshot 1 cannot be read: ")
    assert scene.read(READ_AGAIN_S - 1) is None
    assert scene.read(1) is None
    assert scene.read(2 * READ_AGAIN_S - 1) is None, "each time later"
    found = scene.read(1)
    assert found is not None
    assert found.name.startswith("t100-")
    assert scene.reader.trouble == ""
    told = capsys.readouterr().err
    assert told.count("weights to answer with") == 1, "once for the same"
    assert "documentation" not in told
    assert scene.read(READ_AGAIN_S_MAX) is None, "it is here"


def test_a_newer_snapshot_is_read_at_once_and_a_damaged_one_rarely(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_snapshot(scene.layout, 100)
    assert scene.read() is not None
    put_snapshot(scene.layout, 200)
    newest = snapshot.load(scene.layout).snapshot
    assert newest is not None
    data = newest.path
    damaged = bytearray(data.read_bytes())
    damaged[-10] ^= 1
    data.write_bytes(damaged)
    reads = list[float]()
    real = stage_weights.held_values

    def held_values(*given: Any) -> Any:
        reads.append(scene.now)
        return real(*given)

    monkeypatch.setattr(stage_weights, "held_values", held_values)
    for _ in range(2000):
        assert scene.read(1.0) is None
    assert 8 < len(reads) < 16
    scene.reader._failures = 5000
    assert scene.read(READ_AGAIN_S_MAX) is None, "and for ever"
    assert scene.reader.trouble == "snapshot 2 cannot be read"
    put_snapshot(scene.layout, 300)
    found = scene.read(0.1)
    assert found is not None
    assert found.name.startswith("t300-")
    assert scene.reader.trouble == ""


def test_a_folder_that_cannot_be_listed_just_then_ends_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_snapshot(scene.layout, 100)

    def newest(layout: Layout) -> int:
        raise StateError("snapshots: Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "newest", newest)
        assert scene.read() is None
        assert "Input/output" in scene.reader.trouble
    assert scene.read(1.0) is not None
