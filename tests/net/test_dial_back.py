"""To dial a peer for a try: what is open, what is not, who answers."""

from __future__ import annotations

import asyncio
import socket

import pytest

from peerlm.daemon.dial_back import try_dial
from peerlm.daemon.introduction import Introduction
from peerlm.effects import TryDial
from peerlm.events import DialTried, HelloCame
from peerlm.types import PeerId, RunId
from peerlm.wire.message import Hello, Welcome

BOTH_LOOPS = True
PEER = PeerId(bytes(16))
HELLO = Hello(1, RunId(bytes(16)), (b"certificate",))
WELCOME = Welcome(1, RunId(bytes(16)), (b"certificate",), 7701, 7702, "127.0.0.1")


@pytest.mark.parametrize("closed", ["none", "control", "bulk"])
async def test_all_three_ports_must_be_open(box, closed: str) -> None:
    door = await Introduction.listen(box.post, "127.0.0.1", 0)
    ports = {name: socket.create_server(("127.0.0.1", 0)) for name in ("control", "bulk")}
    numbers = {name: port.getsockname()[1] for name, port in ports.items()}
    if closed in ports:
        ports.pop(closed).close()
    try:
        effect = TryDial(PEER, "127.0.0.1", door.port, numbers["control"], numbers["bulk"])
        trying = asyncio.create_task(try_dial(effect, HELLO))
        came = await box.wait(HelloCame)
        assert came.hello == HELLO
        door.answer(came.route, WELCOME)
        found = await trying
    finally:
        for port in ports.values():
            port.close()
        await door.close()
    if closed == "none":
        assert found == DialTried(PEER, "", WELCOME)
    else:
        assert found.answer is None
        assert found.failure.startswith(
            f"connection refused by 127.0.0.1 port {numbers[closed]}: nothing listens there"
        )


async def test_nobody_at_the_introduction_port_and_no_such_name() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        found = await try_dial(TryDial(PEER, "127.0.0.1", taken.getsockname()[1], 1, 2), HELLO)
    assert found.failure.startswith("connection refused by 127.0.0.1")
    found = await try_dial(TryDial(PEER, "no such host", 7700, 1, 2), HELLO)
    assert "is no address" in found.failure
