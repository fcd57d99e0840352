"""Named numbers made of what a node says, and when they are worth handing on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_scene import answer_of, member, sample_summary

from peerlm.observe.curves import CURVES, STEP, Cadence, read_curves, reading_of_line

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def status(**changes: Any) -> dict[str, Any]:
    return answer_of(sample_summary(**changes))


def test_values_are_those_of_the_status() -> None:
    reading = read_curves(status(), 1700.12345)
    assert reading.at == 1700.123
    assert reading.step == 2_500_000
    assert dict(reading.values) == {
        "swarm_tokens": 2_500_000,
        "swarm_tokens_per_s": 5000.0,
        "members_alive": 1,
        "tokens": 1_000_000,
        "tokens_per_s": 2500.0,
        "loss": 1.75,
        "val_loss": 1.81,
        "distance": 0.0123,
        "inner_steps": 12,
        "exchanges_ok": 12,
        "exchanges_busy": 2,
        "exchanges_refused": 0,
        "exchanges_timed_out": 1,
        "bytes_sent": 12_345_678,
        "bytes_received": 11_000_000,
        "bytes_allreduce": 99_000_000,
        "worker_restarts": 1,
        "nonfinite_steps": 0,
    }


def test_what_is_not_known_or_no_number_is_left_out() -> None:
    values = read_curves(status(loss=float("nan"), val_loss=None), 1.0).values
    assert not {"loss", "val_loss"} & set(values)
    assert set(values) == {c.name for c in CURVES} - {"loss", "val_loss"}


def test_a_reading_survives_as_a_line() -> None:
    reading = read_curves(status(), 5.0)
    line = reading.to_line()
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert reading_of_line(line) == reading


def test_names_are_fit_for_columns_and_each_is_explained() -> None:
    page = PAGE.read_text()
    assert CURVES[0].name == STEP
    assert len({c.name for c in CURVES}) == len(CURVES)
    for curve in CURVES:
        assert curve.name.isidentifier()
        assert curve.unit
        assert curve.help.endswith(".")
        assert f"| `{curve.name}` |" in page


def times_of(cadence: Cadence, seen: list[tuple[float, int]]) -> list[float]:
    """When readings were handed on, of (time, the swarm's tokens) seen."""
    readings = (cadence.see(status(swarm_tokens=tokens), at) for at, tokens in seen)
    return [reading.at for reading in readings if reading is not None]


def test_one_reading_every_so_often_and_none_without_news() -> None:
    cadence = Cadence(every_s=5.0)
    assert times_of(cadence, [(float(t), t) for t in range(12)]) == [0.0, 5.0, 10.0]
    assert times_of(cadence, [(float(t), 11) for t in range(15, 999)]) == [15.0]
    assert times_of(cadence, [(999.0, 12), (1000.0, 13)]) == [999.0]


def test_the_end_is_not_lost() -> None:
    cadence = Cadence(every_s=5.0)
    assert cadence.rest() is None
    times_of(cadence, [(0.0, 1), (1.0, 2), (2.0, 3)])
    rest = cadence.rest()
    assert rest is not None
    assert (rest.at, rest.step) == (2.0, 3)
    assert times_of(cadence, [(6.0, 3)]) == [6.0]
    assert cadence.rest() is None


@pytest.mark.parametrize("back_to", [99.0, 1.0])
def test_a_clock_that_is_set_back_does_not_stop_the_curves(back_to: float) -> None:
    cadence = Cadence(every_s=5.0)
    assert times_of(cadence, [(100.0, 1), (back_to, 2), (back_to + 5, 3)]) == [
        100.0,
        back_to,
        back_to + 5,
    ]


def test_a_member_more_is_news() -> None:
    cadence = Cadence(every_s=1.0)
    cadence.see(status(members=(member(1),)), 0.0)
    again = cadence.see(status(members=(member(1), member(2))), 1.0)
    assert again is not None
    assert again.values["members_alive"] == 2
