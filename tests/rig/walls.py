"""Machines that not everybody can dial: behind a firewall that lets only answers in, or behind address translation.

All are namespaces. Open and walled ones have an address on one network, 10.79.0.0/24. A translated one has only
an address of its own, behind a router that is on that network and translates.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from needs import missing

from peerlm.bench.founding import Values
from peerlm.bench.namespaces import entered, ip, new_namespace

OPEN, WALLED, TRANSLATED, FORWARDED = "open", "walled", "translated", "forwarded"
"""A forwarded machine is a translated one whose router passes its three ports on."""

PORT = 7700


class Walls:
    """A place for nodes. `kinds`: of machine 1, 2 and so on."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self._kinds = kinds
        self._held: list[int] = []
        self._machines: dict[int, int] = {}
        self._street = self._namespace()
        with entered(self._street):
            ip("link add street type bridge", "link set street up")
        for number, kind in enumerate(kinds, 1):
            self._machines[number] = self._namespace()
            if kind in (OPEN, WALLED):
                self._join_street(self._machines[number], number)
            else:
                self._put_behind_router(number)
            if kind == WALLED:
                self.wall(number)

    # ------------------------------------------------------------------------ a place for nodes

    def at(self, node: int) -> AbstractContextManager[None]:
        return entered(self._machines[node])

    def address(self, node: int) -> str:
        behind = self._kinds[node - 1] in (TRANSLATED, FORWARDED)
        return f"192.168.{node}.2" if behind else f"10.79.0.{node}"

    def local(self, node: int) -> Values:
        return {}

    # --------------------------------------------------------------------------------- walls

    def wall(self, node: int) -> None:
        """From now on nothing but answers comes in; what does not is dropped without a word."""
        with self.at(node):
            _iptables("-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT")
            _iptables("-A INPUT -i eth0 -j DROP")

    def open(self, node: int) -> None:
        with self.at(node):
            _iptables("-F INPUT")

    def close(self) -> None:
        """The networks are gone when nothing on a machine runs any more."""
        for namespace in self._held:
            os.close(namespace)
        self._held.clear()

    # ------------------------------------------------------------------------------- private

    def _namespace(self) -> int:
        made = new_namespace()
        self._held.append(made)
        with entered(made):
            ip("link set lo up")
        return made

    def _join_street(self, machine: int, number: int, device: str = "eth0") -> None:
        with entered(self._street):
            ip(f"link add to-{number} type veth peer name {device} netns {_path(machine)}")
            ip(f"link set to-{number} master street up")
        with entered(machine):
            ip(f"addr add 10.79.0.{number}/24 dev {device}", f"link set {device} up")
            ip("route add default via 10.79.0.254")  # nobody: by it a node finds its own address

    def _put_behind_router(self, number: int) -> None:
        router, machine, inside = self._namespace(), self._machines[number], f"192.168.{number}"
        self._join_street(router, number, "out")
        with entered(router):
            ip(f"link add in type veth peer name eth0 netns {_path(machine)}")
            ip(f"addr add {inside}.1/24 dev in", "link set in up")
            with open("/proc/sys/net/ipv4/ip_forward", "w", encoding="ascii") as forward:
                forward.write("1")
            _iptables("-t nat -A POSTROUTING -o out -j MASQUERADE")
            if self._kinds[number - 1] == FORWARDED:
                ports = f"-p tcp --dport {PORT}:{PORT + 2}"
                _iptables(f"-t nat -A PREROUTING -i out {ports} -j DNAT --to {inside}.2")
        with entered(machine):
            ip(f"addr add {inside}.2/24 dev eth0", "link set eth0 up")
            ip(f"route add default via {inside}.1")


@contextmanager
def walls(*kinds: str) -> Iterator[Walls]:
    if os.geteuid() != 0 or not shutil.which("iptables") or not shutil.which("ip"):
        missing("needs root, ip (iproute2) and iptables")
    made = Walls(kinds)
    try:
        yield made
    finally:
        made.close()


def _path(namespace: int) -> str:
    return f"/proc/{os.getpid()}/fd/{namespace}"


def _iptables(arguments: str) -> None:
    done = subprocess.run(
        ["iptables", "-w", *arguments.split()], capture_output=True, text=True, check=False
    )
    if done.returncode:
        missing(f"iptables cannot do this here: {done.stderr.strip()}")
