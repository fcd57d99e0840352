"""Scenario files: what they may say, and what follows from a seed."""

from __future__ import annotations

import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from peerlm.chaos.scenario import KINDS, OF_ALL, Act, acts_of, read_scenario, token_budget
from peerlm.chaos.world import node_settings_of, plan_of
from peerlm.config import NodeSettings, preset
from peerlm.config.reading import with_changes
from peerlm.errors import ConfigError

SHIPPED = sorted((Path(__file__).parents[2] / "deploy/scenarios").glob("*.toml"))
HEAD = 'name = "x"\nnodes = 4\nminutes = 10\n'


def read(fault: str = "", head: str = HEAD) -> list[Act]:
    return acts_of(read_scenario(head + (f"[[fault]]\n{fault}" if fault else ""), "x.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_those_that_ship_can_be_read_and_do_something(path: Path) -> None:
    scenario = read_scenario(path.read_text(), str(path))
    acts = acts_of(scenario)
    assert acts
    assert all(act.until_s <= 60 * scenario.minutes - scenario.calm_s for act in acts)
    for kind in {act.kind for act in acts}:
        assert any(1 in act.nodes for act in acts if act.kind == kind), (
            f"of {kind} the first node is spared"
        )
    with_changes(preset(scenario.preset), plan_of(scenario), "[plan]")
    with_changes(NodeSettings(), node_settings_of(scenario), "[node]")


def test_what_a_file_sets_for_every_node_goes_before_its_pace() -> None:
    text = HEAD + "pace = 300\n[node]\nlimits.snapshot_every_s = 10\ntrain.pace_tokens_s = 7\n"
    set_for_all = node_settings_of(read_scenario(text, "x.toml"))
    assert set_for_all == {"train.pace_tokens_s": 7, "limits.snapshot_every_s": 10}


def test_one_ships_that_has_every_kind() -> None:
    (path,) = [path for path in SHIPPED if path.stem == "everything"]
    assert {act.kind for act in acts_of(read_scenario(path.read_text(), str(path)))} == set(KINDS)


def test_the_same_seed_gives_the_same_acts_and_another_others() -> None:
    kills = 'kind = "kill"\nevery_s = 20\nfor_s = [5, 15]'
    assert read(kills) == read(kills)
    assert read(kills) != read(kills, HEAD + "seed = 2\n")


def test_times_are_as_often_as_they_should_be_and_begin_with_the_first_node() -> None:
    head = 'name = "x"\nnodes = 5\nminutes = 1000\n'
    acts = read('kind = "stop"\nevery_s = 60\nfor_s = [10, 30]', head)
    gaps = [b.at_s - a.at_s for a, b in pairwise(acts)]
    assert statistics.mean(gaps) == pytest.approx(60, rel=0.1)
    assert acts[0].nodes == (1,)
    assert {act.nodes for act in acts} == {(n,) for n in range(1, 6)}
    assert all(10 <= act.until_s - act.at_s <= 30 for act in acts[:-3])


@pytest.mark.parametrize("kind", sorted(set(KINDS) - OF_ALL - {"clock"}))
@pytest.mark.parametrize("seed", range(3))
def test_each_kind_begins_with_the_first_node_at_whatever_time(kind: str, seed: int) -> None:
    head = HEAD + f"seed = {seed}\n"
    later, sooner = (f'kind = "{kind}"\nat_s = {at}\nfor_s = 5' for at in (300, 10))
    acts = read(f"{later}\n[[fault]]\n{sooner}", head)
    assert [act.at_s for act in acts] == [10, 300]
    assert acts[0].nodes == (1,)
    first, second = read(f"{sooner}\nvictims = [3]\n[[fault]]\n{later}", head)
    assert (first.nodes, second.nodes) == ((3,), (1,)), "unless it is somebody else's"


def test_a_split_has_the_first_node_in_one_half() -> None:
    (act,) = read('kind = "split"\nat_s = 10\nfor_s = 60')
    assert len(act.nodes) == 2
    assert 1 in act.nodes


def test_the_hard_half_hour_is_one_and_its_budget_ends_no_trouble() -> None:
    (path,) = [path for path in SHIPPED if path.stem == "hard-half-hour"]
    scenario = read_scenario(path.read_text(), str(path))
    assert scenario.trouble_s == 30 * 60
    allowed = 60 * scenario.minutes * scenario.nodes * scenario.pace
    assert token_budget(scenario) >= allowed
    for minutes in (10, 91):
        longer = replace(scenario, minutes=minutes)
        assert longer.trouble_s == 60 * (minutes - 1)
        assert token_budget(longer) >= 60 * minutes * scenario.nodes * scenario.pace


def test_nothing_begins_or_lasts_into_the_calm() -> None:
    assert read('kind = "kill"\nat_s = 541\nfor_s = 5') == []
    (act,) = read('kind = "kill"\nat_s = 535\nfor_s = 60')
    assert act.until_s == 540.0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nodes = ", r"x.toml: Invalid value"),
        ('name = "x"\nnodes = 4', "x.toml: minutes is missing"),
        (HEAD.replace("4", "1"), "nodes = 1: must be 2 to 64"),
        (HEAD.replace("10", '"ten"'), "minutes = 'ten': must be a number"),
        (HEAD + "minuets = 3", "nobody knows 'minuets'"),
        (HEAD + "calm_s = 600", "calm_s = 600 leaves no time for faults"),
        (HEAD + "fault = 7", "fault: must be a list"),
        (HEAD + "fault = [7]", r"fault 1: write \[\[fault\]\]"),
        (
            HEAD + '[[fault]]\nkind = "flood"\nat_s = 1',
            "fault 1: kind = 'flood': must be one of kill",
        ),
        (HEAD + '[[fault]]\nkind = "kill"\nfor_s = 1', "give every_s or at_s"),
        (
            HEAD + '[[fault]]\nkind = "kill"\nat_s = 1\nevery_s = 2\nfor_s = 1',
            "give every_s or at_s",
        ),
        (HEAD + '[[fault]]\nkind = "kill"\nat_s = 1', "a kill lasts a while"),
        (HEAD + '[[fault]]\nkind = "kill"\nat_s = 1\nfor_s = [9, 3]', "must be seconds, or two"),
        (HEAD + '[[fault]]\nkind = "loss"\nat_s = 1\nfor_s = 9', "a loss needs a rate"),
        (HEAD + '[[fault]]\nkind = "loss"\nat_s = 1\nfor_s = 9\nrate = 1', "a share below 1"),
        (HEAD + '[[fault]]\nkind = "slow"\nat_s = 1\nfor_s = 9\nrate = -1', "must not be negative"),
        (HEAD + '[[fault]]\nkind = "clock"\nat_s = 1\nfor_s = 9', "a clock needs a rate"),
        (
            HEAD + '[[fault]]\nkind = "cut"\nat_s = 1\nfor_s = 9\nvictims = [5]',
            "there are nodes 1 to 4",
        ),
        (
            HEAD + '[[fault]]\nkind = "cut"\nat_s = 1\nfor_s = 9\nvictims = []',
            "befalls nobody",
        ),
        (
            HEAD + '[[fault]]\nkind = "cut"\nat_s = 1\nfor_s = 9\nvictims = [0]',
            "there are nodes 1 to 4",
        ),
        (
            HEAD + '[[fault]]\nkind = "cut"\nat_s = 1\nfor_s = 9\nvictims = ["x"]',
            "victims = 'x': must be",
        ),
        (HEAD + '[[fault]]\nkind = "cut"\nat_s = 1\nfor_s = inf', "must be seconds, or two"),
        (HEAD + '[[fault]]\nkind = "cut"\nat_s = 1\nfor_s = nan', "must be seconds, or two"),
        (HEAD.replace("4", "2.5"), "nodes = 2.5: must be a whole number"),
        (HEAD + 'link = "fast"', "link: "),
        (HEAD + 'preset = "huge"', "preset = 'huge': must be one of"),
        (HEAD + '[[fault]]\nkind = "split"\nat_s = 1\nfor_s = 9\nvictims = [1]', "befalls all"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read_scenario(text, "x.toml")


def test_every_kind_is_explained() -> None:
    page = (Path(__file__).parents[2] / "docs/chaos.md").read_text()
    for kind in KINDS:
        assert f"`{kind}`" in page
    assert set(KINDS) > OF_ALL
