"""Scenes with real sockets on loopback. Nothing sleeps: scenes wait for conditions, with deadlines."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio
import uvloop
import zmq
from swarm import Swarm

from peerlm.daemon.link import Links
from peerlm.events import Event
from peerlm.types import PeerId

E = TypeVar("E", bound=Event)
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    swarm = Swarm(tmp_path)
    try:
        yield swarm
    finally:
        swarm.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.net)


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Any]:
    """Test modules that say `BOTH_LOOPS = True` run on asyncio's own loop too."""
    both = getattr(item.module, "BOTH_LOOPS", False)  # type: ignore[attr-defined]
    return LOOPS if both else {"uvloop": LOOPS["uvloop"]}


class EventBox:
    """What was posted; a scene waits until an event it expects has come."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._came = asyncio.Event()

    def post(self, event: Event) -> None:
        self.events.append(event)
        self._came.set()

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    async def wait(
        self, kind: type[E], matches: Callable[[E], bool] = lambda _: True, timeout_s: float = 5.0
    ) -> E:
        """The first such event, which is then no longer in the box."""
        async with asyncio.timeout(timeout_s):
            while True:
                for event in self.of(kind):
                    if matches(event):
                        self.events.remove(event)
                        return event
                self._came.clear()
                await self._came.wait()


@dataclass
class Node:
    """A peer with links and a box of what they reported."""

    id: PeerId
    public: bytes
    secret: bytes
    box: EventBox
    links: Links

    def befriend(self, other: Node) -> None:
        self.links.admit(other.id, other.public)
        other.links.admit(self.id, self.public)

    def open(self, other: Node) -> None:
        self.links.open(other.id, "127.0.0.1", other.links.port, other.public)


@dataclass
class Town:
    """Makes nodes, and closes them all when the scene ends."""

    nodes: list[Node] = field(default_factory=list)

    def node(self, like: Node | None = None, port: int = 0) -> Node:
        """`like`: with the identity of that (closed) node."""
        public, secret = (like.public, like.secret) if like else curve_pair()
        peer = like.id if like else PeerId(secrets.token_bytes(16))
        box = EventBox()
        links = Links(box.post, "127.0.0.1", port, public, secret, peer)
        node = Node(peer, public, secret, box, links)
        self.nodes.append(node)
        return node

    async def close(self, node: Node) -> None:
        self.nodes.remove(node)
        await node.links.close()


def curve_pair() -> tuple[bytes, bytes]:
    public, secret = zmq.curve_keypair()
    return zmq.utils.z85.decode(public), zmq.utils.z85.decode(secret)


@pytest_asyncio.fixture(loop_scope="function")
async def town() -> AsyncIterator[Town]:
    town = Town()
    yield town
    for node in list(town.nodes):
        await town.close(node)


@pytest_asyncio.fixture(loop_scope="function")
async def box() -> EventBox:
    return EventBox()
