"""What a service manager hears while a node lives: that its loop turns, and from when on it counts as started."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cli_scene import answer_of, sample_summary

from peerlm.cli.surroundings import surroundings
from peerlm.daemon import watch
from peerlm.daemon.control import ask
from peerlm.daemon.lobby import WAITING, wait_until_enrolled
from peerlm.daemon.notify import Health, Notifier
from peerlm.daemon.watch import SEEK_S, keep_watch
from peerlm.observe.history import History
from peerlm.store.layout import Layout

WATCHDOG_S = 0.03
HEARD_S = 5.0

SEEKING = Health(False, False, "seeking")
READY = Health(True, False, "training")
FED = ["WATCHDOG=1"]

Tell = Callable[[Health], None]
"""How the node is from now on."""


class Manager:
    """A service manager: where the node reports, and what it has heard."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        usec = str(round(WATCHDOG_S * 1e6))
        given = surroundings({"NOTIFY_SOCKET": end.getsockname(), "WATCHDOG_USEC": usec})
        self.notifier = Notifier(given.notify_address, given.watchdog_s)

    async def hear(self) -> list[str]:
        """What comes next, while the loop turns."""
        self._end.setblocking(False)
        async with asyncio.timeout(HEARD_S):
            said = await asyncio.get_running_loop().sock_recv(self._end, 4096)
        return said.decode().split("\n")

    async def hear_anew(self) -> list[str]:
        """What is said from now on: the first report after whatever is on its way."""
        self.forget()
        await self.hear()
        return await self.hear()

    async def hear_news(self) -> list[str]:
        """The next report of more than that the node lives."""
        said = FED
        for _ in range(10):
            if (said := await self.hear()) != FED:
                break
        return said

    def forget(self) -> None:
        self._end.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._end.recv(4096)

    def hear_within(self, seconds: float) -> list[str]:
        """The same, and whoever calls is held: the loop, when it is called there. Raises `TimeoutError`."""
        self._end.settimeout(seconds)
        return self._end.recv(4096).decode().split("\n")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        manager = Manager(end)
        yield manager
        manager.notifier.close()


class Idle:
    """A viewer that is not interested."""

    def see(self, status: dict[str, Any], at: float) -> None: ...


@contextlib.asynccontextmanager
async def running(watching: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(watching)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def watched(manager: Manager, folder: Path) -> AsyncIterator[Tell]:
    """A node that is looked at as the daemon has it looked at; it begins as one that seeks others."""
    health, status = [SEEKING], answer_of(sample_summary())
    with ThreadPoolExecutor(1) as threads:
        others = (History(), Idle(), Idle(), Layout(folder), threads)
        look = lambda: (health[-1], status)  # noqa: E731
        async with running(keep_watch(look, manager.notifier, *others)):
            yield health.append


@contextlib.asynccontextmanager
async def waiting(manager: Manager, folder: Path) -> AsyncIterator[Tell]:
    """The same of a service that is in no run yet."""
    health = [SEEKING]
    async with running(manager.notifier.keep_telling(lambda: health[-1])):
        yield health.append


@pytest.mark.parametrize("life", [watched, waiting])
async def test_the_watchdog_is_fed_by_the_loop_and_starves_while_that_is_held(
    manager: Manager, tmp_path: Path, life: Callable[..., Any]
) -> None:
    async with life(manager, tmp_path):
        assert await manager.hear() == [*FED, "STATUS=seeking"]
        assert await manager.hear() == FED
        manager.forget()
        with pytest.raises(TimeoutError):  # from here the loop is held, for longer than it may be
            manager.hear_within(5 * WATCHDOG_S)
        assert await manager.hear() == FED


async def test_a_node_counts_as_started_once_it_is_ready(manager: Manager, tmp_path: Path) -> None:
    async with watched(manager, tmp_path) as tell:
        assert await manager.hear() == [*FED, "STATUS=seeking"]
        assert await manager.hear_anew() == FED
        tell(READY)
        assert await manager.hear_news() == [*FED, "READY=1", "STATUS=training"]
        assert await manager.hear_anew() == FED, "it is said once"


async def test_who_finds_nobody_counts_as_started_after_a_minute_and_still_says_that_it_seeks(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(watch, "now", lambda: clock[-1])
    async with watched(manager, tmp_path):
        assert await manager.hear() == [*FED, "STATUS=seeking"]
        clock.append(1000.0 + SEEK_S)
        assert await manager.hear_anew() == FED
        clock.append(1000.0 + SEEK_S + 1)
        assert await manager.hear_news() == [*FED, "READY=1"]
        assert await manager.hear_anew() == FED, "it is said once"


def test_who_is_in_no_run_counts_as_started_at_once_and_says_what_to_do(
    manager: Manager, tmp_path: Path
) -> None:
    root = tmp_path / "node"

    def told() -> list[str]:
        try:
            return manager.hear_within(HEARD_S)
        finally:
            ask(Layout(root), "stop")

    with ThreadPoolExecutor(1) as beside:
        heard = beside.submit(told)
        assert not wait_until_enrolled(root, lambda plan, changes: None, notifier=manager.notifier)
    assert heard.result() == [*FED, "READY=1", f"STATUS={WAITING}"]
