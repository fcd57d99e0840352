"""What is said to be in the way between a node and a member."""

from __future__ import annotations

from node_scene import World

from peerlm.config import with_changes
from peerlm.events import Leave
from peerlm.node.status import as_json
from peerlm.types import Role


def told(world: World, viewer: int, number: int) -> tuple[str, str]:
    """(state, reason)"""
    member = world.member(viewer, number)
    assert member is not None
    return member.state, member.reason


def test_nothing_is_in_the_way_of_those_that_mix_and_the_dead_and_gone_say_why() -> None:
    world = World(1).swarm(4)
    world.within(20, world.all_mixing, "all mix")
    assert all(told(world, a, b) == ("alive", "") for a in range(4) for b in range(4))
    world.machines[2].post(Leave())
    world.kill(3, silently=True)
    world.within(20, lambda: told(world, 0, 3)[0] == "suspect", "it is missed")
    assert told(world, 0, 3)[1].startswith("it did not answer a probe, and may refute")
    world.within(30, lambda: told(world, 0, 3)[0] == "dead", "it is held dead")
    world.run(30)
    assert told(world, 0, 3)[1].startswith("it answered nobody in time: ")
    assert told(world, 0, 2) == ("left", "it said goodbye")
    member = world.member(0, 3)
    assert member is not None
    assert 30 <= member.state_s < 40
    said = as_json(world.summary(0))["members"]
    assert [m["reason"] for m in said if m["state"] == "left"] == ["it said goodbye"]


def test_who_has_another_plan_or_may_not_train_is_told_as_such() -> None:
    world = World(2).swarm(2)
    world.add(2, 0, roles=(Role.OBSERVE,))
    world.run(5)
    other = world.sign(with_changes(world.plan.plan, {"mix.inner_steps": 50}, "test"), 1)
    world.add(3, 0, plan=other)
    world.run(20)
    assert told(world, 0, 2) == ("alive", "its invite does not let it train")
    assert "mix.inner_steps" in told(world, 0, 3)[1]
    hashes = [as_json(world.summary(number))["plan_hash"] for number in (0, 1, 3)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_those_that_nobody_can_dial() -> None:
    world = World(3, speed=3_000.0)
    world.guarded.update((2, 3))
    world.swarm(4)
    world.within(60, world.all_mixing, "all mix")
    world.within(60, lambda: told(world, 0, 2)[1] != "", "it is known")
    world.within(60, lambda: "nor this node" in told(world, 2, 3)[1], "to both")
    assert told(world, 0, 2)[1] == "it cannot be dialled from here: exchanges begin at its end"
