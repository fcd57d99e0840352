"""Who comes back from its own snapshot has old weights: it is drawn to the others, and they hardly to it."""

from __future__ import annotations

import pytest

from peerlm import effects as fx
from peerlm.sim.learner import Quadratic
from peerlm.sim.world import World


def moved_by(world: World, number: int, since: float, whom: int | None = None) -> list[float]:
    """Shares of the difference that a machine moves by, in exchanges with `whom`, or with all."""
    peer = None if whom is None else world.machines[whom].keys.peer_id
    return [
        effect.weight
        for at, effect in world.machines[number].effects
        if at >= since
        and isinstance(effect, fx.RunExchange | fx.ServeExchange)
        and peer in (None, effect.peer)
    ]


def test_at_first_the_others_move_less_than_it_does() -> None:
    world = World(3, learner=Quadratic((48, 32)), speed=4_000.0, remembers=True).swarm(2)
    assert world.run(60, world.all_mixing) < 60
    world.run(40)  # there is a snapshot, and nobody is new
    world.kill(1)
    world.run(10)
    world.restart(1)
    begun = world.now
    assert world.run(60, world.all_mixing) < 60
    world.run(30)
    assert world.machines[1].installed_from()[-1] == "snapshot"
    others = moved_by(world, 0, begun, whom=1)
    assert others[0] == pytest.approx(0.5 / 3)
    assert others == sorted(others)
    assert others[-1] == pytest.approx(0.5), "once it has taken a few outer steps"
    assert set(moved_by(world, 1, begun)) == {0.5}


def test_who_makes_the_weights_is_not_new() -> None:
    world = World(3, learner=Quadratic((48, 32)), speed=4_000.0, remembers=True).swarm(2)
    assert world.run(60, world.all_mixing) < 60
    assert world.machines[0].installed_from() == ["fresh"]
    assert set(moved_by(world, 1, 0.0)) == {0.5}
