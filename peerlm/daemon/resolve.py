"""From what a person typed to an address that accepts connections, a step at a time.

Name servers can take half a minute to say nothing, so names are looked up in threads of their own,
never on the loop, in libzmq's I/O thread or in a pool whose threads hold up the end of the process.
Each step fails with its own name (resolve, connect), because "no such host" and "nothing listens
there" are different errands for the person who reads it.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import threading

from peerlm.errors import Unreachable

DEFAULT_PORT = 7700
RESOLVE_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 3.0
LOOKUPS_MAX = 16
"""Threads that may wait for a name server at once; a stuck one cannot be stopped."""

_lookups = threading.BoundedSemaphore(LOOKUPS_MAX)


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `tcp://host:port`, `host:port`, `[v6]:port` or a host alone (port 7700).

    Raises `Unreachable` at step resolve.
    """
    text = address.strip().removeprefix("tcp://").rstrip("/")
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port_text = rest.removeprefix(":")
    elif text.count(":") > 1:
        host, port_text = text, ""
    else:
        host, _, port_text = text.partition(":")
    port = int(port_text) if port_text.isascii() and port_text.isdigit() else -1
    port = DEFAULT_PORT if not port_text else port
    if not host or any(c.isspace() or c in "/@" for c in host) or not 1 <= port <= 65_535:
        raise Unreachable(
            "resolve", f"{address[:100]!r} is no address: must look like tcp://host:7700"
        )
    return host, port


def is_ip(host: str) -> bool:
    """Whether `host` is an IPv4 or IPv6 address that sockets take, not a name."""
    if "\0" in host or any(
        c.isspace() for c in host
    ):  # an interface after `%` may be of any letters
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def resolve(host: str, timeout_s: float = RESOLVE_TIMEOUT_S) -> tuple[str, ...]:
    """The IP addresses of a host, best first. Raises `Unreachable` at step resolve."""
    if is_ip(host):
        return (host,)
    if not _lookups.acquire(blocking=False):
        raise Unreachable("resolve", f"{host}: {LOOKUPS_MAX} names are being looked up already")
    loop = asyncio.get_running_loop()
    found: asyncio.Future[tuple[str, ...]] = loop.create_future()

    def settle(addresses: tuple[str, ...], error: Exception | None) -> None:
        if found.done():
            return
        if error is None:
            found.set_result(addresses)
        else:
            found.set_exception(error)

    def look_up() -> None:
        addresses: tuple[str, ...] = ()
        error: Exception | None = None
        try:
            infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            addresses = tuple(dict.fromkeys(str(info[4][0]) for info in infos))
        except (OSError, ValueError) as failure:  # of letters no name can have
            reason = getattr(failure, "strerror", None) or str(failure)
            error = Unreachable("resolve", f"{host}: {reason}")
        finally:
            _lookups.release()
        try:
            loop.call_soon_threadsafe(settle, addresses, error)
        except RuntimeError:
            pass  # the loop is closed: nobody waits

    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    try:
        async with asyncio.timeout(timeout_s):
            return await found
    except TimeoutError:
        raise Unreachable(
            "resolve", f"{host}: no name server answered in {timeout_s:g} s"
        ) from None


async def connect_first(
    addresses: tuple[str, ...], port: int, timeout_s: float = CONNECT_TIMEOUT_S
) -> tuple[str, socket.socket]:
    """The first address that accepts a TCP connection, and that connection (not blocking).

    Raises `Unreachable` at step connect.
    """
    failures = []
    for ip in addresses:
        try:
            async with asyncio.timeout(timeout_s / len(addresses)):
                return ip, await _connect(ip, port)
        except TimeoutError:
            failures.append(f"no answer from {ip} port {port}")
        except ConnectionRefusedError:
            failures.append(f"connection refused by {ip} port {port}: nothing listens there")
        except ValueError as error:
            failures.append(f"{ip!r} is no address: {error}")
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            failures.append(f"{ip} port {port}: {why}")
    raise Unreachable("connect", "; ".join(failures)[:300])


async def reach(addresses: tuple[str, ...], port: int) -> str:
    """The first address that accepts a TCP connection. Raises `Unreachable` at step connect."""
    ip, connection = await connect_first(addresses, port)
    connection.close()
    return ip


async def _connect(ip: str, port: int) -> socket.socket:
    """Not the loop's `sock_connect`: uvloop's looks addresses up in four threads more, which it keeps. Raises `OSError`."""
    connection = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    try:
        connection.setblocking(False)
        error = connection.connect_ex((ip, port))
        if error == errno.EINPROGRESS:
            await _until_writable(connection)
            error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
    except BaseException:
        connection.close()
        raise
    return connection


async def _until_writable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    is_writable = asyncio.Event()
    loop.add_writer(connection, is_writable.set)
    try:
        await is_writable.wait()
    finally:
        loop.remove_writer(connection)
