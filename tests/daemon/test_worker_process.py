"""What waits for a worker that does not read."""

from __future__ import annotations

import asyncio

from peerlm.daemon.worker_process import HOPS_BYTES_MAX, WorkerProcess
from peerlm.train import protocol
from peerlm.types import FragmentId, PeerId
from tests.net.tiny_run import FRAGMENTS

PEER = PeerId(b"p" * 16)
SIZE = 1 << 20


def hops_that_wait(worker: WorkerProcess) -> int:
    return sum(isinstance(word, protocol.Hop) for word in worker._outbox.values())


def test_hops_wait_up_to_so_many_bytes_and_neither_crowd_out_other_words_nor_are_crowded_out() -> (
    None
):
    async def scene() -> None:
        worker = WorkerProcess(1, FRAGMENTS)
        try:
            for fragment in range(1000):
                worker.say(protocol.BoundaryTaken(FragmentId(fragment)))
            data = bytes(SIZE)
            for _ in range(2 * HOPS_BYTES_MAX // SIZE):
                worker.say(protocol.Hop(PEER, data))
            assert hops_that_wait(worker) == HOPS_BYTES_MAX // SIZE
            worker.say(protocol.Drain())
            assert len(worker._outbox) == 1000 + HOPS_BYTES_MAX // SIZE + 1
        finally:
            worker.close()

    asyncio.run(scene())


def test_the_smallest_hops_count_for_what_they_take() -> None:
    async def scene() -> None:
        worker = WorkerProcess(1, FRAGMENTS)
        try:
            for _ in range(100_000):
                worker.say(protocol.Hop(PEER, b""))
            assert hops_that_wait(worker) <= 1 << 16
        finally:
            worker.close()

    asyncio.run(scene())
