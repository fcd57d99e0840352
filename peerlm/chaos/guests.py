"""Clients that nobody asked for: `python -m peerlm.chaos.guests HOST PORT…` connects to each port again and again. Some say
nothing, some half of something, some nonsense without end, and some a single byte each second for as long as they are let
(slow loris). Until it is killed."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import sys
import time
from dataclasses import dataclass
from enum import Enum

AT_ONCE = 24
"""Connections held to each port."""

LIFE_S = 8.0
PATIENCE_S = 90.0
"""So long those stay who say little, if nobody hangs up on them."""

ROUND_S = 0.25
DRIP_S = 1.0

BEGINNINGS = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ",
    b"POST /sample HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n",
    b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f" + bytes(54),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x00\x00\x10\x00" + b"\x93" * 64,
)


class Manner(Enum):
    """How a guest behaves."""

    SILENT = "silent"
    HALF = "half"
    GARBAGE = "garbage"
    SLOW = "slow"


@dataclass(slots=True)
class Guest:
    """One connection, from `since` on. `said`: bytes so far."""

    manner: Manner
    since: float
    until: float
    beginning: bytes
    said: int = 0

    def says(self, now: float, rng: random.Random) -> bytes:
        """What it has to say by now."""
        match self.manner:
            case Manner.SILENT:
                words = b""
            case Manner.HALF:
                words = b"" if self.said else self.beginning
            case Manner.GARBAGE:
                words = rng.choice((rng.randbytes(rng.randrange(1, 3000)), *BEGINNINGS, b"x"))
            case Manner.SLOW:
                due = int((now - self.since) / DRIP_S) + 1
                words = (self.beginning + b"a" * due)[self.said : due]
        self.said += len(words)
        return words


def guest(now: float, rng: random.Random) -> Guest:
    """A new one."""
    manner = rng.choice(tuple(Manner))
    life_s = rng.uniform(0.0, LIFE_S) if manner is Manner.GARBAGE else PATIENCE_S
    return Guest(manner, now, now + life_s, rng.choice(BEGINNINGS))


def main(host: str, ports: list[int]) -> None:
    rng, held = random.Random(0), dict[socket.socket, tuple[int, Guest]]()
    while True:
        began = time.monotonic()
        for connection in [c for c, (_, guest) in held.items() if guest.until < began]:
            held.pop(connection)
            connection.close()
        for port in ports:
            if sum(to == port for to, _ in held.values()) < AT_ONCE:
                connection = socket.socket()
                connection.setblocking(False)
                connection.connect_ex((host, port))
                held[connection] = (port, guest(began, rng))
        for connection, (_, visitor) in held.items():
            with contextlib.suppress(OSError):
                if words := visitor.says(began, rng):
                    connection.send(words)
        _drain(held)
        time.sleep(max(0.0, began + ROUND_S / len(ports) - time.monotonic()))


def _drain(held: dict[socket.socket, tuple[int, Guest]]) -> None:
    """Hang up where the other side did."""
    ready, _, _ = select.select([*held], [], [], 0)
    for connection in ready:
        with contextlib.suppress(OSError):
            if connection.recv(1 << 16):
                continue
        held.pop(connection)
        connection.close()


if __name__ == "__main__":
    main(sys.argv[1], [int(port) for port in sys.argv[2:]])
