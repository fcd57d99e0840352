"""Keeps the daemon of one machine running, and outlives it as little as it is outlived by it.

A keeper looks at the state folder: where a daemon answers on its control socket there is nothing to do, whoever has
started it. Else it enrols, if the folder holds no node yet, and starts `peerlm up` as a process that is not its
child (detach.py). So a keeper may die at any moment and another may come: the folder, not the keeper, says what
runs. What goes wrong is told in a line, and tried again after longer and longer pauses.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from peerlm.cli.settings_text import read_node_settings
from peerlm.cli.state import default_folder, has_node, read_run
from peerlm.daemon.control import ask, is_served
from peerlm.daemon.lobby import read_invite
from peerlm.errors import PeerlmError, StateError
from peerlm.identity.invite import parse_token
from peerlm.store.layout import Layout
from peerlm.types import short

PEERLM = ("-P", "-m", "peerlm")
"""After the interpreter. The folder it runs in is somebody's, and nothing is imported from it."""

LOOK_S = 1.0
PAUSE_S_MAX = 60.0
START_S = 60.0
"""A daemon answers within this time, or was not started."""
COMMAND_S = 90.0
ANSWER_S = 5.0
SAID_BYTES = 1 << 16

TOLD = ("node_id", "address", "state", "participating", "tokens", "swarm_tokens", "val_loss")
"""What a keeper passes on of its node's status."""


def pause_after(failures: int) -> float:
    """Seconds before the next try, after so many in a row."""
    return min(PAUSE_S_MAX, LOOK_S * 2.0 ** min(failures, 20))


