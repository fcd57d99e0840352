"""Many memberships on one virtual clock: a seed and a claim each.

Figures are what the formulas promise (suspicion floor 4.8 s at 16 nodes, one probe a period).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from membership_harness import World, peer_id, swarm

from peerlm.membership.member import State

pytestmark = pytest.mark.sim
N = 16


def test_nodes_find_each_other_through_one_seed() -> None:
    world = World(N, seed=1)
    assert world.run(10.0, world.whole) <= 1.0


def test_a_silent_crash_is_known_everywhere_in_seconds_and_nobody_else_dies() -> None:
    times = []
    for seed in range(5):
        world = swarm(N, seed)
        world.crash(5)
        times.append(world.run(20.0, lambda w=world: w.all_hold(5, State.DEAD)))
        assert {who for _, _, who in world.deaths()} == {5}, f"seed {seed}"
    assert statistics.median(times) <= 8.0, times
    assert max(times) <= 13.0, times


def test_a_reset_link_brings_the_probe_forward() -> None:
    world = swarm(N, seed=2)
    world.crash(5, reset=True)
    assert world.run(20.0, lambda: world.all_hold(5, State.DEAD)) <= 6.5


@pytest.mark.parametrize("seed", range(2))
def test_a_freeze_of_5_seconds_kills_nobody(seed: int) -> None:
    world = swarm(N, seed)
    for number in (1, 4, 7, 9):
        world.freeze(number, 5.0)
    world.run(20.0)
    assert world.deaths() == []
    assert world.whole()


def test_after_a_long_freeze_the_frozen_are_back_in_seconds_and_accuse_nobody() -> None:
    world = swarm(N, seed=3)
    world.freeze(4, 20.0)
    world.run(20.0)
    assert world.all_hold(4, State.DEAD)
    assert world.run(30.0, world.whole) <= 5.0
    assert {who for _, _, who in world.deaths()} == {4}


def test_halves_that_were_apart_for_two_minutes_find_together_by_themselves() -> None:
    world = swarm(N, seed=4)
    world.split(list(range(8)), list(range(8, N)))
    world.run(120.0)
    for viewer in range(8):
        assert {world.state(viewer, n) for n in range(8, N)} == {State.DEAD}
    world.heal()
    assert world.run(60.0, world.whole) <= 30.0


def test_a_goodbye_is_known_at_once_and_raises_no_suspicion() -> None:
    world = swarm(N, seed=5)
    world.leave(3)
    told = world.run(10.0, lambda: world.all_hold(3, State.LEFT))
    assert told <= 2.0
    world.crash(3, reset=True)
    world.run(15.0)
    assert all(c.new is State.LEFT for _, _, c in world.history if c.peer == peer_id(3) and c.old)


@pytest.mark.parametrize("away_s", [0.5, 15.0])
def test_a_restart_is_alive_everywhere_whatever_was_believed_of_it(away_s: float) -> None:
    world = swarm(N, seed=6)
    world.crash(3, reset=True)
    world.run(away_s)
    world.start(3)
    assert world.run(20.0, world.whole) <= 3.0
    world.run(10.0)
    assert world.whole()


def test_the_first_node_is_not_special() -> None:
    world = swarm(8, seed=7)
    world.crash(0)
    world.run(10.0)
    world.start(9, seeds=("tcp://h0:7700", "tcp://h5:7700"))
    assert world.run(10.0, lambda: len(world.nodes[9].live_peers()) == 7) <= 5.0


def test_all_come_back_from_their_books_without_a_seed() -> None:
    world = swarm(6, seed=8)
    books = {number: node.book for number, node in world.nodes.items()}
    for number in range(6):
        world.crash(number, reset=True)
    for number in range(6):
        world.start(number, seeds=(), book=books[number])
    assert world.run(60.0, world.whole) <= 10.0


def test_lost_messages_cost_suspicions_and_no_lives() -> None:
    world = swarm(N, seed=9, loss=0.1)
    world.run(40.0)
    assert world.deaths() == []


SAME_SEED = """
from membership_harness import swarm
world = swarm(8, 11, loss=0.05)
world.freeze(2, 3.0); world.crash(5); world.leave(6); world.run(12.0)
print(world.digest(), len(world.effects))
"""


def test_one_seed_is_one_story_whatever_the_hash_seed() -> None:
    stories = []
    for hash_seed in ("1", "2"):
        environment = dict(os.environ, PYTHONHASHSEED=hash_seed)
        here = Path(__file__).parent
        command = [sys.executable, "-c", SAME_SEED]
        result = subprocess.run(
            command, env=environment, cwd=here, capture_output=True, text=True, check=True
        )
        stories.append(result.stdout)
    assert stories[0] == stories[1]
    assert int(stories[0].split()[1]) > 500
