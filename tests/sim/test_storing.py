"""The swarm's store while nodes die and come. What fails says its seed; `peerlm sim store` plays it again."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from peerlm.cli.main import cli
from peerlm.sim.storing import Outcome, Setting, Swarm, deviation_of_many, figures, play


def lived(seed: int, deaths: float = 0.02) -> Outcome:
    return play(Setting(20, 300, 3, 1.0, deaths, seed))


def again(seed: int, deaths: float = 0.02) -> str:
    return f"peerlm sim store --nodes 20 --chunks 300 --days 1 --deaths {deaths} --seed {seed}"


@pytest.mark.parametrize("seed", [1, 2])
def test_a_day_of_deaths_loses_nothing_and_moves_what_it_must(seed: int) -> None:
    run = lived(seed)
    found = figures([run])
    assert run.tally.deaths > 2, again(seed)
    assert run.lost == [], again(seed)
    assert run.lacking == 0, again(seed)
    assert run.existing.longest_s < 60, again(seed)
    assert run.reachable.longest_s < 60, again(seed)
    assert (found["moved_to_least"] or 0) <= 1.2, again(seed)  # type: ignore[operator]


def test_nodes_that_only_reboot_move_nothing_but_what_was_left_alone() -> None:
    run = lived(3, deaths=0.0)
    assert run.tally.reboots > 2, again(3, 0.0)
    assert run.tally.fetches == run.tally.urgent_fetches, again(3, 0.0)


def test_more_deaths_than_replicas_can_bear_are_seen() -> None:
    swarm = Swarm(Setting(6, 60, 2, seed=4))
    swarm.found()
    for node in list(swarm.nodes.values())[:4]:
        swarm.die(node)
    assert len(swarm.lost) == int((swarm.copies == 0).sum()) > 0


def among_liars(*, is_gullible: bool) -> Swarm:
    """Two days after as many liars came as there are nodes, each with the most room: whole sets of owners lie."""
    setting = Setting(10, 100, 3, deaths=0.0, seed=5, liars=10, is_gullible=is_gullible)
    swarm = Swarm(setting)
    swarm.found()
    for _ in range(setting.liars):
        swarm.lie()
    swarm.clock.at(1.0, swarm.look)
    swarm.clock.run(2 * 86_400.0)
    return swarm


def test_liars_never_let_a_copy_go_that_is_one_of_the_last() -> None:
    swarm = among_liars(is_gullible=False)
    assert swarm.lost == []
    assert int(swarm.copies.min()) >= 3, "as many true ones as there should be"
    assert swarm.tally.unproven > 500
    assert swarm.tally.proofs <= 3 * (swarm.tally.unproven + swarm.tally.dropped)


def test_where_claims_were_believed_liars_would_lose_chunks() -> None:
    swarm = among_liars(is_gullible=True)
    assert len(swarm.lost) > 10
    assert int(swarm.copies.min()) == 0


def test_deaths_and_liars_together_lose_nothing() -> None:
    run = play(Setting(20, 200, 3, 1.5, 0.005, 6, liars=3))
    assert run.tally.unproven, "nobody lied where it counts"
    assert run.lost == []


def test_shares_follow_capacity_where_there_are_chunks_enough() -> None:
    assert deviation_of_many(Setting(120, seed=1), 60_000) < 0.2


def test_a_seed_gives_one_run() -> None:
    digests = {play(Setting(8, 40, 3, 0.5, 0.05, seed)).digest for seed in (1, 1, 2)}
    assert len(digests) == 2


def test_the_command_tells_figures_names_the_seed_of_a_loss_and_refuses_what_it_cannot_play() -> (
    None
):
    small = ["sim", "store", "--nodes", "6", "--chunks", "20", "--days", "0.1"]
    run = CliRunner().invoke(cli, [*small, "--json"])
    found = json.loads(run.stdout)
    assert list(found)[:6] == ["scenario", "nodes", "runs", "seed", "profile", "digest"]
    assert found["lost"] == 0
    assert "repair_to_least" in CliRunner().invoke(cli, small).stdout
    lost = CliRunner().invoke(cli, [*small, "--replicas", "1", "--deaths", "0.9"])
    assert lost.exit_code != 0
    assert "peerlm sim store --seed 1 --nodes 6 --chunks 20 --replicas 1" in lost.stderr
    for wrong in (["--nodes", "0"], ["--deaths", "nan"], ["--replicas", "65"]):
        refused = CliRunner().invoke(cli, ["sim", "store", *wrong])
        assert refused.exit_code != 0
        assert "must be from" in str(refused.exception or refused.output), wrong
