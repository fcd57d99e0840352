"""A real worker process, with the test in the daemon's place."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from peerlm.config import NodeSettings
from peerlm.train import protocol, shared
from peerlm.train.channel import Channel
from peerlm.train.protocol import Message
from peerlm.train.shared import SharedMemory
from peerlm.types import FragmentId
from tests.net.tiny_run import FRAGMENTS, ME, PLAN, settings, shards

pytestmark = [pytest.mark.net, pytest.mark.timeout(60)]
M = TypeVar("M", bound=Message)
MODULE = [sys.executable, "-m", "peerlm.train.worker"]


class Daemon:
    """What a worker sees of its daemon."""

    def __init__(self) -> None:
        self.socket, self.its_socket = socket.socketpair()
        self.channel = Channel(self.socket)
        self.descriptor = shared.allocate(FRAGMENTS)
        self.memory = SharedMemory(self.descriptor, FRAGMENTS)
        self.heard: list[Message] = []

    def start(self) -> subprocess.Popen[bytes]:
        fds = (self.its_socket.fileno(), self.descriptor)
        arguments = [str(number) for number in (*fds, os.getpid())]
        process = subprocess.Popen(
            MODULE + arguments,
            pass_fds=fds,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.its_socket.close()
        return process

    def set_up(self, corpus: list[Path], node: NodeSettings, fresh: bool = True) -> None:
        self.channel.send(
            protocol.Setup(
                1,
                fresh,
                ME,
                protocol.packed(PLAN),
                protocol.packed(node),
                tuple(map(str, corpus)),
                threads=1,
                first_pass=0,
            )
        )

    def train(self) -> None:
        self.channel.send(
            protocol.Steer(True, 0, PLAN.run.token_budget, (ME,), PLAN.mix.inner_steps)
        )

    def hear(self, kind: type[M], that: Callable[[M], bool] = lambda _: True) -> M:
        """The next such message; what comes before it is kept in `heard`. Boundaries are taken."""
        while True:
            message = self.channel.receive_one()
            self.heard.append(message)
            if isinstance(message, protocol.Boundary) and kind is not protocol.Boundary:
                self.channel.send(protocol.BoundaryTaken(message.fragment))
            if isinstance(message, kind) and that(message):
                return message

    def close(self) -> None:
        for end in (self.socket, self.its_socket):
            end.close()
        if self.descriptor >= 0:
            os.close(self.descriptor)


@contextmanager
def worker(corpus: list[Path], **node: object) -> Iterator[tuple[Daemon, subprocess.Popen[bytes]]]:
    daemon = Daemon()
    process = daemon.start()
    try:
        daemon.set_up(corpus, settings(**node))
        yield daemon, process
    finally:
        process.kill()
        process.wait()
        daemon.close()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return shards(tmp_path_factory.mktemp("corpus"))


def test_it_survives_a_theta_that_is_no_number_and_leaves_with_its_daemon(
    corpus: list[Path],
) -> None:
    with worker(corpus) as (daemon, process):
        daemon.hear(protocol.Initialised)
        start = daemon.memory.boundary[1].copy()
        assert daemon.hear(protocol.Ready) == protocol.Ready("cpu", 1)
        assert np.isfinite(start).all()
        assert start.any()
        daemon.train()
        assert daemon.hear(protocol.Progress).nonfinite_steps == 0

        daemon.memory.correction[1][:] = np.nan
        daemon.channel.send(protocol.Correction(FragmentId(1), 7, protocol.ADD))
        daemon.hear(protocol.Applied, lambda m: m.seq == 7)
        broken = daemon.hear(protocol.Boundary, lambda m: m.fragment == 1 and m.applied_seq == 7)
        assert np.isnan(daemon.memory.boundary[1]).all()
        daemon.channel.send(protocol.BoundaryTaken(broken.fragment))
        report = daemon.hear(protocol.Progress, lambda m: m.nonfinite_steps > 0)

        daemon.memory.correction[1][:] = start
        daemon.channel.send(protocol.Correction(FragmentId(1), 8, protocol.RESET))
        daemon.hear(protocol.Applied, lambda m: m.seq == 8)
        healed = daemon.hear(protocol.Progress, lambda m: m.loss is not None)
        assert healed.tokens > report.tokens
        assert np.isfinite(healed.loss)  # type: ignore[arg-type]

        daemon.socket.close()
        assert process.wait(timeout=2) == 0


def test_it_dies_with_a_daemon_that_is_killed_though_somebody_still_holds_the_socket(
    corpus: list[Path],
) -> None:
    daemon = Daemon()
    fds = (daemon.its_socket.fileno(), daemon.descriptor)
    program = (
        "import os, subprocess\n"
        f"command = {MODULE + [str(fd) for fd in fds]!r} + [str(os.getpid())]\n"
        f"process = subprocess.Popen(command, pass_fds={fds!r})\n"
        "print(process.pid, flush=True)\n"
        "process.wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, pass_fds=fds
    ) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        daemon.set_up(corpus, settings())
        daemon.hear(protocol.Ready)
        parent.kill()
    assert select.select([child], [], [], 2)[0], "the worker outlived its daemon"
    os.close(child)
    daemon.close()


def test_too_little_memory_fails_in_one_line(corpus: list[Path]) -> None:
    with worker(corpus, **{"limits.memory_bytes": 200_000_000}) as (daemon, process):
        told = daemon.hear(protocol.Failed).error
        assert "Error: " in told
        assert "\n" not in told
        assert process.wait(timeout=5) == 1


def test_a_worker_whose_parent_is_not_its_daemon_does_nothing() -> None:
    done = subprocess.run([*MODULE, "98", "99", "1"], timeout=10, check=False)
    assert done.returncode == 0
