"""Who may open an encrypted connection: libzmq asks, this answers, by the key alone.

libzmq puts every CURVE handshake before the handler bound to a fixed in-process address (ZeroMQ
RFC 27), one handler a context. An admitted key's hex digits become the connection's User-Id, which
libzmq then vouches for on each message. A connection that is open stays open whatever is decided
later; receivers look the User-Id up again on each message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import zmq

from peerlm.daemon.inlet import Inlet
from peerlm.daemon.sockets import Context

ADDRESS = "inproc://zeromq.zap.01"
_REQUEST_PARTS = 9  # route, empty, version, request id, domain, address, identity, mechanism, key


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
        self._inlet = Inlet(router, _REQUEST_PARTS, self._on_request)

    def close(self) -> None:
        self._inlet.close()

    def _on_request(self, parts: list[zmq.Frame]) -> None:
        fields = [part.bytes for part in parts]
        if len(fields) != _REQUEST_PARTS:
            self._counters["handshakes_denied"] += 1
            return
        route, empty, version, request, *_, mechanism, credential = fields
        key = credential.hex()
        if mechanism == b"CURVE" and self._admits(key):
            verdict = [b"200", b"", key.encode(), b""]
        else:
            self._counters["handshakes_denied"] += 1
            verdict = [b"400", b"this key is not admitted", b"", b""]
        self._inlet.send([route, empty, version, request, *verdict])
