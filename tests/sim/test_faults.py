"""Faults as a person writes them, and what comes of them."""

from __future__ import annotations

import tomllib

import pytest

from peerlm.errors import ConfigError
from peerlm.sim.faults import plan_faults, read_faults
from peerlm.sim.world import World


def read(text: str, nodes: int = 4):  # type: ignore[no-untyped-def]
    return read_faults(tomllib.loads(text), "faults.toml", nodes)


def test_faults_come_true_when_they_are_due_and_end_when_they_should() -> None:
    world = World(1).swarm(4)
    plan_faults(
        world,
        read(
            """
            [[fault]]
            at_s = 10
            do = "kill"
            nodes = [0]
            for_s = 5
            [[fault]]
            at_s = 30
            do = "split"
            nodes = [2, 3]
            for_s = 20
            [[fault]]
            at_s = 20
            do = "join"
            """
        ),
    )
    world.run(11)
    assert not world.machines[0].is_up
    world.run(6)
    assert world.machines[0].is_up
    world.run(5)
    assert len(world.machines) == 5
    world.run(28)  # t = 50
    dead = world.member(0, 2)
    assert dead is not None
    assert dead.state == "dead"
    world.run(60, world.all_mixing)
    assert world.all_mixing()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[fault]]\nat_s = 1\ndo = "explode"', "must be one of"),
        ('[[fault]]\nat_s = -1\ndo = "kill"\nnodes = [1]', "at_s"),
        ('[[fault]]\ndo = "kill"\nnodes = [1]', "at_s"),
        ('[[fault]]\nat_s = 1\ndo = "kill"', "needs nodes"),
        ('[[fault]]\nat_s = 1\ndo = "kill"\nnodes = [9]', "no node 9"),
        ('[[fault]]\nat_s = 1\ndo = "kill"\nnodes = ["a"]', "nodes"),
        ('[[fault]]\nat_s = 1\ndo = "heal"\nfor_s = 2', "for_s means nothing"),
        ('[[fault]]\nat_s = 1\ndo = "freeze"\nnodes = [1]', "for_s"),
        ('[[fault]]\nat_s = 1\ndo = "link"\nnodes = [1]\nlink = "quick"', "link ="),
        ('[[fault]]\nat_s = 1\ndo = "kill"\nnodes = [1]\nwho = 3', "'who'"),
        ("at_s = 3", "'at_s'"),
        ("fault = 3", "fault"),
    ],
)
def test_a_fault_that_is_none_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        read(text)
    assert "\n" not in str(refused.value)
