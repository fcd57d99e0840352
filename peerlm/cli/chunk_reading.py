"""Many chunks read through this node's desk: a few at a time, each by a connection of its own, handed on in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING

from peerlm.cli.desk_here import READ_S, open_desk
from peerlm.daemon.control import NoDaemon
from peerlm.errors import StateError
from peerlm.store.layout import Layout

if TYPE_CHECKING:
    from peerlm.daemon.desk_client import Client
    from peerlm.store.manifest import Chunk

AT_ONCE = 4

AHEAD = 8
"""Chunks, of 4 MiB at most, that are read or wait to be taken."""


class Reader:
    """As a context it hangs up in the end."""

    def __init__(self, layout: Layout, open_one: Callable[[Layout], Client] = open_desk) -> None:
        self._desks = [open_one(layout) for _ in range(AT_ONCE)]
        self._idle: SimpleQueue[Client] = SimpleQueue()
        for desk in self._desks:
            self._idle.put(desk)
        self._pool = ThreadPoolExecutor(AT_ONCE, "peerlm-read")

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for desk in self._desks:
            desk.close()

    def read(
        self, chunks: Iterable[Chunk]
    ) -> Generator[tuple[Chunk, bytes | StateError], None, None]:
        """Each with its bytes, or with why they cannot be had. Raises `NoDaemon`: it has ended meanwhile."""
        waiting: deque[tuple[Chunk, Future[bytes | StateError]]] = deque()
        for chunk in chunks:
            waiting.append((chunk, self._pool.submit(self._one, chunk)))
            if len(waiting) == AHEAD:
                yield _taken(waiting)
        while waiting:
            yield _taken(waiting)

    def _one(self, chunk: Chunk) -> bytes | StateError:
        desk = self._idle.get()
        try:
            return desk.read(chunk.hash, chunk.size, READ_S)
        except NoDaemon:
            raise
        except StateError as error:
            return error
        finally:
            self._idle.put(desk)


def _taken(
    waiting: deque[tuple[Chunk, Future[bytes | StateError]]],
) -> tuple[Chunk, bytes | StateError]:
    chunk, future = waiting.popleft()
    return chunk, future.result()
