"""Makes trouble for the nodes of compose.yaml: kills them, freezes them, takes them off the network, at random.

It talks to Docker's socket, so whoever may run it may do anything on the machine. Each kind comes at its own mean
time, to the first of the containers labelled peerlm.node at first and then to any that is drawn; what was done is undone
after a while, or when this ends. Seeds and times are environment variables: SEED, KILL_S, PAUSE_S, CUT_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import quote

import aiohttp

SOCKET = "/var/run/docker.sock"
LABEL = '{"label": ["peerlm.node=true"]}'
BACK_S = (5.0, 15.0)


class Docker:
    """The few calls that are needed, of the engine's HTTP interface."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        async with self._session.request(method, f"http://docker{path}", json=body) as answer:
            text = await answer.text()
            if answer.status >= 400 and answer.status != 409:  # 409: it is so already
                raise RuntimeError(f"{method} {path}: {answer.status} {text.strip()[:200]}")
            return await answer.json() if text and "json" in answer.content_type else None

    async def nodes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self.call(
            "GET", f"/containers/json?all=1&filters={quote(LABEL)}"
        )
        return sorted(found, key=lambda container: container["Names"][0])


async def kill(docker: Docker, node: dict[str, Any], rng: random.Random) -> None:
    await docker.call("POST", f"/containers/{node['Id']}/kill")
    try:
        await asyncio.sleep(rng.uniform(*BACK_S))
    finally:
        await docker.call("POST", f"/containers/{node['Id']}/start")


async def pause(docker: Docker, node: dict[str, Any], rng: random.Random) -> None:
    await docker.call("POST", f"/containers/{node['Id']}/pause")
    try:
        await asyncio.sleep(rng.uniform(2 * BACK_S[0], 2 * BACK_S[1]))
    finally:
        await docker.call("POST", f"/containers/{node['Id']}/unpause")


async def cut(docker: Docker, node: dict[str, Any], rng: random.Random) -> None:
    """Off its network and back, with the address it had."""
    networks = node["NetworkSettings"]["Networks"]
    if not networks:  # off it already
        return
    name, network = next(iter(networks.items()))
    address = network.get("IPAddress", "")
    back: dict[str, Any] = {"Container": node["Id"]}
    if address:
        back["EndpointConfig"] = {"IPAMConfig": {"IPv4Address": address}}
    off = {"Container": node["Id"], "Force": True}
    await docker.call("POST", f"/networks/{name}/disconnect", off)
    try:
        await asyncio.sleep(rng.uniform(*BACK_S))
    finally:
        await docker.call("POST", f"/networks/{name}/connect", back)


Act = Callable[[Docker, dict[str, Any], random.Random], Awaitable[None]]


def victim(
    nodes: Sequence[dict[str, Any]], rng: random.Random, *, has_begun: bool
) -> dict[str, Any] | None:
    """Of those that run: the first of all nodes until the kind `has_begun`, then any. None: wait for it, or nobody runs."""
    if not has_begun:
        return nodes[0] if nodes and nodes[0]["State"] == "running" else None
    up = [node for node in nodes if node["State"] == "running"]
    return rng.choice(up) if up else None


async def again_and_again(docker: Docker, act: Act, mean_s: float, rng: random.Random) -> None:
    has_begun = False
    while True:
        await asyncio.sleep(rng.expovariate(1 / mean_s))
        try:
            node = victim(await docker.nodes(), rng, has_begun=has_begun)
            if node is not None:
                has_begun = True
                sys.stdout.write(f"{act.__name__} {node['Names'][0]}\n")
                await act(docker, node, rng)
        except (RuntimeError, aiohttp.ClientError) as error:
            sys.stdout.write(f"{error}\n")
        sys.stdout.flush()


async def main() -> None:
    me = asyncio.current_task()
    assert me is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
    seed = int(os.environ.get("SEED", "1"))
    connector = aiohttp.UnixConnector(SOCKET)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as tasks:
        for act, name, usual_s in (
            (kill, "KILL_S", 60),
            (pause, "PAUSE_S", 120),
            (cut, "CUT_S", 120),
        ):
            mean_s = float(os.environ.get(name, usual_s))
            rng = random.Random(f"{seed} {act.__name__}")
            tasks.create_task(again_and_again(Docker(session), act, mean_s, rng))


if __name__ == "__main__":
    with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
        asyncio.run(main())
