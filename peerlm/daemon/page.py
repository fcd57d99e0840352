"""What a node shows over HTTP: its page, its status and curves as JSON, metrics, and whether it is well.

    /           the page (peerlm/observe/page.html): everything in one file, nothing from elsewhere
    /status     what `peerlm status --json` prints
    /history    curves and events so far (observe/history.py)
    /metrics    for Prometheus
    /healthz    200 while the loop turns; with ?node=ID only of that very node, else 404
    /readyz     200 when the node takes part in its run, else 503 and why
    /sample     POST: have a text written with the newest snapshot now (sampling.py); /status has it then

Everything can be read and nothing changed; `/sample` costs a few seconds of processor time and is done once
for each snapshot, or again a minute after it failed. The HTTP library is imported when somebody first connects, so that a node at which
nobody looks stays small. Connections are few and short-lived, whatever is sent on them. A name in the
Host header that is not this machine's is refused: a web page from elsewhere must not read the swarm's
state through a name that it points here.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any, cast

from peerlm import __version__
from peerlm.daemon.control import finite
from peerlm.daemon.sampling import Sampling
from peerlm.daemon.sockets import listen_tcp
from peerlm.errors import ConfigError, StateError
from peerlm.observe.history import History
from peerlm.observe.host import is_ours
from peerlm.store import disk
from peerlm.store.layout import Layout

CONNECTIONS_MAX = 48
LIFE_S = 20.0
"""A connection carries one request, and is closed after this time whatever it does."""

PORT_BYTES_MAX = 16

# Others' pages are asked whether they are reached (`/healthz`), so connections by http: are let go anywhere.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self' http:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

Handle = Callable[[Any], Awaitable[Any]]

Status = Callable[[], dict[str, Any]]
"""What the node says of itself now."""

SILENT = logging.Logger("peerlm page")
SILENT.addHandler(logging.NullHandler())
"""For the HTTP library: what strangers send is no news."""

Report = Callable[[str, str, dict[str, Any]], None]
"""Writes to the daemon's log: level, event, fields."""


