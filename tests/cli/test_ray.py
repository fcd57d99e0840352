"""`peerlm ray` with a Ray that is only played: what it says when something is wrong. tests/rig/test_ray.py has a real one."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cli_scene import Cli, assert_one_line

from peerlm.cli.invite import DEFAULT_ROLES
from peerlm.cli.signer import find_signer
from peerlm.identity.invite import make_invite
from peerlm.store.layout import Layout
from peerlm.types import WallTime

HERE, THERE = "node:10.0.0.1", "node:10.0.0.2"
UP = {"folder": "/n", "trouble": "", "starts": 1, "failures": 0, "machine": "10.0.0.1"} | {
    "ray_node": "aa" * 16,
    "node_id": "bb" * 16,
    "state": "training",
    "participating": True,
    "tokens": 1234,
    "address": "tcp://10.0.0.1:7700",
}
FAILED = {"folder": "/n", "starts": 0, "failures": 2, "machine": "10.0.0.2"} | {
    "ray_node": "cc" * 16,
    "trouble": "port 7700 on 0.0.0.0 is in use",
}


class FakeRay:
    """Two nodes. `says`: what the keeper with that number answers to `look`; None: Ray runs it nowhere."""

    def __init__(self) -> None:
        self.nodes = [
            {"Alive": True, "NodeID": "here", "Resources": {HERE: 1.0, "CPU": 2.0}},
            {"Alive": True, "NodeID": "there", "Resources": {THERE: 1.0, "CPU": 2.0}},
            {"Alive": False, "NodeID": "gone", "Resources": {}},
        ]
        self.keepers: dict[str, tuple[Any, ...]] = {}
        self.says: dict[int, dict[str, Any] | None] = {0: UP, 1: UP}
        self.has_room = True
        self.left: list[str] = []
        self.wrong: Exception | None = None

    # what the launcher takes from `ray` and its modules

    def init(self, **_: Any) -> None:
        if self.wrong is not None:
            raise self.wrong

    def shutdown(self) -> None:
        pass

    def get_runtime_context(self) -> Any:
        return _Thing(get_node_id=lambda: "here")

    def remote(self, kind: type) -> Any:
        def options(name: str, **_: Any) -> Any:
            return _Thing(remote=lambda *args: self.keepers.update({name: args}))

        return _Thing(options=options)

    def get_actor(self, name: str) -> Any:
        number = int(name.rpartition("-")[2])

        def leave() -> dict[str, Any]:
            self.left.append(name)
            return {}

        return _Thing(
            look=_Thing(remote=lambda: _Answer(lambda: self.says[number])),
            invite=_Thing(remote=lambda until: _Answer(lambda: {"invite": f"until {until}"})),
            leave=_Thing(remote=lambda: _Answer(leave)),
        )

    def wait(
        self, refs: list[Any], num_returns: int, timeout: float
    ) -> tuple[list[Any], list[Any]]:
        done = [ref for ref in refs if ref() is not None]
        return done, [ref for ref in refs if ref not in done]

    def get(self, ref: Any) -> Any:
        return ref()

    def kill(self, actor: Any, no_restart: bool) -> None:
        self.keepers.clear()

    def placement_group(self, bundles: Any, **_: Any) -> Any:
        return _Thing(wait=lambda timeout_seconds: self.has_room)


class _Thing:
    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


class _Answer:
    def __init__(self, answer: Callable[[], Any]) -> None:
        self._answer, self._known = answer, False

    def __call__(self) -> Any:
        if not self._known:
            self._value, self._known = self._answer(), True
        return self._value


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray = FakeRay()

    def module(name: str, **parts: Any) -> None:
        made = ModuleType(name)
        made.__dict__.update(parts, __spec__=_Thing(name=name), __path__=[])
        monkeypatch.setitem(sys.modules, name, made)

    names = (
        "init",
        "shutdown",
        "get_runtime_context",
        "remote",
        "get_actor",
        "wait",
        "get",
        "kill",
    )
    parts = {name: getattr(ray, name) for name in names}
    module("ray", nodes=lambda: ray.nodes, **parts)
    module("ray.exceptions", RayError=type("RayError", (Exception,), {}))
    module(
        "ray.util", get_node_ip_address=lambda: "10.0.0.1", list_named_actors=lambda: [*ray.keepers]
    )
    module(
        "ray.util.placement_group",
        placement_group=ray.placement_group,
        get_placement_group=lambda name: None,
        remove_placement_group=lambda group: None,
    )
    module("ray.util.scheduling_strategies", PlacementGroupSchedulingStrategy=_Thing)
    monkeypatch.delitem(sys.modules, "peerlm.launch.on_ray", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return ray


@pytest.fixture(autouse=True)
def _forget_the_launcher() -> Any:
    yield
    sys.modules.pop("peerlm.launch.on_ray", None)
    sys.modules["peerlm.launch"].__dict__.pop(
        "on_ray", None
    ) if "peerlm.launch" in sys.modules else None


def invite_in(founded: Path, tmp_path: Path, enrol_s: float) -> Path:
    wall = time.time()
    signer = find_signer(Layout(founded), "invite")
    until = WallTime(wall + enrol_s), WallTime(wall + 3600)
    token = make_invite(signer, frozenset(DEFAULT_ROLES), *until, ("10.0.0.9:7700",))
    file = tmp_path / "invite"
    file.write_text(f"peerlm join tcp://10.0.0.9:7700 --token {token.to_text()}\n")
    return file


def test_up_places_the_runs_node_here_and_lets_the_others_in(fake: FakeRay, peerlm: Cli) -> None:
    outcome = peerlm(
        "ray", "up", "--nodes", 2, "--set-node", "limits.threads=1", "--enrol-until", "2h"
    )
    assert outcome.code == 0, outcome
    assert fake.keepers == {
        "keeper-0": ("", "", ("limits.threads=1",)),
        "keeper-1": ("", "until 2h", ("limits.threads=1",)),
    }
    shown = outcome.out.splitlines()
    assert shown[1].split() == [
        "0",
        "10.0.0.1",
        "aaaaaaaa",
        "bbbbbbbb",
        "training",
        "yes",
        "1.23",
        "k",
    ]


def test_up_with_an_invite_places_newcomers_alone(
    fake: FakeRay, peerlm: Cli, founded: Path, tmp_path: Path
) -> None:
    file = invite_in(founded, tmp_path, 3600)
    assert peerlm("ray", "up", "--nodes", 2, "--invite", file, "--state", "/srv/n").code == 0
    assert {(args[0], args[1]) for args in fake.keepers.values()} == {
        ("/srv/n", file.read_text().strip())
    }


def test_status_and_down(fake: FakeRay, peerlm: Cli) -> None:
    assert peerlm("ray", "up", "--nodes", 2).code == 0
    fake.says[1] = None
    shown = peerlm("ray", "status").out.splitlines()
    assert shown[2].split() == ["1", "–", "–", "–", "missing", "–", "–"]
    assert shown[3] == "1: Ray has no machine for it"
    outcome = peerlm("ray", "down")
    assert outcome.out == "nodes that have left the swarm: 1 of 2\n"
    assert_one_line(outcome, 1, "not ended: 1: Ray has no machine for it")
    assert fake.left == ["keeper-0"]
    for command in ("status", "down"):
        assert_one_line(peerlm("ray", command), 3, "no peerlm nodes on this Ray cluster")


def test_without_ray_the_command_says_how_to_get_it(
    peerlm: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_one_line(peerlm("ray", "up", "--nodes", 2), 2, "-m pip install 'ray>=2.40'")


def test_no_cluster_at_the_address(fake: FakeRay, peerlm: Cli) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        assert_one_line(
            peerlm("ray", "status", "--address", address), 5, f"no Ray cluster at {address}"
        )
    fake.wrong = ConnectionError("Could not find any\nrunning instance")
    assert_one_line(
        peerlm("ray", "up", "--nodes", 2), 5, "no Ray cluster found: Could not find any"
    )


def test_more_nodes_than_there_are_and_no_room(fake: FakeRay, peerlm: Cli) -> None:
    assert_one_line(peerlm("ray", "up", "--nodes", 3), 2, "--nodes 3: the Ray cluster has 2")
    fake.has_room = False
    assert_one_line(peerlm("ray", "up", "--nodes", 2), 1, "no room for 2 nodes", "with 1 CPU each")
    assert fake.keepers == {}


def test_a_second_up_is_refused(fake: FakeRay, peerlm: Cli) -> None:
    assert peerlm("ray", "up", "--nodes", 2).code == 0
    assert_one_line(peerlm("ray", "up", "--nodes", 2), 3, "`peerlm ray down` ends them")


def test_a_node_that_does_not_start(fake: FakeRay, peerlm: Cli) -> None:
    fake.says[1] = FAILED
    outcome = peerlm("ray", "up", "--nodes", 2)
    assert_one_line(
        outcome, 1, "1 of 2 nodes did not start: 10.0.0.2: port 7700 on 0.0.0.0 is in use"
    )
    assert len(fake.keepers) == 2
    fake.keepers.clear()
    fake.says[0] = FAILED
    assert_one_line(peerlm("ray", "up", "--nodes", 2), 1, "port 7700 on 0.0.0.0 is in use")
    assert fake.keepers == {}


def test_bad_invites_and_settings(
    fake: FakeRay, peerlm: Cli, founded: Path, tmp_path: Path
) -> None:
    up = ("ray", "up", "--nodes", 1)
    expired = invite_in(founded, tmp_path, -60)
    assert_one_line(peerlm(*up, "--invite", expired), 4, "let machines in until")
    expired.write_text("hello\n")
    assert_one_line(peerlm(*up, "--invite", expired), 4, "holds no token")
    expired.write_bytes(b"\xff")
    assert_one_line(peerlm(*up, "--invite", expired), 2, "not an invite")
    assert_one_line(peerlm(*up, "--invite", tmp_path / "none"), 2, "No such file")
    assert_one_line(peerlm(*up, "--set-node", "limits.thread=1"), 2, "limits.thread")
    assert_one_line(peerlm(*up, "--enrol-until", "soon"), 2, "write 90m, 12h")
    assert fake.keepers == {}


def test_what_ray_keeps_free(fake: FakeRay) -> None:
    from peerlm.launch.on_ray import shares

    head = {HERE: 1.0, "node:__internal_head__": 1.0}
    eight, four, none = {"GPU": 8.0, "CPU": 4.0}, {"GPU": 4.0, "CPU": 4.0}, {"CPU": 4.0}
    assert shares([], head, 1, None) == [{HERE: 0.001}]
    assert shares([four, eight], head, 3, None) == [{HERE: 0.001}, *[{"CPU": 1.0, "GPU": 4.0}] * 2]
    assert shares([four, eight], head | {"GPU": 2.0}, 2, None) == [
        {HERE: 0.001, "GPU": 2.0},
        {"CPU": 1.0, "GPU": 8.0},
    ]
    assert shares([none, eight], None, 2, None) == [{"CPU": 1.0}] * 2
    assert shares([eight, eight], None, 2, 3) == [{"CPU": 1.0, "GPU": 3.0}] * 2
