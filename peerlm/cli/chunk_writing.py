"""Many chunks put through this node's desk: a few at a time, each by a connection of its own."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import BoundedSemaphore
from typing import TYPE_CHECKING

from peerlm.cli.desk_here import open_desk
from peerlm.store.layout import Layout
from peerlm.store.manifest import Chunk

if TYPE_CHECKING:
    from peerlm.daemon.desk_client import Client

AT_ONCE = 4

WAITING_MAX = 8
"""Chunks, of 4 MiB at most, that are under way or wait to be."""


class Writer:
    """As a context it hangs up in the end; what was put is then durable, or the error of what was not is raised. Left by
    an error or Ctrl-C, it hangs up at once."""

    def __init__(self, layout: Layout) -> None:
        self._desks = [open_desk(layout) for _ in range(AT_ONCE)]
        self._idle: SimpleQueue[Client] = SimpleQueue()
        for desk in self._desks:
            self._idle.put(desk)
        self._pool = ThreadPoolExecutor(AT_ONCE, "peerlm-put")
        self._room = BoundedSemaphore(WAITING_MAX)
        self._error: BaseException | None = None
        """Of the first that failed."""

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=kind is None, cancel_futures=True)
        for desk in self._desks:
            desk.close()

    def put(self, data: bytes) -> Future[Chunk]:
        """Waits while too many are under way. Raises what an earlier one did."""
        self._room.acquire()
        if self._error is not None:
            raise self._error
        future = self._pool.submit(self._put, data)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, future: Future[Chunk]) -> None:
        if not future.cancelled():
            self._error = self._error or future.exception()
        self._room.release()

    def _put(self, data: bytes) -> Chunk:
        desk = self._idle.get()
        try:
            return Chunk(desk.put(data), len(data))
        finally:
            self._idle.put(desk)
