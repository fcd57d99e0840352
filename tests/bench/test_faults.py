"""Ten thousand seeds are played a batch at a time, each once, and summed up over all of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import faults, faults_stages, report
from bench.faults import BATCH, append, read, rows
from peerlm.sim.menus import FAULTS, Lived


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """First seeds of the batches that are played; seed 300 breaks a promise."""
    batches: list[int] = []

    def runs(call: object, calls: list[tuple[int, int, int]], jobs: int, what: str) -> list[Lived]:
        batches.append(calls[0][0])
        return [
            Lived(seed, tuple(FAULTS)[: seed % 5], 3, seed / 100, "d", "broken" * (seed == 300))
            for seed, *_ in calls
        ]

    monkeypatch.setattr(faults, "all_runs", runs)
    return batches


def arguments(monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> int:
    monkeypatch.setattr(sys, "argv", ["faults", "--keep", str(folder), *more])
    return faults.main()


def test_a_batch_is_played_once_and_what_broke_is_told(
    played: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert arguments(monkeypatch, tmp_path, "--seeds", "500") == 1
    assert played == [1, 251]
    assert arguments(monkeypatch, tmp_path, "--seeds", "750") == 1
    assert played == [1, 251, 501]
    found = {row.what: row for row in rows(list(read(tmp_path / "faults.jsonl")), 750)}
    assert found["seeds, 12 nodes, a minute of trouble each"].ok
    assert found["which"].value == "300"
    assert found["faults"].value == 3 * 750
    assert found["the slowest"].value == 7.5
    assert str(found["played at"].value).startswith(report.commit_line())


def test_it_stops_where_it_is_told_to_and_says_that_some_are_missing(
    played: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert arguments(monkeypatch, tmp_path, "--seeds", "1000", "--most", "250") == 1
    assert played == [1]
    (first, *_) = rows(list(read(tmp_path / "faults.jsonl")), 1000)
    assert (first.value, first.ok) == (250, False)


def test_a_line_cut_short_is_played_again(
    played: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "faults.jsonl"
    path.write_text('{"first": 1, "la')
    append(path, faults.play(251, 1))
    assert [batch.first for batch in read(path)] == [251]
    arguments(monkeypatch, tmp_path, "--seeds", "500")
    assert played == [251, 1]


def test_no_batch_is_left_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert arguments(monkeypatch, tmp_path, "--seeds", str(BATCH + 1)) == 1


def test_batches_of_a_model_in_stages_are_kept_by_themselves(
    played: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--keep", str(tmp_path), "--seeds", "250"])
    assert faults_stages.main() == 1  # of the faults that hit all hosts of a stage none came
    assert played == [1]
    (batch,) = read(tmp_path / "faults-stages.jsonl")
    assert batch.stages == 3
    assert not (tmp_path / "faults.jsonl").exists()
