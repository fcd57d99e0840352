"""The demo's parts: what it shows, that it fails aloud, that nothing outlives it; and, slowly, itself."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cli_scene import Cli, answer_of, sample_summary

from peerlm.cli import demo, demo_story, demo_view
from peerlm.cli.demo_nodes import DemoFailed, DemoNode, end_all, peerlm
from peerlm.cli.demo_story import Scene, Story

SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


@pytest.fixture
def sleepers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[DemoNode]]:
    """Nodes that are plain processes which ignore SIGTERM; each has a child of its own."""
    script = tmp_path / "sleeper.py"
    script.write_text(
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {SLEEPER!r}])\n{SLEEPER}"
    )
    real = subprocess.Popen

    def start_sleeper(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        return real([sys.executable, str(script)], **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr("peerlm.cli.demo_nodes.subprocess.Popen", start_sleeper)
    nodes = [DemoNode(number, tmp_path) for number in (1, 2)]
    for node in nodes:
        node.start("up")
    yield nodes
    end_all(nodes, patience_s=0.0)


def process_of(node: DemoNode) -> psutil.Process:
    assert node._process is not None
    return psutil.Process(node._process.pid)


def wait_for_child(node: DemoNode) -> psutil.Process:
    deadline = time.monotonic() + 10
    while not (children := process_of(node).children()):
        assert time.monotonic() < deadline
    return children[0]


def test_nothing_of_a_node_outlives_the_end(sleepers: list[DemoNode]) -> None:
    processes = [p for node in sleepers for p in (process_of(node), wait_for_child(node))]
    end_all(sleepers, patience_s=0.05)
    assert psutil.wait_procs(processes, timeout=5)[1] == []


def test_a_killed_node_is_known_as_killed_and_its_children_are_named(
    sleepers: list[DemoNode],
) -> None:
    child = wait_for_child(sleepers[0])
    assert [p.pid for p in sleepers[0].kill()] == [child.pid]
    assert sleepers[0].state == "killed"
    child.kill()


def test_a_node_that_ends_by_itself_fails_the_demo_with_its_last_words(tmp_path: Path) -> None:
    node = DemoNode(1, tmp_path)
    node.start("version", "--no-such-option")
    assert node._process is not None
    node._process.wait(20)
    with pytest.raises(
        DemoFailed, match=r"node 1 ended by itself \(ended \(2\)\): .*no-such-option"
    ):
        node.check_up()


def test_a_command_that_fails_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DemoFailed, match="`peerlm status` failed: peerlm: no node in"):
        peerlm("status", "--state", str(tmp_path / "none"))


# ------------------------------------------------------------------------------------ the story


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path, 3, 1.0, show=lambda scene: None, say=lambda line: None)


def test_a_wait_that_is_in_vain_says_for_what_and_how_the_nodes_are(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_story, "POLL_S", 0.0)
    with pytest.raises(
        DemoFailed, match=r"every node mixes: not within .*; node 1 is not started;"
    ):
        story._wait("every node mixes", lambda: False, limit_s=0.01)


def test_a_token_count_that_goes_back_fails_the_demo(story: Story) -> None:
    node = story.scene.nodes[0]
    node.status = answer_of(sample_summary(swarm_tokens=1000))
    story._check_count(node)
    node.status = answer_of(sample_summary(swarm_tokens=10, epoch=4))
    story._check_count(node)  # another life starts from its snapshot
    node.status = answer_of(sample_summary(swarm_tokens=999))
    with pytest.raises(DemoFailed, match="went back on node 1: 1,000 → 999"):
        story._check_count(node)


def test_all_reduce_is_reckoned_for_every_step_of_every_node(story: Story) -> None:
    story._tokens_per_step, story._parameters = 100, 1_000
    story.scene.nodes[1].status = answer_of(sample_summary(swarm_tokens=6_000))
    story._measure()
    # 60 steps, 2 · (2/3) · 4 bytes for each of 1,000 parameters
    assert story.scene.bytes_allreduce == pytest.approx(60 * 2 * 2 / 3 * 4 * 1_000, abs=1)
    assert story.scene.loss_start == 1.81


# -------------------------------------------------------------------------------------- display


def scene(tmp_path: Path) -> Scene:
    nodes = [DemoNode(number, tmp_path) for number in (1, 2)]
    nodes[0].status = answer_of(sample_summary())
    made = Scene(nodes, 180.0, time.monotonic())
    made.budget, made.tokens, made.rate = 4_000_000, 1_000_000, 10_000.0
    made.val_loss, made.distance, made.bytes_allreduce = 2.345, 0.0123, 3_000_000
    return made


def test_in_a_pipe_it_is_lines_without_control_codes(tmp_path: Path) -> None:
    out = io.StringIO()
    view = demo_view.view_on(out)
    view.say("a run is founded")
    view.show(scene(tmp_path))
    view.close()
    text = out.getvalue()
    assert re.fullmatch(r"[^\x00-\x09\x0b-\x1f\x7f]*", text)
    first, second = text.splitlines()
    assert first.endswith("s  a run is founded")
    assert "25 % of 4 M tokens, 10 k/s, about 5 min left" in second
    assert "validation loss 2.345, distance 1.2 %, sent 0 B (all-reduce: 3 MB)" in second
    assert "node 2 not started" in second


def test_on_a_terminal_everything_is_on_one_screen(tmp_path: Path) -> None:
    from rich.console import Console

    console = Console(width=110, height=30, record=True, file=io.StringIO())
    console.print(demo_view.screen(scene(tmp_path), ["   1.0 s  a run is founded"]))
    text = console.export_text()
    for part in ("25 % of 4 M tokens", "node 1", "1.750", "12", "not started", "a run is founded"):
        assert part in text
    assert len(text.splitlines()) < 24


# ---------------------------------------------------------------------------------- the command


def test_what_did_not_happen_is_code_1_with_all_keys(
    peerlm: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(story: Story) -> None:
        raise DemoFailed("node 1 did not come back")

    monkeypatch.setattr(demo_story.Story, "tell", fail)
    monkeypatch.setattr(demo, "interrupt_on_terminate", lambda: None)
    outcome = peerlm("demo", "--json", "--keep", tmp_path / "demo")
    assert outcome.code == 1
    assert "peerlm: demo: node 1 did not come back; logs are in" in outcome.err
    result = json.loads(outcome.out)
    assert tuple(result) == demo.KEYS
    assert result["ok"] is False


def test_a_folder_that_is_in_use_is_refused(peerlm: Cli, tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    outcome = peerlm("demo", "--keep", tmp_path)
    assert outcome.code == 2
    assert "is not empty" in outcome.err


def start_demo(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "peerlm", "demo", "--keep", str(folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(folder: Path) -> list[psutil.Process]:
    return [
        p
        for p in psutil.process_iter(["cmdline"])
        if any(str(folder) in part for part in p.info["cmdline"] or ()) and p.pid != os.getpid()
    ]


@pytest.mark.net
@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_demo_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "demo"
    running = start_demo(folder)
    assert running.stdout is not None
    for line in running.stdout:
        if "more nodes join" in line:
            break
    else:
        pytest.fail("the nodes were not started")
    running.send_signal(number)
    running.communicate(timeout=60)
    assert running.returncode in (130, -signal.SIGKILL)
    assert psutil.wait_procs(processes_of(folder), timeout=10)[1] == []


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_itself(tmp_path: Path) -> None:
    running = start_demo(tmp_path / "demo", "--minutes", "1", "--json")
    out, err = running.communicate(timeout=600)
    assert running.returncode == 0, err
    result = json.loads(out)
    assert tuple(result) == demo.KEYS
    assert result["ok"] is True
    assert result["kills"] == 1
    assert result["consensus_distance"] < 1e-3
    assert result["loss_end"] < min(result["loss_start"], demo.LEARNT)
    assert 0 < result["bytes_sent"] < result["bytes_allreduce"]
    assert (Path(result["model_dir"]) / "model.safetensors").is_file()
    assert "node 1, the first of all, is killed" in err
    assert "\x1b" not in err
