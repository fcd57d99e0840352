"""Clients that mean no good: each kind does what its name says, and they come again."""

from __future__ import annotations

import random
import selectors
import socket
import subprocess
import sys
import time

from peerlm.chaos.guests import BEGINNINGS, DRIP_S, PATIENCE_S, Guest, Manner, guest

HOLD_S = 30.0


def said(manner: Manner, seconds: int) -> list[bytes]:
    """What one says in so many rounds of a quarter of a second."""
    visitor, rng = Guest(manner, 0.0, PATIENCE_S, BEGINNINGS[0]), random.Random(1)
    return [visitor.says(n / 4, rng) for n in range(4 * seconds)]


def test_each_kind_does_what_its_name_says() -> None:
    assert not any(said(Manner.SILENT, 60))
    assert [words for words in said(Manner.HALF, 60) if words] == [BEGINNINGS[0]]
    assert sum(map(len, said(Manner.GARBAGE, 10))) > 3_000
    drips = [words for words in said(Manner.SLOW, 60) if words]
    assert [len(drip) for drip in drips] == [1] * int(60 / DRIP_S)
    assert b"".join(drips).startswith(BEGINNINGS[0])


def test_all_kinds_come_and_those_who_say_little_stay() -> None:
    rng = random.Random(2)
    visitors = [guest(100.0, rng) for _ in range(60)]
    assert {visitor.manner for visitor in visitors} == set(Manner)
    assert all(
        visitor.until == 100.0 + PATIENCE_S
        for visitor in visitors
        if visitor.manner is not Manner.GARBAGE
    )


def test_they_come_to_every_port_again_and_again() -> None:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [str(listener.getsockname()[1]) for listener in listeners]
    command = [sys.executable, "-m", "peerlm.chaos.guests", "127.0.0.1", *ports]
    came = dict.fromkeys(listeners, 0)
    process = subprocess.Popen(command)
    try:
        with selectors.DefaultSelector() as selector:
            for listener in listeners:
                selector.register(listener, selectors.EVENT_READ)
            end = time.monotonic() + HOLD_S
            while min(came.values()) < 6:  # all are hung up on at once, so there is always room
                assert time.monotonic() < end, came
                for key, _ in selector.select(1.0):
                    listener = next(one for one in listeners if one is key.fileobj)
                    listener.accept()[0].close()
                    came[listener] += 1
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        for listener in listeners:
            listener.close()
