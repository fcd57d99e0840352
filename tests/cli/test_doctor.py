"""What the doctor finds, and what it says to do about it."""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_scene import Cli, FakeDaemon, answer_of, member, sample_summary

from peerlm.cli import doctor, doctor_machine
from peerlm.cli.finding import MARKS, Finding
from peerlm.cli.state import read_run
from peerlm.errors import PeerlmError, StateError, Unreachable
from peerlm.identity import files
from peerlm.identity.chain import Verified, date, read_chain
from peerlm.identity.invite import renew
from peerlm.store.layout import Layout
from peerlm.wire.message import Refusal, Welcome
from peerlm.wire.versions import OLDEST_VERSION, PROTOCOL_VERSION, misfit

PEER = "tcp://10.0.0.2:7700"


@pytest.fixture(autouse=True)
def _no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes seconds to load, and is another's."""

    def run(command: list[str], **kept: Any) -> subprocess.CompletedProcess[str]:
        out = "2.13.0 1" if "torch" in command[-1] else "yes"
        return subprocess.CompletedProcess(command, 0, out, "")

    monkeypatch.setattr(doctor_machine.subprocess, "run", run)
    monkeypatch.setattr(doctor_machine.shutil, "which", lambda name: name)


def found(out: str) -> dict[str, tuple[str, str]]:
    """What → (mark, the rest)."""
    lines = [line.split(None, 2) for line in out.splitlines()]
    return {what: (mark, text) for mark, what, text in lines}


def test_a_node_that_is_well(peerlm: Cli, daemon: FakeDaemon) -> None:
    done = peerlm("doctor", "--state", daemon.layout.root)
    assert done.code == 0, done
    lines = found(done.out)
    assert {mark for mark, _ in lines.values()} == {"ok"}
    assert list(lines) == [
        *("node", "daemon", "plan", "clock", "disk", "files", "device", "ports", "dialled")
    ]
    assert "certified until" in lines["node"][1]
    assert "mixing" in lines["daemon"][1]


def test_a_daemon_that_is_not_ready_and_one_that_is_not_there(
    peerlm: Cli, daemon: FakeDaemon, founded: Path
) -> None:
    daemon.answers["status"] = answer_of(sample_summary(phase="seeking", members=()))
    done = peerlm("doctor", "--state", founded)
    assert done.code == 1
    assert done.err == "peerlm: 1 to be mended\n"
    assert found(done.out)["daemon"][0] == "bad"
    daemon.layout.control_socket.unlink()
    lines = found(peerlm("doctor", "--state", founded).out)
    assert "start it with `peerlm up`" in lines["daemon"][1]
    assert lines["ports"][0] in ("ok", "bad")


def test_another_plan_is_found_and_cured(peerlm: Cli, daemon: FakeDaemon, founded: Path) -> None:
    well = doctor._plan_held(Layout(founded), None)
    assert well.ok
    assert re.search(r"revision 1, hash [0-9a-f]{16}; the same must stand", well.text)
    other = member(3, reason="another plan of revision 1: mix.inner_steps: 20 here, 50 there")
    daemon.answers["status"] = answer_of(sample_summary(members=(member(1), member(2), other)))
    lines = found(peerlm("doctor", "--state", founded).out)
    assert lines["plan"][0] == "bad"
    assert "03030303 has another plan of revision 1: mix.inner_steps: 20 here" in lines["plan"][1]
    assert "`peerlm plan set`" in lines["plan"][1]
    daemon.answers["status"] = answer_of(sample_summary(members=(member(1), member(2))))
    lines = found(peerlm("doctor", "--state", founded).out)
    assert lines["plan"][1].endswith("all 1 nodes that it is connected with have it")


def test_what_the_daemon_knows_of_a_peer() -> None:
    def line(**said: Any) -> str:
        return str(doctor._linked(answer_of(sample_summary(members=(member(2, **said),))), PEER))

    assert line() == (
        "ok   link         the daemon has a working connection with it; it has the same plan"
    )
    assert line(linked=False, reason="connect: refused").startswith(
        "bad  link         no connection now: connect: refused"
    )
    assert "and yet: another plan" in line(reason="another plan: train.lr")


def test_without_a_node_it_says_so_and_looks_at_the_rest(peerlm: Cli, tmp_path: Path) -> None:
    done = peerlm("doctor", "--state", tmp_path / "none", "127.0.0.1:1")
    assert done.code == 1
    lines = found(done.out)
    assert lines["node"][0] == "bad"
    assert "peerlm init" in lines["node"][1]
    assert lines["peer"][0] == "?"
    assert lines["device"][0] == "ok"


