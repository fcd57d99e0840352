"""Who is let in, and what those hear who are not: each in one line, and the swarm goes on mixing.

The scenes share one swarm of two. What is wrong is shown to the real command or to a real socket.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from swarm import (
    Node,
    Outcome,
    Swarm,
    assert_refused,
    closed_port,
    exchanged_more,
    init,
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


@pytest.fixture
def pair(swarm: Swarm, request: pytest.FixtureRequest) -> Iterator[list[Node]]:
    """Two nodes that mix, and still do after the scene."""
    pair = swarm.nodes[:2]
    yield pair
    for node in pair if "nan" not in request.node.name else ():
        node.wait(exchanged_more(node), "the swarm is unharmed: it goes on mixing")


def join(tmp_path: Path, address: str, token: str, *args: object) -> Outcome:
    done = peerlm("join", address, "--token", token, "--state", tmp_path / "new", *args)
    assert not (tmp_path / "new" / "identity").exists(), "a failed attempt leaves no node"
    return done


# ------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize("address", ["tcp://no-such-host.invalid:7700", "tcp://host:port"])
def test_an_address_that_does_not_resolve(swarm, pair, tmp_path, address) -> None:
    began = time.monotonic()
    assert_refused(join(tmp_path, address, swarm.invite()), 5, "resolve")
    assert time.monotonic() - began < AT_ONCE_S


def test_an_address_where_nothing_listens(swarm, pair, tmp_path) -> None:
    address = f"tcp://127.0.0.1:{closed_port()}"
    assert_refused(join(tmp_path, address, swarm.invite()), 5, address, "connect", "refused")


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.9\r\n", b"", b"\x00\x00\x00\x02\xff\xff"])
def test_an_address_where_something_else_listens(swarm, pair, tmp_path, greeting) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:

        def greet() -> None:
            guest, _ = door.accept()
            with guest:
                guest.sendall(greeting)
                guest.recv(65536)

        host = threading.Thread(target=greet)
        host.start()
        done = join(tmp_path, f"tcp://127.0.0.1:{door.getsockname()[1]}", swarm.invite())
        host.join()
    assert_refused(done, 5, "handshake")


def test_the_wrong_port_of_the_right_node(swarm, pair, tmp_path) -> None:
    base = int(pair[0].address.rpartition(":")[2])
    for port in set(pair[0].ports()) - {base}:
        assert_refused(join(tmp_path, f"tcp://127.0.0.1:{port}", swarm.invite()), 5, "handshake")


def test_with_wait_it_keeps_knocking(swarm, pair, tmp_path) -> None:
    node = Node(tmp_path / "patient")
    token = swarm.invite()
    node.start("join", f"tcp://127.0.0.1:{closed_port()}", "--token", token, "--wait")
    try:
        wait_for(lambda: node.said().count("trying again") >= 2, "two more tries", also=node.said())
        node.signal(signal.SIGINT)
        assert node.wait_end() == 130
        assert "Traceback" not in node.said()
    finally:
        node.end_all()


# --------------------------------------------------------------------------------------- tokens


def test_no_token_at_all(pair, tmp_path) -> None:
    assert_refused(join(tmp_path, pair[0].address, "open-sesame"), 4, "not a token")


def test_a_token_cut_short(swarm, pair, tmp_path) -> None:
    assert_refused(join(tmp_path, pair[0].address, swarm.invite()[:-20]), 4, "cut short")


def test_a_token_that_has_run_out(pair, tmp_path) -> None:
    root = files.read_root(pair[0].folder)
    past = WallTime(time.time() - 3600)
    roles = frozenset({Role.TRAIN})
    token = make_invite(root_inviter(root), roles, past, WallTime(past + 86_400), ())
    assert_refused(join(tmp_path, pair[0].address, token.to_text()), 4, "until", "new one")


def test_a_token_that_was_revoked(swarm, pair, tmp_path) -> None:
    done = peerlm("invite", "--state", pair[0].folder)
    token = done.out.split("--token ")[1].strip()
    serial = re.search(r"peerlm revoke ([0-9a-f]{32})", done.err)[1]
    succeed("revoke", serial, "--state", pair[0].folder)
    for node in pair:  # the second has heard it by gossip
        address = node.address
        wait_for(
            lambda address=address: "revoked" in join(tmp_path, address, token, "--enrol-only").err,
            "it refuses what was revoked",
        )
        done = join(tmp_path, address, token)
        assert_refused(done, 4, "admission", "revoked")


def test_a_token_of_another_run(pair, tmp_path) -> None:
    other = tmp_path / "other"
    init(other)
    line = succeed("invite", "--state", other, "--address", "127.0.0.1:1")
    done = join(tmp_path, pair[0].address, line.split("--token ")[1].strip())
    assert_refused(done, 4, "admission", "run")


# ----------------------------------------------------------------------------- plans and folders


def test_another_plan_of_the_same_revision_is_refused_on_both_sides(swarm, pair) -> None:
    founder = pair[0]
    stray = swarm.node()
    token, settings = swarm.invite(), "network.host=127.0.0.1"
    succeed(
        *("join", founder.address, "--token", token, "--state", stray.folder, "--enrol-only"),
        *("--set-node", settings, "--set-node", "network.port=0"),
    )
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


def test_join_where_a_node_is_already(swarm, pair) -> None:
    done = peerlm("join", pair[0].address, "--token", swarm.invite(), "--state", pair[1].folder)
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


# -------------------------------------------------------------------------------------- the doctor


def test_the_doctor_and_the_way_to_a_peer(swarm, pair) -> None:
    where = ("--state", pair[1].folder)
    well = peerlm("doctor", pair[0].address, *where)
    assert well.code == 0, well
    for what in (
        "lets this node in",
        "control",
        "bulk",
        "the daemon has a working connection with it",
    ):
        assert what in well.out
    nobody = peerlm("doctor", f"127.0.0.1:{closed_port()}", *where)
    assert nobody.code == 1
    assert "connect: connection refused" in nobody.out
    assert "Traceback" not in nobody.err


def test_the_doctor_of_another_run_is_refused(swarm, pair, tmp_path: Path) -> None:
    init(tmp_path / "other")
    done = peerlm("doctor", pair[0].address, "--state", tmp_path / "other")
    assert done.code == 1
    assert "refuses this node" in done.out


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
