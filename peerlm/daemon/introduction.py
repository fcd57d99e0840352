"""The introduction port: certificates are shown in the clear before anything is encrypted.

A newcomer knows an address and nothing else, so this port takes anybody's bytes: one small frame on
a connection that lives seconds, one kind of message (`Hello`), a budget of hellos per source address
and one for all, nothing kept but those budgets. What is shown is public; what it proves is the
core's to judge. Frames are a length of four bytes and a message, on plain TCP: a ZeroMQ socket open
to strangers buffers a message of endless parts without bound, and cannot close a connection.

Dialling goes in steps, and a failure names its step: resolve (the name), connect ("refused" is not
"no answer") and handshake (something listens there, but it is not peerlm).
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from peerlm.daemon.resolve import connect_first, parse_address, resolve
from peerlm.daemon.sockets import listen_tcp
from peerlm.daemon.throttle import TokenBucket
from peerlm.errors import Unreachable, WireError
from peerlm.events import Event, HelloCame, IntroductionAnswered, IntroductionFailed
from peerlm.types import Instant
from peerlm.wire.codec import INTRODUCTION_BYTES_MAX, decode, decode_as, encode
from peerlm.wire.message import Hello, Message, Refusal, Welcome

DIAL_TIMEOUT_S = 8.0
HANDSHAKE_TIMEOUT_S = 5.0
DIALS_MAX = 64
"""Introductions under way at once; more fail at once, and the core tries again later."""

GUESTS_MAX = 256
"""Connections open at once. When there are more, the oldest goes: a true guest needs milliseconds,
so many strangers who connect and say nothing do not keep it out."""

GUEST_LIVES_S = 10.0

HELLOS_PER_S = 50.0
HELLOS_BURST = 256.0
"""Budget of one source address. Generous, since a whole office may sit behind one address; a hello
costs its verifier about a millisecond."""

ALL_HELLOS_PER_S = 200.0
ALL_HELLOS_BURST = 1024.0
ADDRESSES_MAX = 4096
"""Source addresses with a budget of their own; the one heard of longest ago is forgotten."""


@dataclass(slots=True)
class _Guest:
    writer: asyncio.StreamWriter
    gone: asyncio.Future[None]


class Introduction:
    """The base port; make one with `listen`. `port` is where it listens; `counters` what was
    dropped and why."""

    port: int

    def __init__(self, post: Callable[[Event], None]) -> None:
        self.counters: Counter[str] = Counter()
        self._post = post
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Server
        self._dials: set[asyncio.Task[None]] = set()
        self._routes = itertools.count()
        self._guests: OrderedDict[bytes, _Guest] = OrderedDict()
        self._budgets: OrderedDict[str, TokenBucket] = OrderedDict()
        now = Instant(self._loop.time())
        self._budget_of_all = TokenBucket(ALL_HELLOS_PER_S, ALL_HELLOS_BURST, now)

    @classmethod
    async def listen(
        cls, post: Callable[[Event], None], host: str, port: int, *, or_free: bool = False
    ) -> Introduction:
        """Listen on `host` (empty: all addresses) and `port` (0: a free one). Raises `ConfigError`
        when the port is taken; with `or_free`, takes any free one instead."""
        introduction = cls(post)
        door = listen_tcp(host, port, or_free=or_free)
        introduction.port = door.getsockname()[1]
        introduction._server = await asyncio.start_server(
            introduction._on_guest, sock=door, limit=2 * INTRODUCTION_BYTES_MAX, backlog=1024
        )
        return introduction

    def answer(self, route: bytes, answer: Welcome | Refusal) -> None:
        """Answer the `HelloCame` of this route; dropped and counted if it has hung up."""
        guest = self._guests.get(route)
        if guest is None:
            self.counters["answers_undeliverable"] += 1
            return
        guest.writer.write(_frame(answer))
        self._see_off(route)

    def dial(self, address: str, hello: Hello) -> None:
        """Say hello at `tcp://host:port` → `IntroductionAnswered` or `IntroductionFailed`, in 8 s."""
        if len(self._dials) >= DIALS_MAX:
            line = f"{DIALS_MAX} introductions are under way already"
            self._post(IntroductionFailed(address, "connect", line))
            return
        task = self._loop.create_task(self._dial(address, hello))
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)

    async def close(self) -> None:
        """Stop listening, see guests off, end introductions under way."""
        self._server.close()
        for route in list(self._guests):
            self._see_off(route)
        for task in list(self._dials):
            task.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)

    # ------------------------------------------------------------------------------- listening

    async def _on_guest(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        route = next(self._routes).to_bytes(8, "big")
        guest = self._guests[route] = _Guest(writer, self._loop.create_future())
        if len(self._guests) > GUESTS_MAX:
            self.counters["guests_seen_off"] += 1
            self._see_off(next(iter(self._guests)))
        try:
            async with asyncio.timeout(GUEST_LIVES_S):
                async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                    body = await _read_frame(reader)
                if self._on_hello(route, body, str(writer.get_extra_info("peername")[0])):
                    await guest.gone
        except WireError:
            self.counters["garbage"] += 1
        except (TimeoutError, OSError, EOFError):
            self.counters["guests_silent"] += 1
        finally:
            self._see_off(route)

    def _on_hello(self, route: bytes, body: bytes, address: str) -> bool:
        host = address.removeprefix("::ffff:").partition("%")[0]
        hello = decode_as(Hello, body, bytes_max=INTRODUCTION_BYTES_MAX)
        if not self._within_budget(host):
            self.counters["over_budget"] += 1
            return False
        self.counters["hellos"] += 1
        self._post(HelloCame(route, hello, host))
        return True

    def _see_off(self, route: bytes) -> None:
        guest = self._guests.pop(route, None)
        if guest is not None:
            guest.writer.close()
            if not guest.gone.done():
                guest.gone.set_result(None)

    def _within_budget(self, host: str) -> bool:
        now = Instant(self._loop.time())
        source = _network_of(host)
        budget = self._budgets.pop(source, None) or TokenBucket(HELLOS_PER_S, HELLOS_BURST, now)
        self._budgets[source] = budget
        if len(self._budgets) > ADDRESSES_MAX:
            self._budgets.popitem(last=False)
        return budget.try_take(1, now) and self._budget_of_all.try_take(1, now)

    # --------------------------------------------------------------------------------- dialling

    async def _dial(self, address: str, hello: Hello) -> None:
        try:
            ip, answer = await say_hello(address, hello)
        except Unreachable as error:
            self._post(IntroductionFailed(address, error.step, str(error)))
        else:
            self._post(IntroductionAnswered(address, ip, answer))


async def say_hello(address: str, hello: Hello) -> tuple[str, Welcome | Refusal]:
    """(IP address that answered, its answer), in 8 s. Raises `Unreachable`."""
    step = "resolve"
    try:
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            host, port = parse_address(address)
            addresses = await resolve(host)
            step = "connect"
            ip, connection = await connect_first(addresses, port)
            step = "handshake"
            reader, writer = await asyncio.open_connection(sock=connection)
            try:
                writer.write(_frame(hello))
                return ip, await _read_answer(reader, f"{ip} port {port}")
            finally:
                writer.close()
    except TimeoutError:
        raise Unreachable(step, f"{address}: not done in {DIAL_TIMEOUT_S:g} s") from None


def _frame(message: Message) -> bytes:
    body = encode(message)
    assert len(body) <= INTRODUCTION_BYTES_MAX, f"{type(message).__name__} of {len(body)} bytes"
    return len(body).to_bytes(4, "big") + body


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    length = int.from_bytes(await reader.readexactly(4), "big")
    if length > INTRODUCTION_BYTES_MAX:
        raise WireError(f"a frame of {length} bytes, at most {INTRODUCTION_BYTES_MAX} allowed")
    return await reader.readexactly(length)


async def _read_answer(reader: asyncio.StreamReader, where: str) -> Welcome | Refusal:
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            body = await _read_frame(reader)
        answer = decode(body, bytes_max=INTRODUCTION_BYTES_MAX)
        if not isinstance(answer, (Welcome, Refusal)):
            raise WireError(f"{type(answer).__name__} is no answer to a hello")
    except TimeoutError:
        line = f"something listens at {where}, but gave no answer in {HANDSHAKE_TIMEOUT_S:g} s"
        raise Unreachable("handshake", line) from None
    except (OSError, EOFError):
        line = f"something listens at {where}, but hung up without an answer"
        raise Unreachable("handshake", line) from None
    except WireError as error:
        line = f"{where} answered, but not as a peerlm node of our version: {error}"
        raise Unreachable("handshake", line) from None
    return answer


def _network_of(host: str) -> str:
    """What shares one budget: an IPv4 address, or the /64 an IPv6 host picks its addresses from."""
    if ":" not in host:
        return host
    return str(ipaddress.ip_network((host, 64), strict=False))
