"""How every ZeroMQ socket of a node is made: options, addresses, ports, receiving.

libzmq's defaults suit a trusted machine room: frames of any size, queues for endpoints that are
gone, reconnecting ten times a second for ever, closing that blocks for ever. Ours are set here and
nowhere else, always before bind or connect, because they do not reach what is already bound.

Ports: each room binds the port it prefers or, when a person asked for none in particular, any free
one; nothing needs them to be neighbours, since introductions carry the others.
"""

from __future__ import annotations

import errno
import math
import resource
import selectors
import socket as tcp
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress

import zmq

from peerlm.daemon.pacing import UNKNOWN, Line
from peerlm.errors import ConfigError

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]

HANDSHAKE_TIMEOUT_MS = 5000
"""A connection that has not shaken hands by then is closed: what a half-open one can hold."""

_FILES_MAX = 1 << 20


def make_context(*, io_threads: int = 1, sockets_max: int = 65_536) -> Context:
    """A context of its own for one plane. Also raises this process's limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, _FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    context: Context = zmq.Context(io_threads)
    context.set(zmq.MAX_SOCKETS, sockets_max)  # 1023 by default: one DEALER a peer would not fit
    return context


def make_socket(
    context: Context, kind: int, *, frame_bytes_max: int, hwm: int, heartbeat_timeout_ms: int
) -> Socket:
    """A socket that drops what is dead, bounded in frame size and (per peer) in queued messages.

    The frame limit is of each part of a message, not of all: receivers check the number of parts.
    """
    socket = context.socket(kind)
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.MAXMSGSIZE, frame_bytes_max)
    socket.set(zmq.SNDHWM, hwm)
    socket.set(zmq.RCVHWM, hwm)
    socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_TIMEOUT_MS)
    socket.set(zmq.CONNECT_TIMEOUT, 3000)
    socket.set(zmq.RECONNECT_IVL, 200)
    socket.set(zmq.RECONNECT_IVL_MAX, 10_000)
    socket.set(zmq.HEARTBEAT_IVL, 2000)
    socket.set(zmq.HEARTBEAT_TIMEOUT, heartbeat_timeout_ms)
    socket.set(zmq.HEARTBEAT_TTL, heartbeat_timeout_ms)
    socket.set(zmq.TCP_MAXRT, 15_000)
    socket.set(zmq.TCP_KEEPALIVE, 1)
    socket.set(zmq.TCP_KEEPALIVE_IDLE, 30)
    socket.set(zmq.TCP_KEEPALIVE_INTVL, 10)
    socket.set(zmq.TCP_KEEPALIVE_CNT, 3)
    if kind == zmq.ROUTER:
        socket.set(zmq.BACKLOG, 1024)
        socket.set(zmq.ROUTER_MANDATORY, 1)  # else what cannot be delivered vanishes in silence
        socket.set(zmq.ROUTER_HANDOVER, 1)  # else a second connection with an id is never heard
    return socket


# ------------------------------------------------------------------------------------------ TCP

TCP_INFO_BYTES = 192
LIMITED_AT, RTT_AT, ACKED_AT, LEAST_RTT_AT, DELIVERY_RATE_AT = 7, 68, 120, 148, 160
"""Where Linux's `struct tcp_info` has tcpi_delivery_rate_app_limited (its lowest bit), tcpi_rtt (in us), tcpi_bytes_acked,
tcpi_min_rtt (in us), and tcpi_delivery_rate, since 4.9."""

SO_MAX_PACING_RATE = 47
UNPACED = (1 << 64) - 1


def line_of(connection: tcp.socket) -> Line:
    """What TCP has measured of the way to the other end; `UNKNOWN` where the system does not say."""
    if sys.platform != "linux":
        return UNKNOWN
    try:
        info = connection.getsockopt(tcp.IPPROTO_TCP, tcp.TCP_INFO, TCP_INFO_BYTES)
        (rtt_us,) = struct.unpack_from("=I", info, RTT_AT)
        (least_us,) = struct.unpack_from("=I", info, LEAST_RTT_AT)
        (acked,) = struct.unpack_from("=Q", info, ACKED_AT)
        (rate,) = struct.unpack_from("=Q", info, DELIVERY_RATE_AT)
    except (OSError, struct.error):
        return UNKNOWN
    is_filled = not info[LIMITED_AT] & 1
    return Line(rtt_us / 1e6, least_us / 1e6, float(rate), is_filled, acked)


def pace(connection: tcp.socket, rate_bytes_s: float) -> None:
    """Have the system send no faster, infinite for as fast as it likes; nothing happens where it cannot."""
    rate = UNPACED if math.isinf(rate_bytes_s) else round(rate_bytes_s)
    if sys.platform == "linux":
        with suppress(OSError):
            connection.setsockopt(tcp.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("=Q", rate))


def drop(selector: selectors.BaseSelector, connection: tcp.socket) -> None:
    """Close it, watched or not."""
    if connection in selector.get_map():
        selector.unregister(connection)
    connection.close()


# ------------------------------------------------------------------------------------ addresses


def ports_from(base: int) -> tuple[int, int, int]:
    """Introduction, control and bulk port of a base port; 0 means any free one, for each."""
    return (base, base + 1, base + 2) if base else (0, 0, 0)


def bind(socket: Socket, host: str, port: int, *, or_free: bool = False) -> int:
    """Listen on `host` (empty: every address, IPv4 and IPv6) and `port` (0: a free one).

    `or_free`: take any free port when this one is taken. Returns the port. Raises `ConfigError`.
    """
    try:
        _bind(socket, host, port)
    except zmq.ZMQError as error:
        if error.errno == errno.EADDRINUSE and or_free and port:
            return bind(socket, host, 0)
        if error.errno == errno.EADDRNOTAVAIL and not host:
            return bind(socket, "0.0.0.0", port, or_free=or_free)  # IPv6 is switched off here
        raise _cannot_listen(host, port, error) from None
    return int(bytes(socket.get(zmq.LAST_ENDPOINT)).rstrip(b"\0").rsplit(b":", 1)[1])


def listen_tcp(host: str, port: int, *, or_free: bool = False) -> tcp.socket:
    """The same for plain TCP."""
    try:
        if host or not tcp.has_dualstack_ipv6():
            family = tcp.AF_INET6 if ":" in host else tcp.AF_INET
            return tcp.create_server((host, port), family=family, backlog=1024)
        return tcp.create_server(("", port), family=tcp.AF_INET6, backlog=1024, dualstack_ipv6=True)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and or_free and port:
            return listen_tcp(host, 0)
        if error.errno == errno.EADDRNOTAVAIL and not host:
            return listen_tcp("0.0.0.0", port, or_free=or_free)
        raise _cannot_listen(host, port, error) from None


def is_free(host: str, port: int) -> bool:
    """Whether one could listen there now."""
    try:
        listen_tcp(host, port).close()
    except ConfigError:
        return False
    return True


def _bind(socket: Socket, host: str, port: int) -> None:
    service = str(port) if port else "*"
    ipv6 = ":" in host or (not host and tcp.has_dualstack_ipv6())
    socket.set(zmq.IPV6, int(ipv6))
    socket.bind(f"tcp://[{host}]:{service}" if ":" in host else f"tcp://{host or '*'}:{service}")


def _cannot_listen(host: str, port: int, error: zmq.ZMQError | OSError) -> ConfigError:
    where = host or "all addresses"
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} on {where} is in use: set network.port in node.toml to another, "
            "or use --port 0 for any free ones"
        )
    return ConfigError(
        f"cannot listen on {where}, port {port}: {error.strerror}; "
        "check network.host and network.port in node.toml"
    )


def connect(socket: Socket, ip: str, port: int) -> None:
    """Connect to an IP address. Never a name: libzmq would look it up in its I/O thread."""
    socket.set(zmq.IPV6, 1 if ":" in ip else 0)
    socket.connect(f"tcp://[{ip}]:{port}" if ":" in ip else f"tcp://{ip}:{port}")


def property_of(frame: zmq.Frame, name: str) -> str:
    """A property libzmq vouches for (User-Id), or the empty string."""
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""


# ------------------------------------------------------------------------------------ receiving


def receive(socket: Socket, parts_max: int) -> list[zmq.Frame] | None:
    """One message without waiting, or None. One of too many parts comes cut to `parts_max` + 1."""
    try:
        parts = [socket.recv(zmq.DONTWAIT, copy=False)]
    except zmq.Again:
        return None
    for frame in _rest(socket, parts[0]):
        if len(parts) <= parts_max:
            parts.append(frame)
    return parts


def _rest(socket: Socket, frame: zmq.Frame) -> Iterator[zmq.Frame]:
    while frame.more:
        frame = socket.recv(zmq.DONTWAIT, copy=False)
        yield frame
