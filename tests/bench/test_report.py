"""A figure says what was measured, keeps or misses its bounds, and replaces its own block only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import report
from bench.report import Missed, Quantiles, Report, Row, recorded

PAGE = """# Results

<!-- figure: join -->
Not recorded yet.
<!-- end: join -->

<!-- figure: chaos -->
Not recorded yet.
<!-- end: chaos -->
"""


def of(*rows: Row, name: str = "join") -> Report:
    return Report(
        name, rows, "python -m bench.join", "two cores", "2026-01-01", "abc, with changes"
    )


@pytest.mark.parametrize(
    ("row", "ok", "target"),
    [
        (Row("kills", 18), None, ""),
        (Row("slowest", 30.0, "s", at_most=30), True, "≤ 30 s"),
        (Row("slowest", 30.1, "s", at_most=30), False, "≤ 30 s"),
        (Row("ratio", 0.96, at_least=0.97), False, "≥ 0.97"),
        (Row("loss", 2.0, below=2.0), False, "< 2"),
        (Row("sides", 200, at_least=200, at_most=200), True, "= 200"),
        (Row("first step", None, "s", at_most=20), False, "≤ 20 s"),
        (Row("drift", float("nan"), at_most=1e-6), False, "≤ 1e-06"),
        (Row("slowest", float("inf"), "s", at_most=30), False, "≤ 30 s"),
    ],
)
def test_a_row_keeps_or_misses_its_bounds(row: Row, ok: bool | None, target: str) -> None:
    assert row.ok is ok
    assert row.target == target


def test_one_missed_bound_makes_the_report_fail() -> None:
    kept, missed = Row("a", 1, at_most=1), Row("b", 2, at_most=1)
    assert of(kept, Row("c", 5)).ok
    assert not of(kept, missed).ok
    assert json.loads(of(kept, missed).as_json())["rows"][1]["ok"] is False
    assert "MISSED" in of(missed).as_text()


def test_a_spread_is_three_numbers_in_a_table_and_an_object_in_json() -> None:
    spread = Quantiles.of([0.5, 0.1, 0.2, 0.3, 0.4, 1.0, 0.9, 0.8, 0.7, 0.6])
    figure = of(Row("verdict", spread, "s"))
    assert "| verdict | 0.5 / 0.9 / 1 s |  |  |" in figure.as_markdown()
    value = json.loads(figure.as_json())["rows"][0]["value"]
    assert value == {"p50": 0.5, "p90": 0.9, "max": 1.0, "n": 10}
    with pytest.raises(Missed):
        Quantiles.of([])


def test_recording_replaces_the_figures_own_block() -> None:
    once = recorded(PAGE, of(Row("first step, slowest", 12.0, "s", at_most=20)))
    assert "| first step, slowest | 12 s | ≤ 20 s | kept |" in once
    assert "two cores; 2026-01-01; commit abc, with changes" in once
    assert once.count("Not recorded yet.") == 1
    again = recorded(once, of(Row("first step, slowest", 25.0, "s", at_most=20)))
    assert "| first step, slowest | 25 s | ≤ 20 s | MISSED |" in again
    assert "12 s" not in again


def test_a_figure_without_a_block_is_not_recorded() -> None:
    with pytest.raises(Missed, match="no block"):
        recorded(PAGE, of(Row("a", 1), name="weather"))


def test_every_figure_has_its_block_on_the_page_and_every_block_its_figure() -> None:
    page = report.PAGE.read_text()
    blocks = {line.split()[2] for line in page.splitlines() if line.startswith("<!-- figure:")}
    scripts = {
        path.stem
        for path in Path(report.__file__).parent.glob("*.py")
        if "report.perform(" in path.read_text()
    }
    assert blocks == scripts
    for name in blocks:
        recorded(page, of(name=name))
