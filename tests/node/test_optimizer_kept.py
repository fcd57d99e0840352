"""When a worker keeps its optimizer's state, and when the next one is to begin without it."""

from __future__ import annotations

import random

from node_scene import World

from peerlm.effects import Effect, KeepOptimizer, Log, StartWorker
from peerlm.events import OptimizerKept, WorkerReady
from peerlm.node.worker import FIRST_EVALUATION_S, KEEPING_SHARE, Worker
from peerlm.types import Instant, after

EVERY_S = 30.0


def ready(worker: Worker, now: Instant) -> list[Effect]:
    started = worker.start(b"", (), now, fresh=False)
    worker.ready(WorkerReady(worker.supervision.generation, "cpu", 1), now)
    return started


def test_it_is_kept_so_often_and_takes_a_small_part_of_the_time() -> None:
    now = Instant(100.0)
    worker = Worker(random.Random(1), now)
    assert worker.keep_if_due(EVERY_S, now) == [], "there is none"
    ready(worker, now)
    now = after(now, FIRST_EVALUATION_S)
    assert worker.keep_if_due(EVERY_S, now) == [KeepOptimizer(1)]
    assert worker.keep_if_due(EVERY_S, after(now, 99.0)) == [], "one at a time"
    assert worker.kept(OptimizerKept(0, 9.0), now) == [], "of a worker before"
    assert worker.kept(OptimizerKept(1, 0.1), now) == []
    assert worker.keep_if_due(EVERY_S, after(now, EVERY_S - 1)) == []
    now = after(now, EVERY_S)
    assert worker.keep_if_due(EVERY_S, now) == [KeepOptimizer(1)]
    (said,) = worker.kept(OptimizerKept(1, 6.0, "the disk is full"), now)
    assert said == Log("error", "optimizer_not_kept", (("why", "the disk is full"),))
    assert worker.keep_if_due(EVERY_S, after(now, 6.0 * KEEPING_SHARE - 1)) == []
    assert worker.keep_if_due(EVERY_S, after(now, 6.0 * KEEPING_SHARE)) == [KeepOptimizer(1)]


def test_after_two_deaths_in_a_row_it_may_be_what_they_die_of() -> None:
    now = Instant(100.0)
    worker = Worker(random.Random(1), now)
    cold = []
    for _ in range(3):
        (start,) = ready(worker, now)
        assert isinstance(start, StartWorker)
        cold.append(start.cold)
        worker.supervision.exited("CUDA error", True, now)
    assert cold == [False, False, True]


def test_a_node_that_trains_has_it_kept() -> None:
    world = World(1)
    founder = world.add(0)
    is_kept = lambda: any(isinstance(e, KeepOptimizer) for _, e in founder.effects)  # noqa: E731
    world.within(60, is_kept, "it is kept")
