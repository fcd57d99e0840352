"""A server of a small random model on a real socket, in the test's own loop."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from serve_scene import model_of, plan_of, service_of

from peerlm.data.tokenizer import ByteTokenizer
from peerlm.serve.driver import Driver
from peerlm.serve.http import Front, Served
from peerlm.serve.keys import Key, Keyring
from peerlm.serve.metrics import Metrics
from peerlm.serve.service import Service
from peerlm.types import Instant


@dataclass
class Server:
    port: int
    driver: Driver
    front: Front
    metrics: Metrics
    session: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def post(
        self, path: str = "completions", headers: dict[str, str] | None = None, **body: Any
    ) -> tuple[int, dict[str, Any], Any]:
        """(status, JSON, headers)."""
        body = {"model": "plays", **body}
        async with self.session.post(f"{self.url}/v1/{path}", json=body, headers=headers) as answer:
            return answer.status, await answer.json(), answer.headers

    async def figures(self) -> str:
        async with self.session.get(f"{self.url}/metrics") as answer:
            return await answer.text()

    async def until_quiet(self) -> None:
        await until(lambda: not (self.driver.active or self.driver.waiting))


async def until(holds: Callable[[], object]) -> None:
    while not holds():  # noqa: ASYNC110  # it is another thread's doing
        await asyncio.sleep(0.01)


@asynccontextmanager
async def served(
    kind: str = "hybrid",
    *,
    slots: int = 8,
    queue: int = 64,
    tokens_max: int = 100_000,
    keys: tuple[Key, ...] = (),
    service: Service | None = None,
) -> AsyncIterator[Server]:
    plan = plan_of(kind)
    service = service or service_of(plan, model_of(plan), slots=slots, queue=queue)
    metrics = Metrics()
    driver = Driver(service, metrics, 1000)
    of = Served("plays", plan.model.context, plan.data.vocab, tokens_max, 65_536, 1)
    ring = Keyring(keys, Instant(0))
    front = Front(of, driver, ByteTokenizer(), ring, metrics, random.Random(1))
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)  # fills soon
    driver.start()
    await front.listen(listener)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Server(listener.getsockname()[1], driver, front, metrics, session)
    hurry = asyncio.Event()
    hurry.set()
    await front.close(hurry)
    await driver.close()


async def events(answer: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """The data of each event of a stream."""
    async for line in answer.content:
        if line.startswith(b"data: "):
            yield line[6:].strip().decode()
