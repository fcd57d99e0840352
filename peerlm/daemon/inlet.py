"""A ZeroMQ socket on the asyncio loop: each message that arrives becomes a call.

A ZeroMQ file descriptor does not mean "readable", it means "something may have happened", and it
says so once. So on each such sign the socket is drained, at most a batch at a time so that timers
and other sockets keep their turn, and looked at again after each send, because sending swallows the
sign too. There is no pending receive to cancel, hence none to lose a message by.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq

from peerlm.daemon.sockets import Socket, receive

BATCH = 64
"""Messages handled before the loop gets its turn."""


class Inlet:
    """Owns `socket`; calls `handle(parts)` on the loop for each message, in order.

    `parts` may be one longer than `parts_max`: then the message had too many. What `handle` raises
    goes to the loop's exception handler (of a daemon, that ends it), and the next message is
    handled all the same.
    """

    def __init__(
        self, socket: Socket, parts_max: int, handle: Callable[[list[zmq.Frame]], None]
    ) -> None:
        self._socket = socket
        self._parts_max = parts_max
        self._handle = handle
        self._loop = asyncio.get_running_loop()
        self._descriptor = int(socket.get(zmq.FD))
        self._scheduled = False
        self._closed = False
        self._loop.add_reader(self._descriptor, self._drain)
        self._schedule()

    def send(self, parts: list[bytes]) -> None:
        """Queue a message. Raises `zmq.ZMQError`: EAGAIN (queue full, or nobody connected) or
        EHOSTUNREACH (no such route)."""
        try:
            self._socket.send_multipart(parts, zmq.DONTWAIT)
        finally:
            if int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
                self._schedule()

    def close(self, linger_ms: int = 0) -> None:
        """Nothing is handled after this, also not from within `handle`. May be called again."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._descriptor)
            self._socket.close(linger=linger_ms)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._scheduled = False
        for _ in range(BATCH):
            if self._closed:
                return
            parts = receive(self._socket, self._parts_max)
            if parts is None:
                return
            try:
                self._handle(parts)
            except Exception as error:
                self._loop.call_exception_handler(
                    {"message": "handling a message failed", "exception": error, "fatal": True}
                )
        self._schedule()
