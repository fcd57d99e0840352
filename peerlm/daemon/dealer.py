"""One encrypted connection we dialled: a CURVE DEALER and the monitor that tells how it fares.

Whoever answers on it holds the secret half of the key we dialled, so all that comes from it is that
peer's. It reports `on_up` when the handshake is done and `on_down(reason)` once, when it ends:
closed (the connection broke), denied (our key is not admitted there), timeout (no handshake in
time). After `on_down` it is closed; whether to dial again is the core's to say.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass

import zmq
from zmq.utils import z85

from peerlm.daemon.inlet import Inlet
from peerlm.daemon.resolve import is_ip, reach, resolve
from peerlm.daemon.sockets import Context, Socket, connect, make_socket
from peerlm.errors import Unreachable
from peerlm.wire.codec import FRAME_BYTES_MAX

DIAL_TIMEOUT_S = 8.0
HEARTBEAT_TIMEOUT_MS = 6000
QUEUE_MESSAGES = 1000
"""Most messages queued to one peer; past it sending fails, and gossip repairs."""

_WATCHED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
)


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """An X25519 pair as libzmq wants it: 40 characters of Z85 each."""

    public: bytes
    secret: bytes

    @staticmethod
    def of(public_key: bytes, secret_key: bytes) -> CurveKeys:
        """From the raw 32 bytes of each half."""
        return CurveKeys(z85.encode(public_key), z85.encode(secret_key))


def make_control_socket(context: Context, kind: int, keys: CurveKeys) -> Socket:
    """A CURVE socket of the control plane, neither bound nor connected."""
    socket = make_socket(
        context,
        kind,
        frame_bytes_max=FRAME_BYTES_MAX,
        hwm=QUEUE_MESSAGES,
        heartbeat_timeout_ms=HEARTBEAT_TIMEOUT_MS,
    )
    socket.set(zmq.CURVE_PUBLICKEY, keys.public)
    socket.set(zmq.CURVE_SECRETKEY, keys.secret)
    return socket


class Dealer:
    """Dials at once. `hold`: messages sent before the handshake wait for it instead of failing."""

    def __init__(
        self,
        context: Context,
        keys: CurveKeys,
        host: str,
        port: int,
        server_key: bytes,
        *,
        on_message: Callable[[list[zmq.Frame]], None],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        hold: bool = False,
    ) -> None:
        self.up = False
        self.target = (host, port, server_key)
        self._port = port
        self._on_up = on_up
        self._on_down = on_down
        self._closed = False
        self._socket = make_control_socket(context, zmq.DEALER, keys)
        self._socket.set(zmq.CURVE_SERVERKEY, z85.encode(server_key))
        # Never the same twice and not to be guessed, so nobody can take a connection over by its
        # id; and nobody may tell who we are from it. Must not start with a zero byte.
        self._socket.set(zmq.ROUTING_ID, b"\x01" + secrets.token_bytes(15))
        self._socket.set(zmq.IMMEDIATE, 0 if hold else 1)
        self._watch = Inlet(self._socket.get_monitor_socket(_WATCHED), 2, self._on_sign)
        self._inlet = Inlet(self._socket, 1, on_message)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(DIAL_TIMEOUT_S, self._end, "timeout")
        self._lookup: asyncio.Task[None] | None = None
        self._hold = hold
        self._held: list[bytes] = []
        if is_ip(host):
            self._connect(host)
        else:
            self._lookup = loop.create_task(self._connect_by_name(host))

    def send(self, data: bytes) -> bool:
        """Queue a message; False when it cannot be."""
        if self._closed:
            return False
        if self._hold and self._lookup is not None:
            self._held.append(data)  # no connection is being made yet that could hold it
            return True
        try:
            self._inlet.send([data])
        except zmq.ZMQError:
            return False
        return True

    def close(self, linger_ms: int = 0) -> None:
        """End without a report. May be called again."""
        if self._closed:
            return
        self._closed = True
        self.up = False
        self._deadline.cancel()
        if self._lookup is not None:
            self._lookup.cancel()
        self._socket.disable_monitor()
        self._watch.close()
        self._inlet.close(linger_ms)

    async def _connect_by_name(self, host: str) -> None:
        try:
            ip = await reach(await resolve(host), self._port)
        except Unreachable:
            self._lookup = None
            self._end("timeout")
            return
        self._lookup = None
        self._connect(ip)
        for data in self._held:
            self.send(data)

    def _connect(self, ip: str) -> None:
        """An address of an interface that is not here is none for libzmq: the connection ends, when this call is over."""
        try:
            connect(self._socket, ip, self._port)
        except zmq.ZMQError:
            asyncio.get_running_loop().call_soon(self._end, "timeout")

    def _on_sign(self, parts: list[zmq.Frame]) -> None:
        (event,) = struct.unpack_from("=H", parts[0].buffer)
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._deadline.cancel()
            self.up = True
            self._on_up()
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._end("denied")
        elif self.up or event != zmq.EVENT_DISCONNECTED:
            self._end("closed")

    def _end(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._on_down(reason)