class Page:
    """Listens from `listen` on; `close` ends it.

    Args:
        names: of this machine, besides its addresses and localhost, that a Host header may have.
    """

    def __init__(
        self,
        layout: Layout,
        listener: socket.socket,
        host: str,
        names: tuple[str, ...] = (),
        life_s: float = LIFE_S,
    ) -> None:
        self.status: Status | None = None
        """None while the node starts."""
        self.report: Report = lambda level, event, fields: None
        self.history = History()
        self.sampling: Sampling | None = None
        """None while nobody writes sample texts."""
        self._layout = layout
        self._listener = listener
        self._host = host
        self.port = int(listener.getsockname()[1])
        self._names = {name.lower() for name in ("localhost", socket.gethostname(), *names)}
        self._loop = asyncio.get_running_loop()
        self._serving: asyncio.Task[None] | None = None
        self._runner: Any = None
        self._server: asyncio.Server | None = None
        self._life_s = life_s
        self._loop.add_reader(listener, self._somebody_came)

    @classmethod
    def listen(
        cls, layout: Layout, host: str, port: int, *, or_free: bool, names: tuple[str, ...] = ()
    ) -> Page:
        """On the port asked for or, where that may be replaced, on the one of last time or any free one. Raises
        `ConfigError`."""
        before = _port_of_last_time(layout) if or_free else None
        try:
            listener = listen_tcp(host, before or port, or_free=or_free)
        except ConfigError:
            raise ConfigError(
                f"the page cannot be served at {host or 'any address'}, port {port}: set page.host or page.port in "
                "node.toml (0: any free port), or page.enabled = false"
            ) from None
        taken = int(listener.getsockname()[1])
        if or_free and taken not in (port, before):
            disk.write_atomic(layout.root / "page_port", f"{taken}\n".encode())
        return cls(layout, listener, host, names)

    @property
    def url(self) -> str:
        host = self._host or "localhost"
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    async def close(self) -> None:
        """May be called again."""
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
            self._serving = None
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self._listener.close()

    # ------------------------------------------------------------------------------- serving

    def _somebody_came(self) -> None:
        self._loop.remove_reader(self._listener)
        self._serving = asyncio.create_task(self._serve())
        self._serving.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        """What keeps us from serving must not pass in silence, and not take the training with it."""
        if not task.cancelled() and (error := task.exception()) is not None:
            told = "".join(traceback.format_exception(error))
            self.report("error", "page_failed", {"traceback": told})
            self._listener.close()

    async def _serve(self) -> None:
        web = await self._loop.run_in_executor(None, importlib.import_module, "aiohttp.web")

        @web.middleware  # type: ignore[untyped-decorator]  # which marks it: no method
        async def guarded(request: Any, handler: Handle) -> Any:
            return await self._guarded(request, handler)

        app = web.Application(middlewares=[guarded], client_max_size=1024)
        app.add_routes(
            [
                web.get("/", self._page),
                web.get("/status", self._status),
                web.get("/history", self._history),
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.post("/sample", self._write_sample),
            ]
        )
        self._runner = web.AppRunner(
            app, access_log=None, logger=SILENT, handle_signals=False, shutdown_timeout=1.0
        )
        await self._runner.setup()
        self._server = await self._loop.create_server(self._protocol, sock=self._listener)

    def _protocol(self) -> asyncio.Protocol:
        if len(self._runner.server.connections) >= CONNECTIONS_MAX:
            return _Refused()
        handler = self._runner.server()
        self._loop.call_later(self._life_s, handler.force_close)
        return cast("asyncio.Protocol", handler)

    async def _guarded(self, request: Any, handler: Handle) -> Any:
        if not is_ours(request.host, self._names):
            answer = _text(f"peerlm: Host {request.host[:80]!r} is not a name of this machine", 403)
        elif self.status is None:
            answer = _text("peerlm: the node is starting", 503)
        else:
            try:
                answer = await handler(request)
            except _http().HTTPException as error:
                answer = _text(f"peerlm: {error.status} {error.reason}", error.status)
            except Exception:  # a fault of the page's must not take the training with it
                self.report("error", "page_failed", {"traceback": traceback.format_exc()})
                answer = _text("peerlm: the page has a fault; see `peerlm logs`", 500)
        answer.headers.update(HEADERS)
        answer.force_close()
        return answer

    # ------------------------------------------------------------------------------- answers

    def _now(self) -> dict[str, Any]:
        assert self.status is not None, "nothing is answered before"
        return self.status()

    async def _page(self, request: Any) -> Any:
        html = resources.files("peerlm.observe").joinpath("page.html").read_bytes()
        return _http().Response(body=html, content_type="text/html", charset="utf-8")

    async def _status(self, request: Any) -> Any:
        return _json(json.dumps(finite(self._now()), separators=(",", ":")))

    async def _history(self, request: Any) -> Any:
        return _json(self.history.to_text())

    async def _metrics(self, request: Any) -> Any:
        metrics = await self._loop.run_in_executor(
            None, importlib.import_module, "peerlm.observe.metrics"
        )
        body = metrics.exposition(self._now(), __version__)
        return _http().Response(body=body, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _healthz(self, request: Any) -> Any:
        """Any page may read this: another node's asks, before it links here, whether its reader reaches this one. Who does
        not know the id already learns nothing."""
        wanted = request.query.get("node", "")
        is_this = not wanted or wanted == self._now()["node_id"]
        answer = _text("ok", 200) if is_this else _text("another node", 404)
        answer.headers["Access-Control-Allow-Origin"] = "*"
        return answer

    async def _readyz(self, request: Any) -> Any:
        status = self._now()
        return _text("ready", 200) if status["ready"] else _text(status["why"][0], 503)

    async def _write_sample(self, request: Any) -> Any:
        """A page from elsewhere cannot set this header without asking first, and is not let. Once for each
        snapshot, and what has failed again after a minute."""
        if request.headers.get("X-Peerlm") != "sample":
            raise _http().HTTPForbidden
        if self.sampling is None:
            raise _http().HTTPServiceUnavailable
        self.sampling.ask(self._now(), time.time())
        return _json(json.dumps(self.sampling.as_json()), 202)


class _Refused(asyncio.Protocol):
    """One connection more than there may be."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _http() -> Any:
    """The HTTP library, which is there when anything is answered."""
    return sys.modules["aiohttp.web"]


def _json(text: str, status: int = 200) -> Any:
    return _http().Response(text=text, status=status, content_type="application/json")


def _text(text: str, status: int) -> Any:
    return _http().Response(text=text + "\n", status=status)


def _port_of_last_time(layout: Layout) -> int | None:
    path = layout.root / "page_port"
    try:
        text = disk.read_file(path, PORT_BYTES_MAX).strip() if path.exists() else b""
    except StateError:
        return None
    return int(text) if text.isdigit() and 0 < int(text) < 65_536 else None
