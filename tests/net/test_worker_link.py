"""A daemon's link to real workers. The test is the node: it takes an outer step at each boundary.

θ cannot be looked at from outside, but a worker at the end of its budget (learning rate 0) hands in
a θ that no inner step has moved. Its progress is then whatever the accounting of corrections lost.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import uvloop

from peerlm import events
from peerlm.daemon import worker_link, worker_process
from peerlm.daemon.slow_weights import SlowWeights
from peerlm.daemon.worker_link import WorkerLink
from peerlm.events import Event
from peerlm.mix.fragment import SlowFragment
from peerlm.types import FragmentId, PeerId
from tests.net.tiny_run import BUDGET, FRAGMENTS, ME, PLAN, settings, shards

pytestmark = [pytest.mark.net, pytest.mark.timeout(60)]
E = TypeVar("E", bound=Event)
PACE = 20.0 * PLAN.train.batch * PLAN.model.context
"""Tokens a second of twenty inner steps."""


class Node:
    """Stands in for the core: steps φ at each boundary, remembers what was reported."""

    def __init__(self, compute: ThreadPoolExecutor) -> None:
        self.fragments = [SlowFragment(np.zeros(f.size, np.float32)) for f in FRAGMENTS]
        self.slow = SlowWeights(dict(enumerate(self.fragments)), compute)
        self.reported: list[Event] = []
        self.link: WorkerLink
        self._read = 0
        self._news = asyncio.Event()
        self.tasks: asyncio.TaskGroup

    def post(self, event: Event) -> None:
        self.reported.append(event)
        self._news.set()
        if isinstance(event, events.BoundaryReached):
            step = self.link.step_outer(event.generation, event.fragment, event.applied_seq)
            self.tasks.create_task(step)

    async def wait(self, kind: type[E], that: Callable[[E], bool] = lambda _: True) -> E:
        """The next report like that, from where the last wait ended."""
        async with asyncio.timeout(30):
            while True:
                while self._read == len(self.reported):
                    self._news.clear()
                    await self._news.wait()
                event = self.reported[self._read]
                self._read += 1
                if isinstance(event, events.WorkerExited) and kind is not events.WorkerExited:
                    raise AssertionError(f"the worker has gone: {event.error}")
                if isinstance(event, kind) and that(event):
                    return event

    def all_of(self, kind: type[E]) -> list[E]:
        return [event for event in self.reported if isinstance(event, kind)]

    async def add_flow(self, fragment: FragmentId, values: np.ndarray) -> None:  # type: ignore[type-arg]
        """What an exchange does to us."""
        await self.slow.on(fragment, lambda slow: slow.add_flow(values))
        self.link.kick(fragment)

    def train(self, generation: int, swarm_tokens: int) -> None:
        self.link.steer(generation, True, swarm_tokens, (ME,), PLAN.mix.inner_steps)

    async def wait_outer_steps(self, each: int) -> list[events.OuterStepped]:
        """The outer steps from now on, until every fragment has had so many."""
        stepped: list[events.OuterStepped] = []
        counts: Counter[int] = Counter()
        while len(counts) < len(FRAGMENTS) or min(counts.values()) < each:
            stepped.append(await self.wait(events.OuterStepped))
            counts[stepped[-1].fragment] += 1
        return stepped


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return shards(tmp_path_factory.mktemp("corpus"))


@asynccontextmanager
async def a_node(corpus: list[Path], log: int | None = None, **own: object) -> AsyncIterator[Node]:
    with ThreadPoolExecutor(2) as compute:
        node = Node(compute)
        link = WorkerLink(
            node.post, node.slow, PLAN, settings(**own), ME, lambda: corpus, threads=1, log=log
        )
        async with asyncio.TaskGroup() as node.tasks, link as node.link:
            yield node


def worst_progress(stepped: list[events.OuterStepped]) -> float:
    """Largest progress, relative to the fragment's weights."""
    return max(step.progress_norm / (step.phi_norm + 1e-6) for step in stepped)


@pytest.mark.parametrize("event_loop", ["asyncio", "uvloop"])
def test_theta_and_phi_agree_from_the_first_weights_to_the_last(
    corpus: list[Path], event_loop: str
) -> None:
    factory = uvloop.new_event_loop if event_loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(agree_from_first_to_last(corpus))


async def agree_from_first_to_last(corpus: list[Path]) -> None:
    rng = np.random.default_rng(1)
    async with a_node(corpus) as node:
        node.link.start(1, fresh=True)
        assert await node.wait(events.StateInstalled) == events.StateInstalled("fresh")
        assert all(fragment.phi.any() for fragment in node.fragments)
        assert await node.wait(events.WorkerReady) == events.WorkerReady(1, "cpu", 1)
        node.link.evaluate(1, tokens=17)
        fresh = await node.wait(events.Evaluated)
        assert fresh.tokens == 17
        assert fresh.val_loss == pytest.approx(math.log(256), abs=0.1)

        node.train(1, swarm_tokens=0)
        assert worst_progress(await node.wait_outer_steps(each=5)) > 1e-3
        progress = await node.wait(events.WorkerProgressed)
        assert progress.loss is not None
        assert progress.loss < fresh.val_loss
        assert progress.tokens == progress.steps * 4 * 32

        node.train(1, swarm_tokens=BUDGET)  # from now on θ moves by corrections alone
        await node.wait_outer_steps(each=3)
        for _ in range(40):
            fragment = FragmentId(int(rng.integers(len(FRAGMENTS))))
            size = FRAGMENTS[fragment].size
            await node.add_flow(fragment, rng.normal(0, 0.1, size).astype(np.float32))
        assert worst_progress(await node.wait_outer_steps(each=3)) < 1e-5

        node.link.drain(1)
        await node.wait(events.WorkerDrained)
        taken = len(node.all_of(events.OuterStepped))
        assert len(node.all_of(events.BoundaryReached)) == taken
        assert sum(fragment.version for fragment in node.fragments) == taken  # none was void
        node.link.evaluate(1, tokens=18)
        assert np.isfinite((await node.wait(events.Evaluated)).val_loss)
        node.link.stop(1)
        assert await node.wait(events.WorkerExited) == events.WorkerExited(1, "")
        assert len(node.all_of(events.OuterStepped)) == taken


