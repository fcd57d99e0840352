"""A whole training run of a swarm that does not exist yet: loss against tokens, bytes and time.

What is real: the nodes, their decisions, the arithmetic of mixing, codecs, clipping, and a small
language model that learns real text. What is computed: how long things take, from the plan's sizes
and the links and speeds that were given, and how many bytes they are. The small model stands in for
the plan's: its losses tell which of two settings learns more and how much a fault costs, not what
the plan's model will reach. Bytes and times are the plan's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from peerlm.config import Plan
from peerlm.mix.vector import Vector
from peerlm.sim.checks import Safety
from peerlm.sim.faults import Fault, plan_faults
from peerlm.sim.learner import Learner
from peerlm.sim.network import Wire
from peerlm.sim.world import TICK_STEPS, World, relative_distance

POINTS = 100
"""Looks at the swarm over the budget, if it takes long enough."""

LOOK_MIN_S = 0.5

PATIENCE = 20.0
"""Times the ideal duration after which a run that has not ended is called off."""

START_S = 30.0
"""What founding the swarm and settling may take besides."""


@dataclass(frozen=True, slots=True)
class Point:
    """The swarm at one moment."""

    seconds: float
    tokens: int
    """Trained by all, whether or not everybody has heard of them."""
    loss_mean: float | None
    """Of the mean of all slow weights: what merging now would give. None before there are any."""
    loss_worst: float | None
    """Of the slow weights of the node that is worst off; None where that is not looked at."""
    spread: float | None
    nodes: int
    """Up."""
    training: int
    bytes_per_node: float
    """Sent so far: exchanges, state, and control messages."""


@dataclass(slots=True)
class Trained:
    points: list[Point] = field(default_factory=list)
    ended: bool = False
    """Every node that is up holds the finished model."""
    seconds: float = 0.0
    bulk_bytes: dict[int, int] = field(default_factory=dict)
    control_bytes: dict[int, int] = field(default_factory=dict)
    exchanges: dict[str, int] = field(default_factory=dict)
    model_losses: tuple[float, ...] = ()
    """Of the newest model of every node that has written one."""
    model: list[Vector] | None = None
    """The first of them."""
    allreduce_bytes_per_node: float = 0.0
    """What averaging every gradient by ring all-reduce would have sent from each node."""
    digest: str = ""


def train(
    plan: Plan,
    nodes: int,
    learner: Learner,
    sizes: tuple[int, ...],
    speeds: Sequence[float],
    wire: Wire,
    faults: Sequence[Fault],
    seed: int,
    tell: Callable[[Point], None] = lambda point: None,
    *,
    points: int = POINTS,
    each: bool = True,
    tick_steps: int = TICK_STEPS,
) -> Trained:
    """Train to the plan's budget.

    Args:
        speeds: tokens a second of each node, repeated in turn.
        points: looks at the swarm over the budget.
        each: evaluate every node's weights at each look, for `loss_worst`, and not only their mean.
        tick_steps: see `World`.

    Raises:
        AssertionError: a promise was broken on the way.
    """
    world = World(
        seed,
        plan=plan,
        sizes=sizes,
        learner=learner,
        speed=speeds,
        wire=wire,
        scheduled=True,
        tick_steps=tick_steps,
    )
    safety, trained = Safety(world), Trained()
    for number in range(nodes):
        world.add(number, *([0] if number else []))
    plan_faults(world, faults)
    ideal_s = plan.run.token_budget / sum(m.speed for m in world.machines.values())
    end_s = START_S + _fetching_s(plan, sizes, wire) + PATIENCE * ideal_s
    end_s = max([end_s, *(fault.at_s + START_S for fault in faults)])
    end_s += plan.mix.settle_deadline_s
    every_s = max(ideal_s / points, LOOK_MIN_S)
    while not trained.ended and world.now < end_s:
        world.run(every_s)
        safety.look()
        point = look(world, each=each)
        trained.points.append(point)
        tell(point)
        trained.ended = bool(world.up()) and world.all_in("done") and _all_written(world)
    trained.seconds = world.now
    _sum_up(world, trained)
    return trained


def _fetching_s(plan: Plan, sizes: Sequence[int], wire: Wire | None) -> float:
    """What every node takes to fetch the weights, if the line is a quarter as good as it should be."""
    rate = wire.rate_bytes_s if wire is not None else Wire().rate_bytes_s
    return 4 * 4 * sum(sizes) / rate


def look(world: World, *, each: bool = True) -> Point:
    """The swarm as it is; `each`: see `train`."""
    up = world.up()
    weights = [
        [slow.phi for slow in m.labour.slow.values()] for m in up if _has_weights(world, m.number)
    ]
    sent = sum(world.network.bulk_bytes.values()) + sum(world.network.bytes.values())
    mean_loss = worst = spread = None
    if weights:
        mean = [_mean(parts) for parts in zip(*weights, strict=True)]
        mean_loss = world.learner.loss(mean)
        worst = max(world.learner.loss(phi) for phi in weights) if each else None
        centre = np.concatenate(mean)
        spread = max(relative_distance(centre, np.concatenate(phi)) for phi in weights)
    return Point(
        seconds=world.now,
        tokens=sum(m.tokens_trained for m in world.machines.values()),
        loss_mean=mean_loss,
        loss_worst=worst,
        spread=spread,
        nodes=len(up),
        training=sum(world.summary(m.number).phase == "training" for m in up),
        bytes_per_node=sent / max(1, len(world.machines)),
    )


def _mean(parts: Sequence[Vector]) -> Vector:
    total = np.zeros(parts[0].size, np.float64)
    for part in parts:
        total += part
    return (total / len(parts)).astype(np.float32)


def _has_weights(world: World, number: int) -> bool:
    return world.summary(number).phase in ("training", "settling", "done", "paused")


def _all_written(world: World) -> bool:
    return all(world.summary(m.number).model_dir for m in world.up())


def _sum_up(world: World, trained: Trained) -> None:
    network = world.network
    trained.bulk_bytes, trained.control_bytes = dict(network.bulk_bytes), dict(network.bytes)
    for machine in world.machines.values():
        for outcome, count in machine.all_exchanges().items():
            trained.exchanges[outcome] = trained.exchanges.get(outcome, 0) + count
    written = [m.disk.models[-1] for m in world.machines.values() if m.disk.models]
    trained.model_losses = _losses_of(written, world.learner)
    trained.model = written[0] if written else None
    n, plan = len(world.machines), world.plan.plan
    steps = trained.points[-1].tokens / n / (plan.train.batch * plan.model.context)
    trained.allreduce_bytes_per_node = steps * sum(world.sizes) * 8 * (n - 1) / n
    trained.digest = world.digest()


def _losses_of(models: Sequence[Sequence[Vector]], learner: Learner) -> tuple[float, ...]:
    """Of each. Nodes that have settled hold the same model to the bit, and it is evaluated once."""
    found: dict[bytes, float] = {}
    held = [b"".join(values.tobytes() for values in model) for model in models]
    for key, model in zip(held, models, strict=True):
        if key not in found:
            found[key] = learner.loss(model)
    return tuple(found[key] for key in held)
