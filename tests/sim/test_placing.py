"""Swarms that place themselves. What fails says its seed; `peerlm sim placement` plays it again."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from peerlm.cli.main import cli
from peerlm.sim.placing import Outcome, Setting, compare, figures, play


def lived(nodes: int, hours: float, churn: float, seed: int, is_over: bool = False) -> Outcome:
    return play(Setting(nodes, 6, hours, churn, seed, is_over=is_over))


def again(nodes: int, hours: float, churn: float, seed: int) -> str:
    return f"peerlm sim placement --nodes {nodes} --stages 6 --hours {hours} --churn {churn} --seed {seed}"


@pytest.mark.parametrize("seed", [1, 2])
def test_every_stage_stays_hosted_while_nodes_come_and_go(seed: int) -> None:
    setting = (30, 0.2, 0.05, seed)
    found = figures([lived(*setting)])
    assert found["samples_with_unhosted"] == 0, again(*setting)
    assert found["changes"], again(*setting)
    assert found["switches_per_change"] <= 1.5, again(*setting)  # type: ignore[operator]


def test_a_swarm_at_rest_stays_at_rest() -> None:
    setting = (20, 6.0, 0.0, 3)
    found = figures([lived(*setting)])
    assert (found["takes"], found["moves"], found["withdrawn"]) == (0, 0, 0), again(*setting)


def test_after_the_run_stages_stay_hosted_and_nothing_else_is_done() -> None:
    found = figures([lived(20, 0.2, 0.05, 1, is_over=True)])
    assert found["samples_with_unhosted"] == 0, again(20, 0.2, 0.05, 1) + " --over"
    assert found["changes"], again(20, 0.2, 0.05, 1) + " --over"
    found = figures([lived(20, 1.0, 0.0, 3, is_over=True)])
    assert (found["takes"], found["moves"], found["withdrawn"]) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(1, 6))
def test_small_swarms_come_near_the_best_placement(seed: int) -> None:
    run = compare(4, 3, seed)
    assert run.share() >= 0.9, (
        f"peerlm sim placement --nodes 4 --stages 3 --against-best --seed {seed}"
    )


def test_a_seed_gives_one_run() -> None:
    digests = {lived(10, 0.1, 0.1, seed).digest for seed in (1, 1, 2)}
    assert len(digests) == 2


def test_the_command_tells_figures_and_refuses_what_it_cannot_play() -> None:
    run = CliRunner().invoke(
        cli, ["sim", "placement", "--nodes", "3", "--stages", "2", "--against-best", "--json"]
    )
    found = json.loads(run.stdout)
    assert list(found)[:6] == ["scenario", "nodes", "runs", "seed", "profile", "digest"]
    assert found["less_hosted"] == 0
    short = ["sim", "placement", "--nodes", "3", "--stages", "6", "--hours", "0.1", "--churn", "0"]
    for more in ([], ["--over"]):
        assert "samples_with_unhosted" in CliRunner().invoke(cli, [*short, *more]).stdout
    for wrong in (["--nodes", "0"], ["--churn", "nan"], ["--nodes", "7", "--against-best"]):
        refused = CliRunner().invoke(cli, ["sim", "placement", *wrong])
        assert refused.exit_code != 0
        assert "must be from" in str(refused.exception or refused.output), wrong
