"""The worker's end of the socket to its daemon: never a wait for words unless there is time to."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Sequence

from peerlm.train import protocol
from peerlm.train.protocol import Frames, Message

RECEIVE_BYTES = 1 << 16


class DaemonGone(Exception):
    """The daemon's end is closed: nobody is left to train for."""


class Channel:
    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._frames = Frames()
        self._ahead: list[Message] = []
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._check: Callable[[], None] = lambda: None

    def watch(self, descriptors: Sequence[int], check: Callable[[], None]) -> None:
        """From here on `receive` calls `check`, which raises, when one of these becomes readable."""
        self._check = check
        for descriptor in descriptors:
            self._poll.register(descriptor, select.POLLIN)

    def send(self, message: Message) -> None:
        """Send, waiting if the daemon is behind with reading. Raises `DaemonGone`."""
        try:
            self._socket.sendall(protocol.frame(message))
        except (BrokenPipeError, ConnectionResetError):
            raise DaemonGone from None

    def receive(self, patience_s: float | None = 0.0) -> list[Message]:
        """What has come; if nothing has, what comes first within `patience_s` (None: ever).

        Raises:
            DaemonGone: the other end is closed.
            WireError: the stream is broken.
        """
        messages, self._ahead = self._ahead, []
        while not messages and self._readable(patience_s):
            try:
                data = self._socket.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except ConnectionResetError:
                raise DaemonGone from None
            if not data:
                raise DaemonGone
            messages = self._frames.feed(data)
        return messages

    def receive_one(self) -> Message:
        """The next message alone, however long it takes. Raises as `receive`."""
        first, *self._ahead = self.receive(None)
        return first

    def _readable(self, patience_s: float | None) -> bool:
        """Rounds up to a millisecond, so that a caller who waits for an instant does not spin."""
        limit_ms = None if patience_s is None else -int(-patience_s * 1000 // 1)
        ready = {descriptor for descriptor, _ in self._poll.poll(limit_ms)}
        if ready - {self._socket.fileno()}:
            self._check()
        return self._socket.fileno() in ready


def tell(channel: Channel, error: Exception) -> int:
    """The last word of a process that fails; returns its exit status."""
    try:
        channel.send(protocol.Failed(one_line(error)))
    except (DaemonGone, OSError):
        pass  # the traceback is in the log
    return 1


def one_line(error: Exception) -> str:
    """Class and first line of the message, at most 300 characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:300] if lines else type(error).__name__
