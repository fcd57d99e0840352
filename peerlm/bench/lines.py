"""Machines of our own with lines of a given rate, delay and loss between them.

Each machine is a network namespace with one interface, a TAP device whose other end is a process
(switch.py). Frames are large on fast lines that lose none, so that they cost few system calls; elsewhere they have
the usual size, so that loss, and a queue of frames, mean what they do elsewhere. Needs root on Linux, and `ip`.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from peerlm.bench.founding import Loopback, Place, Values
from peerlm.bench.namespaces import entered, ip, new_namespace
from peerlm.bench.rows import Missed
from peerlm.bench.switch import Trouble
from peerlm.cli.leash import die_with_parent
from peerlm.sim.network import Wire, read_wire

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000

MTU, LARGE_MTU = 1500, 9000
FAST_BYTES_S = 50e6

SUBNET = "10.78.0"


class Lines:
    """Machines 1 to `machines`, a place for nodes. `wire`: every direction of every line. Raises `Missed`."""

    def __init__(self, machines: int, wire: Wire, seed: int = 1) -> None:
        self._inside: dict[int, int] = {}
        devices: list[int] = []
        try:
            for machine in range(1, machines + 1):
                self._inside[machine] = new_namespace()
                is_fast = not wire.loss and wire.rate_bytes_s >= FAST_BYTES_S
                devices.append(self._device(machine, LARGE_MTU if is_fast else MTU))
            self._switch = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "peerlm.bench.switch"),
                    *map(str, (wire.rate_bytes_s, sum(wire.delay_s) / 2, wire.loss, seed)),
                    *map(str, devices),
                ],
                stdin=subprocess.PIPE,
                pass_fds=devices,
                preexec_fn=die_with_parent,
            )
        except BaseException:
            self._let_go()
            raise
        finally:
            for device in devices:
                os.close(device)

    def _device(self, machine: int, mtu: int) -> int:
        """The switch's end of a machine's interface."""
        with entered(self._inside[machine]):
            device = -1
            try:
                device = os.open("/dev/net/tun", os.O_RDWR)
                request = struct.pack("16sH22x", b"eth0", IFF_TAP | IFF_NO_PI)
                fcntl.ioctl(device, TUNSETIFF, request)
                ip(
                    "link set lo up",
                    f"address add {self.address(machine)}/24 dev eth0",
                    f"link set eth0 mtu {mtu} up",
                )
            except BaseException as error:
                if device >= 0:
                    os.close(device)
                if isinstance(error, OSError):
                    raise Missed(f"a TAP device cannot be made here: {error}") from None
                raise
        return device

    def at(self, node: int) -> AbstractContextManager[None]:
        """What is started in here is on this machine. Main thread only."""
        return entered(self._inside[node])

    def local(self, node: int) -> Values:
        return {"network.host": self.address(node)}

    def address(self, node: int) -> str:
        return f"{SUBNET}.{node}"

    def suffer(self, trouble: Trouble) -> None:
        """From now on this, and nothing of what was before. Ports are machines less one. Raises `Missed`."""
        assert self._switch.stdin is not None
        try:
            self._switch.stdin.write(trouble.to_line())
            self._switch.stdin.flush()
        except OSError:
            self.check()
            raise

    def check(self) -> None:
        """Raises `Missed` if the switch has ended."""
        if (status := self._switch.poll()) is not None:
            raise Missed(f"the switch between the machines has ended ({status})")

    def close(self) -> None:
        """The network is gone when nothing on a machine runs any more."""
        self._switch.kill()
        self._switch.communicate()
        self._let_go()

    def _let_go(self) -> None:
        for namespace in self._inside.values():
            os.close(namespace)
        self._inside.clear()


@contextmanager
def place_of(link: str, machines: int) -> Iterator[Place]:
    """Machines with lines as `--link` has it, or none of their own where it is empty. Raises `PeerlmError`."""
    if not link:
        yield Loopback()
        return
    laid = Lines(machines, read_wire(link))
    try:
        yield laid
        laid.check()
    finally:
        laid.close()
