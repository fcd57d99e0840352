"""A small network of its own: nodes on two bridges, any of which can be cut off without a word.

Every node has a network namespace. In one more lie two bridges, half of the nodes on each, and the
cable between them. Pulling a node's plug, or the cable, is taking a port out of its bridge: frames are
lost in both directions and nobody is told, as when a machine loses power or a switch dies. (Setting
the port down would tell; and setting it up again takes the kernel up to a second to notice.)

No namespace has a name: each lives as long as this process holds it or a process runs in it, and takes
its bridges and cables with it. So nothing is left behind, however this process ends. Nothing is
seen of the machine's own network, and nothing of it can be reached.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from bench.report import Missed

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
SIOCBRADDIF, SIOCBRDELIF = 0x89A2, 0x89A3

HALVES = ("half-a", "half-b")
CABLE = ("cable-a", "cable-b")

_libc = ctypes.CDLL(None, use_errno=True)


def address_of(node: int) -> str:
    """The address of node 1, 2 and so on."""
    return f"10.77.0.{node}"


class Network:
    """Nodes 1 to `nodes`; the first half is on one bridge, the rest on the other.

    Raises `Missed` where namespaces cannot be made.
    """

    def __init__(self, nodes: int) -> None:
        if not shutil.which("ip"):
            raise Missed("needs the command `ip` (package iproute2)")
        self._inside: dict[int, int] = {}
        self._ports: dict[str, tuple[str, int]] = {}
        self._switch = _new_namespace()
        with _entered(self._switch):
            # A socket belongs to the namespace it was made in: this one moves ports from outside.
            self._wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._build(nodes)
        except BaseException:
            self.close()
            raise

    def _build(self, nodes: int) -> None:
        with _entered(self._switch):
            _ip(
                *(f"link add {half} type bridge" for half in HALVES),
                f"link add {CABLE[0]} type veth peer name {CABLE[1]}",
                *(f"link set {name} up" for name in (*HALVES, *CABLE)),
            )
        for half, end in zip(HALVES, CABLE, strict=True):
            self._plug(end, half)
        for node in range(1, nodes + 1):
            inside = self._inside[node] = _new_namespace()
            with _entered(self._switch):
                there = f"/proc/{os.getpid()}/fd/{inside}"
                _ip(
                    f"link add port{node} type veth peer name eth0 netns {there}",
                    f"link set port{node} up",
                )
            with _entered(inside):
                _ip(
                    "link set lo up",
                    f"address add {address_of(node)}/24 dev eth0",
                    "link set eth0 up",
                )
            self._plug(f"port{node}", HALVES[node > nodes // 2])

    @contextmanager
    def at(self, node: int) -> Iterator[None]:
        """What is started in here is on this node's machine. Main thread only."""
        with _entered(self._inside[node]):
            yield

    def pull_plug(self, node: int) -> None:
        """From now on nothing leaves or reaches this node."""
        self._move(f"port{node}", SIOCBRDELIF)

    def put_plug(self, node: int) -> None:
        """Undo that."""
        self._move(f"port{node}", SIOCBRADDIF)

    def part(self) -> None:
        """From now on nothing passes between the halves."""
        self._move(CABLE[0], SIOCBRDELIF)

    def rejoin(self) -> None:
        self._move(CABLE[0], SIOCBRADDIF)

    def close(self) -> None:
        """Let go; the network is gone when no node runs any more."""
        self._wire.close()
        for namespace in (self._switch, *self._inside.values()):
            os.close(namespace)
        self._inside.clear()

    def _plug(self, port: str, bridge: str) -> None:
        with _entered(self._switch):
            self._ports[port] = bridge, socket.if_nametoindex(port)
        self._move(port, SIOCBRADDIF)

    def _move(self, port: str, request: int) -> None:
        """Into its bridge or out of it."""
        bridge, index = self._ports[port]
        fcntl.ioctl(self._wire, request, struct.pack("16si20x", bridge.encode(), index))


def die_with_parent() -> None:
    """For a child before it becomes its command: the kernel ends it when this process ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _new_namespace() -> int:
    """A file descriptor that holds it."""
    home = _here()
    if _libc.unshare(CLONE_NEWNET):
        os.close(home)
        why = os.strerror(ctypes.get_errno())
        raise Missed(f"network namespaces cannot be made here ({why}): run it as root, on Linux")
    made = _here()
    _enter(home)
    os.close(home)
    return made


@contextmanager
def _entered(namespace: int) -> Iterator[None]:
    """In another namespace, and back in today's afterwards."""
    home = _here()
    try:
        _enter(namespace)
        yield
    finally:
        _enter(home)
        os.close(home)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET):
        raise Missed(f"a network namespace is gone: {os.strerror(ctypes.get_errno())}")


def _here() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _ip(*commands: str) -> None:
    done = subprocess.run(
        ["ip", "-batch", "-"],
        input="\n".join(commands),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Missed(f"ip: {(done.stderr or done.stdout).strip().splitlines()[0]}")
