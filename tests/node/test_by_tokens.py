"""With `mix.by_tokens` slow nodes move more than fast ones, and what pairs conserve is weighted by tokens a second."""

from __future__ import annotations

import pytest

from peerlm import effects as fx
from peerlm.sim.learner import Quadratic
from peerlm.sim.world import World, plan_of


def weights(by_tokens: bool, speeds: tuple[float, ...]) -> dict[int, list[float]]:
    """What each machine moves by in exchanges, once all have heard of each other's rates."""
    plan = plan_of(mix__by_tokens=by_tokens, mix__bandwidth_share=0.0)
    world = World(3, plan=plan, learner=Quadratic((48, 32)), speed=speeds, remembers=True)
    world.swarm(len(speeds))
    assert world.run(60, world.all_mixing) < 60
    world.run(10)
    begun = world.now
    world.run(30)
    return {
        machine.number: [
            effect.weight
            for at, effect in machine.effects
            if at > begun and isinstance(effect, fx.RunExchange | fx.ServeExchange)
        ]
        for machine in world.machines.values()
    }


def test_the_slower_of_a_pair_moves_more() -> None:
    slow, fast = weights(True, (4_000.0, 16_000.0)).values()
    assert len(slow) > 10
    assert len(fast) > 10
    assert slow == pytest.approx([0.5] * len(slow))
    assert fast == pytest.approx([0.125] * len(fast), rel=0.05)


def test_a_rate_that_changes_is_heard_of() -> None:
    plan = plan_of(mix__by_tokens=True, mix__bandwidth_share=0.0)
    world = World(3, plan=plan, learner=Quadratic((48, 32)), speed=(8_000.0, 8_000.0))
    world.swarm(2)
    assert world.run(60, world.all_mixing) < 60
    world.run(10)
    first = world.machines[0]
    assert first.node is not None
    assert first.node.work.exchanges.standing.ramp == pytest.approx(1.0)
    world.machines[1].speed = 32_000.0
    world.run(20)
    first.node.audit()
    assert first.node.work.exchanges.standing.ramp == pytest.approx(0.25, rel=0.05)


def test_without_it_all_move_alike() -> None:
    for moved in weights(False, (4_000.0, 16_000.0)).values():
        assert moved == pytest.approx([0.5] * len(moved))


def test_nobody_is_so_slow_that_it_does_not_count() -> None:
    _, fast = weights(True, (2_000.0, 100_000.0)).values()
    assert fast == pytest.approx([0.05] * len(fast))
