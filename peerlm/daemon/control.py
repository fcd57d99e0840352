"""Local control: how a person's commands reach the daemon on the same machine.

A Unix socket in the state directory (of a system service: in its runtime folder) takes one JSON object per line and answers each with one:

    {"command": "status"}                 {"ok": true, "result": {"node_id": ...}}
    {"command": "new_plan", "plan": "…"}  {"ok": false, "error": "one line for a person"}

    command    arguments                           result
    status     -                                   `node.status.as_json`
    history    since: seconds of wall time         `History.since`: points and events that came after
    reach      -                                   {"dialled": …, "answers": {id: why not}}, once others have tried to dial it
    pause      -                                   {}      take no inner steps until `resume`
    resume     -                                   {}
    stop       -                                   {"unsaved": why}, once it has ended; empty: a snapshot is kept
    leave      -                                   the same, and the swarm is told
    snapshot   -                                   {"number": n, "tokens": n}, once it is on disk
    new_plan   plan: hex of a signed plan          {"revision": n}
    revoke     revocation: hex of a signed one     {}
    join       address, token, wait, node: {...}   {}      enter a run; while the node is in none (lobby.py)
    gateway    -                                   {}      from here on as `daemon.serving` says, until one side hangs up
    store      -                                   {}      from here on as `daemon.desk` says

File permissions say who may connect: the owner, and the group in `control.group`. Whatever is
written on the socket, the daemon only ever answers or hangs up; lines, connections and time are
bounded. A Unix address holds about a hundred bytes, so longer paths are reached through a short
name for their directory. This file understands no command; a handler does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import json
import math
import os
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from peerlm.errors import ConfigError, PeerlmError, StateError
from peerlm.store.disk import explained
from peerlm.store.layout import SYSTEM_STATE, Layout

COMMANDS = frozenset(
    (
        *("status", "history", "reach", "pause", "resume", "stop", "leave", "snapshot"),
        *("new_plan", "revoke", "join", "gateway", "store"),
    )
)

LINE_BYTES_MAX = 2 << 20
"""A signed plan is at most half a MiB and travels as hex; a status of a thousand members is less."""

CONNECTIONS_MAX = 16
"""At once. One more is told so; a person's script may wait."""

STREAMS_MAX = 64
"""At once, besides: who reads the store's files in many processes has one for each."""

IDLE_S = 60.0
"""A connection that says nothing for this long is closed."""

FLUSH_S = 1.0
"""For how long a connection that is over may still take what was written to it."""

PATH_BYTES_MAX = 103
"""Longest Unix socket address that every supported system takes."""

Stream = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Has a connection to itself, until it returns."""

Handler = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""Carries out (command, arguments); raises `PeerlmError` with the line that the person gets."""


class NoDaemon(StateError):
    """Nobody listens on the state directory's control socket."""


# ------------------------------------------------------------------------------------- daemon


