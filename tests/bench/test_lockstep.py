"""Other people's methods are what they are said to be, and their bytes are those of their sums."""

from __future__ import annotations

import numpy as np
import pytest
from learning_scene import plan_of, task_of

from peerlm.bench.lockstep import METHODS, Lockstep
from peerlm.sim.network import read_wire

WIRE = read_wire("8mbit,10ms")  # a megabyte a second


def after(method: str, steps: int, nodes: int = 4, **changes: object) -> Lockstep:
    swarm = METHODS[method](task_of(plan_of(**changes), nodes), WIRE)
    for _ in range(steps):
        swarm.step(1.0)
    return swarm


def held(swarm: Lockstep) -> list[np.ndarray]:
    return [np.concatenate(model) for model in swarm.models()]


def test_diloco_without_momentum_is_local_sgd() -> None:
    a, b = after("diloco", 8, mix__outer_momentum=0.0, mix__outer_lr=1.0), after("local_sgd", 8)
    assert np.allclose(held(a), held(b), atol=1e-6)
    c = after("diloco", 8, mix__outer_momentum=0.5)
    assert not np.allclose(held(c), held(b), atol=1e-4)


def test_gasloc_of_two_without_momentum_is_local_sgd() -> None:
    a = after("gasloc", 8, 2, mix__outer_momentum=0.0, mix__outer_lr=1.0)
    assert np.allclose(held(a), held(after("local_sgd", 8, 2)), atol=1e-6)


def test_gasloc_moves_by_what_the_last_step_moved_too() -> None:
    """One node, constant progress p: y grows by p + γ·(the growth before)."""
    swarm = after("gasloc", 0, 1, mix__outer_momentum=0.5, mix__outer_lr=1.0)
    start = held(swarm)[0].copy()
    for _ in range(2):
        for values in swarm.theta[0]:
            values += 1.0
        swarm.outer()
    # y1 = 1, φ1 = 1 + ½; y2 = φ1 + 1 = 2½, φ2 = 2½ + ½ · 1½
    assert np.allclose(held(swarm)[0] - start, 3.25, atol=1e-5)


def test_between_two_means_nodes_are_apart_and_after_one_they_are_not() -> None:
    swarm = after("local_sgd", 3)
    assert not np.allclose(held(swarm)[0], held(swarm)[1])
    swarm.finish()
    assert np.array_equal(held(swarm)[0], held(swarm)[1])
    sent = swarm.sent
    swarm.step(1.0)
    assert swarm.sent > sent  # the fourth step is the plan's own


@pytest.mark.parametrize(
    ("method", "models"),
    [("solo", 0), ("ddp", 8 * 1.5), ("local_sgd", 2 * 1.5), ("diloco", 2 * 1.5), ("gasloc", 2)],
)
def test_what_is_sent_is_counted(method: str, models: float) -> None:
    """Eight steps of four nodes, H = 4: a ring sends 2 · ¾ of a model, a swap one."""
    swarm = after(method, 8, 1 if method == "solo" else 4)
    size = 4 * sum(swarm.task.sizes)
    assert swarm.sent == pytest.approx(models * size)
    turns = {"solo": 0, "ddp": 8, "gasloc": 2}.get(method, 2)
    hops = turns * (1 if method == "gasloc" else 6)
    assert swarm.waited_s == pytest.approx(models * size / 1e6 + hops * 0.01)
