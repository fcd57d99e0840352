"""The nodes of compose.yaml as a world that trouble is made for: a scenario of `peerlm chaos`, played with containers.

Kills, freezes, cuts and dead workers are asked of Docker's engine; the other kinds need lines and disks that
containers do not have. Nodes are asked how they are through their own control sockets, which root reaches through
/proc; asking by `docker exec` would cost more than training.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from peerlm.bench.nodes import Swarm, processes_of
from peerlm.chaos.scenario import Act, Scenario
from peerlm.daemon.control import ask
from peerlm.errors import ConfigError, PeerlmError
from peerlm.store.layout import Layout

KINDS = frozenset({"kill", "everybody", "stop", "cut", "worker", "crash"})
"""What can be done to containers."""

PROJECT = "peerlm-rig"
LABELS = json.dumps({"label": ["peerlm.node=true", f"com.docker.compose.project={PROJECT}"]})
ANSWER_S = 2.0
ENGINE_S = 60.0


class Engine(http.client.HTTPConnection):
    """The few calls that are needed, of the engine's HTTP interface on a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("docker")
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(ENGINE_S)
        self.sock.connect(self.path)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Raises `PeerlmError`."""
        text = json.dumps(body) if body is not None else None
        try:
            self.request(method, path, text, {"Content-Type": "application/json"})
            answer = self.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise PeerlmError(f"the engine does not answer: {error}") from None
        finally:
            self.close()
        if answer.status >= 400 and answer.status != 409:  # 409: it is so already
            raise PeerlmError(f"{method} {path}: {answer.status} {said[:200]!r}")
        return json.loads(said) if said.startswith((b"{", b"[")) else None

    def containers(self) -> list[dict[str, Any]]:
        """Of nodes, the first one first."""
        found: list[dict[str, Any]] = self.call(
            "GET", f"/containers/json?all=1&filters={quote(LABELS)}"
        )
        return sorted(found, key=lambda container: container["Names"][0])


class ContainerNode:
    """One of them. What there is of it for the course of a scenario is what a `DemoNode` has."""

    def __init__(self, number: int, engine: Engine, container: dict[str, Any]) -> None:
        self.number = number
        self.name = f"node {number}"
        self.id = str(container["Id"])
        self.status: dict[str, Any] | None = None
        self.pid: int | None = None
        self._engine = engine

    @property
    def is_up(self) -> bool:
        return self.pid is not None

    @property
    def state(self) -> str:
        if self.pid is None:
            return "killed"
        return "starting" if self.status is None else str(self.status["state"])

    def look(self) -> None:
        state = self._engine.call("GET", f"/containers/{self.id}/json")["State"]
        self.pid = state["Pid"] or None
        self.status = None
        if self.pid is not None and not state["Paused"]:
            layout = Layout(Path(f"/proc/{self.pid}/root/var/lib/peerlm"))
            with contextlib.suppress(PeerlmError, OSError):
                self.status = ask(layout, "status", timeout_s=ANSWER_S)

    def check_up(self) -> None:
        """A container that has ended is started again by its engine, or by us."""


class ContainerSwarm(Swarm):
    """`bring_up` starts the containers."""

    def __init__(self, size: int, engine: Engine, bring_up: Callable[[], None]) -> None:
        super().__init__(Path(), 0, {})
        self._size = size
        self._engine = engine
        self._bring_up = bring_up

    def start(self) -> None:
        self._bring_up()
        containers = self._engine.containers()
        self.nodes = [ContainerNode(n, self._engine, c) for n, c in enumerate(containers, 1)]  # type: ignore[misc]
        if len(self.nodes) != self._size:
            raise PeerlmError(f"{len(self.nodes)} containers are there, {self._size} wanted")

    def tracebacks(self) -> int:
        texts = []
        for container in self._engine.containers():
            done = subprocess.run(
                ["docker", "-H", f"unix://{self._engine.path}", "logs", container["Id"]],
                capture_output=True,
                check=False,
            )
            texts.append(done.stdout + done.stderr)
        return sum(text.count(b"Traceback") + text.count(b"internal error") for text in texts)


class Containers:
    """The world: what befalls the swarm, and what is undone."""

    def __init__(self, swarm: ContainerSwarm, engine: Engine) -> None:
        self.swarm = swarm
        self.down: set[int] = set()
        self.stopped: set[int] = set()
        self._engine = engine
        self._cut: dict[int, list[tuple[str, dict[str, Any]]]] = {}
        self._pinned: set[int] = set()
        """They have asked for the address that they had; no other may start before them and take it."""

    def node(self, number: int) -> Any:
        return self.swarm.nodes[number - 1]

    def is_held_up(self, number: int) -> bool:
        return number in self.stopped or number in self._cut

    def begin(self, act: Act) -> str:
        numbers = [n for n in act.nodes if n not in self.down]
        match act.kind:
            case "kill" | "everybody":
                self._go_on([n for n in numbers if n in self.stopped])
                self._each(numbers, "kill")
                self.down |= set(numbers)
                return _told("killed", numbers)
            case "stop":
                numbers = [n for n in numbers if n not in self.stopped]
                self._each(numbers, "pause")
                self.stopped |= set(numbers)
                return _told("stopped", numbers)
            case "cut":
                numbers = [n for n in numbers if n not in self._cut and self._take_off(n)]
                return _told("off the network:", numbers)
            case _:
                return self._end_workers(act, [n for n in numbers if n not in self.stopped])

    def end(self, act: Act) -> str:
        match act.kind:
            case "kill" | "everybody":
                return self._start([n for n in act.nodes if n in self.down])
            case "stop":
                return self._go_on([n for n in act.nodes if n in self.stopped])
            case "cut":
                return self._put_back([n for n in act.nodes if n in self._cut])
        return ""

    def mend_all(self) -> None:
        self._go_on(sorted(self.stopped))
        self._put_back(sorted(self._cut))
        self._start(sorted(self.down))

    def _each(self, numbers: Sequence[int], what: str) -> None:
        for number in numbers:
            self._engine.call("POST", f"/containers/{self.node(number).id}/{what}")

    def _start(self, numbers: Sequence[int]) -> str:
        self._each(sorted(numbers, key=lambda n: (n not in self._pinned, n)), "start")
        self.down -= set(numbers)
        return _told("started", numbers)

    def _go_on(self, numbers: Sequence[int]) -> str:
        self._each(numbers, "unpause")
        self.stopped -= set(numbers)
        return _told("going on:", numbers)

    def _take_off(self, number: int) -> bool:
        """Off its networks, remembering its addresses there."""
        settings = self._engine.call("GET", f"/containers/{self.node(number).id}/json")
        networks = settings["NetworkSettings"]["Networks"]
        for name in networks:
            body = {"Container": self.node(number).id, "Force": True}
            self._engine.call("POST", f"/networks/{name}/disconnect", body)
        self._cut[number] = sorted(networks.items())
        return bool(networks)

    def _put_back(self, numbers: Sequence[int]) -> str:
        for number in numbers:
            self._pinned.add(number)
            for name, network in self._cut.pop(number):
                address = {"IPAMConfig": {"IPv4Address": network["IPAddress"]}}
                body = {"Container": self.node(number).id, "EndpointConfig": address}
                self._engine.call("POST", f"/networks/{name}/connect", body)
        return _told("on the network again:", numbers)

    def _end_workers(self, act: Act, numbers: Sequence[int]) -> str:
        number = signal.SIGKILL if act.kind == "worker" else signal.SIGSEGV
        ended = []
        for victim in numbers:
            workers = [
                p for p in processes_of(self.node(victim))[1:] if "peerlm.train.worker" in _line(p)
            ]
            for process in workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            ended += [victim] * bool(workers)
        return _told(f"{number.name} to the worker of", ended)


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _told(what: str, numbers: Sequence[int]) -> str:
    return f"{what} {', '.join(f'node {n}' for n in numbers)}" if numbers else ""


def check(scenario: Scenario, where: str) -> None:
    """Raises `ConfigError` for what containers cannot play."""
    if scenario.finish:
        raise ConfigError(f"{where}: finish: models stay in their containers; use peerlm chaos run")
    if beyond := sorted({fault.kind for fault in scenario.faults} - KINDS):
        raise ConfigError(
            f"{where}: {beyond[0]}: containers can play {', '.join(sorted(KINDS))}; use peerlm chaos run"
        )
