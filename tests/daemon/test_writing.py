"""Writers beside a daemon: whatever one does, nothing waits for it, and it is gone at the end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_scene import answer_of, sample_summary

from peerlm.config import ObserveSection
from peerlm.daemon import writing
from peerlm.daemon.writing import WAITING_MAX, Writing
from peerlm.observe.curves import Origin

pytestmark = [pytest.mark.net, pytest.mark.timeout(60)]

ORIGIN = Origin("plays", "aa" * 16, "bb" * 16)

FAKE = """
import os, pathlib, signal
HERE = pathlib.Path(__file__).parent

class Settings:
    def __init__(self, **how): pass

class Run:
    def log(self, values, step):
        with open(HERE / "lives", "a") as file:
            file.write(f"{os.getpid()}\\n")
        %s

    def finish(self):
        (HERE / "finished").touch()

def init(**how):
    print("whatever a library prints", flush=True)
    return Run()
"""
"""A library named wandb, and what it does with a point."""


class Scene:
    """Writers in a folder, and what they reported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reports: list[tuple[str, str, dict[str, Any]]] = []
        self._news = asyncio.Event()
        self.writing: Writing
        self._tokens = 0

    def begin(self, *writers: str) -> None:
        settings = ObserveSection(writers, "curves", 1.0)
        self.writing = Writing(settings, ORIGIN, self.folder, self._report)

    def _report(self, level: str, event: str, fields: dict[str, Any]) -> None:
        self.reports.append((level, event, fields))
        self._news.set()

    def tell(self, times: int = 1) -> None:
        """As often, something new after a second."""
        for _ in range(times):
            self._tokens += 1
            summary = sample_summary(swarm_tokens=self._tokens)
            self.writing.see(answer_of(summary), float(self._tokens))

    async def reported(self, number: int) -> dict[str, Any]:
        """The fields of a report, once it is there."""
        async with asyncio.timeout(15):
            while len(self.reports) <= number:
                self._news.clear()
                await self._news.wait()
        return self.reports[number][2]

    async def until(self, condition: Callable[[], Any]) -> Any:
        async with asyncio.timeout(15):
            while not (found := condition()):  # noqa: ASYNC110 - a file tells nobody
                await asyncio.sleep(0.01)
        return found

    def lives(self) -> list[int]:
        """Process ids that have taken a point."""
        path = self.folder / "lives"
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    def rows(self) -> list[str]:
        path = self.folder / "curves" / "bbbbbbbb.csv"
        return path.read_text().splitlines()[1:] if path.exists() else []


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setattr(writing, "CLOSE_S", 30.0)  # a process may take its time to come up
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), before))))
    return Scene(tmp_path)


def lend(scene: Scene, what_log_does: str) -> None:
    (scene.folder / "wandb.py").write_text(FAKE % what_log_does)


async def test_without_writers_nothing_runs(scene: Scene) -> None:
    scene.begin()
    scene.tell(3)
    await scene.writing.close()
    assert psutil.Process().children() == []


async def test_points_are_written_and_the_end_finishes_them(scene: Scene) -> None:
    lend(scene, "pass")
    scene.begin("csv", "wandb")
    scene.tell(3)
    await scene.writing.close()
    assert [row.split(",")[1] for row in scene.rows()] == ["1", "2", "3"]
    assert len(scene.lives()) == 3
    assert (scene.folder / "finished").exists()
    assert scene.reports == []


async def test_a_writer_that_hangs_holds_up_nobody_and_is_killed_at_the_end(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "CLOSE_S", 0.2)
    lend(scene, "signal.pause()")
    scene.begin("wandb", "csv")
    scene.tell()
    (stuck,) = await scene.until(scene.lives)
    for number in range(2, 3 * WAITING_MAX):
        scene.tell()
        await scene.until(lambda n=number: len(scene.rows()) == n)
    assert scene.reports == [
        (
            "warning",
            "writer_failed",
            {"writer": "wandb", "why": "it takes nothing; the oldest points are dropped"},
        )
    ], "said once"
    (pen,) = [pen for pen in scene.writing._pens if pen._name == "wandb"]
    assert len(pen._waiting) == WAITING_MAX
    async with asyncio.timeout(5):
        await scene.writing.close()
    assert not psutil.pid_exists(stuck)


async def test_a_writer_that_dies_gets_another_process(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "AGAIN_S", 0.01)
    lend(scene, "if not (HERE / 'mended').exists(): os._exit(7)")
    scene.begin("wandb")
    scene.tell()
    assert await scene.reported(0) == {
        "writer": "wandb",
        "why": "its process has ended with status 7",
    }
    scene.tell()
    await scene.until(lambda: len(scene.lives()) == 2)
    (scene.folder / "mended").touch()
    scene.tell()
    await scene.until(lambda: len(scene.lives()) == 3)
    assert await scene.reported(1) == {"writer": "wandb"}
    assert [event for _, event, _ in scene.reports] == ["writer_failed", "writer_well"]
    await scene.writing.close()


async def test_a_failure_is_told_once_and_rest_is_not_waited_out_at_the_end(scene: Scene) -> None:
    lend(scene, "raise ConnectionError('no route')")
    scene.begin("wandb")
    scene.tell(4)
    assert await scene.reported(0) == {"writer": "wandb", "why": "ConnectionError: no route"}
    async with asyncio.timeout(5):
        await scene.writing.close()
    assert len(scene.reports) == 1
    assert (scene.folder / "finished").exists()


async def test_a_process_that_cannot_be_started_is_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing.sys, "executable", str(scene.folder / "no_such_python"))
    scene.begin("csv")
    assert "no_such_python" in (await scene.reported(0))["why"]
    scene.tell(2 * WAITING_MAX)
    async with asyncio.timeout(5):
        await scene.writing.close()
    assert len(scene.reports) == 1


async def test_a_writer_gets_no_invite(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERLM_TOKEN", "peerlm1-secret")
    lend(scene, "assert 'PEERLM_TOKEN' not in os.environ")
    scene.begin("wandb")
    scene.tell()
    await scene.writing.close()
    assert len(scene.lives()) == 1
    assert scene.reports == []