class ControlServer:
    """The daemon's end. Made by `serve`; `close` before the state directory's lock is let go."""

    def __init__(
        self, layout: Layout, handle: Handler, streams: Mapping[str, Stream] | None = None
    ) -> None:
        self._layout = layout
        self._handle = handle
        self._streams = streams or {}
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._streaming = 0
        """Connections that are streams."""

    async def start(self, group: str) -> None:
        listener = _listen(self._layout, group)
        self._server = await asyncio.start_unix_server(
            self._connected, sock=listener, limit=LINE_BYTES_MAX
        )

    async def close(self) -> None:
        """Hang up on everybody and take the socket away. May be called again."""
        if self._server is not None:
            self._server.close()
            self._server = None
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            self._layout.control_socket.unlink(missing_ok=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
                await self._converse(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):  # the answer that ends us must go out
                await asyncio.wait_for(writer.wait_closed(), FLUSH_S)
            self._connections.discard(task)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_crowded = len(self._connections) - self._streaming > CONNECTIONS_MAX
        while True:
            try:
                line = await asyncio.wait_for(reader.readline(), IDLE_S)
            except ValueError:  # past the limit: where the next line starts is not known
                await _reply(writer, _refusal(f"a request takes at most {LINE_BYTES_MAX} bytes"))
                return
            if not line.endswith(b"\n"):
                return
            if is_crowded:
                await _reply(writer, _refusal("too many control connections; try again"))
                return
            stream = self._stream(line)
            if stream is not None:
                await self._give_to(stream, reader, writer)
                return
            await _reply(writer, await self._answer(line))

    async def _give_to(
        self, stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._streaming >= STREAMS_MAX:
            await _reply(writer, _refusal("too many such connections; end one, or try again"))
            return
        self._streaming += 1
        try:
            await _reply(writer, {"ok": True, "result": {}})
            await stream(reader, writer)
        finally:
            self._streaming -= 1

    def _stream(self, line: bytes) -> Stream | None:
        try:
            return self._streams.get(json.loads(line)["command"])
        except (ValueError, RecursionError, LookupError, TypeError):
            return None

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return _refusal("a request is one line of JSON")
        if not isinstance(request, dict) or not isinstance(request.get("command"), str):
            return _refusal('a request is {"command": "status"} or the like')
        command = request.pop("command")
        if command not in COMMANDS:
            return _refusal(f"no command {command[:40]!r}; there are {', '.join(sorted(COMMANDS))}")
        try:
            return {"ok": True, "result": await self._handle(command, request)}
        except PeerlmError as error:
            return _refusal(str(error))
        except Exception as error:  # a fault of ours must not take the daemon down
            return _refusal(f"internal error in {command}: {error!r}")


async def serve(
    layout: Layout,
    handle: Handler,
    group: str = "",
    streams: Mapping[str, Stream] | None = None,
) -> ControlServer:
    """Listen on the layout's control socket. The caller holds the state directory's lock.

    `group` (control.group in node.toml) may use the socket too; empty: only the owner. `streams`: commands that have the
    connection to themselves from then on.

    Raises:
        ConfigError: there is no such group, or it cannot be given the socket.
        StateError: the socket cannot be made.
    """
    server = ControlServer(layout, handle, streams)
    await server.start(group)
    return server


def _listen(layout: Layout, group: str) -> socket.socket:
    """A listening socket; nobody can connect before its permissions are right."""
    path = layout.control_socket
    with explained("make the control socket", path):
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _short_name(path) as name:
                listener.bind(name)
            path.chmod(0o600)
            if group:
                _admit_group(layout, group)
            listener.listen(CONNECTIONS_MAX)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
    return listener


def _admit_group(layout: Layout, group: str) -> None:
    """The group may pass through the directory and use the socket; it can read nothing else."""
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(
            f"control.group = {group!r} (node.toml or --control-group): no such group here"
        ) from None
    folder = layout.control_socket.parent
    try:
        for path in (folder, layout.control_socket):
            os.chown(path, -1, gid)
    except PermissionError:
        raise ConfigError(
            f"control.group = {group!r} (node.toml or --control-group): the daemon's user is not in that group"
        ) from None
    folder.chmod(0o710)
    layout.control_socket.chmod(0o660)


async def _reply(writer: asyncio.StreamWriter, reply: dict[str, Any]) -> None:
    writer.write(json.dumps(finite(reply), separators=(",", ":")).encode() + b"\n")
    await asyncio.wait_for(writer.drain(), IDLE_S)


def _refusal(error: str) -> dict[str, Any]:
    return {"ok": False, "error": " ".join(error.split())}


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: `null` instead."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(key): finite(item) for key, item in value.items()}
        case list() | tuple():
            return [finite(item) for item in value]
        case _:
            return value


# ------------------------------------------------------------------------------------- client


def ask(layout: Layout, command: str, timeout_s: float = 10.0, **args: Any) -> dict[str, Any]:
    """Have the daemon that runs on this state directory carry out a command.

    Raises:
        NoDaemon: none runs there.
        StateError: it may not be used, or does not answer within `timeout_s`.
        PeerlmError: its own line, when it could not do as asked.
    """
    request = json.dumps({"command": command, **args}).encode() + b"\n"
    with _explained(layout, command, timeout_s):
        line = _exchange(layout.control_socket, request, timeout_s)
    return _result(line, layout)


def dial(layout: Layout, command: str, timeout_s: float = 10.0) -> socket.socket:
    """A connection that is the command's from then on. Raises as `ask`."""
    with _explained(layout, command, timeout_s), contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        connection.settimeout(timeout_s)
        with _short_name(layout.control_socket) as name:
            connection.connect(name)
        connection.sendall(json.dumps({"command": command}).encode() + b"\n")
        line = b""
        while not line.endswith(b"\n") and (byte := connection.recv(1)):
            line += byte  # what comes behind the line is not ours to read
        _result(line, layout)
        connection.settimeout(None)
        stack.pop_all()
    return connection


@contextlib.contextmanager
def _explained(layout: Layout, command: str, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        raise NoDaemon(
            f"no peerlm daemon runs on {layout.root}: start it with `peerlm up`"
        ) from None
    except TimeoutError:
        raise StateError(
            f"the daemon on {layout.root} did not answer `{command}` within {timeout_s:g} s"
        ) from None
    except PermissionError:
        if _service_is_down(layout):
            raise NoDaemon(
                f"the service on {layout.root} does not run: systemctl start {layout.root.name}"
            ) from None
        raise StateError(
            f"may not talk to the daemon on {layout.root}: be its owner or a member of its group "
            "(control.group of its node.toml; peerlm-operators for the service)"
        ) from None
    except OSError as error:
        raise StateError(f"cannot talk to the daemon on {layout.root}: {error.strerror}") from None


def is_served(layout: Layout) -> bool:
    """Whether a daemon listens on the control socket; one that was killed leaves a dead socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            with _short_name(layout.control_socket) as name:
                connection.connect(name)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return False
        except PermissionError:
            return not _service_is_down(layout)
        except OSError:
            return True  # too busy to let us in
        return True


def _service_is_down(layout: Layout) -> bool:
    """A service that runs has its socket where anybody can at least see it."""
    return layout.root.parent in SYSTEM_STATE and layout.control_socket.parent == layout.root


def _exchange(path: Path, request: bytes, timeout_s: float) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        with _short_name(path) as name:
            connection.connect(name)
        connection.sendall(request)
        with connection.makefile("rb") as answers:
            return answers.readline(LINE_BYTES_MAX + 1)


def _result(line: bytes, layout: Layout) -> dict[str, Any]:
    try:
        reply = json.loads(line)
        if reply["ok"]:
            result: dict[str, Any] = dict(reply["result"])
            return result
        error = str(reply["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise StateError(f"the daemon on {layout.root} hung up without an answer") from None
    raise PeerlmError(error)


@contextlib.contextmanager
def _short_name(path: Path) -> Iterator[str]:
    """A name for the socket at `path` that fits in a Unix address, good inside the block."""
    if len(os.fsencode(path)) <= PATH_BYTES_MAX:
        yield str(path)
    elif sys.platform == "linux":
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{directory}/{path.name}"
        finally:
            os.close(directory)
    elif path.parent.is_dir():
        with tempfile.TemporaryDirectory(prefix="peerlm-") as folder:
            link = Path(folder, "d")
            link.symlink_to(path.parent.absolute())
            yield str(link / path.name)
    else:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
