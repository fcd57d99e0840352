"""Real nodes for scenes from end to end: the real command, real processes, real sockets on loopback.

A `Swarm` founds a run in a folder of its own, starts nodes and waits for conditions with deadlines;
nothing sleeps for a fixed time. `close` kills whatever still lives, by process group, and then holds
every log to one promise: no traceback, whatever the scene did to the nodes.

The model is tiny and the training paced, so that a handful of nodes share two cores.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray

from peerlm.daemon.control import ask
from peerlm.errors import PeerlmError
from peerlm.store import snapshot
from peerlm.store.layout import Layout

T = TypeVar("T")

PEERLM = (sys.executable, "-m", "peerlm.__main__")

PLAN = {
    "swarm.profile": "test",
    "run.token_budget": "1_000_000_000",
    "model.dim": "32",
    "model.heads": "2",
    "model.kv_heads": "1",
    "model.hidden": "64",
    "model.blocks": "attention,feedforward",
    "model.context": "32",
    "train.batch": "4",
    "train.val_every_s": "2",
    "train.val_batches": "2",
    "mix.inner_steps": "4",
}

NODE = {
    "network.host": "127.0.0.1",
    "network.port": "0",
    "limits.threads": "1",
    "limits.snapshot_every_s": "2",
    "observe.sample_every_s": "0",
    "train.device": "cpu",
    "train.pace_tokens_s": "2500",
}

POLL_S = 0.1
SOON_S = 60.0
"""Generous: a worker takes seconds to start, and the machine may be busy with other things."""

COMMAND_S = 60.0
LOG_SHOWN = 3000


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


def options(flag: str, values: dict[str, str]) -> list[str]:
    return [part for item in values.items() for part in (flag, "=".join(item))]


def environment(**changes: str) -> dict[str, str]:
    """Ours, without anything that would tell a node where it is."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PEERLM")}
    kept.pop("STATE_DIRECTORY", None)
    return kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"} | changes


