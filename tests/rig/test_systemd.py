"""A node as a service of a machine with a real systemd, and what becomes of it: from `service install` to its
end, with a killed daemon, a daemon that hangs, and a machine that is switched off in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machine import Machine, machine

from peerlm.bench.namespaces import entered
from peerlm.daemon.control import ask
from peerlm.errors import PeerlmError
from peerlm.store.layout import Layout

PEERLM = (sys.executable, "-m", "peerlm.__main__")
ADDRESS, GATEWAY = "10.77.0.2", "10.77.0.1"
INSTALLED = "/opt/peerlm/bin/peerlm"
SECOND_STATE = "/var/lib/peerlm-gpu1"
PLAN = (
    *("--set", "swarm.profile=test", "--set", "run.token_budget=1000000000"),
    *("--set", "model.dim=32", "--set", "model.heads=2", "--set", "model.kv_heads=1"),
    *("--set", "model.hidden=64", "--set", "model.blocks=attention,feedforward"),
    *("--set", "model.context=32", "--set", "train.batch=4", "--set", "mix.inner_steps=4"),
)
NODE = {"limits.threads": "1", "train.pace_tokens_s": "2000", "limits.snapshot_every_s": "2"}
SHORT = "[Service]\nWatchdogSec=4\n"
"""The watchdog's time here: what is shown does not depend on it."""

PROBE = """\
import mmap
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    print("memory to write and to run: had")
except PermissionError:
    print("memory to write and to run: refused")
"""
"""Asks for what MemoryDenyWriteExecute= keeps from a service."""

PROBED = "[Service]\nExecStartPre=/opt/peerlm/bin/python /opt/peerlm/probe.py\n"
"""What runs before the daemon runs under all that holds for the daemon."""

STOP_S = 10.0
BACK_S = 60.0


class Founder:
    """The run's first node, beside the machine: a plain process."""

    def __init__(self, folder: Path, namespace: int) -> None:
        self.layout = Layout(folder / "founder")
        self._namespace = namespace
        self._run("init", *PLAN, *self._local())
        with (folder / "founder.out").open("wb") as output, entered(namespace):
            self._process = subprocess.Popen(
                [*PEERLM, "up", "--state", str(self.layout.root)], stdout=output, stderr=output
            )

    def _local(self) -> list[str]:
        values = NODE | {"network.host": GATEWAY, "network.advertise": GATEWAY}
        return [
            part for name, value in values.items() for part in ("--set-node", f"{name}={value}")
        ]

    def _run(self, *words: str) -> str:
        words = (*PEERLM, *words, "--state", str(self.layout.root))
        with entered(self._namespace):
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def invitation(self) -> tuple[str, str]:
        """Address and token."""
        words = self._run("invite").split()
        return words[words.index("join") + 1], words[words.index("--token") + 1]

    def status(self) -> dict[str, Any]:
        try:
            return ask(self.layout, "status")
        except PeerlmError:
            return {"members": [], "participating": False}

    def sees(self, state: str) -> bool:
        """Whether the one other member it knows is in that state."""
        status = self.status()
        others = [m for m in status["members"] if m["id"] != status["node_id"]]
        return [m["state"] for m in others] == [state]

    def others(self) -> dict[str, str]:
        """Of other members it knows: id and state."""
        status = self.status()
        return {m["id"]: m["state"] for m in status["members"] if m["id"] != status.get("node_id")}

    def told(self) -> list[dict[str, Any]]:
        """Its log."""
        return [json.loads(line) for line in self.layout.log.read_text().splitlines()]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[tuple[Machine, Founder]]:
    with machine(tmp_path / "machine", ADDRESS, GATEWAY) as (here, beside):
        founder = Founder(tmp_path, beside)
        try:
            here.boot()
            yield here, founder
            here.show()
        finally:
            founder.close()


def as_ada(here: Machine, *words: str) -> subprocess.CompletedProcess[str]:
    """By a person who is no more than a member of the service's group."""
    return here.run("runuser", "-u", "ada", "--", INSTALLED, *words, check=False)


