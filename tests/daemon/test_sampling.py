"""A sample text is written by a process that nothing waits for, and outlives the daemon that had it written."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_scene import SAMPLE, answer_of, sample_summary

from peerlm.config import ObserveSection
from peerlm.daemon import sampling
from peerlm.daemon.sampling import Sampling
from peerlm.observe import sample as samples
from peerlm.store.layout import Layout

AT = 1_700_000_000.0
SAID = {"text": "\nTo be\x1b[2J", "snapshot": 4, "tokens": 2_400_000, "cpu_s": 4.25}
WRITES = f"import json; print(json.dumps({SAID}))"
FAILS = "import sys; sys.exit('a note\\nno weights\\x1b[2J')"
WAITS = "import time; time.sleep(60)"
SOON_S = 20.0


class Scene:
    """Of one node; `begin` is another life of its daemon."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout(folder)
        self.reports: list[str] = []
        self.status = answer_of(sample_summary())
        self.sampling: Sampling

    def begin(self, script: str, every_s: float = 1.0, parameters: int = 1000) -> None:
        self.threads = ThreadPoolExecutor(1)
        self.sampling = Sampling(
            self.layout,
            ObserveSection(sample_every_s=every_s),
            parameters,
            self.threads,
            lambda level, event, fields: self.reports.append(event),
            (sys.executable, "-c", script),
        )
        self.sampling._began -= 1e6  # it has been up for long

    async def end(self) -> None:
        await self.sampling.close()
        self.threads.shutdown()

    def see(self, at: float = AT) -> None:
        self.sampling.see(self.status, at)

    async def written(self) -> dict[str, Any]:
        """`sample` of the status, when the process has ended."""
        assert self.sampling._writing is not None
        await asyncio.wait_for(self.sampling._writing, SOON_S)
        return self.sampling.as_json()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    yield Scene(tmp_path)
    assert not [c for c in psutil.Process().children() if str(tmp_path) in c.cmdline()]


async def test_it_is_written_without_anybody_asking_and_is_there_after_a_restart(
    scene: Scene,
) -> None:
    scene.begin(WRITES)
    scene.see()
    assert scene.sampling.as_json() | {"why": ""} == BLANK | {"writing": True}
    said = await scene.written()
    assert set(said) == set(SAMPLE)
    assert (said["text"], said["tokens"], said["at"]) == ("To be\x1b[2J", 2_400_000, AT)
    assert (said["cpu_s"], said["why"], scene.reports) == (4.25, "", ["sample_written"])
    await scene.end()
    scene.begin(FAILS)
    assert scene.sampling.as_json() == said
    scene.see(AT + 1e6)
    assert not scene.sampling.is_writing, "of this snapshot there is one"
    assert scene.sampling.as_json() == said
    await scene.end()


BLANK = SAMPLE | {"text": "", "snapshot": 0, "tokens": 0, "at": None, "cpu_s": 0.0}


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (FAILS, "no text was written: no weights\N{REPLACEMENT CHARACTER}[2J"),
        ("import sys; sys.exit(7)", "no text was written: exit status 7"),
        ("print('[1')", "printed something else"),
        ("print('{}')", "printed something else"),
    ],
)
async def test_what_failed_says_why_and_keeps_the_text_that_there_is(
    scene: Scene, script: str, words: str
) -> None:
    scene.begin(WRITES)
    scene.see()
    before = await scene.written()
    await scene.end()
    scene.begin(script)
    scene.status["snapshot"] |= {"number": 5, "tokens": 3_000_000}
    scene.see(AT + 1e6)
    said = await scene.written()
    assert words in said["why"]
    assert (said["text"], said["at"], said["snapshot"]) == (before["text"], before["at"], 4)
    assert scene.reports == ["sample_written", "sample_failed"]
    scene.see(AT + 1e6 + 0.5)
    assert not scene.sampling.is_writing, "not again at once"
    await scene.end()


async def test_one_that_takes_too_long_is_killed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "LIFE_S", 0.2)
    scene.begin(WAITS)
    scene.see()
    assert (await scene.written())["why"] == "no text was written within 0.2 s"
    await scene.end()


async def test_the_end_of_the_daemon_is_its_end_and_leaves_no_mark(scene: Scene) -> None:
    scene.begin(WAITS)
    scene.see()
    await asyncio.sleep(0)  # its task begins, and with it the process
    await scene.end()
    assert scene.sampling.as_json() | {"why": ""} == BLANK
    assert not scene.layout.sample.exists()


async def test_a_process_that_cannot_be_started_is_no_fault_of_ours(scene: Scene) -> None:
    scene.begin(WRITES)
    scene.sampling._command = ("/nowhere/python",)
    scene.see()
    assert "its process cannot start" in (await scene.written())["why"]
    await scene.end()


async def test_who_asks_has_one_written_now_and_once_for_each_snapshot(scene: Scene) -> None:
    scene.begin(WRITES, every_s=0.0)
    scene.see()
    assert not scene.sampling.is_writing
    assert "sample_every_s = 0" in scene.sampling.as_json()["why"]
    scene.sampling.ask(scene.status, AT)
    assert scene.sampling.is_writing
    assert (await scene.written())["text"]
    scene.sampling.ask(scene.status, AT)
    assert not scene.sampling.is_writing
    await scene.end()


async def test_who_asks_again_and_again_for_what_fails_has_it_tried_once_a_minute(
    scene: Scene,
) -> None:
    scene.begin(FAILS)
    scene.sampling.ask(scene.status, AT)
    assert "no weights" in (await scene.written())["why"]
    for later_s, is_tried in ((1.0, False), (59.0, False), (60.0, True)):
        scene.sampling.ask(scene.status, AT + later_s)
        assert scene.sampling.is_writing == is_tried, later_s
    await scene.end()


async def test_a_failure_is_not_booked_as_more_than_a_text_may_cost(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "CPU_S", 0.001)
    scene.begin(FAILS)
    scene.see()
    await scene.written()
    assert scene.sampling._last.cpu_s == 0.001
    await scene.end()


@pytest.mark.parametrize("is_asked", [False, True])
async def test_a_model_too_large_for_the_machine_starts_no_process(
    scene: Scene, is_asked: bool
) -> None:
    scene.begin(WAITS, parameters=10**14)
    if is_asked:
        scene.sampling.ask(scene.status, AT)
    scene.see()
    assert not scene.sampling.is_writing
    assert "would take 400000" in scene.sampling.as_json()["why"]
    await scene.end()
    assert json.loads(scene.layout.sample.read_bytes())["error"]


async def test_of_a_part_of_the_model_the_swarm_writes(scene: Scene) -> None:
    scene.begin(f"import json, sys; print(json.dumps({SAID} | {{'text': sys.argv[4]}}))")
    scene.status["stages"] |= {"first": 1, "last": 1, "count": 2}
    for number, said in enumerate(scene.status["members"]):
        said |= {"state": "alive", "weights_tokens": 2_300_000 + number, "stages": [0, 1]}
    scene.see()
    said = await scene.written()
    assert (said["text"], said["through_swarm"], said["tokens"]) == ("swarm", True, 2_300_000)
    await scene.end()
