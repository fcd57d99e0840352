"""Requests and answers over HTTP, in OpenAI's shapes.

    GET   /v1/models, /v1/models/NAME     what is served, and which version of the weights
    POST  /v1/completions                 continue a text
    POST  /v1/chat/completions            continue a conversation, written out as `role: content` lines
    GET   /metrics                        for Prometheus
    GET   /healthz                        200 while requests are taken

Every client is bounded: in connections, in the time to bring a request, in bytes and tokens, in how long it may
leave a stream unread. A POST must say that it brings JSON, which a web page from elsewhere cannot without asking
first, and is not let; nor may it come by a name that is not this machine's.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from aiohttp import web

from peerlm.data.tokenizer import Tokenizer
from peerlm.observe.host import is_ours
from peerlm.serve import answer, request
from peerlm.serve.answer import Choice, Head
from peerlm.serve.driver import STOPPING, Driver
from peerlm.serve.keys import Holder, Keyring
from peerlm.serve.metrics import CONTENT_TYPE, Metrics
from peerlm.serve.request import Asked, Refused
from peerlm.serve.scheduler import QueueFull
from peerlm.serve.service import Job, Told
from peerlm.types import Instant

CONNECTIONS_MAX = 512
HEAD_S = 10.0
"""For the head of a connection's first request."""
BODY_S = 20.0
STALL_S = 30.0
"""How long a client may leave a stream unread when what is on its way is full."""
KEEPALIVE_S = 30.0
LINGER_S = 2.0
"""For the rest of a body that nobody wants, so that its sender reads why."""
DRAIN_S = 3.0
"""Given to answers under way when the server is told to stop."""
RETRY_S_MAX = 60.0
FAIR = 0.1
"""Weight of the newest in the mean duration of requests."""

GONE = 499
"""As nginx counts a client that went away."""

HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}

SILENT = logging.Logger("peerlm serve")
SILENT.addHandler(logging.NullHandler())
"""For the HTTP library: what strangers send is no news."""

ID: web.RequestKey[str] = web.RequestKey("id", str)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Served:
    """The model and its limits. `name`: what clients call it; `tokens_max`: of one answer."""

    name: str
    context: int
    vocab: int
    tokens_max: int
    body_bytes_max: int
    made: int
    """Unix time, for the list of models."""


