"""The plan's own model in the simulator's hands learns as a worker does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from learning_scene import counting, plan_of, task_of

from peerlm.mix.vector import Vector


def flat(theta: list[Vector]) -> Vector:
    return np.concatenate(theta)


def test_it_learns_and_the_same_plan_ends_in_the_same_bits() -> None:
    ends = []
    for _ in range(2):
        task = task_of(plan_of(), 2)
        theta = task.initial(1)
        assert task.loss(theta) == pytest.approx(math.log(32), abs=0.4)
        task.pupil(0).steps(theta, 60)
        assert task.loss(theta) < 2.5
        ends.append(flat(theta))
    assert np.array_equal(*ends)


def test_nodes_of_one_text_read_different_parts_of_it_and_a_second_life_reads_on() -> None:
    task = task_of(plan_of(), 2)
    first, second, again = task.pupil(0), task.pupil(1), task.pupil(0)
    theta = [task.initial(1) for _ in range(3)]
    losses = [p.steps(t, 1) for p, t in zip((first, second, again), theta, strict=True)]
    assert len(set(losses)) == 3


def test_a_step_together_is_the_mean_of_steps_apart() -> None:
    plan = plan_of(train__optimizer="sgd", train__clip=0, train__weight_decay=0)
    together, apart = task_of(plan, 3), task_of(plan, 3)
    joined = together.initial(1)
    together.joined().steps(joined, 1)
    each = [apart.initial(1) for _ in range(3)]
    for node, theta in enumerate(each):
        apart.pupil(node).steps(theta, 1)
    mean = np.mean([flat(theta) for theta in each], axis=0)
    assert np.allclose(flat(joined), mean, atol=1e-6)
    assert not np.allclose(flat(joined), flat(each[0]), atol=1e-6)


def test_each_node_may_have_a_text_of_its_own() -> None:
    task = task_of(plan_of(data__source="local"), 2, [counting(), counting(by=7)])
    theta = task.initial(1)
    task.pupil(1).steps(theta, 60)
    by_one, by_seven = task.losses(theta)
    assert by_seven < 2.5 < by_one
    assert task.loss(theta) == pytest.approx((by_one + by_seven) / 2)


def test_a_reset_fragment_forgets_its_moments() -> None:
    task = task_of(plan_of(), 1)
    pupil, theta = task.pupil(0), task.initial(1)
    pupil.steps(theta, 3)
    fresh, old = task.pupil(0), [v.copy() for v in theta]
    pupil.forget(0)
    fresh.steps([v.copy() for v in old], 1)
    state = pupil._learner.optimizer.parts[1].state
    embedding = pupil._learner.model.embedding.weight
    assert embedding not in state
    assert len(state) > 0
