"""The demo's nodes: real `python -m peerlm` processes on loopback, each with a state folder.

A node is known only by what anybody could know of it: its process, and what its control socket says.
Whatever becomes of the demo, its processes do not outlive it: each is the leader of its own process
group, which is killed at the end, and the kernel kills it when the demo itself is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from peerlm.cli.leash import die_with_parent
from peerlm.daemon.control import ask
from peerlm.errors import PeerlmError
from peerlm.store.layout import Layout

COMMAND_S = 60.0
ANSWER_S = 2.0
STOP_S = 15.0


class DemoFailed(PeerlmError):
    """Something that the demo claims did not happen."""


def peerlm(*arguments: str) -> str:
    """Run a command to its end; returns what it printed. Raises `DemoFailed`."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "peerlm", *arguments],
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"`peerlm {arguments[0]}` did not end within {COMMAND_S:g} s") from None
    if done.returncode:
        complaint = done.stderr.strip().splitlines()[-1:] or ["no word"]
        raise DemoFailed(f"`peerlm {arguments[0]}` failed: {complaint[0]}")
    return done.stdout


class DemoNode:
    """One node: `name` for people, its folder, its process, and the last it said of itself."""

    def __init__(self, number: int, folder: Path) -> None:
        self.name = f"node {number}"
        self.number = number
        self.layout = Layout(folder / f"node-{number}")
        self.output = folder / f"node-{number}.log"
        self.program: Sequence[str] = (sys.executable, "-m", "peerlm")
        self.status: dict[str, Any] | None = None
        """The newest answer; None while it does not answer."""
        self._process: subprocess.Popen[bytes] | None = None
        self._bytes: dict[int, int] = {}

    @property
    def state(self) -> str:
        """Its own word for what it does, or what became of its process."""
        if self._process is None:
            return "not started"
        if self._process.poll() is not None:
            code = self._process.returncode
            return "killed" if code == -signal.SIGKILL else f"ended ({code})"
        return "starting" if self.status is None else str(self.status["state"])

    @property
    def bytes_sent(self) -> int:
        """Over all its lives."""
        return sum(self._bytes.values())

    @property
    def pid(self) -> int | None:
        """Of its daemon, while it runs."""
        return self._process.pid if self._process is not None and self.is_up else None

    @property
    def is_up(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *arguments: str) -> None:
        """`peerlm <arguments> --state …`, in the background."""
        command = [*self.program, *arguments, "--state", str(self.layout.root)]
        self.status = None
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def look(self) -> None:
        """Ask it how it is; a node that does not answer has no status."""
        try:
            self.status = ask(self.layout, "status", timeout_s=ANSWER_S)
            self._bytes[self.status["epoch"]] = self.status["bytes_sent"]
        except PeerlmError:
            self.status = None

    def check_up(self) -> None:
        """Raises `DemoFailed` with its last words when it has ended by itself."""
        if self._process is not None and not self.is_up:
            raise DemoFailed(f"{self.name} ended by itself ({self.state}): {self.last_words()}")

    def last_words(self) -> str:
        lines = self.output.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def kill(self) -> Sequence[psutil.Process]:
        """SIGKILL to the daemon alone; returns what had been its children."""
        assert self._process is not None, f"{self.name} does not run"
        try:
            children = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        self._process.kill()
        self._process.wait()
        self.status = None
        return children

    def ask_to_stop(self) -> None:
        if self._process is not None and self.is_up:
            self._process.terminate()

    def end(self, patience_s: float) -> None:
        """Wait for it to end by itself that long; then kill it with all it has started."""
        if self._process is None:
            return
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()


def end_all(nodes: Sequence[DemoNode], patience_s: float = STOP_S) -> None:
    """Stop every node cleanly if it can be; nothing of them runs afterwards."""
    try:
        for node in nodes:
            node.ask_to_stop()
        for node in nodes:
            node.end(patience_s)
    finally:
        for node in nodes:
            node.end(0.0)
