"""The arithmetic of a chaos report: what counts as growth, as a heal, as an equal loss, and what misses a bar."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from peerlm.chaos.page import page_of
from peerlm.chaos.verdict import (
    Size,
    Split,
    Unshared,
    Usage,
    growth,
    growth_by_kind,
    is_whole,
    loss_beside,
    missed_bars,
)
from peerlm.cli.chaos import report_lines
from peerlm.cli.main import cli


def a_report(**changes: Any) -> dict[str, Any]:
    kept = {
        "scenario": "a calm day",
        "seed": 1,
        "nodes": 4,
        "seconds": 600.0,
        "trouble_s": 540.0,
        "pace": 800.0,
        "link": "1gbit,1ms",
        "faults": {"kill": 2},
        "skipped": {},
        "efficiency": 0.99,
        "tokens_lost": 1280,
        "live_s": 2400.0,
        "return_s": {"n": 2, "p50": 4.0, "max": 5.0},
        "not_returned": 0,
        "well_s": 0.5,
        "breadth_min": 3,
        "cores_share": 0.31,
        "val_loss": 1.5,
        "swarm_tokens": 1_000_000,
        "tokens_that_fell": 0,
        "tracebacks": 0,
        "growth": {"daemon": growth([]), "worker": growth([])},
        "splits": [],
        "curve": [],
        "events": [],
    }
    return {**kept, **changes}


def sizes(until_s: int, rss: float = 0.0) -> list[Size]:
    """A life sampled every ten seconds, that grows by `rss` bytes a second."""
    return [Size(at, int(1000 + rss * at), 20, 5) for at in range(0, until_s, 10)]


def test_a_process_that_stays_as_it_is_has_not_grown() -> None:
    assert growth([sizes(900)]) == {"life_s": 890, "rss": 1.0, "files": 1.0, "threads": 1.0}


def test_the_longest_life_speaks_and_short_ones_say_nothing() -> None:
    assert growth([sizes(200, 5), sizes(900), sizes(400, 5)])["rss"] == 1.0
    assert growth([sizes(200, 5)])["rss"] is None
    assert growth([])["life_s"] is None


def test_a_leak_is_seen_and_missed() -> None:
    grown = growth([sizes(900, 0.5)])
    assert grown["rss"] is not None
    assert 1.2 < grown["rss"] < 1.5
    for kind, of_both in (
        ("daemon", {"daemon": grown, "worker": growth([sizes(900)])}),
        ("worker", {"daemon": growth([sizes(900)]), "worker": grown}),
    ):
        assert missed_bars(a_report(growth=of_both, seconds=1800.0)) == [
            f"rss of a {kind} grew to {grown['rss']:.3f} times, at most 1.05"
        ]


def test_in_a_long_run_each_kind_of_process_must_have_been_seen_for_long_enough() -> None:
    steady = growth([sizes(900)])
    few = growth([[Size(at, 1000, 20, 5) for at in (100, 500)]])
    for unseen in (growth([]), few):
        for of_both in ({"daemon": steady, "worker": unseen}, {"daemon": unseen, "worker": steady}):
            assert missed_bars(a_report(growth=of_both)) == []
            (missed,) = missed_bars(a_report(growth=of_both, seconds=1800.0))
            assert "for long enough to tell" in missed


def test_growth_is_told_of_each_kind_of_process_apart() -> None:
    of_both = growth_by_kind({"worker": [sizes(900, 0.5)], "daemon": [sizes(900)]})
    assert of_both["daemon"]["rss"] == 1.0
    assert of_both["worker"]["rss"] == growth([sizes(900, 0.5)])["rss"]
    assert growth_by_kind({})["worker"]["life_s"] is None
    table = "\n".join(report_lines(a_report(growth=of_both)))
    assert "daemon rss × 1.000, files × 1.000, threads × 1.000; worker rss × 1." in table


def said(tokens: int, ok: int, epoch: int = 1) -> dict[str, Any]:
    """Of a status, with rounds of five steps of 256 tokens."""
    tempo, batch = {"inner_steps": 5}, {"tokens": 256}
    return {
        "epoch": epoch,
        "tokens": tokens,
        "exchanges": {"ok": ok},
        "tempo": tempo,
        "batch": batch,
    }


def test_what_a_node_loses_is_what_it_learnt_since_its_last_exchange_and_a_round_at_most() -> None:
    unshared = Unshared()
    for status in (said(512, 0), said(10_000, 3), said(10_256, 3)):
        unshared.see(status)
    assert unshared.tokens == 256 + 1280
    unshared.see(said(10_512, 4))
    assert unshared.lose() == 1280
    assert unshared.lose() == 0, "once"
    unshared.see(said(10_768, 4))
    assert unshared.tokens == 256 + 1280, "its worker died, and another goes on from there"


def test_a_node_that_begins_anew_can_lose_no_more_than_it_has_trained_on_since() -> None:
    unshared = Unshared()
    for status in (said(10_000, 3), said(0, 0, epoch=2), said(512, 0, epoch=2)):
        unshared.see(status)
    assert unshared.lose() == 512


def test_what_a_node_comes_back_with_does_not_die_when_it_is_killed_before_an_exchange() -> None:
    """Its count of tokens is of all its lives."""
    unshared = Unshared()
    for status in (said(900_000, 300), said(899_500, 0, epoch=2), said(899_756, 0, epoch=2)):
        unshared.see(status)
    assert unshared.lose() == 256 + 1280


def test_processor_time_is_counted_over_lives_from_the_first_look_on() -> None:
    usage, first, second = Usage(), (7, 0.0), (7, 50.0)
    for used in ({first: 9.0}, {first: 10.0}, {}, {second: 2.0}, {second: 2.5}):
        usage.see(used)
    assert usage.seconds == 1.0 + 2.5


def curve(*losses: float | None, start: int = 0) -> list[dict[str, Any]]:
    return [{"tokens": start + 100 * n, "val_loss": loss} for n, loss in enumerate(losses)]


def beside(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float | None:
    return loss_beside(a_report(curve=ours), a_report(curve=theirs))


def test_losses_are_compared_at_the_tokens_that_both_have() -> None:
    ahead = curve(*[3.0] * 20, 2.0, 1.0, 0.5)
    behind = curve(*[3.0] * 20, 2.5)
    assert beside(behind, ahead) == pytest.approx(2.75 / 2.5)


def test_where_both_have_finished_the_finished_models_are_compared() -> None:
    ours = a_report(curve=curve(3.0), final={"loss": 1.5, "spread": 1e-5})
    theirs = a_report(curve=curve(9.0), final={"loss": 1.0, "spread": 1e-5})
    assert loss_beside(ours, theirs) == 1.5
    assert loss_beside(ours, {**theirs, "final": None}) == pytest.approx(3.0 / 9.0)


def test_finished_models_that_differ_are_missed() -> None:
    assert missed_bars(a_report(final={"loss": 1.5, "spread": 1e-4})) == []
    (missed,) = missed_bars(a_report(finish=True, final=None))
    assert "no finished models" in missed
    assert "differ by 2.0e-03" in missed_bars(a_report(final={"loss": 1.5, "spread": 2e-3}))[0]


def test_nothing_is_compared_where_one_run_has_no_loss() -> None:
    assert beside([], curve(1.0)) is None
    assert beside(curve(1.0, None), curve(1.0, 1.0)) is None


def test_a_loss_above_that_of_the_run_beside_is_missed() -> None:
    assert missed_bars(a_report(loss_beside=1.01)) == []
    assert "could not be held beside" in missed_bars(a_report(loss_beside=None))[0]
    assert "loss 1.0200 times" in missed_bars(a_report(loss_beside=1.02))[0]


def test_a_split_heals_when_everybody_holds_everybody_alive() -> None:
    split = Split.over(700.0, [1, 2], {1: 2.0, 2: 2.2, 3: 1.8, 4: 1.9})
    assert split.better_half == pytest.approx(1.85)
    split.see(710.0, False, {1: 2.0})
    split.see(720.0, True, {1: 2.0})
    split.see(730.0, True, {1: 2.0})
    assert split.heal_s == 20.0
    assert split.worse_s == 30.0
    split.see(760.0, True, {1: 1.7, 2: 1.7, 3: 1.9})
    split.see(800.0, True, {1: 1.0})
    assert split.merged == 1.0
    assert split.worse_s == 30.0, "since then it is better for good"


def test_of_a_half_without_a_loss_nothing_is_said() -> None:
    assert Split.over(0.0, [1, 2], {1: 2.0}).better_half is None


def test_a_swarm_is_whole_when_each_holds_all_alive() -> None:
    def status(own: str, **others: str) -> dict[str, Any]:
        return {"node_id": own, "members": [{"id": i, "state": s} for i, s in others.items()]}

    assert is_whole([status("a", b="alive"), status("b", a="alive")])
    assert not is_whole([status("a", b="alive"), status("b", a="dead")])
    assert not is_whole([status("a"), status("b", a="alive")])


@pytest.mark.parametrize(
    ("heal_s", "merged", "missed"),
    [(20.0, 1.8, 0), (20.0, None, 1), (61.0, 1.8, 1), (math.inf, 1.9, 2)],
)
def test_what_a_split_misses(heal_s: float, merged: float | None, missed: int) -> None:
    split = {
        "ended_s": 700.0,
        "better_half": 1.85,
        "heal_s": heal_s,
        "merged": merged,
        "worse_s": 0.0,
    }
    assert len(missed_bars(a_report(splits=[split]))) == missed


def test_of_a_split_of_which_a_half_had_no_loss_nobody_can_say_that_it_kept_its_bar() -> None:
    split = {"ended_s": 7.0, "better_half": None, "heal_s": 2.0, "merged": 1.8, "worse_s": 0.0}
    (missed,) = missed_bars(a_report(splits=[split]))
    assert "no loss of both halves" in missed


@pytest.mark.parametrize(
    "changes",
    [
        {"efficiency": 0.9},
        {"efficiency": None},
        {"return_s": {"n": 1, "p50": None, "max": None}},
        {"return_s": {"n": 1, "p50": 31.0, "max": 31.0}},
        {"not_returned": 1},
        {"well_s": math.inf},
        {"breadth_min": 2},
        {"cores_share": 0.61},
        {"tracebacks": 1},
        {"tokens_that_fell": 1},
    ],
)
def test_each_bar_is_held(changes: dict[str, Any]) -> None:
    assert missed_bars(a_report()) == []
    assert len(missed_bars(a_report(**changes))) == 1


def test_table_and_page_show_a_split_and_the_run_beside() -> None:
    split = {"ended_s": 700.0, "better_half": 1.85, "heal_s": 12.0, "merged": None, "worse_s": 9.0}
    report = a_report(splits=[split], loss_beside=1.003, missed=[])
    table = "\n".join(report_lines(report))
    assert (
        "one swarm again after 12.0 s; loss of the better half 1.8500, merged –, no worse after 9.0 s"
        in table
    )
    assert "× 1.0030 at equal tokens" in table
    assert "31 % of all, by all nodes together" in table
    assert "1.003" in page_of(report)
    assert "not measured" in page_of(a_report(missed=[]))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"curve": 3}', '{"curve": [{"tokens": "x"}]}'])
def test_what_is_no_report_is_refused_before_anything_starts(tmp_path: Path, text: str) -> None:
    scenario = tmp_path / "s.toml"
    scenario.write_text('name = "s"\nnodes = 2\nminutes = 2\n')
    other = tmp_path / "quiet.json"
    other.write_text(text)
    done = CliRunner().invoke(cli, ["chaos", "run", str(scenario), "--beside", str(other)])
    assert done.exit_code != 0
    assert f"{other}: no report" in str(done.exception)


def test_a_report_that_was_written_can_be_held_beside(tmp_path: Path) -> None:
    from peerlm.cli.chaos import _read_report

    path = tmp_path / "quiet.json"
    points = curve(1.5, None)
    path.write_text(json.dumps(a_report(curve=points)))
    assert _read_report(path)["curve"] == points
