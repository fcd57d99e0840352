"""Who is let in, and what those hear who are not: each in one line, and the swarm goes on mixing.

The scenes share one swarm of two. What is wrong is shown to the real command or to a real socket.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from swarm import (
    NODE,
    Node,
    Outcome,
    Swarm,
    assert_refused,
    at_once,
    closed_port,
    exchanged_more,
    init,
    options,
    peerlm,
    succeed,
    wait_for,
)

from peerlm.config import with_changes
from peerlm.identity import files
from peerlm.identity.invite import make_invite, root_inviter
from peerlm.identity.root import sign_plan, verify_plan
from peerlm.types import Role, WallTime

pytestmark = pytest.mark.timeout(180)

AT_ONCE_S = 15.0
"""`join` without --wait has given up by then; most of it is the name server's patience."""


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    swarm = Swarm(tmp_path_factory.mktemp("entrance"))
    try:
        founder = swarm.found()
        swarm.join(founder)
        swarm.wait_whole()
        yield swarm
    finally:
        swarm.close()


@pytest.fixture(scope="module")
def token(swarm: Swarm) -> str:
    return swarm.token


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of another run's founder."""
    folder = tmp_path_factory.mktemp("elsewhere") / "other"
    init(folder)
    return folder


@pytest.fixture
def pair(swarm: Swarm, request: pytest.FixtureRequest) -> Iterator[list[Node]]:
    """Two nodes that mix, and still do after the scene."""
    pair = swarm.nodes[:2]
    yield pair
    for node in pair if "nan" not in request.node.name else ():
        node.wait(exchanged_more(node), "the swarm is unharmed: it goes on mixing")


def join(tmp_path: Path, address: str, token: str) -> Outcome:
    folder = tmp_path / secrets.token_hex(8)
    done = peerlm("join", address, "--token", token, "--state", folder)
    assert not (folder / "identity").exists(), "a failed attempt leaves no node"
    return done


def join_each(tmp_path: Path, addresses: Sequence[str], token: str) -> list[Outcome]:
    """Attempts at several addresses at once."""
    return at_once(*(partial(join, tmp_path, address, token) for address in addresses))


# ------------------------------------------------------------------------------------ addresses


def test_an_address_that_does_not_resolve(pair, token, tmp_path) -> None:
    began = time.monotonic()
    for done in join_each(tmp_path, ["tcp://no-such-host.invalid:7700", "tcp://host:port"], token):
        assert_refused(done, 5, "resolve")
    assert time.monotonic() - began < AT_ONCE_S


def test_an_address_where_nothing_listens(pair, token, tmp_path) -> None:
    address = f"tcp://127.0.0.1:{closed_port()}"
    assert_refused(join(tmp_path, address, token), 5, address, "connect", "refused")


def test_an_address_where_something_else_listens(pair, token, tmp_path) -> None:
    def greet(door: socket.socket, greeting: bytes) -> None:
        guest, _ = door.accept()
        with guest:
            guest.sendall(greeting)
            guest.recv(65536)

    with ExitStack() as stack:
        addresses, hosts = [], []
        for greeting in (b"SSH-2.0-OpenSSH_9.9\r\n", b"", b"\x00\x00\x00\x02\xff\xff"):
            door = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            addresses.append(f"tcp://127.0.0.1:{door.getsockname()[1]}")
            hosts.append(threading.Thread(target=greet, args=(door, greeting)))
            hosts[-1].start()
        for done in join_each(tmp_path, addresses, token):
            assert_refused(done, 5, "handshake")
        for host in hosts:
            host.join()


def test_the_wrong_port_of_the_right_node(pair, token, tmp_path) -> None:
    base = int(pair[0].address.rpartition(":")[2])
    wrong = [f"tcp://127.0.0.1:{port}" for port in set(pair[0].ports()) - {base}]
    assert len(wrong) == 3
    for done in join_each(tmp_path, wrong, token):
        assert_refused(done, 5, "handshake")


def test_with_wait_it_keeps_knocking(pair, token, tmp_path) -> None:
    node = Node(tmp_path / "patient")
    node.start("join", f"tcp://127.0.0.1:{closed_port()}", "--token", token, "--wait")
    try:
        wait_for(lambda: node.said().count("trying again") >= 2, "two more tries", also=node.said())
        node.signal(signal.SIGINT)
        assert node.wait_end() == 130
        assert "Traceback" not in node.said()
    finally:
        node.end_all()


# --------------------------------------------------------------------------------------- tokens


def test_a_token_that_is_none_or_cut_short_or_has_run_out(pair, token, tmp_path) -> None:
    root = files.read_root(pair[0].folder)
    past = WallTime(time.time() - 3600)
    roles = frozenset({Role.TRAIN})
    old = make_invite(root_inviter(root), roles, past, WallTime(past + 86_400), ()).to_text()
    shown = ("open-sesame", token[:-20], old)
    none, short, late = at_once(*(partial(join, tmp_path, pair[0].address, each) for each in shown))
    assert_refused(none, 4, "not a token")
    assert_refused(short, 4, "cut short")
    assert_refused(late, 4, "until", "new one")


def test_a_token_that_was_revoked(swarm, pair, tmp_path) -> None:
    done = peerlm("invite", "--state", pair[0].folder)
    token = done.out.split("--token ")[1].strip()
    serial = re.search(r"peerlm revoke ([0-9a-f]{32})", done.err)[1]
    succeed("revoke", serial, "--state", pair[0].folder)
    for node in pair:  # the second hears it by gossip
        kept = node.folder / files.REVOCATIONS
        wait_for(
            lambda kept=kept: kept.exists() and bytes.fromhex(serial) in kept.read_bytes(),
            "it has heard of it",
        )
    for done in join_each(tmp_path, [node.address for node in pair], token):
        assert_refused(done, 4, "admission", "revoked")


