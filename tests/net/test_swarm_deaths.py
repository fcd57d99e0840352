"""Deaths of real processes: whatever is killed, and when, the others go on and it comes back.

The scenes share one swarm of three; each begins with all of them up and mixing.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from swarm import Node, Swarm, exchanged_more, wait_for

from peerlm.store.layout import StateDirectory

pytestmark = pytest.mark.timeout(180)

GONE_S = 2.0
"""Within this time nothing of a daemon that was killed with -9 may be left."""


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    swarm = Swarm(tmp_path_factory.mktemp("deaths"))
    try:
        founder = swarm.found()
        for _ in range(2):
            swarm.join(founder)
        swarm.wait_whole()
        yield swarm
    finally:
        swarm.close()


@pytest.fixture
def trio(swarm: Swarm) -> list[Node]:
    """The three nodes, all up and mixing."""
    trio = swarm.nodes[:3]
    for node in trio:
        if not node.is_running:
            node.up()
    swarm.wait_whole()
    return trio


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def is_free(port: int) -> bool:
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def test_a_killed_worker_is_replaced_while_its_daemon_stays_a_member(trio: list[Node]) -> None:
    node, other = trio[1], trio[2]
    before = node.status()["worker"]["restarts"]
    [worker] = node.workers()
    worker.kill()
    said = node.wait(lambda s: s["worker"]["restarts"] > before, "the worker counts as restarted")
    assert "SIGKILL" in said["worker"]["last_error"]
    assert other.member(node.id)["state"] == "alive"
    node.wait(lambda s: s["worker"]["state"] == "running", "a new worker runs")
    node.wait(exchanged_more(node), "it mixes again")


def test_nothing_is_left_of_a_daemon_killed_with_9(trio: list[Node]) -> None:
    node = trio[2]
    [worker] = node.workers()
    ports = node.ports()
    assert len(ports) == 4
    node.kill()
    wait_for(lambda: is_gone(worker), "the worker goes with its daemon", GONE_S)
    assert all(is_free(port) for port in ports)
    StateDirectory(node.folder).close()
    node.up()
    node.wait(lambda s: s["participating"], "it is back and mixes")


def test_sigterm_is_a_clean_stop(trio: list[Node]) -> None:
    node, other = trio[1], trio[0]
    name, before = node.id, node.status()["snapshot"]["number"]
    began = time.monotonic()
    node.signal(signal.SIGTERM)
    assert node.wait_end() == 0
    assert time.monotonic() - began < 10
    assert any(f"snapshot-{n:08}" in str(snapshots(node)) for n in range(before + 1, before + 9))
    other.wait(lambda _: other.member(name)["state"] == "left", "a peer knows that it left")


def snapshots(node: Node) -> list[Path]:
    return sorted(node.layout.snapshots.glob("*.manifest"))


def test_all_killed_at_once_go_on_from_their_snapshots(trio: list[Node]) -> None:
    trained = min(node.status()["swarm_tokens"] for node in trio)
    kept = [
        node.wait(lambda s: s["snapshot"]["tokens"] >= trained, "it is kept an interval later")
        for node in trio
    ]
    for node in trio:
        node.signal(signal.SIGKILL)
    for node in trio:
        node.wait_end()
    for node in trio:
        node.up()
    most = max(status["snapshot"]["tokens"] for status in kept)
    for node, before in zip(trio, kept, strict=True):
        said = node.wait(lambda s: s["state"] == "training", "it trains again")
        assert said["swarm_tokens"] >= before["snapshot"]["tokens"] >= trained
        assert said["snapshot"]["number"] >= before["snapshot"]["number"]
        node.wait(lambda s: s["swarm_tokens"] > most, "it trains beyond the snapshots")
    assert sum(node.said().count("origin=fresh") for node in trio) == 1, "only the run's beginning"


def test_the_founder_and_seed_may_be_gone_for_ever(swarm: Swarm, trio: list[Node]) -> None:
    founder, second, third = trio
    founder.kill()
    third.kill()
    third.up()  # its seed was the founder
    third.wait(lambda s: s["participating"], "it finds the swarm without its seed")
    newcomer = swarm.join(second)
    wait_for(lambda: "enrolled" in newcomer.said(), "it is enrolled by any node's address")
    newcomer.kill()  # before state came
    newcomer.up()
    newcomer.wait(lambda s: s["participating"], "it needs only up")
    newcomer.kill()
