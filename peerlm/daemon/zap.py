"""Who may open an encrypted connection: libzmq asks, this answers, by the key alone.

libzmq puts every CURVE handshake before the handler bound to a fixed in-process address (ZeroMQ
RFC 27), one handler a context. An admitted key's hex digits become the connection's User-Id, which
libzmq then vouches for on each message. A connection that is open stays open whatever is decided
later; receivers look the User-Id up again on each message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from peerlm.daemon.inlet import Inlet
from peerlm.daemon.sockets import Context

ADDRESS = "inproc://zeromq.zap.01"
REQUEST_PARTS_MAX = 10


@dataclass(frozen=True, slots=True)
class Request:
    """A connection's handshake, waiting for a verdict."""

    envelope: tuple[bytes, ...]
    mechanism: bytes
    credentials: tuple[bytes, ...]

    def reply(self, status: bytes, user_id: str) -> list[bytes]:
        """What to send back: status 200 lets in, 400 does not."""
        return [*self.envelope, status, b"", user_id.encode(), b""]


def parse(parts: list[zmq.Frame]) -> Request | None:
    """libzmq's question, or None for what is none."""
    fields = tuple(part.bytes for part in parts)
    if not 8 <= len(fields) <= REQUEST_PARTS_MAX:
        return None
    route, empty, version, request, _domain, _address, _identity, mechanism, *credentials = fields
    return Request((route, empty, version, request), mechanism, tuple(credentials))


class Admission:
    """Answers libzmq's questions on the loop, from before the first CURVE socket is bound.

    `admits(key)` takes the client's key in hex digits.
    """

    def __init__(
        self, context: Context, admits: Callable[[str], bool], counters: Counter[str]
    ) -> None:
        self._admits = admits
        self._counters = counters
        router = context.socket(zmq.ROUTER)
        router.set(zmq.LINGER, 0)
        router.bind(ADDRESS)
        self._inlet = Inlet(router, REQUEST_PARTS_MAX, self._on_request)

    def close(self) -> None:
        self._inlet.close()

    def _on_request(self, parts: list[zmq.Frame]) -> None:
        request = parse(parts)
        if request is None:
            return
        key = request.credentials[0].hex() if request.credentials else ""
        if request.mechanism == b"CURVE" and self._admits(key):
            self._inlet.send(request.reply(b"200", key))
        else:
            self._counters["handshakes_denied"] += 1
            self._inlet.send(request.reply(b"400", ""))
