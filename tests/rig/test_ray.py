"""`peerlm ray` on a real Ray cluster, whose nodes are processes on this machine with addresses and state folders of
their own. Each thing that Ray takes care of is killed in turn, and at last Ray itself.

Ray is no part of the usual environment: `make rig-ray` makes one with it (.venv-ray) and runs this file. Without
Ray the file is skipped.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from swarm import NODE, assert_refused, init, mixes, options, peerlm, succeed, wait_for

pytest.importorskip("ray", reason="needs Ray: make rig-ray", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore")

OF_RAY = ("raylet", "gcs_server", "ray::")
OBJECT_STORE_BYTES = 80 << 20
SETTINGS = options("--set-node", {name: NODE[name] for name in NODE if name != "network.host"})
UP_S = 240.0
GONE_S = 60.0


class RayNodes:
    """A cluster. Node k has the address 127.0.0.(k + 2) and the state folder n<k>."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folder = folder
        self._cluster = Cluster()
        self._ray_folder = tempfile.TemporaryDirectory(prefix="ray-")  # a short name: of sockets
        self._nodes: list[Any] = []

    def add(self) -> Path:
        """One more node; its state folder."""
        number = len(self._nodes)
        state = self.folder / f"n{number}"
        self._nodes.append(
            self._cluster.add_node(
                node_ip_address=f"127.0.0.{number + 2}",
                num_cpus=1,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                env_vars={"PEERLM_STATE": str(state)},
                temp_dir=self._ray_folder.name,
            )
        )
        return state

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def remove(self, number: int) -> None:
        self._cluster.remove_node(self._nodes[number])

    def close(self) -> None:
        self._cluster.shutdown()

    def forget(self) -> None:
        self._ray_folder.cleanup()


@pytest.fixture
def ray_nodes(tmp_path: Path) -> Iterator[RayNodes]:
    cluster = RayNodes(tmp_path)
    try:
        yield cluster
    finally:
        cluster.close()
        for process in of_ray() + daemons(tmp_path):  # of a test that failed
            process.kill()
        cluster.forget()


def of_ray() -> list[psutil.Process]:
    """What the cluster runs; all of it we have started."""
    return [p for p in psutil.Process().children(recursive=True) if _name(p).startswith(OF_RAY)]


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def daemons(folder: Path) -> list[psutil.Process]:
    """All daemons with a state folder below `folder`, and their workers."""
    found = [p for p in psutil.process_iter() if str(folder) in " ".join(_words(p))]
    return [*found, *(child for p in found for child in p.children(recursive=True))]


def _words(process: psutil.Process) -> list[str]:
    try:
        words = process.cmdline()
    except psutil.Error:
        return []
    return words if "up" in words and "peerlm" in words else []


def keeper_of(state: Path) -> psutil.Process | None:
    """The actor's process on the Ray node with that state folder."""
    for process in psutil.process_iter():
        try:
            is_keeper = process.name().startswith("ray::RayKeeper")
            if is_keeper and process.environ().get("PEERLM_STATE") == str(state):
                return process
        except psutil.Error:
            continue
    return None


def status(state: Path) -> dict[str, Any]:
    """What `peerlm status --json` says; empty while no daemon answers."""
    done = peerlm("status", "--json", "--state", state)
    return dict(json.loads(done.out)) if done.code == 0 else {}


def pid(state: Path) -> int:
    return int(status(state)["daemon"]["pid"])


def is_mixing_with(state: Path, other: str) -> bool:
    """It trains, mixes, and has mixed with that other."""
    said = status(state)
    partner = next((m for m in said.get("members", ()) if m["id"] == other), None)
    return bool(said and mixes(said) and partner and partner["mixed_s_ago"] is not None)


def wait_mixing(*states: Path) -> None:
    ids = {
        state: str(wait_for(lambda s=state: status(s), "it answers")["node_id"]) for state in states
    }
    for state in states:
        for other in states:
            if other != state:
                wait_for(
                    lambda s=state, o=ids[other]: is_mixing_with(s, o), f"{state.name} mixes", 120
                )


