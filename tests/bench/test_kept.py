"""Hours of measuring survive an interruption: outcomes on disk, and a page that says it is unfinished."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bench import membership, report
from bench.kept import Kept
from bench.report import Missed, Row
from peerlm.cli.sim_membership import Broken
from peerlm.sim.scenarios import read_params


def test_what_was_found_is_there_again_but_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    with closing(Kept(path)) as kept:
        kept.keep({"seed": 1})
        kept.keep({"seed": 2})
    with path.open("a") as file:
        file.write('{"seed": 3, "sto')
    with closing(Kept(path)) as again:
        assert again.found == [{"seed": 1}, {"seed": 2}]
        again.keep({"seed": 4})
    with closing(Kept(path)) as last:
        assert [line["seed"] for line in last.found] == [1, 2, 4]


def test_rows_are_on_the_page_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "results.md"
    page.write_text("<!-- figure: join -->\nNot recorded yet.\n<!-- end: join -->\n")

    def measure(args: object, folder: Path) -> Iterator[Row]:
        yield Row("kills", 18)
        yield Row("returns", 17)
        raise Missed("somebody pulled the plug")

    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "commit_line", lambda: "abc")
    monkeypatch.setattr(sys, "argv", ["join", "--record", "--keep", str(tmp_path)])
    assert report.perform("join", report.parser("a figure"), measure) == 1
    text = page.read_text()
    assert "| kills | 18 |" in text
    assert "| returns | 17 |" in text
    assert report.UNFINISHED.what in text


def test_a_case_of_membership_is_played_once_while_nodes_do_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--only", "at rest, N = 64", "--share", "0.1", "--jobs", "1", "--keep", str(tmp_path)]
    played: list[str] = []

    def runs(call: object, arguments: list[object], jobs: int, what: str) -> list[object]:
        played.append(what)
        return [Broken(1, "a promise was broken")]

    monkeypatch.setattr(membership, "all_runs", runs)
    monkeypatch.setattr(sys, "argv", ["membership", *flags])
    for does in ("x", "x", "y"):
        monkeypatch.setattr(membership, "behaviour", lambda scenario, does=does: does)
        assert membership.main() == 1
    assert played == ["at rest, N = 64"] * 2


def test_what_is_not_kept_once_the_time_is_up_is_told_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--only", "at rest, N = 64", "--limit", "0", "--keep", str(tmp_path)]
    monkeypatch.setattr(membership, "all_runs", None)
    monkeypatch.setattr(membership, "behaviour", lambda scenario: "x")
    monkeypatch.setattr(sys, "argv", ["membership", *flags])
    assert membership.main() == 1
    assert "MISSED" in capsys.readouterr().out


def test_every_case_has_parameters_that_its_scenario_takes() -> None:
    for case in membership.CASES:
        read_params(case.scenario, case.params, case.nodes)
    names = [case.what for case in membership.CASES]
    assert len(set(names)) == len(names)