async def test_boundaries_come_every_h_steps_at_the_pace_asked_for_and_end_with_the_link(
    corpus: list[Path],
) -> None:
    async with a_node(corpus, **{"train.pace_tokens_s": PACE}) as node:
        node.link.start(1, fresh=True)
        await node.wait(events.WorkerReady)
        node.train(1, swarm_tokens=0)
        reports = [await node.wait(events.WorkerProgressed) for _ in range(2)]
        reached = node.all_of(events.BoundaryReached)
        last = reached[-1].steps
        counts = Counter(boundary.fragment for boundary in reached)
        assert set(counts) == set(range(len(FRAGMENTS)))
        assert all(abs(count - last / PLAN.mix.inner_steps) <= 2 for count in counts.values())
        assert 0.7 * PACE < sum(r.tokens_per_s for r in reports) / 2 < 1.1 * PACE
        handle = os.pidfd_open(worker_pid(node))
    # left in the midst of training
    assert node.reported[-1] == events.WorkerExited(1, "")
    with pytest.raises(ProcessLookupError):
        signal.pidfd_send_signal(handle, signal.SIGTERM)
    os.close(handle)


async def test_a_killed_worker_is_reported_at_once_and_another_begins_at_phi(
    corpus: list[Path],
) -> None:
    async with a_node(corpus) as node:
        descriptors = len(os.listdir("/proc/self/fd"))
        node.link.start(1, fresh=True)
        await node.wait(events.WorkerReady)
        node.train(1, swarm_tokens=0)
        await node.wait_outer_steps(each=2)

        os.kill(worker_pid(node), signal.SIGKILL)
        async with asyncio.timeout(2):
            gone = await node.wait(events.WorkerExited)
        assert gone == events.WorkerExited(1, "killed by signal 9 (SIGKILL)")
        gc.collect()
        assert "memfd:peerlm" not in memory_maps()
        assert len(os.listdir("/proc/self/fd")) <= descriptors
        await node.add_flow(FragmentId(0), np.full(FRAGMENTS[0].size, 0.5, np.float32))

        node.link.steer(1, True, 0, (ME,), 1)  # words to the dead are lost on nobody
        await node.link.step_outer(1, FragmentId(0), 0)
        node.link.start(2, fresh=False)
        node.train(2, swarm_tokens=BUDGET)
        await node.add_flow(FragmentId(1), np.full(FRAGMENTS[1].size, 0.5, np.float32))
        assert (await node.wait(events.WorkerReady)).generation == 2
        assert worst_progress(await node.wait_outer_steps(each=2)) < 1e-5
        assert len(node.all_of(events.StateInstalled)) == 1


async def test_a_stopped_worker_holds_nobody_up(
    corpus: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_link, "STOP_PATIENCE_S", 0.2)
    loop = asyncio.get_running_loop()
    async with a_node(corpus) as node:
        node.link.start(1, fresh=True)
        await node.wait(events.WorkerReady)
        node.train(1, swarm_tokens=0)
        await node.wait_outer_steps(each=1)
        os.kill(worker_pid(node), signal.SIGSTOP)

        crowd = tuple(PeerId(number.to_bytes(16, "big")) for number in range(1000))
        began = loop.time()
        for swarm_tokens in range(200):  # 3 MB, far more than a socket takes
            node.link.steer(1, True, swarm_tokens, crowd, PLAN.mix.inner_steps)
            node.link.kick(FragmentId(swarm_tokens % len(FRAGMENTS)))
            await asyncio.sleep(0)
        assert loop.time() - began < 1.0
        assert len(waiting_words(node)) <= 2 * len(FRAGMENTS) + 5
        phi = node.fragments[0].phi.copy()
        await node.add_flow(FragmentId(0), np.ones(FRAGMENTS[0].size, np.float32))
        assert np.array_equal(node.fragments[0].phi, phi + 1)

        node.link.stop(1)
        assert await node.wait(events.WorkerExited) == events.WorkerExited(1, "")


async def test_a_worker_that_cannot_work_says_why(tmp_path: Path) -> None:
    log = os.open(tmp_path / "log", os.O_CREAT | os.O_RDWR)
    async with a_node([Path("/nowhere/shard")], log) as node:
        node.link.start(1, fresh=True)
        gone = await node.wait(events.WorkerExited)
    assert gone.error.startswith("ConfigError: shard /nowhere/shard: cannot be read")
    assert "\n" not in gone.error
    assert b"Traceback" not in os.pread(log, 1 << 16, 0)  # that is for what nobody foresaw
    os.close(log)


async def test_without_descriptors_left_the_start_fails_and_nothing_else(
    corpus: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptor(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(worker_process.shared, "allocate", no_descriptor)
    async with a_node(corpus) as node:
        node.link.start(1, fresh=True)
        gone = await node.wait(events.WorkerExited)
        assert "Too many open files" in gone.error


def memory_maps() -> str:
    return Path("/proc/self/maps").read_text()


def worker_pid(node: Node) -> int:
    assert node.link._worker is not None
    process = node.link._worker._process
    assert process is not None
    return process.pid


def waiting_words(node: Node) -> list[object]:
    assert node.link._worker is not None
    return list(node.link._worker._outbox.values())
