"""Five hundred hostile connections at every port, while a newcomer is let in and bytes are moved."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio
from words import Replies, Words

from peerlm.daemon.bulk import Bulk
from peerlm.daemon.introduction import Introduction
from peerlm.events import HelloCame, IntroductionAnswered, LinkUp, Received
from peerlm.wire.message import Hello, Ping, Welcome

HELLO = Hello(1, bytes(16), (b"certificate",))
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
"""What a ZeroMQ peer says first."""

CROWD = 500


@pytest_asyncio.fixture
async def door(box) -> AsyncIterator[Introduction]:
    door = await Introduction.listen(box.post, "127.0.0.1", 0)
    yield door
    await door.close()


@pytest_asyncio.fixture
async def bulks() -> AsyncIterator[tuple[Bulk, Bulk]]:
    ann, bob = Bulk("127.0.0.1", 0), Bulk("127.0.0.1", 0)
    yield ann, bob
    await ann.close()
    await bob.close()


async def crowd_at(port: int, kind: str) -> list[asyncio.StreamWriter]:
    writers = []
    for n in range(CROWD // 3):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        match kind:
            case "half-open":
                pass
            case "slow loris":
                writer.write(GREETING[: 1 + n % 60])
            case "garbage":
                writer.write(secrets.token_bytes(5000))
            case "oversized":
                writer.write(GREETING + b"\x06" + (1 << 40).to_bytes(8, "big") + bytes(5000))
        writers.append(writer)
    return writers


@pytest.mark.parametrize("kind", ["half-open", "slow loris", "garbage", "oversized"])
async def test_a_crowd_of_strangers_keeps_nobody_out(town, box, door, bulks, kind) -> None:
    ann, bob = town.node(), town.node()
    ann.befriend(bob)
    own, other = bulks
    rss_before = psutil.Process().memory_info().rss
    crowd = []
    for port in (door.port, bob.links.port, other.port):
        crowd += await crowd_at(port, kind)

    async with asyncio.timeout(5):
        door.dial(f"127.0.0.1:{door.port}", HELLO)
        came = await box.wait(HelloCame)
        door.answer(came.route, Welcome(1, bytes(16), (), 1, 2, came.from_host))
        await box.wait(IntroductionAnswered)
        ann.open(bob)
        await ann.box.wait(LinkUp)
        assert ann.links.send(bob.id, Ping(1, ()))
        assert await bob.box.wait(Received) == Received(ann.id, Ping(1, ()))
        transfer, up, down = (secrets.token_bytes(n) for n in (16, 32, 32))
        asking = Words([bytes(1 << 18)] * 4, [5] * 4, "fp32")
        answering = Replies([b"reply"] * 4, [1 << 18] * 4, "fp32")
        await asyncio.gather(
            own.exchange(transfer, "127.0.0.1", other.port, asking, (up, down), 5, 5),
            other.answer(transfer, answering, (up, down), 5, 5),
        )
        assert answering.came == [bytes(1 << 18)] * 4
        assert asking.came == [b"reply"] * 4

    assert bob.box.events == [LinkUp(ann.id, dialled=False)]
    assert psutil.Process().memory_info().rss - rss_before < 50 << 20
    for writer in crowd:
        writer.close()