class Keeper:
    """Of one state folder. Begins at once, in a thread of its own; methods answer with plain dicts."""

    def __init__(self, state: str, invite: str, settings: Sequence[str], host: str) -> None:
        """
        Args:
            state: the folder; empty: the one that commands on this machine work on.
            invite: what `peerlm invite` printed; empty where the folder must hold a node already.
            settings: `section.field=value`, of node.toml, for each life of the daemon.
            host: where the other machines reach this one, if node.toml does not know better.
        """
        root = Path(state or os.environ.get("PEERLM_STATE") or default_folder())
        self.layout = Layout(root.expanduser().absolute())
        self._invite = invite
        self._settings = settings
        self._host = host
        self._starts = 0
        self._failures = 0
        self._trouble = ""
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------- being asked

    def look(self) -> dict[str, Any]:
        """How the node is; without `state` when no daemon answers, and then `trouble` says why if it is known."""
        facts: dict[str, Any] = {
            "folder": str(self.layout.root),
            "starts": self._starts,
            "failures": self._failures,
            "trouble": self._trouble,
        }
        try:
            status = ask(self.layout, "status", timeout_s=ANSWER_S)
        except PeerlmError:
            return facts
        pid = status["daemon"]["pid"]
        return facts | {key: status[key] for key in TOLD} | {"pid": pid, "trouble": ""}

    def invite(self, enrol_until: str) -> dict[str, str]:
        """`invite`: the line that lets others in, signed in this folder; or `trouble`."""
        try:
            return {"invite": self._run("invite", "--enrol-until", enrol_until).strip()}
        except PeerlmError as error:
            return {"trouble": str(error)}

    def leave(self) -> dict[str, str]:
        """Keep no longer, and have the node leave its swarm; it has ended when this returns without `trouble`."""
        self._is_over.set()
        self._thread.join()
        try:
            if is_served(self.layout):
                self._run("leave")
        except PeerlmError as error:
            return {"trouble": str(error)}
        return {}

    def addresses(self) -> Sequence[str]:
        """Members to enter through, besides the one that the invite names."""
        return ()

    # ----------------------------------------------------------------------------------- keeping

    def _keep(self) -> None:
        pause = 0.0
        while not self._is_over.wait(pause):
            try:
                if not is_served(self.layout):
                    self._start()
                self._trouble, self._failures, pause = "", 0, LOOK_S
            except Exception as error:  # whoever places keepers may fail too: nothing ends this
                self._trouble = str(error) or type(error).__name__
                self._failures += 1
                pause = pause_after(self._failures)

    def _start(self) -> None:
        """Raises `PeerlmError`, `OSError` with the line that says why there is no daemon."""
        if not has_node(self.layout):
            self._enrol()
        elif self._invite:
            self._check_run()
        network = read_node_settings(self.layout).network
        is_said = network.advertise or network.host not in ("", "0.0.0.0", "::")
        settings = (*(() if is_said else (f"network.advertise={self._host}",)), *self._settings)
        pairs = [part for pair in settings for part in ("--set-node", pair)]
        self._start_detached("up", *pairs)
        self._starts += 1

    def _enrol(self) -> None:
        """By the first member that answers."""
        if not self._invite:
            raise StateError(
                f"no node in {self.layout.root}: make a run with `peerlm init`, or bring an invite to another"
            )
        addresses, token = read_invite(self._invite)
        *others, last = dict.fromkeys((*self.addresses(), *addresses))
        for other in others:
            try:
                self._join(other, token)
                return
            except PeerlmError:  # the last one's word is as good as any
                continue
        self._join(last, token)

    def _join(self, address: str, token: str) -> None:
        self._run("join", address, "--token-file", "-", "--enrol-only", given=token)

    def _check_run(self) -> None:
        run = read_run(self.layout).run_id
        wanted = parse_token(read_invite(self._invite)[1]).inviter.run_id
        if run != wanted:
            raise StateError(
                f"{self.layout.root} holds a node of run {short(run)}, and the invite is to run {short(wanted)}: "
                "use another --state, or `peerlm rm` it there"
            )

    # --------------------------------------------------------------------------------- processes

    def _run(self, *words: str, given: str = "") -> str:
        """A command on this folder, to its end; what it printed. Raises `PeerlmError` with its last line."""
        command = [sys.executable, *PEERLM, *words, "--state", str(self.layout.root)]
        try:
            done = subprocess.run(
                command,
                input=given,
                capture_output=True,
                text=True,
                env=_environment(),
                timeout=COMMAND_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PeerlmError(f"`peerlm {words[0]}` did not end within {COMMAND_S:g} s") from None
        if done.returncode:
            raise PeerlmError(_last_line(done.stderr))
        return done.stdout

    def _start_detached(self, *words: str) -> None:
        """Returns when the daemon answers. Raises `PeerlmError` with its last line when it has ended instead.

        Until then its standard error is a pipe to us. Afterwards nobody reads it: the daemon's log goes on in its
        folder, and drops what it cannot write elsewhere."""
        command = (*PEERLM, *words, "--state", str(self.layout.root))
        starter = subprocess.Popen(
            (sys.executable, "-P", "-m", "peerlm.launch.detach", *command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            start_new_session=True,
        )
        with starter:
            assert starter.stdout is not None
            assert starter.stderr is not None
            pid = starter.stdout.readline()
            starter.wait()
            if pid:
                _require_orphan(int(pid))
            self._await_answer(starter.stderr.fileno())

    def _await_answer(self, errors: int) -> None:
        said, end = b"", time.monotonic() + START_S
        while not is_served(self.layout):
            if time.monotonic() > end:
                raise PeerlmError(
                    f"the daemon does not answer: {_last_line(said.decode(errors='replace'))}"
                )
            if select.select([errors], [], [], 0.1)[0]:
                chunk = os.read(errors, SAID_BYTES)
                if not chunk:
                    raise PeerlmError(_last_line(said.decode(errors="replace")))
                said = (said + chunk)[-SAID_BYTES:]


def _require_orphan(pid: int) -> None:
    """Raises `StateError`, and ends the daemon, where it would be killed when Ray is done with us."""
    try:
        parent = psutil.Process(pid).ppid()
        if parent not in (os.getpid(), os.getppid()):
            return
        os.kill(pid, signal.SIGTERM)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return
    raise StateError(
        "Ray would kill the daemon with its launcher here: start Ray without "
        "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper"
    )


def _environment() -> dict[str, str]:
    """Ours, without what is Ray's: its variables, and the threads it allows its own workers."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RAY_") and name not in ("OMP_NUM_THREADS", "PEERLM_TOKEN")
    }


def _last_line(said: str) -> str:
    lines = said.strip().splitlines() or ["it ended without a word"]
    return lines[-1].removeprefix("peerlm: ")