def node_status(here: Machine) -> dict[str, Any]:
    done = as_ada(here, "status", "--json")
    return json.loads(done.stdout) if done.returncode == 0 else {"participating": False}


def participates(here: Machine) -> bool:
    return bool(node_status(here)["participating"])


@pytest.mark.timeout(600)
def test_a_machine_whose_node_is_a_service(scene: tuple[Machine, Founder]) -> None:
    here, founder = scene
    is_installed_and_says_what_to_do(here)
    joins_for_a_member_of_its_group(here, founder)
    is_kept_from_memory_to_write_and_to_run(here)
    is_hardened_and_trains(here)
    is_told_of_itself_by_the_doctor(here)
    comes_back_after_a_kill(here)
    is_restarted_when_it_hangs(here)
    is_back_after_the_machine_was_switched_off(here)
    leaves_when_it_is_stopped(here, founder)
    a_second_node_enters_by_an_invite_that_was_laid_down(here, founder)
    both_are_taken_away(here, founder)
    a_run_begins_in_a_service(here)


def is_installed_and_says_what_to_do(here: Machine) -> None:
    here.run(INSTALLED, "service", "install", "--now")
    here.run("useradd", "--create-home", "--groups", "peerlm-operators", "ada")
    here.run("useradd", "--create-home", "bob")
    assert here.unit("ActiveState") == "active"
    here.wait("it says what to do", lambda: "peerlm join" in here.unit("StatusText"))
    waiting = as_ada(here, "status")
    assert waiting.returncode != 0
    assert "in no run yet: `peerlm join" in waiting.stderr
    assert "Traceback" not in waiting.stderr
    bob = here.run("runuser", "-u", "bob", "--", INSTALLED, "status", check=False)
    assert bob.returncode == 3
    assert "may not talk to the daemon" in bob.stderr


def joins_for_a_member_of_its_group(here: Machine, founder: Founder) -> None:
    address, token = founder.invitation()
    settings = [part for name, value in NODE.items() for part in ("--set-node", f"{name}={value}")]
    wrong = as_ada(here, "join", address, "--token", token[:-9], *settings)
    assert wrong.returncode != 0
    assert len(wrong.stderr.splitlines()) == 1
    joined = as_ada(here, "join", address, "--token", token, *settings)
    assert joined.returncode == 0, joined.stderr
    here.wait("it participates", lambda: participates(here), BACK_S)
    here.wait("it says so", lambda: "1 of 1 others alive" in here.unit("StatusText"))
    assert founder.sees("alive")
    again = as_ada(here, "join", address, "--token", token)
    assert "already in run" in again.stderr
    assert "started again 0 times" in here.run(INSTALLED, "service", "status").stdout


def is_kept_from_memory_to_write_and_to_run(here: Machine) -> None:
    """Else a machine in which the filter does nothing would say of torch that it bears it."""
    Path(here.root, "opt/peerlm/probe.py").write_text(PROBE)
    assert here.ask("/opt/peerlm/bin/python", "/opt/peerlm/probe.py").endswith(": had")
    drop_in = Path(here.root, "etc/systemd/system/peerlm.service.d/probe.conf")
    drop_in.parent.mkdir()
    drop_in.write_text(PROBED)
    here.run("systemctl", "daemon-reload")
    here.run("systemctl", "restart", "peerlm.service")
    told = here.ask("journalctl", "-u", "peerlm.service", "--no-pager", "-o", "cat")
    assert "memory to write and to run: refused" in told
    assert "memory to write and to run: had" not in told
    drop_in.unlink()
    drop_in.parent.rmdir()
    here.run("systemctl", "daemon-reload")
    here.wait("it participates after a restart", lambda: participates(here), BACK_S)


