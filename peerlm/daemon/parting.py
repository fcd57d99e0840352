"""What becomes of a connection when its transfer is over: its last frame goes out, then it is kept or closed.

Closing on what the other side still sends would make the kernel take our last words back, so they are let run out for a
moment. When both ends have said so, the connection waits for the next transfer between them (`daemon.kept`): if it was
dialled by us we may take it again, if it has called us it is a caller once more as soon as it speaks.
Used in the bulk thread only.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from peerlm.daemon.buffers import Buffers
from peerlm.daemon.kept import Kept, Target
from peerlm.daemon.sockets import drop
from peerlm.daemon.stream import Rest, Stream, watch

GOODBYE_S = 1.0
"""To get the last frame out."""


class _Leaving(NamedTuple):
    until: float
    target: Target | None
    """Where it was dialled."""


class Parting:
    """Its length is that of streams whose last frame is not out. `again` is told of a kept connection of a caller that
    begins again, or ends."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        buffers: Buffers,
        again: Callable[[socket.socket], None],
    ) -> None:
        self._selector, self._buffers, self._again = selector, buffers, again
        self._leaving: dict[Stream, _Leaving] = {}
        self.kept = Kept()

    def __len__(self) -> int:
        return len(self._leaving)

    def add(self, stream: Stream, target: Target | None) -> None:
        """Its transfer is over. Call `tick` until none is left."""
        self._leaving[stream] = _Leaving(time.monotonic() + GOODBYE_S, target)
        self.part(stream)

    def tick(self, now: float) -> None:
        """Close what has waited long enough."""
        for connection in self.kept.overdue(now):
            drop(self._selector, connection)
        for stream in [s for s, leaving in self._leaving.items() if now >= leaving.until]:
            self.part(stream)

    def part(self, stream: Stream) -> None:
        """Get the last frame out, then keep or close."""
        while stream.wants_to_write and stream.write():
            pass
        rest = Rest.OPEN if stream.wants_to_write else stream.rest()
        leaving = self._leaving[stream]
        if rest is Rest.OPEN and time.monotonic() < leaving.until:
            watch(self._selector, stream, partial(self._on_ready, stream), listens=True)
            return
        del self._leaving[stream]
        if rest is Rest.KEPT:
            self._keep(stream, leaving.target)
        else:
            self.close(stream)

    def _on_ready(self, stream: Stream, mask: int) -> None:
        stream.note_ready(mask)
        if stream in self._leaving:
            self.part(stream)

    def close(self, stream: Stream) -> None:
        """At once, without another word."""
        drop(self._selector, stream.connection)
        self._buffers.take_back(stream.buffers)

    def _keep(self, stream: Stream, target: Target | None) -> None:
        connection = stream.connection
        self._buffers.take_back(stream.buffers)
        if connection in self._selector.get_map():
            self._selector.unregister(connection)
        ready = partial(self._on_kept, connection, target)
        self._selector.register(connection, selectors.EVENT_READ, ready)
        for late in self.kept.add(connection, target, time.monotonic()):
            drop(self._selector, late)

    def _on_kept(self, connection: socket.socket, target: Target | None, mask: int) -> None:
        """A kept connection of a caller begins again, or ends. One that was dialled can only have ended."""
        if connection not in self.kept:
            return  # closed for another, in this very turn
        self.kept.drop(connection)
        self._selector.unregister(connection)
        if target is None:
            self._again(connection)
        else:
            connection.close()

    def forget_kept(self, target: Target) -> None:
        """None that was dialled there is of use any more."""
        for connection in self.kept.take_all(target):
            drop(self._selector, connection)

    def close_all(self) -> None:
        for stream in list(self._leaving):
            self._leaving[stream] = _Leaving(0.0, None)
            self.part(stream)
        for connection in self.kept.clear():
            drop(self._selector, connection)
