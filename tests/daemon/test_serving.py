"""What becomes of laps that cannot go on: they are answered, and nothing is kept of them."""

from __future__ import annotations

import asyncio
import os

import pytest

from peerlm import events
from peerlm.daemon import serving
from peerlm.daemon.serving import Serving
from peerlm.events import Event
from peerlm.serve import lap as laps
from peerlm.serve.lap import Head, Kind, Lap
from peerlm.train.protocol import Frames, Hop, Hosts, Served, frame
from peerlm.types import PeerId

ME, ADA, BOB = (PeerId(name * 16) for name in (b"m", b"a", b"b"))


def lap_of(kind: Kind, origin: PeerId = ME, number: int = 0) -> bytes:
    return laps.pack(Lap(Head(kind, origin, 7, number)))


class Scene:
    """`open`: peers with a channel."""

    def __init__(self) -> None:
        self.open: set[PeerId] = set()
        self.said: list[tuple[PeerId, bytes]] = []
        self.posted: list[Event] = []
        self.serving = Serving(
            self.posted.append,
            ME,
            lambda: pytest.fail("no stage server is to start"),
            self.say,
            lambda peer: peer in (ADA, BOB),
            lambda *_: None,
        )

    def say(self, peer: PeerId, data: bytes) -> bool:
        if peer in self.open:
            self.said.append((peer, data))
        return peer in self.open

    @property
    def wanted(self) -> list[PeerId]:
        return [event.peer for event in self.posted if isinstance(event, events.ChannelWanted)]

    def is_clean(self) -> bool:
        found = self.serving
        return not (found._unsent or found._lately or found._wanted_at or found._gateways)


class Writer:
    """Of a gateway: what it was told. `unread`: bytes that it leaves so."""

    def __init__(self) -> None:
        self.transport, self.unread, self.is_cut = self, 0, False
        self._frames = Frames()
        self.told: list[object] = []
        self._came = asyncio.Event()

    def write(self, data: bytes) -> None:
        self.told += self._frames.feed(data)
        self._came.set()

    async def until_told(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.told) < count:
                self._came.clear()
                await self._came.wait()

    def get_write_buffer_size(self) -> int:
        return self.unread

    def is_closing(self) -> bool:
        return self.is_cut

    def abort(self) -> None:
        self.is_cut = True

    @property
    def reasons(self) -> list[tuple[PeerId | None, str]]:
        hops = [message for message in self.told if isinstance(message, Hop)]
        lost = [laps.unpack(hop.data, 2, 4, 256, 48) for hop in hops]
        return [(lap.culprit, lap.reason) for lap in lost]


def test_what_stage_servers_count_adds_up() -> None:
    scene = Scene()
    serving = scene.serving
    serving._from_server(Served(3, 10, 1))
    serving._from_server(Served(3, 10, 1))
    serving._server_ended([])
    assert serving.counters == {"sessions": 0, "laps": 10, "lost": 1}
    serving._from_server(Served(1, 2, 0))
    assert serving.counters == {"sessions": 1, "laps": 12, "lost": 1}
    assert scene.posted == [events.TextsCounted(count) for count in (3, 0, 1)]


async def test_a_lap_waits_for_a_channel_with_a_member_and_is_lost_without(monkeypatch) -> None:
    monkeypatch.setattr(serving, "UNSENT_S", 0.05)
    scene, reader, writer = Scene(), asyncio.StreamReader(), Writer()
    talking = asyncio.create_task(scene.serving.talk(reader, writer))
    for peer in (ADA, BOB, BOB, PeerId(b"?" * 16)):
        reader.feed_data(frame(Hop(peer, lap_of(Kind.FORWARD))))
    await writer.until_told(2)
    assert writer.reasons == [(b"?" * 16, "it is not known here")]
    assert scene.wanted == [ADA, BOB]
    scene.open.add(ADA)
    scene.serving.channel_is(ADA, True)
    assert [peer for peer, _ in scene.said] == [ADA]
    await writer.until_told(4)
    assert writer.reasons[1:] == 2 * [(BOB, "no connection within 0.05 s")]
    scene.open.remove(ADA)
    scene.serving.channel_is(ADA, False)
    assert writer.reasons[3:] == [(ADA, "its connection broke")]
    reader.feed_eof()
    await talking
    assert scene.is_clean()


async def test_nothing_is_kept_of_laps_that_nobody_sent() -> None:
    scene = Scene()
    for number in range(100):
        scene.serving.hear(ADA, lap_of(Kind.FORWARD, PeerId(os.urandom(16)), number))
        scene.serving.hear(ADA, lap_of(Kind.HOME, PeerId(os.urandom(16)), number))
    scene.serving.hear(ADA, b"?")
    assert scene.wanted == [ADA]
    assert isinstance(scene.posted[-1], events.Misbehaved)
    scene.serving.channel_is(ADA, False)
    assert scene.is_clean()


async def test_a_gateway_that_reads_nothing_is_hung_up_on() -> None:
    scene, reader, writer = Scene(), asyncio.StreamReader(), Writer()
    talking = asyncio.create_task(scene.serving.talk(reader, writer))
    await writer.until_told(1)
    assert writer.told == [Hosts(ME, (), (), ())]
    writer.unread = serving.WAITING_BYTES_MAX + 1
    scene.serving.hosts_are(((ADA, 0, 1),))
    assert writer.is_cut
    assert len(writer.told) == 1
    reader.feed_eof()
    await talking
    assert scene.is_clean()


async def test_a_gateway_speaks_for_itself_alone() -> None:
    scene, reader, writer = Scene(), asyncio.StreamReader(), Writer()
    reader.feed_data(frame(Hop(ADA, lap_of(Kind.FORWARD, BOB))))
    await scene.serving.talk(reader, writer)
    assert scene.is_clean()