def test_who_may_ask_a_service_and_not_look_into_its_folder_hears_the_daemons_word(
    peerlm: Cli, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(layout: Layout) -> Any:
        raise StateError(f"may not look into {layout.root}")

    for name in ("read_run", "has_node"):
        monkeypatch.setattr(doctor, name, hidden)
    done = peerlm("doctor", "--state", daemon.layout.root)
    assert done.code == 0, done
    mark, text = found(done.out)["node"]
    assert mark == "?"
    assert "01010101 of run aaaaaaaa, by the daemon's word" in text
    assert f"may not look into {daemon.layout.root}" in text
    assert found(done.out)["plan"][0] == "ok"


def dates_of(layout: Layout) -> Verified:
    run, links = read_run(layout), files.read_chain_file(layout.root)
    return read_chain(links, run.root_public_key, run.run_id)


def renewed_at(layout: Layout, wall: float) -> None:
    """Its certificate, as a daemon does it."""
    run, links = read_run(layout), files.read_chain_file(layout.root)
    chain = renew(links, files.read_keys(layout.root), run.root_public_key, run.run_id, wall)
    files.write_chain(layout.root, chain)


def test_the_dates_of_a_certificate_and_of_its_invite(
    founded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(founded)

    def at(wall: float) -> tuple[bool | None, str]:
        monkeypatch.setattr(doctor, "time", SimpleNamespace(time=lambda: wall))
        return (found := doctor._certificate(layout)).ok, str(found)

    dates = dates_of(layout)
    until = f"certified until {date(dates.not_after)}"
    ok, line = at(dates.not_before - 1)
    assert ok is False
    assert line.endswith(f"{until} – it holds from {date(dates.not_before)}: set the clock")
    for wall in (dates.not_before, dates.not_after):
        ok, line = at(wall)
        assert ok, line
        assert line.endswith(until)
    ok, line = at(dates.not_after + 1)
    assert ok is None
    assert line.endswith(f"{until} – that is over: the daemon renews it once it runs")

    soon = dates.certs_until - doctor.SOON_S
    renewed_at(layout, soon)
    assert dates_of(layout).not_after == dates.certs_until, "it lasts no longer than the invite"
    ends = date(dates.certs_until)
    ok, line = at(soon)
    assert ok
    assert line.endswith(f"certified until {ends}")
    ok, line = at(soon + 1)
    assert ok
    assert line.endswith(f"its invite ends {ends}: join anew by then")
    ok, line = at(dates.certs_until + 1)
    assert ok is False
    assert line.endswith("its invite has ended: peerlm rm, and join with a new token")


def test_a_disk_without_room(founded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(doctor.os, "statvfs", lambda path: Full)
    finding = doctor._disk(Layout(founded))
    assert finding.ok is False
    assert "4.1 kB free" in finding.text
    assert finding.cure


@pytest.fixture
def at_the_door(monkeypatch: pytest.MonkeyPatch) -> list[Welcome | Refusal | Exception]:
    """What a member says when the doctor knocks: the last entry."""
    said: list[Welcome | Refusal | Exception] = []

    def knock(address: str, run_id: bytes, chain: object) -> tuple[str, Welcome | Refusal]:
        answer = said[-1]
        if isinstance(answer, Exception):
            raise answer
        return "127.0.0.1", answer

    monkeypatch.setattr("peerlm.daemon.knock.knock", knock)
    return said


def test_a_peer_of_a_version_that_does_not_fit_is_told_with_the_cure(
    founded: Path, at_the_door: list[Any]
) -> None:
    layout = Layout(founded)
    run, links = read_run(layout), files.read_chain_file(layout.root)

    def peer(version: int) -> list[Finding]:
        at_the_door.append(Welcome(version, run.run_id, links, open_port, closed_port, "10.0.0.9"))
        return list(doctor._peer(layout, PEER, None))

    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # nobody listens
        open_port, closed_port = server.getsockname()[1], bound.getsockname()[1]
        for version in (OLDEST_VERSION, PROTOCOL_VERSION, PROTOCOL_VERSION + 1):
            door, control, bulk = peer(version)
            assert str(door) == (
                f"ok   peer         {PEER} lets this node in, speaks version {version}, sees it as 10.0.0.9"
            )
            assert (control.what, control.ok) == ("control", True)
            assert (bulk.what, bulk.ok, bulk.cure) == ("bulk", False, "open it in the firewall")
        door = peer(OLDEST_VERSION - 1)[0]
    assert door.ok is False
    assert door.cure == misfit(OLDEST_VERSION - 1)
    assert "update the older node" in str(door)


def test_a_peer_that_refuses_or_is_not_there(founded: Path, at_the_door: list[Any]) -> None:
    def peer() -> str:
        (line,) = doctor._peer(Layout(founded), PEER, None)
        return str(line)

    clocks = "node aa: certificate starts at 2026-01-02 00:00:00Z, it is 2026-01-01 00:00:00Z here; compare the clocks"
    at_the_door.append(Refusal("not_yet_valid", clocks))
    assert peer() == f"bad  peer         {PEER} refuses this node: {clocks}"
    at_the_door.append(Unreachable("connect", f"{PEER}: connect: refused"))
    assert peer().startswith(f"bad  peer         {PEER}: connect: refused – check name, port")
    at_the_door.append(PeerlmError("no such thing"))
    assert peer() == f"?    peer         {PEER}: not asked: no such thing"


def test_whether_others_can_dial_this_node() -> None:
    def found(**said: object) -> str:
        reached = {"guarded": False, "by": 0, "not_by": 0, "failure": "", **said}
        return str(doctor._dialled(reached, "ports 7700 to 7702"))

    assert found() == (
        "?    dialled      nobody has dialled this node yet: not known whether they can"
    )
    assert found(by=3) == "ok   dialled      by 3 others"
    cure = "let ports 7700 to 7702 in, or have the router pass them on and set network.advertise"
    assert found(by=1, not_by=2, failure="no answer") == (
        f"?    dialled      by some, not by 2: no answer – {cure}"
    )
    assert found(guarded=True, not_by=2, failure="no answer") == (
        "?    dialled      by nobody: no answer; it mixes by dialling out – "
        f"nothing need be done; for more partners {cure}"
    )


def test_others_are_asked_to_dial_it_and_what_a_peer_found_is_told(
    peerlm: Cli, daemon: FakeDaemon
) -> None:
    dialled = {"guarded": False, "by": 1, "not_by": 1, "failure": "no answer"}
    daemon.answers["reach"] = {"dialled": dialled, "answers": {"02" * 16: "no answer"}}
    line = found(peerlm("doctor", "--state", daemon.layout.root).out)["dialled"]
    assert line[1].startswith("by some, not by 1: no answer")
    assert "reach" in [command for command, _ in daemon.asked]
    daemon.answers["reach"] = PeerlmError("unknown command")
    line = found(peerlm("doctor", "--state", daemon.layout.root).out)["dialled"]
    assert line == ("ok", "by 1 other"), "an older daemon"

    def back(**answers: str) -> list[str]:
        status = {**answer_of(sample_summary(members=(member(2),))), "answers": answers}
        return [str(finding) for finding in doctor._back(status, PEER)]

    assert back() == []
    assert back(**{"02" * 16: ""}) == ["ok   back         it can dial this node"]
    assert back(**{"02" * 16: "no answer"})[0].startswith(
        "?    back         it cannot dial this node: no answer – exchanges with it begin here"
    )


def test_how_the_store_stands() -> None:
    def found(**said: object) -> list[str]:
        told = {"names": 2, "nodes": 3, "replicas_wanted": 3, "wrong": [], **said}
        sizes = {"used_bytes": 10**6, "capacity_bytes": 10**9, "lacking": 0, "swarm_lacking": 0}
        return [str(finding) for finding in doctor._store({**sizes, **told})]

    assert found() == ["ok   store        1 MB of 1 GB used; nothing lacks"]
    (line,) = found(lacking=1, swarm_lacking=4)
    assert line.endswith("1 replicas are on their way here, 4 in the swarm")
    (line,) = found(nodes=2)
    assert line.startswith(
        "?    store        live nodes that offer room: 2, and 3 replicas are wanted"
    )
    assert len(found(nodes=1, wrong=["only one live node offers room"])) == 2
    assert found(wrong=["this node is full: raise store.bytes"]) == [
        "bad  store        this node is full: raise store.bytes"
    ]
    (line,) = found(names=0, wrong=["a name was not believed"])
    assert line == "bad  store        a name was not believed"
    assert found(names=0) == list(doctor._store({"names": 3})) == [], "nothing, or an older daemon"


def test_a_line_has_a_mark_a_name_what_is_so_and_the_cure() -> None:
    assert (
        str(Finding("disk", False, "no room", "free some"))
        == "bad  disk         no room – free some"
    )
    assert set(MARKS) == {True, False, None}
