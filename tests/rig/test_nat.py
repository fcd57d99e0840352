"""Nodes that not everybody can dial: real daemons on machines of their own, behind firewalls and routers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from walls import FORWARDED, OPEN, PORT, TRANSLATED, WALLED, Walls, walls

from peerlm.bench.founding import options
from peerlm.bench.nodes import Swarm, running
from peerlm.cli.demo_nodes import DemoNode

PLAN = {
    "run.token_budget": 50_000_000,
    "model.dim": 32,
    "model.heads": 2,
    "model.kv_heads": 1,
    "model.hidden": 64,
    "mix.inner_steps": 8,
    "mix.bandwidth_share": 0.0,
}
LOCAL = {
    "network.host": "",
    "network.port": PORT,
    "page.enabled": False,
    "train.pace_tokens_s": 1500,
    "control.log_level": "debug",
}
DEAD_S = 20.0
"""A death is known after seven to eight seconds; these machines are slow."""


@contextmanager
def founded(folder: Path, *kinds: str) -> Iterator[tuple[Swarm, Walls]]:
    """The first node is up, the others are still to join."""
    with walls(*kinds) as place:
        swarm = Swarm(folder, len(kinds), PLAN, LOCAL, place=place)
        with running(swarm):
            swarm.found()
            with place.at(1):
                swarm.nodes[0].start("up")
            swarm.wait("the first node is up", lambda: swarm.nodes[0].status is not None)
            yield swarm, place


def status(node: DemoNode) -> dict[str, Any]:
    assert node.status is not None, f"{node.name} does not answer"
    return node.status


def seen(swarm: Swarm, viewer: int, number: int) -> dict[str, Any]:
    """A node as another one shows it; nothing of it while either does not answer."""
    node, other = swarm.nodes[viewer - 1].status, swarm.nodes[number - 1].status
    members = node["members"] if node and other else []
    return next((m for m in members if other and m["id"] == other["node_id"]), {})


def all_mixing(swarm: Swarm, *numbers: int) -> bool:
    """These see each other alive and mixing."""
    return all(
        seen(swarm, a, b).get("state") == "alive" and seen(swarm, a, b)["participating"]
        for a in numbers
        for b in numbers
    )


def are_guarded(swarm: Swarm, *numbers: int) -> bool:
    return all(n.status and n.status["dialled"]["guarded"] for n in _of(swarm, numbers))


def exchanges(swarm: Swarm, number: int, how: str = "ok") -> int:
    return int(status(swarm.nodes[number - 1])["exchanges"][how])


def told(node: DemoNode, *words: str) -> str:
    """What a command says of it, whatever its exit code."""
    command = [sys.executable, "-m", "peerlm", *words, "--state", str(node.layout.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
    assert "Traceback" not in done.stderr
    return done.stdout


def logged(swarm: Swarm, *numbers: int) -> Counter[str]:
    lines = [line for n in _of(swarm, numbers) for line in n.layout.log.read_text().splitlines()]
    return Counter(json.loads(line)["event"] for line in lines)


def _of(swarm: Swarm, numbers: tuple[int, ...]) -> list[DemoNode]:
    return [swarm.nodes[number - 1] for number in numbers]


@pytest.mark.timeout(500)
def test_two_nodes_behind_firewalls_take_part_by_dialling_out(tmp_path: Path) -> None:
    with founded(tmp_path, OPEN, OPEN, WALLED, WALLED) as (swarm, _):
        for node in swarm.nodes[1:]:
            swarm.join(node)
        swarm.wait("all fetch, train and mix", lambda: all_mixing(swarm, 1, 2, 3, 4))
        swarm.wait("nodes 3 and 4 know", lambda: are_guarded(swarm, 3, 4))
        swarm.wait(
            "so do the others",
            lambda: all(seen(swarm, a, b).get("address") == "" for a in (1, 2) for b in (3, 4)),
        )
        _is_well_known_in_words(swarm.nodes[2])
        before = [exchanges(swarm, n) for n in (1, 2, 3, 4)]
        swarm.let_pass(5)  # what was under way when they learnt it ends
        lost = [exchanges(swarm, n, "timed_out") for n in (1, 2, 3, 4)]
        swarm.let_pass(20)
        after = [exchanges(swarm, n) for n in (1, 2, 3, 4)]
        assert all(b > a + 5 for a, b in zip(before, after, strict=True)), (before, after)
        assert [exchanges(swarm, n, "timed_out") for n in (1, 2, 3, 4)] == lost
        for number, other in ((3, 4), (4, 3)):
            own = status(swarm.nodes[number - 1])
            assert own["bytes_sent"] > 0
            assert own["bytes_received"] > 0
            assert all(seen(swarm, number, n)["mixed_s_ago"] is not None for n in (1, 2))
            picture = seen(swarm, number, other)
            assert picture["mixed_s_ago"] is None
            assert not picture["linked"]
        assert all_mixing(swarm, 1, 2, 3, 4)
        counts = logged(swarm, 1, 2, 3, 4)
        assert not counts["member_suspected"] + counts["member_dead"] + counts["refuted"], counts

        ids = [str(status(node)["node_id"]) for node in swarm.nodes]
        swarm.nodes[3].kill()
        dead_s = _dead_at_all(swarm, ids[3], (1, 2, 3))
        swarm.start_again(swarm.nodes[3])
        swarm.wait("node 4 is back", lambda: all_mixing(swarm, 1, 2, 3, 4))
        swarm.wait("and knows again", lambda: are_guarded(swarm, 4))

        swarm.nodes[0].kill()  # by which all have joined
        _dead_at_all(swarm, ids[0], (2, 3, 4))
        began = [exchanges(swarm, n) for n in (3, 4)]
        swarm.wait(
            "both go on with node 2",
            lambda: all(exchanges(swarm, n) > b + 5 for n, b in zip((3, 4), began, strict=True)),
        )
        assert not logged(swarm, 2, 3, 4)["refuted"]
        assert swarm.tracebacks() == 0
        print(
            f"exchanges {before} → {after}, lost {lost}; node 4 was dead everywhere in {dead_s:.1f} s"
        )


def _dead_at_all(swarm: Swarm, gone: str, viewers: tuple[int, ...]) -> float:
    """How long until all these hold the node of this id dead."""

    def is_dead() -> bool:
        members = [n.status["members"] if n.status else [] for n in _of(swarm, viewers)]
        return all(any(m["id"] == gone and m["state"] == "dead" for m in seen) for seen in members)

    return swarm.wait("it is found dead", is_dead, DEAD_S)


@pytest.mark.timeout(400)
def test_behind_a_router_and_behind_one_that_passes_ports_on(tmp_path: Path) -> None:
    with founded(tmp_path, OPEN, FORWARDED, TRANSLATED) as (swarm, place):
        address, token = swarm.invitation()
        common = ("--token", token, *options("--set-node", swarm.local))
        with place.at(2):
            swarm.nodes[1].start("join", address, "--advertise", "10.79.0.2", *common)
        swarm.wait("node 2 trains", lambda: all_mixing(swarm, 1, 2))
        with place.at(3):  # through the router of node 2
            swarm.nodes[2].start("join", f"10.79.0.2:{PORT}", *common)
        swarm.wait("all fetch, train and mix", lambda: all_mixing(swarm, 1, 2, 3))
        swarm.wait("node 3 knows", lambda: are_guarded(swarm, 3))
        swarm.wait("so do the others", lambda: seen(swarm, 1, 3).get("address") == "")
        assert status(swarm.nodes[1])["address"] == f"tcp://10.79.0.2:{PORT}"
        assert not are_guarded(swarm, 1)
        assert not are_guarded(swarm, 2)
        assert status(swarm.nodes[1])["dialled"]["by"] >= 1
        lost = [exchanges(swarm, n, "timed_out") for n in (1, 2, 3)]
        before = [exchanges(swarm, n) for n in (1, 2, 3)]
        swarm.let_pass(15)
        assert all(exchanges(swarm, n) > b + 5 for n, b in zip((1, 2, 3), before, strict=True))
        assert [exchanges(swarm, n, "timed_out") for n in (1, 2, 3)] == lost, [
            n.status["exchange_reasons"] for n in swarm.nodes
        ]
        assert all(seen(swarm, 3, n)["mixed_s_ago"] is not None for n in (1, 2))
        counts = logged(swarm, 1, 2, 3)
        assert not counts["member_suspected"] + counts["member_dead"] + counts["refuted"], counts
        assert swarm.tracebacks() == 0


def _is_well_known_in_words(node: DemoNode) -> None:
    line = (
        "nobody can dial this node (no answer from 10.79.0.3 port 7700): it mixes by dialling out"
    )
    why = told(node, "why").splitlines()
    assert why[0].startswith("mixing: ")
    assert why[1].startswith(line)
    shown = told(node, "status").splitlines()
    assert "address   none: nobody can dial it, it dials out" in shown
    assert any(line in row for row in shown)
    found = [row for row in told(node, "doctor").splitlines() if row.split()[1] == "dialled"]
    assert found[0].startswith("?    dialled      by nobody: no answer from 10.79.0.3 port 7700")
