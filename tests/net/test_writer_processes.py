"""Writers as the daemon runs them, each in a process of its own, with others' libraries for real."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import pytest

from peerlm.observe.curves import Origin, Reading

ORIGIN = Origin("plays", "aa" * 16, "bb" * 16)


def reading(at: float, tokens: int = 0, **values: float) -> Reading:
    return Reading(at, {"swarm_tokens": tokens or int(at), **values})


def run_writer(name: str, folder: Path, readings: list[Reading], **variables: str) -> list[str]:
    """A writer's process from beginning to end, as the daemon feeds it; its answers."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "peerlm.daemon.writers.process", name, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | variables,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    answers = []
    with process:
        process.stdin.write(json.dumps(asdict(ORIGIN)).encode() + b"\n")
        for reading in readings:
            process.stdin.write(reading.to_line())
            process.stdin.flush()
            answers.append(json.loads(process.stdout.readline()))
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0
    return answers


def test_the_process_of_a_writer(tmp_path: Path) -> None:
    assert run_writer("csv", tmp_path, [reading(1.0), reading(2.0)]) == ["", ""]
    with (tmp_path / "bbbbbbbb.csv").open() as file:
        assert [row["time"] for row in csv.DictReader(file)] == ["1.0", "2.0"]
    assert run_writer("csv", tmp_path, []) == []


def test_tensorboard_reads_what_was_written_in_two_lives(tmp_path: Path) -> None:
    lives = [[reading(1.5, 1000, loss=2.5), reading(2.5, 2000)], [reading(3.5, 3000, loss=1.5)]]
    for readings in lives:
        assert run_writer("tensorboard", tmp_path, readings) == [""] * len(readings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(tmp_path / "bbbbbbbb")).Reload()
    assert set(found.Tags()["scalars"]) == {"swarm_tokens", "loss"}
    losses = [(e.wall_time, e.step, e.value) for e in found.Scalars("loss")]
    assert losses == [(1.5, 1000, 2.5), (3.5, 3000, 1.5)]
    assert [e.step for e in found.Scalars("swarm_tokens")] == [1000, 2000, 3000]


@pytest.mark.timeout(120)
def test_wandb_offline_leaves_what_can_be_synced(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path / "home"), "WANDB_MODE": "offline"}
    for tokens in (1000, 2000):
        answers = run_writer("wandb", tmp_path, [reading(1.0, tokens, loss=2.5)], **home)
        assert answers == [""]
    files = list(tmp_path.glob("wandb/offline-run-*/run-aaaaaaaa-bbbbbbbb.wandb"))
    assert files
    written_down = b"".join(file.read_bytes() for file in files)
    for word in (b"swarm_tokens", b"loss", b"plays bbbbbbbb"):
        assert word in written_down
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--dry-run", *(str(f.parent) for f in files)],
        capture_output=True,
        text=True,
        env=os.environ | home,
        timeout=60,
    )
    assert f"Would sync {len(files)} run(s)" in done.stdout + done.stderr, done
