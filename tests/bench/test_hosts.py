"""What two reports of a scenario come to, in rows."""

from __future__ import annotations

from typing import Any

import pytest

from bench.hosts import rows
from peerlm.chaos.verdict import growth


def a_report(**changes: Any) -> dict[str, Any]:
    """As `peerlm chaos run --json`."""
    steady = {"life_s": 1200.0, "rss": 1.01, "files": 1.0, "threads": 1.0}
    return {
        "nodes": 5,
        "seconds": 1860.0,
        "trouble_s": 1800.0,
        "faults": {"kill": 24, "cut": 11},
        "efficiency": 0.97,
        "tokens_lost": 30_000,
        "return_s": {"n": 24, "p50": 3.5, "max": 8.0},
        "not_returned": 0,
        "well_s": 1.0,
        "breadth_min": 4,
        "splits": [],
        "cores_share": 0.4,
        "growth": {"daemon": steady, "worker": steady},
        "tracebacks": 0,
        "tokens_that_fell": 0,
        "curve": [{"tokens": 100, "val_loss": 1.5}],
        "finish": True,
        "final": {"loss": 1.46, "spread": 1e-5},
        **changes,
    }


def missed(**changes: Any) -> list[str]:
    return [r.what for r in rows(a_report(**changes), a_report(faults={})) if r.ok is False]


def test_a_run_that_keeps_all_is_told_to() -> None:
    assert missed() == []
    (lasted,) = [r for r in rows(a_report(), a_report()) if r.what == "faults went on for"]
    assert lasted.measured == "30 min"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"efficiency": 0.91}, ["efficiency"]),
        ({"well_s": None}, ["well at the end after"]),
        ({"breadth_min": 3}, ["others mixed with in five minutes, of 4, the fewest"]),
        ({"cores_share": 0.61}, ["of all processors' time"]),
        ({"final": {"loss": 1.49, "spread": 1e-5}}, ["loss ÷ that in peace"]),
        (
            {"final": None, "curve": []},
            ["loss ÷ that in peace", "spread of finished models"],
        ),
    ],
)
def test_what_is_missed_is_the_row_that_says_so(changes: dict[str, Any], what: list[str]) -> None:
    assert missed(**changes) == what


def test_a_leak_and_what_was_too_short_to_show_one_are_missed() -> None:
    leaks = {"life_s": 1200.0, "rss": 1.2, "files": 1.0, "threads": 1.0}
    steady = a_report()["growth"]["daemon"]
    assert missed(growth={"daemon": steady, "worker": leaks}) == ["rss of a worker, × in its life"]
    assert len(missed(growth={"daemon": steady, "worker": growth([])})) == 3
    assert missed(growth={"daemon": steady, "worker": growth([])}, seconds=600.0) == []


def test_a_split_is_held_to_its_heal() -> None:
    split = {"heal_s": 12.0, "merged": 1.6, "better_half": 1.65, "worse_s": 100.0}
    assert missed(splits=[split]) == []
    assert missed(splits=[{**split, "merged": None}]) == ["merged loss ÷ the better half's"]
    assert missed(splits=[{**split, "heal_s": None}]) == ["heal to one swarm"]
