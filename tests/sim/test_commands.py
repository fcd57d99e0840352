"""`peerlm sim …` as a person uses it: output, files, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peerlm.cli.main import main

TRAIN = ["sim", "train", "--nodes", "3", "--set", "run.token_budget=300000"]


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_membership_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sim", "membership", "--nodes", "8", "--runs", "3", "--jobs", "1", "--json"]
    assert main(command) == 0
    found = told(capsys)
    assert {"scenario", "nodes", "runs", "seed", "profile", "digest"} <= set(found)
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
    losses = [point["loss_mean"] for point in points if point["loss_mean"] is not None]
    assert losses[-1] < losses[0] - 1
    assert min(point["nodes"] for point in points[5:]) == 2
    assert isinstance(found["bytes_per_node"], float)
    assert 0 < found["bytes_per_node"] < float(str(found["allreduce_bytes_per_node"]))


def test_a_replay_tells_one_nodes_story(capsys: pytest.CaptureFixture[str]) -> None:
    crash = ["sim", "replay", "1", "--scenario", "crash", "--nodes", "4"]
    assert main([*crash, "--digest"]) == 0
    digest = capsys.readouterr().out.strip()
    assert main([*crash, "--story", "2"]) == 0
    *story, last = capsys.readouterr().out.splitlines()
    assert last == digest
    assert story
    assert {line.split()[1] for line in story} == {"2"}


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["membership", "--nodes", "1"], "--nodes 1"),
        (["membership", "--scenario", "flood"], "must be one of"),
        (["membership", "--param", "share"], "KEY=VALUE"),
        (["membership", "--profile", "moon"], "swarm.profile"),
        (["membership", "--runs", "0"], "--runs 0"),
        (["faults", "--seeds", "9-1"], "--seeds"),
        (["faults", "--nodes", "2"], "--nodes 2"),
        (["replay", "1", "--story", "-4"], "--story"),
        (["train", "--plan", "nowhere.toml"], "nowhere.toml"),
        (["train", "--link", "fast"], "--link"),
        (["train", "--speed", "0"], "--speed"),
        (["train", "--faults", "nowhere.toml"], "nowhere.toml"),
        (["train", "--plot", "run.bmp"], ".png"),
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
