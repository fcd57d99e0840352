"""Several local workers are one to their daemon, learn what one learns, and end together."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from swarm import at_once

from peerlm.config import Plan
from peerlm.train import protocol
from peerlm.types import FragmentId
from tests.net.tiny_run import PLAN, plan, shards
from tests.net.worker_scene import Daemon, worker

pytestmark = [pytest.mark.net, pytest.mark.timeout(120)]

STEPS = 24
BUDGET = STEPS * 8 * PLAN.model.context
"""Beyond it steps go on and move nothing, so where θ has arrived does not depend on when one looks."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return shards(tmp_path_factory.mktemp("corpus"))


def of_batch(batch: int) -> Plan:
    """In two micro-batches a rank; evaluated on the same text whatever the batch."""
    sizes = {"train.batch": batch, "train.val_batches": 16 // batch}
    return plan(**sizes, **{"train.accumulate": 2})


def learnt(corpus: list[Path], plan: Plan, local_workers: int) -> tuple[np.ndarray, float]:
    """All of θ after the budget, and its loss on held-out text; a correction and a reset on the way."""
    with worker(corpus, plan, **{"train.local_workers": local_workers}) as (daemon, process):
        daemon.hear(protocol.Ready)
        for slot, value in ((0, 0.01), (2, 0.05)):
            daemon.memory.correction[slot][:] = value
        daemon.channel.send(protocol.Correction(FragmentId(0), 1, protocol.ADD))
        daemon.channel.send(protocol.Correction(FragmentId(2), 1, protocol.RESET))
        daemon.hear(protocol.Applied, lambda m: m.fragment == 2)
        daemon.train(BUDGET)
        daemon.hear(protocol.Progress, lambda m: m.tokens > BUDGET)
        daemon.channel.send(protocol.Drain())
        daemon.hear(protocol.Drained)
        theta = np.concatenate([slot.copy() for slot in daemon.memory.boundary.values()])
        for slow, slot in zip(
            daemon.memory.slow.values(), daemon.memory.boundary.values(), strict=True
        ):
            slow[:] = slot
        daemon.channel.send(protocol.Evaluate())
        loss = daemon.hear(protocol.Evaluated).val_loss
        daemon.channel.send(protocol.Stop())
        assert process.wait(timeout=20) == 0
    return theta, loss


def test_two_learn_what_one_with_twice_the_batch_learns(corpus: list[Path]) -> None:
    (one, its_loss), (half, other_loss) = at_once(
        lambda: learnt(corpus, of_batch(8), 1), lambda: learnt(corpus, of_batch(4), 1)
    )
    two, their_loss = learnt(corpus, of_batch(4), 2)
    assert their_loss == pytest.approx(its_loss, abs=1e-4)
    assert np.abs(one - two).max() < 1e-3
    assert abs(other_loss - its_loss) > 1e-3
    assert np.abs(one - half).max() > 1e-2


def ranks_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children()


def ready(daemon: Daemon, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    assert daemon.hear(protocol.Ready) == protocol.Ready("2 × cpu", 2)
    ranks = ranks_of(process)
    assert len(ranks) == 1
    return ranks


@pytest.mark.parametrize("busy", [True, False])
def test_the_death_of_any_ends_all_and_is_told(corpus: list[Path], busy: bool) -> None:
    with worker(corpus, **{"train.local_workers": 2}) as (daemon, process):
        ranks = ready(daemon, process)
        if busy:
            daemon.train()
            daemon.hear(protocol.Progress)
        ranks[0].send_signal(signal.SIGKILL)
        assert "local worker 1 was killed by signal 9" in daemon.hear(protocol.Failed).error
        assert process.wait(timeout=10) == 1
        assert psutil.wait_procs(ranks, timeout=5)[1] == []


def test_a_rank_that_cannot_begin_is_told_at_once(corpus: list[Path]) -> None:
    """It has a tenth of the memory that torch needs; so has the first, which may be sooner to say so."""
    limits = {"train.local_workers": 2, "limits.memory_bytes": 400_000_000}
    with worker(corpus, **limits) as (daemon, process):
        assert "\n" not in daemon.hear(protocol.Failed).error
        assert process.wait(timeout=30) == 1


def test_none_outlives_the_first(corpus: list[Path]) -> None:
    with worker(corpus, **{"train.local_workers": 2}) as (daemon, process):
        ranks = ready(daemon, process)
        process.kill()
        assert psutil.wait_procs(ranks, timeout=5)[1] == []


def test_a_text_too_short_for_all_is_said_in_a_line(tmp_path: Path) -> None:
    few = shards(tmp_path)
    long = replace(PLAN, model=replace(PLAN.model, context=4096))
    with worker(few, long, **{"train.local_workers": 2}) as (daemon, process):
        assert "shorter than one batch" in daemon.hear(protocol.Failed).error
        assert process.wait(timeout=10) == 1
