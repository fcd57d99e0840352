"""A keeper and its daemon, without any cluster: either may die, and the other goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from swarm import NODE, init, wait_for

from peerlm.launch import keeper as keeping
from peerlm.launch.keeper import Keeper

SETTINGS = tuple(f"{name}={value}" for name, value in NODE.items())
HOST = "127.0.0.1"


@pytest.fixture
def keep() -> Iterator[Callable[..., Keeper]]:
    """`keep(folder, invite="", *settings)`: a keeper; its daemon does not outlive the test."""
    keepers: list[Keeper] = []

    def begin(folder: Path, invite: str = "", *settings: str) -> Keeper:
        keepers.append(Keeper(str(folder), invite, (*SETTINGS, *settings), HOST))
        return keepers[-1]

    try:
        yield begin
    finally:
        for keeper in keepers:
            keeper._is_over.set()
            keeper._thread.join()
            with contextlib.suppress(ProcessLookupError):
                if pid := keeper.look().get("pid"):
                    os.killpg(pid, signal.SIGKILL)


def wait_up(keeper: Keeper) -> dict[str, Any]:
    def is_up() -> dict[str, Any] | None:
        facts = keeper.look()
        return facts if facts.get("state") else None

    facts = wait_for(is_up, "the daemon answers", also=keeper._trouble)
    assert facts is not None
    return facts


def wait_trouble(keeper: Keeper) -> str:
    return str(wait_for(lambda: keeper.look()["trouble"], "it says what is wrong"))


@pytest.mark.timeout(180)
def test_a_daemon_is_nobodys_child_and_is_there_again_after_a_kill(
    keep: Callable[..., Keeper], tmp_path: Path
) -> None:
    init(tmp_path / "node")
    first = keep(tmp_path / "node")
    pid = wait_up(first)["pid"]
    daemon = psutil.Process(pid)
    assert daemon.ppid() != os.getpid()
    assert os.getsid(pid) == pid
    assert daemon.cwd() == "/"

    another = keep(tmp_path / "node")
    assert wait_up(another)["pid"] == pid
    another._is_over.set()
    another._thread.join()
    assert another.look()["starts"] == 0

    daemon.kill()
    facts = wait_for(
        lambda: next(
            (f for f in [first.look()] if f.get("pid") not in (None, pid) and f["starts"] == 2),
            None,
        ),
        "back",
    )
    assert first.leave() == {}
    assert "state" not in first.look()
    wait_for(lambda: not psutil.pid_exists(facts["pid"]), "the process is gone")


@pytest.mark.timeout(180)
def test_a_newcomer_enters_by_the_invite_and_another_runs_folder_is_refused(
    keep: Callable[..., Keeper], tmp_path: Path
) -> None:
    init(tmp_path / "founder")
    founder = keep(tmp_path / "founder")
    wait_up(founder)
    invite = founder.invite("1h")["invite"]
    newcomer = wait_up(keep(tmp_path / "newcomer", invite))
    assert newcomer["node_id"] != founder.look()["node_id"]
    assert newcomer["address"].startswith(f"tcp://{HOST}:")

    init(tmp_path / "other")
    other = keep(tmp_path / "other", invite)
    assert "and the invite is to run" in wait_trouble(other)


@pytest.mark.timeout(60)
def test_a_start_that_fails_is_told_in_its_last_line(
    keep: Callable[..., Keeper], tmp_path: Path
) -> None:
    assert "make a run with `peerlm init`" in wait_trouble(keep(tmp_path / "empty"))
    init(tmp_path / "node")
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        told = wait_trouble(keep(tmp_path / "node", "", f"network.port={port}"))
        assert f"port {port} on {HOST} is in use" in told
    assert "\n" not in told


def test_a_keeper_tries_for_as_long_as_it_takes() -> None:
    pauses = [keeping.pause_after(failures) for failures in (1, 2, 10, 5000)]
    assert pauses[0] < pauses[1] < pauses[2] == pauses[3] == keeping.PAUSE_S_MAX


@pytest.mark.timeout(60)
def test_a_daemon_that_would_die_with_its_keeper_is_not_kept(
    keep: Callable[..., Keeper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where Ray adopts all orphans to kill them."""
    init(tmp_path / "node")
    monkeypatch.setattr(keeping.psutil.Process, "ppid", lambda self: os.getpid())
    keeper = keep(tmp_path / "node")
    assert "raylet_subreaper" in wait_trouble(keeper)


@pytest.mark.timeout(60)
def test_a_detached_program_gets_its_signals_back(tmp_path: Path) -> None:
    """A Ray worker blocks SIGINT, and what it starts would too."""
    told = tmp_path / "told"
    code = f"import signal; open({str(told)!r}, 'w').write(repr(signal.pthread_sigmask(0, ())))"
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        command = [sys.executable, "-m", "peerlm.launch.detach", "-c", code]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    assert wait_for(lambda: told.exists() and told.read_text(), "it ran") == "set()"