def is_hardened_and_trains(here: Machine) -> None:
    for unit in ("peerlm.service", "peerlm@.service"):
        path = f"/opt/source/systemd/{unit}"
        assert here.run("systemd-analyze", "verify", path).stderr == ""
        here.run("systemd-analyze", "security", "--offline=true", "--threshold=20", path)
    is_understood_with_what_cuda_needs(here)
    before = node_status(here)["tokens"]
    here.wait("it trains", lambda: node_status(here)["tokens"] > before)
    assert node_status(here)["worker"]["restarts"] == 0
    told = here.run("journalctl", "PEERLM_EVENT=listening", "-o", "json", "--no-pager").stdout
    entry = json.loads(told.splitlines()[-1])
    assert entry["PRIORITY"] == "6"
    assert entry["_SYSTEMD_UNIT"] == "peerlm.service"
    main = here.unit("MainPID")
    assert here.ask("stat", "-c", "%U", f"/proc/{main}") == "peerlm"
    assert here.ask("runuser", "-u", "ada", "--", "ls", "/var/lib/peerlm/") == ""
    everybodys = of_process(here, "1", "Seccomp_filters")
    worker = here.ask("pgrep", "-P", main, "-f", "peerlm.train.worker")
    for pid in (main, worker):
        assert of_process(here, pid, "Seccomp") == 2, "calls are filtered"
        assert of_process(here, pid, "Seccomp_filters") > everybodys, "by more than the container"
        assert of_process(here, pid, "NoNewPrivs") == 1
        assert of_process(here, pid, "CapEff") == 0


def is_understood_with_what_cuda_needs(here: Machine) -> None:
    here.run(INSTALLED, "service", "install", "--cuda")
    assert here.run("systemd-analyze", "verify", "peerlm.service").stderr == ""
    assert here.unit("MemoryDenyWriteExecute") == "no"
    assert "char-nvidia-uvm rw" in here.unit("DeviceAllow")
    here.run(INSTALLED, "service", "install")
    assert here.unit("MemoryDenyWriteExecute") == "yes"


def of_process(here: Machine, pid: str, name: str) -> int:
    """A number of /proc/PID/status."""
    lines = here.run("cat", f"/proc/{pid}/status").stdout.splitlines()
    value = dict(line.split(":", 1) for line in lines)[name].strip()
    return int(value, 16 if name.startswith("Cap") else 10)


def is_told_of_itself_by_the_doctor(here: Machine) -> None:
    """Who may not even look into its folder hears what the daemon is let have, and not what this shell is."""
    said = as_ada(here, "doctor").stdout
    assert "the daemon may have 16384 files and sockets open at once" in said
    assert "auto; the worker trains on cpu" in said
    assert "listening on 7700 to 7702 of all addresses" in said
    assert "by the daemon's word; its certificate is not looked at: may not look into" in said
    assert "Traceback" not in said


def comes_back_after_a_kill(here: Machine) -> None:
    here.run("systemctl", "kill", "-s", "KILL", "peerlm.service")
    here.wait("systemd starts it again", lambda: here.unit("NRestarts") == "1")
    here.wait("it participates after a kill", lambda: participates(here), BACK_S)


def is_restarted_when_it_hangs(here: Machine) -> None:
    drop_in = Path(here.root, "etc/systemd/system/peerlm.service.d/short.conf")
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text(SHORT)
    here.run("systemctl", "daemon-reload")
    here.run("systemctl", "restart", "peerlm.service")
    here.wait("it participates after a restart", lambda: participates(here), BACK_S)
    here.run("kill", "-STOP", here.unit("MainPID"))
    here.wait("the watchdog ends it", lambda: here.unit("NRestarts") == "1")
    assert "Watchdog timeout" in here.ask("journalctl", "-u", "peerlm.service", "--no-pager")
    here.wait("it participates after it hung", lambda: participates(here), BACK_S)


def is_back_after_the_machine_was_switched_off(here: Machine) -> None:
    tokens = node_status(here)["tokens"]
    here.power_off()
    here.boot()
    here.wait("it participates after the machine came up", lambda: participates(here), BACK_S)
    assert node_status(here)["tokens"] >= tokens


