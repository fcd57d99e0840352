"""Membership, a few runs of each scenario; `python -m bench.membership` has the figures."""

from __future__ import annotations

import random

import pytest

from peerlm.errors import ConfigError
from peerlm.membership.member import State
from peerlm.membership.table import MemberChanged
from peerlm.sim.checks import Safety
from peerlm.sim.scenarios import SCENARIOS, Run, Scene, play, read_params
from peerlm.sim.world import WATCHING, World


def run(scenario: str, nodes: int, seed: int = 1, **given: float) -> Run:
    params = read_params(scenario, {key: str(value) for key, value in given.items()})
    return play(scenario, nodes, seed, params=params)


def worst(found: Run, name: str) -> float:
    return max(found.samples[name])


@pytest.mark.parametrize(("nodes", "seeds"), [(16, 3), (64, 1)])
def test_a_silent_crash_is_suspected_then_known_to_all(nodes: int, seeds: int) -> None:
    for seed in range(1, seeds + 1):
        found = run("crash", nodes, seed)
        assert 0 < worst(found, "first_suspect_s") < 5
        assert worst(found, "first_suspect_s") < worst(found, "first_dead_s") < 10
        assert worst(found, "all_know_dead_s") < worst(found, "first_dead_s") + 1
        assert found.totals["false_deaths"] == 0


def test_a_crash_whose_kernel_says_so_is_known_sooner() -> None:
    silent, told = run("crash", 16), run("crash", 16, reset=1)
    assert worst(told, "first_suspect_s") < worst(silent, "first_suspect_s")


def test_a_quarter_of_the_swarm_dies_at_once() -> None:
    found = run("crash", 32, share=0.25)
    assert worst(found, "all_know_dead_s") < 20
    assert found.totals["false_deaths"] == 0


def test_short_freezes_kill_nobody_and_long_ones_are_taken_back() -> None:
    short = run("freeze", 32, seconds=5)
    assert short.totals["frozen_declared_dead"] == short.totals["false_deaths"] == 0
    long = run("freeze", 32, seconds=20)
    assert long.totals["frozen_declared_dead"] > 0
    assert worst(long, "alive_again_s") < 5


@pytest.mark.parametrize("datagrams", [0, 1])
def test_loss_kills_nobody(datagrams: int) -> None:
    found = run("loss", 16, rate=0.1, minutes=2, datagrams=datagrams)
    assert found.totals["false_deaths"] == 0
    assert worst(found, "first_dead_s") < 15


def test_slow_accusers_harm_nobody_and_lifeguard_is_why_they_are_few() -> None:
    on, off = (run("slow", 20, count=3, minutes=0.5, lifeguard=w) for w in (1, 0))
    assert on.totals["healthy_declared_dead"] == 0
    assert on.totals.get("false_suspicions", 0) < off.totals["false_suspicions"]


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_partition_heals_with_nobodys_help(kind: int) -> None:
    found = run("partition", 16, minutes=0.75, kind=kind)
    assert found.totals["false_deaths"] == 0
    assert worst(found, "cut_off_held_dead") == (0 if kind == 2 else 1)
    assert worst(found, "heal_s") < 30


def test_restarts_goodbyes_and_newcomers_are_soon_known() -> None:
    assert worst(run("restart", 12, times=5), "alive_again_s") < 3
    left = run("leave", 12)
    assert left.totals["suspicions_of_the_leaver"] == 0
    assert worst(left, "left_known_by_all_s") < 2
    joined = run("join", 12, count=4)
    assert worst(joined, "join_known_by_all_s") < 3


def test_tables_stay_right_under_churn() -> None:
    found = run("churn", 40, minutes=1)
    assert worst(found, "entries_wrong") < 0.05
    assert found.totals["false_deaths"] == 0


def test_rest_is_cheap() -> None:
    found = run("rest", 64, minutes=0.5)
    assert worst(found, "bytes_per_node_s") < 5000


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_refuses_what_it_does_not_know(scenario: str) -> None:
    with pytest.raises(ConfigError, match="--param"):
        read_params(scenario, {"colour": "1"})
    with pytest.raises(ConfigError, match="number"):
        read_params(scenario, {"lifeguard": "yes"})


def test_an_unknown_scenario_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be one of"):
        read_params("flood", {})


def test_the_whole_swarm_is_looked_at_all_along(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    monkeypatch.setattr(Safety, "look", lambda self: looks.append(self._world.now))
    run("rest", 4, minutes=0.5)
    assert looks == pytest.approx([25.0 + 5 * n for n in range(7)], abs=0.1)


def test_in_a_partition_only_the_other_side_may_be_taken_for_dead() -> None:
    world = World(1).met(4, roles=WATCHING)
    scene = Scene(world, {}, random.Random(1), is_apart=True)
    scene.happens(0, 1, 2, 3)
    world.split([0, 1], [2, 3])

    def dies(viewer: int, subject: int) -> None:
        node = world.machines[viewer].node
        assert node is not None
        peer = world.machines[subject].keys.peer_id
        record = node.company.membership.members()[peer].record
        scene.note(world.now, viewer, MemberChanged(peer, State.ALIVE, State.DEAD, record))

    dies(0, 2)
    assert scene.totals.get("false_deaths", 0) == 0
    dies(0, 1)
    assert scene.totals["false_deaths"] == 1