def test_a_token_of_another_run(pair, other, tmp_path) -> None:
    line = succeed("invite", "--state", other, "--address", "127.0.0.1:1")
    done = join(tmp_path, pair[0].address, line.split("--token ")[1].strip())
    assert_refused(done, 4, "admission", "run")


# -------------------------------------------------------------------------------------- the doctor


def test_the_doctor_and_the_way_to_peers(pair, other) -> None:
    """One that is well, one that is not there, and one of another run. Before a node with another plan was met: that is told from then on."""
    at = pair[0].address
    found, refused = at_once(
        lambda: peerlm("doctor", at, f"127.0.0.1:{closed_port()}", "--state", pair[1].folder),
        lambda: peerlm("doctor", at, "--state", other),
    )
    for what in (
        "lets this node in",
        "control",
        "bulk",
        "the daemon has a working connection with it; it has the same plan",
        "it can dial this node",
        "nodes that it is connected with have it",
        "connect: connection refused",
        "of 127.0.0.1: only this machine can reach them",
        "the daemon may have ",
    ):
        assert what in found.out
    assert_refused(found, 1, "1 to be mended")
    assert_refused(refused, 1)
    assert "refuses this node" in refused.out


# ----------------------------------------------------------------------------- plans and folders


def test_another_plan_of_the_same_revision_is_refused_on_both_sides(swarm, pair, token) -> None:
    founder = pair[0]
    stray = swarm.node()
    settings = options("--set-node", NODE | {"train.enabled": "false"})
    where = ("--state", stray.folder, "--enrol-only")
    succeed("join", founder.address, "--token", token, *where, *settings)
    root = files.read_root(founder.folder)
    ours = verify_plan(files.read_plan(founder.folder), root.public_key, root.run_id)
    changed = with_changes(ours.plan, {"mix.inner_steps": 33}, "test")
    files.write_plan(stray.folder, sign_plan(root, changed, ours.revision).blob)
    stray.up()
    for node in (stray, founder):
        said = node.wait(lambda s: "mix.inner_steps" in str(s["why"]), "it names the field")
        line = next(line for line in said["why"] if "mix.inner_steps" in line)
        assert "33" in line
        assert "4" in line
    assert not stray.status()["participating"]
    assert "mix.inner_steps" in succeed("why", "--state", stray.folder)
    stray.kill()


def test_a_second_daemon_on_one_folder(pair) -> None:
    assert_refused(peerlm("up", "--state", pair[1].folder), 3, "in use")


def test_join_where_a_node_is_already(pair, token) -> None:
    done = peerlm("join", pair[0].address, "--token", token, "--state", pair[1].folder)
    assert_refused(done, 3, "already holds a node")


# -------------------------------------------------------------------------------------- sockets


ZMTP = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0" + b"NULL".ljust(20, b"\0") + b"\0" * 32
GARBAGE = {
    "noise": os.urandom(65536),
    "a request for a web page": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a frame that claims 4 GiB": b"\xff\xff\xff\xff" + b"x" * 100_000,
    "a ZMTP frame that claims 2^62 bytes": ZMTP
    + b"\x02"
    + struct.pack(">Q", 1 << 62)
    + b"x" * 9999,
    "an empty frame": b"\0\0\0\0",
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_on_every_port(pair, what) -> None:
    ports = pair[0].ports()
    assert len(ports) == 4
    for port in ports:
        with socket.create_connection(("127.0.0.1", port), 5) as guest:
            try:
                guest.sendall(GARBAGE[what])
                guest.shutdown(socket.SHUT_WR)
                guest.settimeout(5)
                while guest.recv(65536):
                    pass
            except OSError:
                pass  # hung up on, or left waiting: both are fine


def test_half_open_connections_on_every_port(pair) -> None:
    guests = []
    try:
        for port in pair[0].ports():
            for begun in (b"", b"\0", b"\0\0\1\0half a hello", ZMTP[:11]) * 75:
                guest = socket.create_connection(("127.0.0.1", port), 5)
                guests.append(guest)
                guest.sendall(begun)
        for node in pair:
            node.wait(exchanged_more(node, 5), "it mixes with 1200 strangers at the door")
        late = peerlm("status", "--state", pair[0].folder)
        assert late.code == 0
    finally:
        for guest in guests:
            guest.close()


def test_garbage_on_the_control_socket(pair) -> None:
    with socket.socket(socket.AF_UNIX) as guest:
        guest.settimeout(5)
        guest.connect(str(pair[0].layout.control_socket))
        guest.sendall(b"\xff\xfe not json\n")
        assert b'"ok":false' in guest.recv(65536)


# --------------------------------------------------------------------------------- loss is NaN


def test_a_loss_that_becomes_nan(swarm, pair) -> None:
    """Comes last: weights that grow ninefold in each inner step are good for nothing afterwards."""
    founder = pair[0]
    absurd = ("train.optimizer=sgd", "train.lr=10", "train.weight_decay=1", "train.clip=0")
    succeed("plan", "set", *absurd, "train.warmup=0", "--state", founder.folder)
    for node in pair:
        node.wait(lambda s: "not finite" in str(s["why"]), "it says that steps are not finite")
        node.wait(lambda s: "not finite" in s["worker"]["last_error"], "the worker is replaced")
    for node in pair:
        assert node.is_running
        assert all(np.isfinite(values).all() for values in node.weights())
    for node, other in (pair, pair[::-1]):
        assert node.member(other.id)["state"] == "alive"