class Front:
    """Answers requests; `listen` opens it, `close` ends it."""

    def __init__(
        self,
        served: Served,
        driver: Driver,
        codec: Tokenizer,
        keyring: Keyring,
        metrics: Metrics,
        rng: random.Random,
        names: tuple[str, ...] = (),
    ) -> None:
        self._served, self._driver, self._codec = served, driver, codec
        self._keyring, self._metrics, self._rng = keyring, metrics, rng
        self._names = {name.lower() for name in ("localhost", socket.gethostname(), *names)}
        self._silent: set[asyncio.BaseProtocol] = set()
        """Connections on which no request has come yet."""
        self._seconds = 1.0
        """A request lately takes."""
        self._is_closing = False

        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._guarded(request, handler)

        app = web.Application(middlewares=[guarded], client_max_size=served.body_bytes_max)
        app.add_routes(
            [
                web.get("/v1/models", self._models),
                web.get("/v1/models/{name:.+}", self._model),
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._chat),
                web.get("/metrics", self._show_metrics),
                web.get("/healthz", self._healthz),
            ]
        )
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=SILENT,
            handle_signals=False,
            handler_cancellation=True,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=LINGER_S,
            shutdown_timeout=1.0,
        )

    async def listen(self, listener: socket.socket) -> None:
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._protocol, sock=listener)

    async def close(self, hurry: asyncio.Event) -> None:
        """Take nothing more; give answers under way some seconds (none once `hurry` is set); cut the rest."""
        self._is_closing = True
        self._server.close()
        ways = [asyncio.ensure_future(event.wait()) for event in (self._driver.idle, hurry)]
        await asyncio.wait(ways, timeout=DRAIN_S, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        self._driver.cut()
        await self._runner.cleanup()

    def _protocol(self) -> asyncio.Protocol:
        assert self._runner.server is not None
        if len(self._runner.server.connections) >= CONNECTIONS_MAX:
            self._metrics.refusals.labels("connections").inc()
            return _Closed()
        protocol = self._runner.server()
        self._silent.add(protocol)
        asyncio.get_running_loop().call_later(HEAD_S, self._heard, protocol)
        return protocol

    def _heard(self, protocol: web.RequestHandler) -> None:
        if protocol in self._silent:
            self._silent.discard(protocol)
            protocol.force_close()

    # ---------------------------------------------------------------------------- every request

    async def _guarded(self, asked: web.Request, handler: Handler) -> web.StreamResponse:
        asked[ID] = f"req_{self._rng.getrandbits(96):024x}"
        self._silent.discard(asked.protocol)
        began, status = time.monotonic(), GONE
        try:
            response = await self._answered(asked, handler)
            status = response.status
            return response
        finally:
            self._metrics.requests.labels(str(status)).inc()
            if status == 200 and asked.method == "POST":
                self._seconds += FAIR * (time.monotonic() - began - self._seconds)

    async def _answered(self, asked: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if not is_ours(asked.host, self._names):
                raise Refused(
                    f"Host {asked.host[:80]!r} is not a name of this machine",
                    status=403,
                    code="host",
                )
            response = await handler(asked)
        except Refused as refused:
            response = self._refusal(refused)
        except web.HTTPRequestEntityTooLarge:
            most = self._served.body_bytes_max
            response = self._refusal(Refused(f"the body has more than {most} bytes", status=413))
        except web.HTTPException as error:
            told = f"{error.reason}: {asked.method} {asked.path[:80]}"
            response = self._refusal(Refused(told, status=error.status, code="unknown_url"))
        except Exception:  # a fault of ours is this request's end, not the server's
            sys.stderr.write(f"peerlm: {asked[ID]}: {traceback.format_exc()}")
            response = self._refusal(_fault("the server has a fault"))
        if not response.prepared:
            response.headers.update(self._headers(asked))
        return response

    def _headers(self, asked: web.Request) -> Mapping[str, str]:
        return HEADERS | {"x-request-id": asked[ID]}

    def _refusal(self, refused: Refused) -> web.Response:
        self._metrics.refusals.labels(refused.code or f"http_{refused.status}").inc()
        headers = {}
        if refused.retry_after_s is not None:
            headers["Retry-After"] = str(int(max(1, min(refused.retry_after_s + 0.999, 3600))))
        if refused.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        response = web.json_response(answer.error(refused), status=refused.status, headers=headers)
        if refused.status in (408, 413):
            response.force_close()
        return response

    def _holder(self, asked: web.Request) -> Holder | None:
        """Whose request it is; None where no keys are needed. Raises `Refused`."""
        if not self._keyring.is_needed:
            return None
        kind, _, secret = asked.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or not secret.strip():
            raise Refused(
                "no API key: send the header 'Authorization: Bearer KEY'",
                status=401,
                code="invalid_api_key",
            )
        holder = self._keyring.find(secret.strip())
        if holder is None:
            raise Refused("this API key is not known here", status=401, code="invalid_api_key")
        return holder

    # -------------------------------------------------------------------------- what can be seen

    async def _models(self, asked: web.Request) -> web.Response:
        self._holder(asked)
        return web.json_response({"object": "list", "data": [self._card()]})

    async def _model(self, asked: web.Request) -> web.Response:
        self._holder(asked)
        self._require_model(asked.match_info["name"])
        return web.json_response(self._card())

    def _card(self) -> dict[str, Any]:
        newest = self._driver.versions[-1]
        return {
            "id": self._served.name,
            "object": "model",
            "created": self._served.made,
            "owned_by": "peerlm",
            "context": self._served.context,
            "version": newest.name,
            "swarm_tokens": newest.tokens,
            "versions": [version.name for version in self._driver.versions],
        }

    def _require_model(self, name: str) -> None:
        if name != self._served.name:
            raise Refused(
                f"the model {name[:80]!r} does not exist; this node serves {self._served.name!r}",
                "model",
                code="model_not_found",
                status=404,
            )

    async def _show_metrics(self, asked: web.Request) -> web.Response:
        self._holder(asked)
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    async def _healthz(self, asked: web.Request) -> web.Response:
        if self._is_closing:
            return web.Response(text="stopping\n", status=503)
        return web.Response(text="ok\n")

    # ----------------------------------------------------------------------------------- answers

    async def _completions(self, asked: web.Request) -> web.StreamResponse:
        return await self._complete(asked, request.completion)

    async def _chat(self, asked: web.Request) -> web.StreamResponse:
        return await self._complete(asked, request.chat)

    async def _complete(
        self, http: web.Request, parse: Callable[[Mapping[str, Any]], Asked]
    ) -> web.StreamResponse:
        arrived = time.monotonic()
        holder = self._holder(http)
        if self._is_closing:
            raise _unavailable(STOPPING)
        asked = parse(request.parse_json(await _body(http)))
        self._require_model(asked.model)
        job = self._job(asked, await asyncio.to_thread(self._encoded, asked))
        prompt_tokens = sum(len(p) for p in job.prompts[:: asked.n])
        reserved = prompt_tokens + job.tokens_max * len(job.prompts)
        _charge(holder, reserved)
        writing = _Writing(job, asked, arrived, prompt_tokens)
        try:
            try:
                writing.inbox = await self._driver.submit(job)
            except QueueFull:
                raise self._busy(
                    "too many requests wait already; try again later", "queue_full"
                ) from None
            self._metrics.prompt_tokens.inc(prompt_tokens)
            if asked.is_stream:
                return await self._stream(http, writing)
            return await self._whole(http, writing)
        finally:
            self._driver.cancel(job)
            if holder is not None:
                used = prompt_tokens + writing.drawn if writing.inbox is not None else 0
                holder.give_back(reserved - used, request=writing.inbox is None)

    def _busy(self, why: str, code: str) -> Refused:
        scale = 1 + self._driver.waiting / max(self._driver.active, 1)
        return Refused(
            why,
            code=code,
            status=429,
            kind="rate_limit_error",
            retry_after_s=min(self._seconds * scale, RETRY_S_MAX),
        )

    def _encoded(self, asked: Asked) -> list[tuple[int, ...]]:
        """Raises `Refused`."""
        context, vocab = self._served.context, self._served.vocab
        prompts = []
        for prompt in asked.prompts:
            ids = prompt
            if isinstance(prompt, str):
                ids = tuple(self._codec.encode(prompt).tolist())
            where = "messages" if asked.is_chat else "prompt"
            if not ids:
                raise Refused("the prompt is empty: give at least one token to start from", where)
            if len(ids) > context:
                raise Refused(
                    f"the prompt has {len(ids)} tokens, and the model reads at most {context}",
                    where,
                    code="context_length_exceeded",
                )
            ids = cast("tuple[int, ...]", ids)
            if not all(0 <= token < vocab for token in ids):
                raise Refused(f"token ids must be between 0 and {vocab - 1}", where)
            prompts.append(ids)
        return prompts

    def _job(self, asked: Asked, prompts: list[tuple[int, ...]]) -> Job:
        most = self._served.tokens_max
        tokens_max = asked.tokens_max
        if tokens_max is None:
            room = self._served.context - max(map(len, prompts))
            tokens_max = min(most, max(room, request.COMPLETION_TOKENS))
        if tokens_max > most:
            raise Refused(
                f"'max_tokens' is {tokens_max}, and this server writes at most {most}", "max_tokens"
            )
        count = len(prompts) * asked.n
        first = self._rng.getrandbits(62) if asked.rng_seed is None else asked.rng_seed
        return Job(
            prompts=[prompt for prompt in prompts for _ in range(asked.n)],
            rng_seeds=[_wrapped(first + choice) for choice in range(count)],
            sampling=asked.sampling,
            tokens_max=tokens_max,
            stops=asked.stops + (("\nuser:",) if asked.is_chat else ()),
            past_end=asked.past_end,
        )

    async def _whole(self, http: web.Request, writing: _Writing) -> web.Response:
        choices = [Choice() for _ in writing.job.prompts]
        while writing.unfinished:
            told = await self._news(writing)
            assert told.piece is not None
            choices[told.index].add(told.piece)
        head = self._head(http, writing)
        return web.json_response(
            answer.whole(head, choices, writing.usage(), self._codec.token_bytes)
        )

    async def _stream(self, http: web.Request, writing: _Writing) -> web.StreamResponse:
        told = await self._news(writing)  # whoever gets no token gets a status that says why
        response = web.StreamResponse(
            headers={**self._headers(http), "Content-Type": "text/event-stream; charset=utf-8"}
        )
        await response.prepare(http)
        head = self._head(http, writing)
        events = []
        if writing.asked.is_chat:
            events += [answer.opening(head, i) for i in range(len(writing.job.prompts))]
        try:
            while True:
                head = replace(head, fingerprint=told.version)
                piece = told.piece
                if piece is not None and (piece.text or piece.finish):
                    events.append(answer.chunk(head, told.index, piece, self._codec.token_bytes))
                await _write(http, response, b"".join(map(answer.event, events)))
                if not writing.unfinished:
                    break
                events = []
                told = await self._news(writing)
            if writing.asked.with_usage:
                await _write(http, response, answer.event(answer.last(head, writing.usage())))
            await _write(http, response, answer.DONE)
        except Refused as refused:  # the status is sent: only the stream can say it
            self._metrics.refusals.labels(refused.code or "broken_off").inc()
            await _write(http, response, answer.event(answer.error(refused)))
        await response.write_eof()
        return response

    async def _news(self, writing: _Writing) -> Told:
        """Raises `Refused` when the job is over before its end."""
        assert writing.inbox is not None
        told = await writing.inbox.get()
        if told.error == STOPPING:
            raise _unavailable(STOPPING)
        if told.error:
            if told.is_full:
                raise self._busy(
                    "those who hold the model have no room; try again later", "hosts_full"
                )
            sys.stderr.write(f"peerlm: a session has failed: {told.error}\n")
            if told.may_pass:
                raise _unavailable(told.error, "no_host")
            raise _fault("the model could not go on with this text")
        now = time.monotonic()
        if not writing.drawn:
            self._metrics.first_token.observe(now - writing.arrived)
            writing.first_at = now
        writing.drawn += told.drawn
        writing.version = told.version
        self._metrics.tokens.inc(told.drawn)
        if told.piece is not None and told.piece.finish:
            writing.unfinished -= 1
            if not writing.unfinished and writing.drawn > len(writing.job.prompts):
                steps = writing.drawn / len(writing.job.prompts) - 1
                self._metrics.token.observe((now - writing.first_at) / steps)
        return told

    def _head(self, http: web.Request, writing: _Writing) -> Head:
        kind = "chatcmpl" if writing.asked.is_chat else "cmpl"
        id_ = f"{kind}-{http[ID].removeprefix('req_')}"
        return Head(id_, int(time.time()), writing.asked, writing.version)


@dataclass(slots=True)
class _Writing:
    """A request under way."""

    job: Job
    asked: Asked
    arrived: float
    prompt_tokens: int
    inbox: asyncio.Queue[Told] | None = None
    drawn: int = 0
    first_at: float = 0.0
    version: str = ""
    """As last told."""
    unfinished: int = 0

    def __post_init__(self) -> None:
        self.unfinished = len(self.job.prompts)

    def usage(self) -> dict[str, int]:
        return answer.usage(self.prompt_tokens, self.drawn)


class _Closed(asyncio.Protocol):
    """One connection more than there may be."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


async def _body(http: web.Request) -> bytes:
    """Raises `Refused`, `web.HTTPRequestEntityTooLarge`."""
    if http.content_type != "application/json":
        raise Refused("send the header 'Content-Type: application/json'", status=415)
    try:
        async with asyncio.timeout(BODY_S):
            return await http.read()
    except TimeoutError:
        raise Refused(f"the body took more than {BODY_S:.0f} s", status=408) from None


async def _write(http: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """Raises `asyncio.CancelledError` when the client is gone, or leaves it unread for too long."""
    if not data:
        return
    try:
        async with asyncio.timeout(STALL_S):
            await response.write(data)
    except (TimeoutError, ConnectionError):
        if http.transport is not None:
            http.transport.abort()
        raise asyncio.CancelledError from None


def _charge(holder: Holder | None, tokens: int) -> None:
    """Raises `Refused`."""
    if holder is None:
        return
    against = holder.take(tokens, Instant(time.monotonic()))
    if against is None:
        return
    what, wait_s = against
    key = holder.key
    limit = key.tokens_a_minute if what == "tokens" else key.requests_a_minute
    is_hopeless = wait_s == float("inf")
    need = f"; this request may use {tokens}" if what == "tokens" else ""
    raise Refused(
        f"the key {key.name!r} may use {limit} {what} a minute{need}",
        code="rate_limit_exceeded",
        status=429,
        kind=what,
        retry_after_s=None if is_hopeless else wait_s,
    )


def _unavailable(why: str, code: str = "stopping") -> Refused:
    return Refused(why, status=503, kind="server_error", code=code, retry_after_s=5)


def _fault(why: str) -> Refused:
    return Refused(why, status=500, kind="server_error", code="internal_error")


def _wrapped(seed: int) -> int:
    """Within 64 bits, signed."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)


async def until_told_to_stop(
    front: Front, driver: Driver, listener: socket.socket, others: Sequence[Awaitable[None]]
) -> None:
    """Serve on `listener` until SIGTERM or SIGINT, with `others` running beside; then end cleanly. A second signal
    cuts what is under way at once."""
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def told() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    driver.start()
    await front.listen(listener)
    beside = [asyncio.ensure_future(other) for other in others]
    try:
        await stop.wait()
    finally:
        for task in beside:
            task.cancel()
        await front.close(hurry)
        await driver.close()


def run(main: Awaitable[None]) -> None:
    """Until it is over, on a loop of this room's kind."""
    import uvloop

    async def awaited() -> None:
        await main

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(awaited())