def goes_on(state: Path) -> Callable[[], bool]:
    """A condition: since now it has trained and exchanged more."""
    then = status(state)

    def holds() -> bool:
        now = status(state)
        return bool(
            now
            and now["daemon"]["pid"] == then["daemon"]["pid"]
            and now["tokens"] > then["tokens"]
            and now["exchanges"]["ok"] >= then["exchanges"]["ok"] + 5
        )

    return holds


@pytest.mark.timeout(600)
def test_training_goes_on_whoever_dies_even_ray(ray_nodes: RayNodes, tmp_path: Path) -> None:
    first, second = ray_nodes.add(), ray_nodes.add()
    init(first, **{"network.host": "0.0.0.0"})
    ray = ("--address", ray_nodes.address)
    assert_refused(peerlm("ray", "status", *ray), 3, "no peerlm nodes")
    assert_refused(peerlm("ray", "up", "--nodes", 3, *ray), 2, "the Ray cluster has 2")

    succeed("ray", "up", "--nodes", 2, *SETTINGS, *ray, timeout_s=UP_S)
    wait_mixing(first, second)
    rows = json.loads(succeed("ray", "status", "--json", *ray))
    assert [row["machine"] for row in rows] == ["127.0.0.2", "127.0.0.3"]
    assert [row["folder"] for row in rows] == [str(first), str(second)]
    assert [row["node_id"] for row in rows] == [status(s)["node_id"] for s in (first, second)]
    assert len({row["ray_node"] for row in rows}) == 2
    assert_refused(peerlm("ray", "up", "--nodes", 2, *ray), 3, "has peerlm nodes already")

    a_killed_daemon_is_back(first, second)
    a_killed_keeper_leaves_its_daemon_and_finds_it_again(second, ray)
    ray_goes_and_they_train_on(ray_nodes, first, second)

    for state in (first, second):
        succeed("leave", "--state", state)
    wait_for(lambda: daemons(tmp_path) == [], "nothing is left")


def a_killed_daemon_is_back(first: Path, second: Path) -> None:
    killed = pid(second)
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: status(second) and pid(second) != killed, "Ray's keeper starts it again")
    wait_mixing(first, second)


def a_killed_keeper_leaves_its_daemon_and_finds_it_again(state: Path, ray: tuple[str, ...]) -> None:
    keeper, daemon = keeper_of(state), pid(state)
    assert keeper is not None
    keeper.kill()
    wait_for(goes_on(state), "its daemon goes on")

    def is_known() -> bool:
        rows = json.loads(succeed("ray", "status", "--json", *ray))
        return bool(rows[1].get("pid") == daemon and rows[1]["starts"] == 0)

    wait_for(is_known, "Ray has a keeper there again, which found the daemon running")
    assert keeper_of(state) != keeper


def ray_goes_and_they_train_on(ray_nodes: RayNodes, *states: Path) -> None:
    ray_nodes.close()
    wait_for(lambda: of_ray() == [], "Ray is gone", GONE_S)
    wait_for(lambda: all(keeper_of(state) is None for state in states), "so are its actors", GONE_S)
    for condition in [goes_on(state) for state in states]:
        wait_for(condition, "it trains and mixes without Ray")


@pytest.mark.timeout(600)
def test_a_spare_machine_takes_the_place_of_one_that_died(
    ray_nodes: RayNodes, tmp_path: Path
) -> None:
    first, second = ray_nodes.add(), ray_nodes.add()
    init(first, **{"network.host": "0.0.0.0"})
    ray = ("--address", ray_nodes.address)
    succeed("ray", "up", "--nodes", 2, *SETTINGS, *ray, timeout_s=UP_S)
    wait_mixing(first, second)

    daemon = pid(second)
    ray_nodes.remove(1)
    os.kill(daemon, signal.SIGKILL)
    rows = json.loads(succeed("ray", "status", "--json", *ray))
    assert "state" in rows[0]
    assert rows[1]["trouble"] == "Ray has no machine for it"

    third = ray_nodes.add()
    wait_mixing(first, third)
    rows = json.loads(succeed("ray", "status", "--json", *ray))
    assert rows[1]["machine"] == "127.0.0.4"
    said = succeed("ray", "down", *ray, timeout_s=UP_S)
    assert said == "2 nodes have left the swarm\n"
    wait_for(lambda: daemons(tmp_path) == [], "nothing is left")
    assert_refused(peerlm("ray", "down", *ray), 3, "no peerlm nodes")
