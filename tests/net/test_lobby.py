"""A daemon that is in no run yet: what it answers, who lets it in, and that it can be told to stop."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from swarm import NODE, PEERLM, Node, Swarm, assert_refused, closed_port, options, peerlm, wait_for

from peerlm.daemon.control import is_served
from peerlm.errors import PeerlmError

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    swarm = Swarm(tmp_path_factory.mktemp("lobby"))
    try:
        swarm.found()
        yield swarm
    finally:
        swarm.close()


@pytest.fixture(scope="module")
def token(town: Swarm) -> str:
    return town.token


@pytest.fixture
def swarm(town: Swarm) -> Iterator[Swarm]:
    """Its founder trains; whoever else enters is gone after the scene."""
    yield town
    for node in town.nodes[1:]:
        node.end_all()


@pytest.fixture
def founder(swarm: Swarm) -> Node:
    return swarm.nodes[0]


def waiting(swarm: Swarm, **environment: str) -> Node:
    """A daemon in a folder without a node."""
    node = swarm.node()
    node.start("up", "--wait", "--port", "0", variables=environment)
    wait_for(lambda: is_served(node.layout), "it waits")
    return node


def test_it_says_what_to_do_and_stops_when_told(swarm: Swarm) -> None:
    node = waiting(swarm)
    with pytest.raises(PeerlmError, match="in no run yet: `peerlm join ADDRESS"):
        node.ask("status")
    assert_refused(peerlm("status", "--state", node.folder), 1, "in no run yet", "peerlm invite")
    node.signal(signal.SIGTERM)
    assert node.wait_end() == 0
    second = waiting(swarm)
    second.ask("stop")
    assert second.wait_end() == 0


def is_in(node: Node, founder: Node) -> None:
    """It has come to know the founder."""
    name = founder.wait(bool, "it answers")["node_id"]
    node.wait(
        lambda s: any(m["id"] == name and m["state"] == "alive" for m in s["members"]), "it is in"
    )


def test_join_lets_it_in_with_its_settings_and_a_failure_changes_nothing(
    swarm: Swarm, founder: Node, token: str
) -> None:
    node = waiting(swarm)
    where = ("--state", node.folder, *options("--set-node", NODE))
    refused = peerlm("join", founder.address, "--token", token[:-8], *where)
    assert_refused(refused, 1, "token")
    nobody = peerlm("join", f"tcp://127.0.0.1:{closed_port()}", "--token", token, *where)
    assert_refused(nobody, 1, "connect")
    wrong = peerlm("join", founder.address, "--token", token, *where, "--set-node", "mix.alpha=1")
    assert wrong.code == 2
    idle = peerlm("join", founder.address, "--token", token, *where, "--enrol-only")
    assert idle.code == 2
    assert "the service runs here" in idle.err
    assert not node.layout.identity.exists()
    free = closed_port()
    joined = peerlm("join", founder.address, "--token", token, *where, "--port", free)
    assert joined.code == 0, joined.err
    assert f"port = {free}" in node.layout.node_settings.read_text()
    assert "the service trains" in joined.out
    swarm.wait_whole()
    assert "pace_tokens_s = 2500" in node.layout.node_settings.read_text()
    again = peerlm("join", founder.address, "--token", token, *where)
    assert_refused(again, 3, "already holds a node")


def test_an_invite_that_was_laid_down_is_used_as_soon_as_a_member_answers(
    swarm: Swarm, founder: Node, token: str, tmp_path: Path
) -> None:
    address = founder.address
    founder.kill()
    (tmp_path / "invite").write_text(f"peerlm join {address} --token {token}\n")
    node = waiting(swarm, CREDENTIALS_DIRECTORY=str(tmp_path))

    wait_for(lambda: "trying again" in said_by(node), "it says that it tries")
    founder.up()
    is_in(node, founder)


def test_a_bad_invite_is_told_and_join_still_lets_it_in(
    swarm: Swarm, founder: Node, token: str, tmp_path: Path
) -> None:
    (tmp_path / "invite").write_text("come in")
    node = waiting(swarm, CREDENTIALS_DIRECTORY=str(tmp_path))
    wait_for(lambda: "holds no token" in said_by(node), "it says what is wrong with the invite")
    joined = peerlm("join", founder.address, "--token", token, "--state", node.folder)
    assert joined.code == 0, joined.err


def test_an_invite_may_be_laid_down_later_and_whoever_printed_it_be_gone(
    swarm: Swarm, founder: Node, token: str, tmp_path: Path
) -> None:
    node = swarm.node()
    quick = "import peerlm.daemon.lobby as l, sys; l.AGAIN_S = 0.2; from peerlm.cli.main import main; sys.exit(main())"
    node.program = (sys.executable, "-c", quick)
    node.start("up", "--wait", "--port", "0", variables={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    wait_for(lambda: "in no run yet" in said_by(node), "it waits")
    gone = f"tcp://127.0.0.1:{closed_port()}"
    (tmp_path / "invite").write_text(f"peerlm join {gone} {founder.address} --token {token}\n")
    is_in(node, founder)


def test_a_later_join_takes_the_place_of_one_that_waits_for_nobody(
    swarm: Swarm, founder: Node, token: str
) -> None:
    node = waiting(swarm)
    nobody = f"tcp://127.0.0.1:{closed_port()}"
    where = ("--token", token, "--state", str(node.folder))
    first = subprocess.Popen(
        [*PEERLM, "join", nobody, "--wait", *where], stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: "trying again" in said_by(node), "it tries")
    assert peerlm("join", founder.address, *where).code == 0
    _, err = first.communicate(timeout=30)
    assert first.returncode == 1
    assert "another `peerlm join` has taken its place" in err


def said_by(node: Node) -> str:
    """How it refuses to tell its status."""
    try:
        node.ask("status")
    except PeerlmError as error:
        return str(error)
    return ""


def test_garbage_on_its_socket_is_refused_and_it_waits_on(swarm: Swarm) -> None:
    node = waiting(swarm)
    for request in (
        b"\x00\xff\n",
        b'{"command": "join"}\n',
        b'{"command": "join", "address": 1, "token": []}\n',
        b'{"command": "join", "address": "x", "token": "y", "node": 7}\n',
        b'{"command": "revoke"}\n',
    ):
        with socket.socket(socket.AF_UNIX) as guest:
            guest.settimeout(10)
            guest.connect(str(node.layout.control_socket))
            guest.sendall(request)
            assert guest.recv(1000).startswith(b'{"ok":false')
    assert node.is_running


def test_a_node_to_whom_everybody_is_gone_is_shown_the_way(
    swarm: Swarm, founder: Node, token: str
) -> None:
    second = swarm.join(founder, token)
    swarm.wait_whole()
    for node in (founder, second):
        node.kill()
    founder.up("--port", str(free_port()))  # and nobody knows either any more
    founder.wait(lambda s: s["state"] == "training", "the founder trains")
    wrong = peerlm("up", "--peer", "tcp://", "--state", second.folder)
    assert wrong.code == 2
    assert "--peer" in wrong.err
    second.up("--port", str(free_port()), "--peer", founder.address)
    swarm.wait_whole()


def free_port() -> int:
    """Of three in a row, the first."""
    while True:
        base = closed_port()
        with contextlib.suppress(OSError), socket.socket() as a, socket.socket() as b:
            a.bind(("127.0.0.1", base + 1))
            b.bind(("127.0.0.1", base + 2))
            return base