def leaves_when_it_is_stopped(here: Machine, founder: Founder) -> None:
    before = len(founder.told())
    began = time.monotonic()
    here.run("systemctl", "stop", "peerlm.service")
    assert time.monotonic() - began < STOP_S
    here.wait("the other knows that it left", lambda: founder.sees("left"), 5.0)
    assert here.unit("Result") == "success"
    told = [entry["event"] for entry in founder.told()[before:]]
    assert not [event for event in told if "suspect" in event or "dead" in event], told
    assert not os.path.exists(here.root / "run/peerlm/control.sock")


def a_second_node_enters_by_an_invite_that_was_laid_down(here: Machine, founder: Founder) -> None:
    """Beside the first, as one of several of the machine; nobody says `join`."""
    here.run("systemctl", "start", "peerlm.service")
    here.wait("the first participates again", lambda: participates(here), BACK_S)
    address, token = founder.invitation()
    invite = here.root / "etc/peerlm/invite-gpu1"
    invite.parent.mkdir()
    invite.touch(mode=0o600)
    invite.write_text(f"peerlm join {address} --token {token}\n")
    here.run(INSTALLED, "service", "install", "--instance", "gpu1", "--now")
    here.wait("the second participates", lambda: second(here).get("participating"), BACK_S)
    assert second(here)["node_id"] != node_status(here)["node_id"]
    assert sorted(founder.others().values()) == ["alive", "alive"]
    assert participates(here)
    assert (
        "active (running), enabled"
        in here.run(INSTALLED, "service", "status", "--instance", "gpu1").stdout
    )


def second(here: Machine) -> dict[str, Any]:
    """What the second node says to a member of its group."""
    done = as_ada(here, "status", "--json", "--state", SECOND_STATE)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def both_are_taken_away(here: Machine, founder: Founder) -> None:
    """One after the other; each leaves its swarm, and what is of use to the other stays. State is kept."""
    said = here.run(INSTALLED, "service", "uninstall", "--instance", "gpu1").stdout
    assert f"the node is kept in {SECOND_STATE}" in said
    units = here.root / "etc/systemd/system"
    assert {path.name for path in units.glob("peerlm*")} == {"peerlm.service", "peerlm.service.d"}
    here.wait("it has left", lambda: sorted(founder.others().values()) == ["alive", "left"], 5.0)
    assert participates(here)
    here.run(INSTALLED, "service", "uninstall")
    here.wait("both have left", lambda: set(founder.others().values()) == {"left"}, 5.0)
    for unit in ("peerlm.service", "peerlm@gpu1.service"):
        assert here.ask("systemctl", "show", unit, "-p", "ActiveState", "--value") == "inactive"
    assert here.unit("LoadState") == "not-found"
    assert here.ask("ls", "/var/lib/private") == "peerlm\npeerlm-gpu1"


def a_run_begins_in_a_service(here: Machine) -> None:
    """As docs/operate.md has it: installed, `init` by root, started; and root's `invite` from a folder that is the service's."""
    here.run(INSTALLED, "service", "install")
    settings = [part for name, value in NODE.items() for part in ("--set-node", f"{name}={value}")]
    here.run("rm", "-r", "/var/lib/private/peerlm", "/var/lib/peerlm")
    here.run(INSTALLED, "init", *PLAN, *settings, "--state", "/var/lib/peerlm")
    here.run("systemctl", "start", "peerlm.service")
    here.wait("it trains alone", lambda: node_status(here).get("state") == "training", BACK_S)
    assert here.unit("NRestarts") == "0"
    assert here.ask("stat", "-c", "%U", "/var/lib/private/peerlm/identity") == "peerlm"
    line = here.run(INSTALLED, "invite").stdout
    assert f"peerlm join tcp://{ADDRESS}:7700 --token peerlm1-" in line
    here.run("systemctl", "stop", "peerlm.service")
    assert here.unit("Result") == "success"
