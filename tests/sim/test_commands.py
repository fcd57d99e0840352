"""`peerlm sim …` as a person uses it: output, files, and one line for what is wrong."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from peerlm.cli import sim_membership, sim_replay
from peerlm.cli.main import main
from peerlm.cli.sim_train import summarise
from peerlm.config import Plan
from peerlm.sim.network import read_wire
from peerlm.sim.scenarios import COMMON as COMMON_PARAMS
from peerlm.sim.scenarios import SCENARIOS, Run, play, read_params
from peerlm.sim.training import Point, Trained

TRAIN = ["sim", "train", "--nodes", "3", "--set", "run.token_budget=300000"]
COMMON = {"scenario", "nodes", "runs", "seed", "profile", "digest"}


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_membership_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sim", "membership", "--nodes", "8", "--runs", "3", "--jobs", "1", "--json"]
    assert main(command) == 0
    found = told(capsys)
    assert set(found) >= COMMON
    figure = found["first_dead_s"]
    assert isinstance(figure, dict)
    assert set(figure) == {"p50", "p90", "p99", "max", "n"}
    assert figure["n"] == 3
    assert found["false_deaths"] == 0
    assert main(command) == 0
    assert told(capsys) == found


def test_a_run_with_a_fault_a_picture_and_its_curve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = tmp_path / "faults.toml"
    faults.write_text('[[fault]]\nat_s = 2\ndo = "kill"\nnodes = [0]\nfor_s = 2\n')
    picture = tmp_path / "run.png"
    options = [
        "--faults",
        str(faults),
        "--plot",
        str(picture),
        "--link",
        "100mbit,20ms,1%",
        "--json",
    ]
    assert main([*TRAIN, *options]) == 0
    found = told(capsys)
    assert picture.read_bytes().startswith(b"\x89PNG")
    points = found["points"]
    assert isinstance(points, list)
    assert found["ended"] is True
    assert found["models_written"] == 3
    assert (found["plan"], found["faults"]) == ("tiny", str(faults))
    assert found["set"] == ["run.token_budget=300000"]
    assert found["speeds"] == [20000.0]
    assert set(found) >= COMMON
    losses = [point["loss_mean"] for point in points if point["loss_mean"] is not None]
    assert losses[-1] < losses[0] - 1
    assert min(point["nodes"] for point in points[5:]) == 2
    assert isinstance(found["bytes_per_node"], float)
    assert 0 < found["bytes_per_node"] < float(str(found["allreduce_bytes_per_node"]))


@pytest.mark.parametrize(
    "command",
    [
        ["membership", "--nodes", "4", "--runs", "1", "--scenario", "leave"],
        ["mixing", "--nodes", "4", "--runs", "2", "--rounds", "3"],
        ["faults", "--seeds", "7", "--nodes", "5"],
    ],
)
def test_every_command_says_what_was_run(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", *command, "--json"]) == 0
    assert set(told(capsys)) >= COMMON


def test_the_loss_is_that_of_all_models_that_were_written_and_of_the_worst() -> None:
    point = Point(10.0, 1000, 2.0, 2.5, 0.1, nodes=2, training=0, bytes_per_node=1.0)
    none = summarise(Plan(), 2, "1gbit", 1, (10,), Trained([point], seconds=10.0))
    assert (none["loss"], none["loss_worst_node"]) == (2.0, 2.5)
    two = Trained([point], seconds=10.0, model_losses=(1.0, 1.5))
    found = summarise(Plan(), 2, "1gbit", 1, (10,), two)
    assert (found["loss"], found["loss_worst_node"]) == (1.25, 1.5)


def test_who_joins_on_the_way_counts_in_what_a_node_sends() -> None:
    point = Point(10.0, 1000, 2.0, 2.0, 0.1, nodes=4, training=4, bytes_per_node=150.0)
    trained = Trained(
        [point], True, 10.0, {0: 300, 1: 100, 3: 100}, dict.fromkeys(range(4), 25), {"ok": 3}
    )
    found = summarise(Plan(), 3, "1gbit", 1, (10, 20), trained)
    assert found["nodes_ever"] == 4
    assert found["bytes_per_node"] == point.bytes_per_node
    assert found["control_bytes_per_node_s"] == 2.5


# ------------------------------------------------------------------------------- what goes wrong


def broken_at(seed: int, play: Callable[..., Run]) -> Callable[..., Run]:
    """`play`, with a bug that shows at one seed."""

    def broken(scenario: str, nodes: int, this: int, **more: Any) -> Run:
        if this == seed:
            raise KeyError("no such member")
        return play(scenario, nodes, this, **more)

    return broken


def test_a_run_that_fails_names_its_replay_and_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (sim_membership, sim_replay):
        monkeypatch.setattr(command, "play", broken_at(2, play))
    options = ["--nodes", "4", "--link", "10mbit,20ms,1%", "--param", "share=0.123456789"]
    runs = ["sim", "membership", *options, "--runs", "3", "--jobs", "1", "--json"]
    assert main(runs) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["failed"] == [2]
    assert found["first_dead_s"]["n"] == 2
    assert "seed 2: KeyError: 'no such member'" in err
    again = shlex.split(err.partition("see it again: ")[2].splitlines()[0])
    assert "--link" in again
    assert "share=0.123456789" in again
    assert main(again[1:]) == 1
    assert "seed 2: KeyError" in capsys.readouterr().err


def test_a_replay_over_given_lines_is_the_run_over_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params, link = {**read_params("leave", {}), "early": 0.0}, "10mbit,20ms,1%"
    again = sim_membership.replay_command("leave", 4, 3, params, "lan", link)
    assert main([*shlex.split(again)[1:], "--digest"]) == 0
    wire = read_wire(link)
    found = sim_membership.one_run("leave", 4, 3, params, "lan", wire)
    assert isinstance(found, Run)
    assert capsys.readouterr().out.strip() == found.digest


@pytest.mark.parametrize(
    ("at", "command"),
    [
        (
            "peerlm.cli.sim_train.train",
            ["train", "--nodes", "3", "--set", "train.lr=0.01", "--set", "mix.inner_steps=7"],
        ),
        (
            "peerlm.sim.consensus.simulate",
            ["mixing", "--nodes", "5", "--drop-reply", "0.123456789"],
        ),
    ],
)
def test_what_fails_prints_the_command_that_plays_it_again(
    at: str,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*given: object) -> None:
        raise AssertionError("a promise was broken")

    monkeypatch.setattr(at, fail)
    assert main(["sim", *command, "--seed", "5", "--json"]) == 1
    err = capsys.readouterr().err.strip()
    assert "seed 5: a promise was broken" in err
    again = shlex.split(err.partition("see it again: ")[2])
    assert sorted(again) == sorted(["peerlm", "sim", *command, "--seed", "5"])


def test_a_replay_tells_one_nodes_story(capsys: pytest.CaptureFixture[str]) -> None:
    crash = ["sim", "replay", "1", "--scenario", "crash", "--nodes", "4"]
    assert main([*crash, "--digest"]) == 0
    digest = capsys.readouterr().out.strip()
    assert main([*crash, "--story", "2"]) == 0
    *story, last = capsys.readouterr().out.splitlines()
    assert last == digest
    assert story
    assert {line.split()[1] for line in story} == {"2"}
    assert max(map(len, story)) <= 160
    assert "\\x" not in "".join(story)
    assert {f"node {n}" for n in (0, 1, 3)} <= set(re.findall("node [0-9]+", "".join(story)))


def test_a_story_of_a_node_that_never_was(capsys: pytest.CaptureFixture[str]) -> None:
    joins = ["sim", "replay", "1", "--scenario", "join", "--nodes", "4", "--story"]
    assert main([*joins, "4"]) == 0
    assert main([*joins, "5"]) == 2
    assert capsys.readouterr().err.strip() == "peerlm: --story 5: there is no node 5; 0 to 4"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_long_run_and_its_processes(number: signal.Signals, code: int) -> None:
    rest = ["membership", "--nodes", "100", "--scenario", "rest", "--param", "minutes=600"]
    parent = subprocess.Popen(
        [sys.executable, "-m", "peerlm", "sim", *rest, "--runs", "4", "--jobs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        processes = wait_until_busy(psutil.Process(parent.pid), 2)
        parent.send_signal(number)
        for process in processes:
            if number is signal.SIGINT:  # a terminal tells all of them
                with suppress(psutil.NoSuchProcess):  # the first may have ended the others by now
                    process.send_signal(number)
        out, err = parent.communicate(timeout=15)
    finally:
        parent.kill()
    assert (out, err.strip()) == ("", "")
    assert parent.returncode == code
    assert not psutil.wait_procs(processes, timeout=5)[1]


def wait_until_busy(parent: psutil.Process, many: int) -> list[psutil.Process]:
    """Children, once that many of them simulate."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        children = parent.children(recursive=True)
        if sum(child.cpu_times().user > 0.6 for child in children) >= many:
            return children
        time.sleep(0.05)
    raise AssertionError("no processes began to work")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["membership", "--nodes", "1"], "--nodes 1"),
        (["membership", "--scenario", "flood"], "must be one of"),
        (["membership", "--param", "share"], "KEY=VALUE"),
        (["membership", "--profile", "moon"], "swarm.profile"),
        (["membership", "--runs", "0"], "--runs 0"),
        (["membership", "--seed", "-1"], "--seed -1"),
        (["membership", "--jobs", "-1"], "--jobs -1"),
        (["membership", "--link", "fast"], "--link"),
        (["membership", "--param", "share=2"], "share=2"),
        (["membership", "--param", "share=1"], "somebody must be left"),
        (["membership", "--param", "share=nan"], "share=nan"),
        (["membership", "--nodes", "8", "--param", "share=0.99"], "somebody must be left"),
        (["membership", "--scenario", "slow", "--nodes", "8", "--param", "count=20"], "count=20"),
        (["membership", "--scenario", "join", "--param", "count=1.5"], "whole"),
        (["membership", "--scenario", "churn", "--param", "per_minute=0"], "per_minute=0"),
        (["membership", "--scenario", "churn", "--nodes", "2"], "3 or more"),
        (["membership", "--scenario", "loss", "--param", "minutes=0"], "minutes=0"),
        (["membership", "--scenario", "loss", "--param", "rate=1.5"], "rate=1.5"),
        (["mixing", "--seed", "-1"], "seed"),
        (["faults", "--jobs", "-1"], "--jobs -1"),
        (["faults", "--seeds", "9-1"], "--seeds"),
        (["faults", "--seeds", "9" * 5000], "--seeds"),
        (["faults", "--seeds", "٣"], "--seeds"),
        (["faults", "--nodes", "4"], "--nodes 4"),
        (["membership", "--link", ""], "--link"),
        (["replay", "1", "--story", "-4"], "--story"),
        (["replay", "--", "-5"], "SEED -5"),
        (["replay", "1", "--nodes", "4"], "--nodes 4"),
        (["replay", "1", "--param", "share=0.5"], "--scenario"),
        (["replay", "1", "--profile", "wan"], "--scenario"),
        (["replay", "1", "--scenario", "crash", "--nodes", "0"], "--nodes 0"),
        (["train", "--seed", "-1"], "--seed -1"),
        (["train", "--plan", "nowhere.toml"], "no file: No such file"),
        (["train", "--link", "fast"], "--link"),
        (["train", "--speed", "0"], "--speed"),
        (["train", "--speed", "1e11"], "from 1 to 1,000,000,000"),
        (["train", "--speed", "8000,1e-5"], "--speed"),
        (["train", "--speed", "1e9", "--set", "run.token_budget=300000"], "run.token_budget"),
        (["train", "--faults", "nowhere.toml"], "nowhere.toml: No such file"),
        (["train", "--faults", ""], "Is a directory"),
        (["train", "--plot", "run.bmp"], ".png"),
        (["train", "--plot", ""], "is a folder"),
        (["train", "--plot", "nowhere/run.png"], "no folder"),
        (["train", "--plot", f"{'x' * 300}.png"], "name too long"),
        (["train", "--nodes", "0"], "--nodes 0"),
        (["train", "--set", "mix.algorithm=magic"], "mix.algorithm"),
    ],
)
def test_bad_input_gets_one_line_and_a_code(
    command: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", *command]) == 2
    err = capsys.readouterr().err.strip()
    assert says in err
    assert "\n" not in err


@pytest.mark.parametrize(
    "text",
    [
        f'[[fault]]\nat_s = {"9" * 400}\ndo = "heal"',
        f'[[fault]]\nat_s = {"9" * 5000}\ndo = "heal"',
        f'[[fault]]\nat_s = 1\ndo = "kill"\nnodes = [0x{"f" * 5000}]',
        f"fault = {'[' * 5000}",
    ],
)
def test_a_file_of_monstrous_numbers_is_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "faults.toml"
    file.write_text(text)
    assert main([*TRAIN, "--faults", str(file)]) == 2
    err = capsys.readouterr().err.strip()
    assert "faults.toml: " in err
    assert "\n" not in err
    assert len(err) < 400


def test_a_picture_that_cannot_be_kept_does_not_cost_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("peerlm.cli.sim_plot.draw", full)
    picture = tmp_path / "run.PNG"
    assert main([*TRAIN, "--plot", str(picture), "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["scenario"] == "train"
    assert err.strip() == f"peerlm: --plot {picture}: No space left on device"
    assert not picture.exists()


def test_a_setting_that_changes_nothing_here_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point = Point(10.0, 1000, 2.0, 2.5, 0.1, nodes=3, training=1, bytes_per_node=1.0)
    monkeypatch.setattr(
        "peerlm.cli.sim_train.train", lambda *_: Trained([point], ended=True, seconds=10.0)
    )
    assert main([*TRAIN, "--set", "train.lr=0.01", "--set", "train.warmup=0.1"]) == 0
    note, alone = capsys.readouterr().err.splitlines()
    assert note.startswith("peerlm: --set train.lr: changes nothing")
    assert "never did two nodes train" in alone


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ('do = "link"\nnodes = [1]\nlink = 5', "link = 5"),
        ('do = "link"\nnodes = [1]', "link = ''"),
        ('do = "kill"\nnodes = [1]\nlink = "1mbit"', "link means nothing for 'kill'"),
        ('do = ["kill"]\nnodes = [1]', "do = ['kill']"),
        ('do = "heal"\nnodes = [1]', "nodes means nothing for 'heal'"),
    ],
)
def test_a_fault_that_cannot_be_is_one_line(
    fault: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "faults.toml"
    file.write_text(f"[[fault]]\nat_s = 1\n{fault}\n")
    assert main([*TRAIN, "--faults", str(file)]) == 2
    err = capsys.readouterr().err.strip()
    assert says in err
    assert "\n" not in err


def test_every_parameter_of_a_scenario_has_a_range_that_takes_its_default() -> None:
    for scenario, scene in SCENARIOS.items():
        given = {key: repr(value) for key, value in {**COMMON_PARAMS, **scene.params}.items()}
        assert read_params(scenario, given) == read_params(scenario, {})
