"""What the doctor finds of the machine: by the daemon's own word where there is a daemon, and not by the shell's."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cli_scene import answer_of, sample_summary

from peerlm.cli import doctor_machine
from peerlm.config import NodeSettings, with_changes


def settings(**changes: str) -> NodeSettings:
    return with_changes(
        NodeSettings(), {name.replace("__", "."): value for name, value in changes.items()}, "test"
    )


def running(**changes: Any) -> dict[str, Any]:
    """The status of a daemon whose worker is so."""
    names = {f"worker_{name}": value for name, value in changes.items()}
    return answer_of(sample_summary(**names))


@pytest.fixture
def shell_sees(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What torch says in the caller's shell: change it at will. Empty: it does not load."""
    said = ["2.13.0 1"]

    def run(command: list[str], **kept: Any) -> subprocess.CompletedProcess[str]:
        code = 0 if said else 1
        out, err = "".join(said), "" if said else "Traceback\nImportError: libtorch.so"
        return subprocess.CompletedProcess(command, code, out, err)

    monkeypatch.setattr(doctor_machine.subprocess, "run", run)
    return said


def device(status: dict[str, Any] | None, **changes: str) -> tuple[bool | None, str]:
    found = doctor_machine.device(status, settings(**changes))
    return found.ok, str(found)


def test_without_a_daemon_the_shells_torch_is_asked(shell_sees: list[str]) -> None:
    for name, is_there in (("auto", True), ("cuda", True), ("cuda:0", True), ("cuda:1", False)):
        assert device(None, train__device=name)[0] is is_there, name
    shell_sees.clear()
    assert device(None) == (
        False,
        "bad  device       torch does not load: ImportError: libtorch.so",
    )


def test_a_service_that_is_kept_from_the_machines_devices_is_not_well(
    shell_sees: list[str],
) -> None:
    kept = running(device="cpu", device_wanted="auto")
    ok, line = device(kept)
    assert ok is False
    assert "the worker trains on cpu; torch 2.13.0 in this shell sees 1 CUDA devices" in line
    assert line.endswith(
        'as a service, install it with --cuda; if the CPU is meant, train.device = "cpu"'
    )
    shell_sees[:] = ["2.13.0 0"]
    assert device(kept)[0] is True
    shell_sees.clear()
    assert device(kept) == (True, "ok   device       auto; the worker trains on cpu")


def test_what_the_worker_trains_on_counts_and_not_what_node_toml_says_by_now(
    shell_sees: list[str],
) -> None:
    shell_sees.clear()
    for used, wanted in (("cuda:0", "auto"), ("2 × cuda", "cuda"), ("cpu", "cpu")):
        found = device(running(device=used, device_wanted=wanted), train__device="cuda:7")
        assert found == (True, f"ok   device       {wanted}; the worker trains on {used}")


def test_a_worker_that_finds_no_device_and_one_that_is_not_there(shell_sees: list[str]) -> None:
    why = "train.device = 'cuda': torch 2.13.0 sees no CUDA device; use auto or cpu"
    ok, line = device(running(state="backing_off", device_wanted="cuda", last_error=why))
    assert ok is False
    assert f"cuda; the worker died: {why}" in line
    assert "--cuda" in line
    assert device(running(state="starting"))[0] is None
    ok, line = device(running(state="off", device_wanted="cuda"))
    assert ok is None, "the shell's device is not the daemon's"
    assert "of this shell, not of the daemon: cuda; torch 2.13.0 sees 1 CUDA devices" in line
    assert device(running(state="off", device_wanted="cuda:1"))[0] is False


def test_the_daemons_limit_of_files_counts_and_not_the_shells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def most(number: int | None) -> dict[str, Any]:
        status = running()
        return status | {"daemon": status["daemon"] | {"files_max": number}}

    monkeypatch.setattr(doctor_machine.resource, "getrlimit", lambda which: (1024, 1 << 20))
    found = doctor_machine.files(most(1024))
    assert found.ok is False
    assert "the daemon may have 1024" in found.text
    assert "LimitNOFILE=4096" in found.cure
    monkeypatch.setattr(doctor_machine.resource, "getrlimit", lambda which: (1024, 1024))
    assert doctor_machine.files(most(16_384)).ok is True
    assert doctor_machine.files(most(None)).ok is True
    older = running()
    del older["daemon"]["files_max"]
    assert doctor_machine.files(older).ok is None
    assert doctor_machine.files(None).ok is False
    endless = (1024, resource.RLIM_INFINITY)
    monkeypatch.setattr(doctor_machine.resource, "getrlimit", lambda which: endless)
    assert "this shell may have any number" in doctor_machine.files(None).text


def ports(host: str, *numbers: int) -> str:
    status = running()
    status["daemon"]["listening"] = {"host": host, "ports": list(numbers)}
    return str(doctor_machine.ports(status, NodeSettings()))


def test_where_a_running_daemon_listens() -> None:
    assert ports("", 7710, 7711, 7712) == (
        "ok   ports        listening on 7710 to 7712 of all addresses; "
        "others must reach them through any firewall"
    )
    assert "listening on 7700, 7701, 8000 of 10.0.0.1; others" in ports(
        "10.0.0.1", 7700, 7701, 8000
    )
    assert "of 127.0.0.1: only this machine can reach them" in ports("127.0.0.1", 7700, 7701, 7702)
    older = running()
    del older["daemon"]["listening"]
    assert doctor_machine.ports(older, NodeSettings()).ok is None


def test_without_a_daemon_its_ports_must_be_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = min(taken.getsockname()[1], 65_533)
        here = settings(network__port=str(port), network__host="127.0.0.1")
        finding = doctor_machine.ports(None, here)
        assert finding.ok is False
        assert str(taken.getsockname()[1]) in finding.text.split(": ", 1)[1]
    assert "free ones are picked" in doctor_machine.ports(None, settings(network__port="0")).text


# ----------------------------------------------------------------------------------------- clock


HANGS = 'exec 9<>"$0.silent"; read line <&9'


@pytest.mark.parametrize(
    ("script", "ok", "says"),
    [
        ("echo yes", True, "ok   clock        kept by NTP"),
        ("echo no", None, "here, not kept by NTP – timedatectl set-ntp true: certificates have"),
        ("echo yes; exit 1", None, "here; timedatectl does not say"),
        (HANGS, None, "here; timedatectl does not say"),
        ("", None, "here; timedatectl does not say"),
        (None, None, "here; whether it is kept by NTP is not known"),
    ],
    ids=["yes", "no", "fails", "hangs", "no program", "absent"],
)
def test_whether_the_clock_is_kept(
    script: str | None, ok: bool | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is not None:
        program = tmp_path / "timedatectl"
        program.write_text(f"#!/bin/sh\n{script}\n" if script else "")
        program.chmod(0o755)
        os.mkfifo(f"{program}.silent")
    monkeypatch.setenv("PATH", str(tmp_path))
    if script == HANGS:
        monkeypatch.setattr(doctor_machine, "CLOCK_S", 0.1)
    found = doctor_machine.clock()
    assert found.ok is ok, found
    assert says in str(found)
