"""A real worker process, with the test in the daemon's place."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from peerlm.config import NodeSettings, Plan
from peerlm.model.plan import FragmentSpec
from peerlm.train import protocol, shared
from peerlm.train.channel import Channel
from peerlm.train.protocol import Message
from peerlm.train.shared import SharedMemory
from peerlm.types import PeerId
from tests.net.tiny_run import FRAGMENTS, ME, PLAN, settings

M = TypeVar("M", bound=Message)
MODULE = [sys.executable, "-m", "peerlm.train.worker"]


class Daemon:
    """What a worker sees of its daemon."""

    def __init__(
        self, fragments: Sequence[FragmentSpec] = FRAGMENTS, me: PeerId = ME, held: range = range(1)
    ) -> None:
        self.me, self.held = me, held
        self.socket, self.its_socket = socket.socketpair()
        self.channel = Channel(self.socket)
        self.descriptor = shared.allocate(fragments)
        self.memory = SharedMemory(self.descriptor, fragments)
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

    def set_up(
        self,
        corpus: list[Path],
        node: NodeSettings,
        fresh: bool = True,
        plan: Plan = PLAN,
        absent: tuple[int, ...] = (),
        moments: str = "",
    ) -> None:
        self.channel.send(
            protocol.Setup(
                1,
                fresh,
                self.me,
                protocol.packed(plan),
                protocol.packed(node),
                tuple(map(str, corpus)),
                threads=1,
                passes=b"",
                first_stage=self.held[0],
                last_stage=self.held[-1],
                absent=absent,
                moments=moments,
            )
        )

    def train(self, budget: int = PLAN.run.token_budget) -> None:
        self.channel.send(protocol.Steer(True, 0, budget, (ME,), PLAN.mix.inner_steps))

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
def worker(
    corpus: list[Path],
    plan: Plan = PLAN,
    daemon: Daemon | None = None,
    absent: tuple[int, ...] = (),
    fresh: bool = True,
    moments: str = "",
    **node: object,
) -> Iterator[tuple[Daemon, subprocess.Popen[bytes]]]:
    daemon = daemon or Daemon()
    process = daemon.start()
    try:
        daemon.set_up(corpus, settings(**node), fresh, plan, absent, moments)
        yield daemon, process
    finally:
        process.kill()
        process.wait()
        daemon.close()