def peerlm(
    *args: object, before: Sequence[str] = (), timeout_s: float = COMMAND_S, **changes: Any
) -> Outcome:
    """Run a command to its end. `before`: a command to run it by."""
    done = subprocess.run(
        [*before, *PEERLM, *map(str, args)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(),
        check=False,
        **changes,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def succeed(*args: object, **changes: Any) -> str:
    """Run a command that has to go well; what it prints."""
    done = peerlm(*args, **changes)
    assert done.code == 0, done
    return done.out


def at_once(*calls: Callable[[], T]) -> list[T]:
    """What they return, in their order; they run beside each other."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [running.result() for running in [threads.submit(call) for call in calls]]


def assert_refused(done: Outcome, code: int, *words: str) -> None:
    """The command ended with this code, and its last word is one line with these words."""
    assert done.code == code, done
    assert "Traceback" not in done.err
    assert "internal error" not in done.err
    lines = [line for line in done.err.splitlines() if line.startswith("peerlm: ")]
    assert len(lines) == 1, done.err
    assert done.err.rstrip().endswith(lines[0]), done.err
    for word in words:
        assert word in lines[0], done.err


def init(folder: Path, *args: object, **node: str) -> None:
    """Found a run of the tiny model in `folder`."""
    settings = options("--set", PLAN) + options("--set-node", NODE | node)
    succeed("init", "--state", folder, *settings, *args)


def wait_for(
    condition: Callable[[], T], what: str, deadline_s: float = SOON_S, also: str = ""
) -> T:
    """The first true value of `condition`. Fails, saying what was waited for, at the deadline."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {deadline_s:g} s in vain: {what}\n{also}"
        time.sleep(POLL_S)
    return value


class Node:
    """One node: its folder, and its daemon while there is one. `log`: what it wrote to a terminal.
    `program`: what is run for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.layout = Layout(folder)
        self.log = folder.with_name(folder.name + ".out")
        self.process: subprocess.Popen[bytes] | None = None
        self.past: list[subprocess.Popen[bytes]] = []
        self.program: Sequence[str] = PEERLM

    # ------------------------------------------------------------------------------ its process

    def start(
        self, *command: object, variables: dict[str, str] | None = None, **changes: Any
    ) -> None:
        """Run a command that becomes the daemon. `variables`: of its environment, besides ours."""
        assert not self.is_running, f"{self.folder} runs already"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.program, *map(str, command), "--state", str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(**(variables or {})),
                start_new_session=True,
                **changes,
            )
        self.past.append(self.process)

    def up(self, *args: object) -> None:
        self.start("up", *args)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def workers(self) -> list[psutil.Process]:
        """Its worker, if it has one."""
        assert self.process is not None
        try:
            children = psutil.Process(self.process.pid).children()
            return [c for c in children if "peerlm.train.worker" in c.cmdline()]
        except psutil.NoSuchProcess:
            return []

    def signal(self, number: signal.Signals) -> None:
        """To the daemon alone."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait_end(self, deadline_s: float = SOON_S) -> int:
        assert self.process is not None
        return self.process.wait(deadline_s)

    def kill(self) -> None:
        """SIGKILL the daemon and wait until it is gone; its worker has to notice by itself."""
        self.signal(signal.SIGKILL)
        self.wait_end()

    def end_all(self) -> None:
        """Nothing of this node lives on."""
        for process in self.past:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait(SOON_S)

    # --------------------------------------------------------------------------- what it says

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        return ask(self.layout, command, **arguments)

    def status(self) -> dict[str, Any]:
        """Its status; empty while no daemon answers."""
        try:
            return ask(self.layout, "status")
        except (PeerlmError, OSError):
            return {}

    def wait(
        self, condition: Callable[[dict[str, Any]], Any], what: str, deadline_s: float = SOON_S
    ) -> dict[str, Any]:
        """Its first status for which `condition` holds."""

        def holds() -> dict[str, Any] | None:
            assert self.is_running, f"the daemon has ended: {what}\n{self.said()[-LOG_SHOWN:]}"
            status = self.status()
            return status if status and condition(status) else None

        try:
            status = wait_for(holds, f"{self.folder.name}: {what}", deadline_s)
        except AssertionError as error:
            said = f"{self.status()}\n{self.said()[-LOG_SHOWN:]}"
            raise AssertionError(f"{error}\n{said}") from None
        assert status is not None
        return status

    def weights(self) -> list[NDArray[np.float32]]:
        """φ of each fragment as the daemon has it now, by way of a snapshot."""
        self.ask("snapshot", timeout_s=SOON_S)
        return self.kept_weights()

    def kept_weights(self) -> list[NDArray[np.float32]]:
        """The same of its newest snapshot."""
        found = snapshot.load(self.layout).snapshot
        assert found is not None
        values = []
        for record in found.manifest.fragments:
            values.append(np.empty(record.phi.size // 4, np.float32))
            snapshot.read_array(found.open(), record.phi, values[-1])
        return values

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    @property
    def id(self) -> str:
        return str(self.status()["node_id"])

    @property
    def address(self) -> str:
        return str(self.status()["address"])

    def member(self, peer: str) -> dict[str, Any]:
        """How this node sees another; empty if it does not know it."""
        members = self.status().get("members", [])
        return next((m for m in members if m["id"] == peer), {})

    def ports(self) -> list[int]:
        """Where its daemon listens: introduction, control, bulk and its page, in no order."""
        assert self.process is not None
        sockets = psutil.Process(self.process.pid).net_connections("tcp")
        return sorted(s.laddr.port for s in sockets if s.status == psutil.CONN_LISTEN)


def mixes(status: dict[str, Any]) -> bool:
    return bool(status["state"] == "training" and status["participating"])


def exchanged_more(node: Node, by: int = 3) -> Callable[[dict[str, Any]], bool]:
    """A condition: `by` more exchanges have gone well since now."""
    then = int(node.status()["exchanges"]["ok"])
    return lambda status: status["exchanges"]["ok"] >= then + by


class Swarm:
    """Nodes of one run under `folder`; the first is the founder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: list[Node] = []

    def node(self, name: str = "") -> Node:
        """A node that has no folder yet."""
        node = Node(self.folder / (name or f"n{len(self.nodes)}"))
        self.nodes.append(node)
        return node

    def found(self, *args: object, program: Sequence[str] = PEERLM, **node: str) -> Node:
        founder = self.node()
        founder.program = program
        init(founder.folder, *args, **node)
        founder.up()
        founder.wait(lambda s: s["state"] == "training", "the founder trains")
        return founder

    @cached_property
    def token(self) -> str:
        """A good one, which names no address; made once."""
        return self.invite("--address", "127.0.0.1:1")

    def invite(self, *args: object) -> str:
        """A token, from the founder's key; the founder need not run."""
        line = succeed("invite", "--state", self.nodes[0].folder, *args)
        return line.split("--token ")[1].strip()

    def join(
        self,
        through: Node | str,
        token: str = "",
        *args: object,
        program: Sequence[str] = PEERLM,
        **node: str,
    ) -> Node:
        """A newcomer enters by the address of `through`, and begins to look for state."""
        newcomer = self.node()
        newcomer.program = program
        address = through if isinstance(through, str) else through.address
        settings = options("--set-node", NODE | node)
        newcomer.start("join", address, "--token", token or self.token, *settings, *args)
        return newcomer

    def running(self) -> list[Node]:
        return [node for node in self.nodes if node.is_running]

    def wait_whole(self, deadline_s: float = SOON_S) -> None:
        """Every running node trains, mixes, and sees every other alive."""
        ids = {node.wait(bool, "it answers")["node_id"] for node in self.running()}

        def is_whole(status: dict[str, Any]) -> bool:
            alive = {m["id"] for m in status["members"] if m["state"] == "alive"}
            return ids <= alive and (len(ids) == 1 or mixes(status))

        for node in self.running():
            node.wait(is_whole, "the swarm is whole and mixes", deadline_s)

    def close(self) -> None:
        """Kill what still lives; then no log may hold a traceback."""
        for node in self.nodes:
            node.end_all()
        for node in self.nodes:
            for text in (node.said(), _read(node.layout.log)):
                assert "Traceback" not in text, f"{node.folder.name}:\n{text[-LOG_SHOWN:]}"
                assert "internal error" not in text, f"{node.folder.name}:\n{text[-LOG_SHOWN:]}"


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
