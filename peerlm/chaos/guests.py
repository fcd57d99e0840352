"""Clients that nobody asked for: `python -m peerlm.chaos.guests HOST PORT…` connects to each port again and again,
and says nothing, nonsense, half of something, or one byte a second. Until it is killed."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import sys
import time

AT_ONCE = 24
"""Connections held to each port."""

LIFE_S = 8.0
ROUND_S = 0.25

WORDS = (
    b"",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f" + bytes(54),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x00\x00\x10\x00" + b"\x93" * 64,
)


def main(host: str, ports: list[int]) -> None:
    rng, held = random.Random(0), dict[socket.socket, float]()
    while True:
        began = time.monotonic()
        for guest in [g for g, until in held.items() if until < began]:
            held.pop(guest)
            guest.close()
        for port in ports:
            if len(held) < AT_ONCE * len(ports):
                guest = socket.socket()
                guest.setblocking(False)
                guest.connect_ex((host, port))
                held[guest] = began + rng.uniform(0.0, LIFE_S)
        for guest in held:
            with contextlib.suppress(OSError):
                guest.send(rng.choice((rng.randbytes(rng.randrange(1, 3000)), *WORDS, b"x")))
        _drain(held)
        time.sleep(max(0.0, began + ROUND_S / len(ports) - time.monotonic()))


def _drain(held: dict[socket.socket, float]) -> None:
    ready, _, _ = select.select([*held], [], [], 0)
    for guest in ready:
        with contextlib.suppress(OSError):
            if guest.recv(1 << 16):
                continue
        held.pop(guest)
        guest.close()


if __name__ == "__main__":
    main(sys.argv[1], [int(port) for port in sys.argv[2:]])
