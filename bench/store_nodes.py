"""Nodes of the swarm's store for figures: made, asked over their sockets, waited for."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bench.report import Missed
from peerlm.bench.nodes import Swarm
from peerlm.cli.demo_nodes import DemoNode
from peerlm.daemon.control import NoDaemon
from peerlm.daemon.desk_client import Client

REPLICAS = 3
REPAIRED_S = 120.0
POLL_S = 0.1

PLAN = {"run.token_budget": 10**12, "train.val_every_s": 10_000}
BRIEF = {
    "train.batch": 1,
    "train.accumulate": 1,
    "train.val_batches": 1,
    "model.context": 64,
    "train.optimizer": "sgd",
}
"""The step that the first node has begun before it is told to rest ends soon: of a large model it would go on beside what is
measured."""
SOON_DEAD = {"swarm.profile": "test"}
"""Deaths are known within a second or two, for more talk among nodes."""
SMALL = {"model.dim": 64, "model.heads": 2, "model.kv_heads": 1, "model.hidden": 128}
LOCAL = {
    "page.enabled": False,
    "store.repair_after_s": 20,
    "store.repair_bytes_s": 0,
    "store.checkpoint_every_s": 0,
    "limits.snapshot_every_s": 600,
}
NO_ROOM = {"store.enabled": False}


class Stores(Swarm):
    """Nodes that hold weights, and take no step. `roomless`: numbers of those that keep nothing for others."""

    roomless: tuple[int, ...] = ()

    def _local_of(self, node: DemoNode) -> dict[str, object]:
        return {**super()._local_of(node), **(NO_ROOM if node.number in self.roomless else {})}

    def begin(self) -> None:
        """The first alone, until it has weights; it is paused from then on."""
        self.found()
        self.nodes[0].start("up")
        self.hold(self.nodes[0])
        self._draw(self.nodes[0])

    def _draw(self, node: DemoNode) -> None:
        """The first weights come from a worker's first start."""
        from peerlm.daemon.control import ask

        ask(node.layout, "resume")
        self.wait("there are weights", lambda: has_weights(node), poll_s=0.1)
        ask(node.layout, "pause")

    def enter(self, *nodes: DemoNode) -> None:
        for node in nodes:
            self.join(node)
        for node in nodes:
            self.hold(node)
        self.wait("they have weights", lambda: all(has_weights(n) for n in nodes))


def has_weights(node: DemoNode) -> bool:
    return bool(node.status and node.status["state"] in ("ready", "training"))


def is_settled(node: DemoNode) -> bool:
    return bool(node.status and node.status["snapshot"]["number"])


def begun(words: Sequence[str]) -> subprocess.Popen[str]:
    """`peerlm` with these words."""
    return subprocess.Popen(
        [sys.executable, "-m", "peerlm", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def replicas(desk: Client, name: str) -> list[int]:
    """Of each chunk behind the name, as nodes say."""
    manifest = desk.manifest(name)
    return list(desk.survey([chunk.hash for chunk in manifest.chunks]).counts)


@contextmanager
def desk_of(node: DemoNode) -> Iterator[Client]:
    """As soon as it answers. Raises `NoDaemon`: it does not."""
    deadline = time.monotonic() + 30.0
    while True:
        try:
            desk = Client(node.layout)
            break
        except NoDaemon:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
    try:
        yield desk
    finally:
        desk.close()


def wait_for(is_so: Callable[[], bool], what: str) -> None:
    """Raises `Missed`: it is not so in time."""
    deadline = time.monotonic() + REPAIRED_S
    while not is_so():
        if time.monotonic() > deadline:
            raise Missed(f"{what}: not within {REPAIRED_S:.0f} s")
        time.sleep(POLL_S)
