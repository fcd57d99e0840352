"""What rounds come to as rows, and which model so many megabytes are."""

from __future__ import annotations

import pytest

from peerlm.bench.exchange import model_of
from peerlm.bench.rows import (
    Missed,
    Round,
    codec_row,
    codecs_of,
    exchange_row,
    grown,
    with_ratios,
)
from peerlm.config import Plan, with_changes
from peerlm.model.plan import parameter_count


def rounds(*seconds: float, meeting_s: float = 0.0) -> list[Round]:
    return [
        Round(
            s, meeting_s, {"wire_bytes": 80, "busy": i}, cpu_s=s / 2, rss_mb=100.0 + i, grown_mb=i
        )
        for i, s in enumerate(seconds)
    ]


def test_a_row_has_the_spread_of_its_rounds_and_what_they_cost() -> None:
    row = exchange_row("ours", rounds(0.5, 0.1, 0.2, 0.4), 10_000_000)
    assert row["name"] == "ours"
    assert (row["seconds_p50"], row["seconds_p90"], row["seconds_max"]) == (0.2, 0.5, 0.5)
    assert row["param_gb_s"] == pytest.approx(0.04 / 0.2)  # 40 MB
    assert row["cpu_s"] == pytest.approx(0.15)
    assert row["rss_mb"] == 103.0
    assert (row["wire_bytes"], row["busy"]) == (80, 1.5)
    assert isinstance(row["wire_bytes"], int)


def test_what_time_was_spent_on_is_told_apart_from_what_was_counted() -> None:
    counts = {"wire_bytes": 80, "seal_us": 2000}
    row = exchange_row("ours", [Round(0.1, 0.0, counts, 0.1, 10.0, g) for g in (1.0, 3.0)], 100)
    assert row["spent_ms"] == {"seal": 2.0}
    assert "seal_us" not in row
    assert row["rss_grown_mb"] == 3.0


def test_time_to_meet_counts_where_it_is_asked_for() -> None:
    found = rounds(0.1, 0.2, meeting_s=1.0)
    assert exchange_row("theirs", found, 100)["seconds_max"] == 0.2
    assert exchange_row("theirs", found, 100, met=True)["seconds_max"] == 1.2


def test_ratios_are_of_rates_and_nobody_has_one_to_itself() -> None:
    fast, slow = (exchange_row(name, rounds(s), 100) for name, s in (("a", 0.1), ("b", 0.4)))
    first, second = with_ratios([fast, slow], ["b"])
    assert first["ratio"] == {"b": pytest.approx(4.0)}
    assert second["ratio"] == {}


def test_nothing_measured_is_no_row() -> None:
    with pytest.raises(Missed):
        exchange_row("ours", [], 100)
    with pytest.raises(Missed):
        codec_row("int8 encode", [], 100)


def test_a_codecs_row_is_per_parameter() -> None:
    row = codec_row("int8 encode", [3e-3, 1e-3, 2e-3], 1_000_000, error=0.01)
    assert row["ns_per_parameter"] == pytest.approx(2.0)
    assert row["gb_s"] == pytest.approx(2.0)
    assert row["error"] == 0.01


def test_one_codec_is_both_ways() -> None:
    assert codecs_of("fp16") == ("fp16", "fp16")
    assert codecs_of("int8:int4") == ("int8", "int4")


def test_counts_grow() -> None:
    assert grown({"busy": 5, "sent": 7}, {"busy": 2, "sent": 7}) == {"busy": 3, "sent": 0}


@pytest.mark.parametrize("megabytes", [0.1, 1, 20, 100, 1000])
def test_a_model_has_the_megabytes_that_were_asked_for(megabytes: float) -> None:
    wanted = round(megabytes * 1e6 / 4)
    plan = with_changes(Plan(), {k: str(v) for k, v in model_of(wanted).items()}, "test")
    assert parameter_count(plan.model, plan.data.vocab) == pytest.approx(wanted, rel=0.02)
