"""How busy a node is, as coarse as it is said to everybody."""

from __future__ import annotations

import random

from peerlm.events import WorkerExited, WorkerProgressed, WorkerReady
from peerlm.node.texts import at_most
from peerlm.node.worker import Worker
from peerlm.types import Instant

NOW = Instant(10.0)


def works(worker: Worker, share: float, reports: int = 1) -> int | None:
    """What it says after so many reports of this share."""
    generation = worker.supervision.generation
    for _ in range(reports):
        worker.progressed(WorkerProgressed(generation, 1, 1, None, 1.0, 0, busy=share), NOW)
    return worker.busy


def running() -> Worker:
    worker = Worker(random.Random(1), NOW)
    worker.start(b"", (), NOW, fresh=False)
    worker.ready(WorkerReady(worker.supervision.generation, "cpu", 1), NOW)
    return worker


def test_a_worker_is_as_busy_as_its_reports_say_and_what_is_said_does_not_waver() -> None:
    worker = running()
    assert worker.busy is None
    assert works(worker, 0.62) == 6
    assert {works(worker, share) for share in (0.5, 0.7) * 20} == {6}
    assert works(worker, 0.2, reports=60) == 2
    worker.exited(WorkerExited(worker.supervision.generation, ""), False, NOW)
    assert worker.busy is None, "there is none"


def test_texts_are_said_in_powers_of_two() -> None:
    assert [at_most(count) for count in (0, 1, 2, 3, 4, 5, 33)] == [0, 1, 2, 4, 4, 8, 64]
