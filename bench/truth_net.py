"""A small network of its own: nodes on two bridges, any of which can be cut off without a word.

Every node has a network namespace. In one more lie two bridges, half of the nodes on each, and the
cable between them. Pulling a node's plug, or the cable, is taking a port out of its bridge: frames are
lost in both directions and nobody is told, as when a machine loses power or a switch dies. (Setting
the port down would tell; and setting it up again takes the kernel up to a second to notice.)

Nothing is left behind, however this process ends (peerlm/bench/namespaces.py).
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from peerlm.bench.namespaces import entered, ip, new_namespace
from peerlm.cli.leash import die_with_parent as die_with_parent

SIOCBRADDIF, SIOCBRDELIF = 0x89A2, 0x89A3

HALVES = ("half-a", "half-b")
CABLE = ("cable-a", "cable-b")


def address_of(node: int) -> str:
    """The address of node 1, 2 and so on."""
    return f"10.77.0.{node}"


class Network:
    """Nodes 1 to `nodes`; the first half is on one bridge, the rest on the other.

    Raises `Missed` where namespaces cannot be made.
    """

    def __init__(self, nodes: int) -> None:
        self._inside: dict[int, int] = {}
        self._ports: dict[str, tuple[str, int]] = {}
        self._switch = new_namespace()
        with entered(self._switch):
            # A socket belongs to the namespace it was made in: this one moves ports from outside.
            self._wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._build(nodes)
        except BaseException:
            self.close()
            raise

    def _build(self, nodes: int) -> None:
        with entered(self._switch):
            ip(
                *(f"link add {half} type bridge" for half in HALVES),
                f"link add {CABLE[0]} type veth peer name {CABLE[1]}",
                *(f"link set {name} up" for name in (*HALVES, *CABLE)),
            )
        for half, end in zip(HALVES, CABLE, strict=True):
            self._plug(end, half)
        for node in range(1, nodes + 1):
            inside = self._inside[node] = new_namespace()
            with entered(self._switch):
                there = f"/proc/{os.getpid()}/fd/{inside}"
                ip(
                    f"link add port{node} type veth peer name eth0 netns {there}",
                    f"link set port{node} up",
                )
            with entered(inside):
                ip(
                    "link set lo up",
                    f"address add {address_of(node)}/24 dev eth0",
                    "link set eth0 up",
                )
            self._plug(f"port{node}", HALVES[node > nodes // 2])

    @contextmanager
    def at(self, node: int) -> Iterator[None]:
        """What is started in here is on this node's machine. Main thread only."""
        with entered(self._inside[node]):
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
        with entered(self._switch):
            self._ports[port] = bridge, socket.if_nametoindex(port)
        self._move(port, SIOCBRADDIF)

    def _move(self, port: str, request: int) -> None:
        """Into its bridge or out of it."""
        bridge, index = self._ports[port]
        fcntl.ioctl(self._wire, request, struct.pack("16si20x", bridge.encode(), index))
