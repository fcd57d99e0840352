"""Laps on their way: between this machine's gateways and stage server on one side, and other nodes on the other.

A gateway is a process of a person (`peerlm serve`, `peerlm generate --swarm`) on the control socket; the stage server is a
process of ours, started when laps may come. From the head of a lap alone is seen whose it is; what cannot go on
is answered, so that gateways need not wait for what will never come:

- a lap for a member with whom there is no channel waits for one, which is asked for, and is lost if none opens soon;
- a channel that ends, or a stage server that does, loses what went there lately. Some of it may have been done with;
  gateways pass over that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from peerlm import events
from peerlm.daemon.worker_process import torch_environment
from peerlm.errors import WireError
from peerlm.events import Event
from peerlm.serve import lap as laps
from peerlm.serve.guests import CROWDED
from peerlm.serve.lap import Head, Kind
from peerlm.train import protocol
from peerlm.train.protocol import Frames, Hop, Message, ServeSetup
from peerlm.types import PeerId

UNSENT_S = 5.0
"""A lap waits so long for a channel."""

LATELY_S, LATELY_MAX = 120.0, 256
"""Laps that are remembered with whom they went to."""

WAITING_BYTES_MAX = 64 << 20
"""For one gateway, for the stage server, or for channels that are to open."""

WANT_EVERY_S = 30.0
"""How often it is said that a channel is still wanted."""

FAILED_S, FAILED_S_MAX = 2.0, 60.0
"""A stage server that fails is not started again for so long, then twice as long each time."""

RECEIVE_BYTES = 1 << 18

Hosts = tuple[tuple[PeerId, int, int], ...]
WaysS = tuple[tuple[float, float], ...]


class Serving:
    """Of one node.

    Args:
        setup: for a stage server that starts now.
        say: sends a lap over the channel with a peer; False where there is none.
        knows: whether a peer is a member with whom there can be a channel.
        tell: writes to the log: level, event, fields.
    """

    def __init__(
        self,
        post: Callable[[Event], None],
        me: PeerId,
        setup: Callable[[], ServeSetup],
        say: Callable[[PeerId, bytes], bool],
        knows: Callable[[PeerId], bool],
        tell: Callable[[str, str, Mapping[str, object]], None],
    ) -> None:
        self._post, self._me, self._say, self._knows = post, me, say, knows
        self._hosts: Hosts = ()
        self._behind: tuple[PeerId, ...] = ()
        self._ways_s: WaysS = ()
        self._gateways: dict[asyncio.StreamWriter, int | None] = {}
        self._server = StageServerProcess(setup, self._from_server, self._server_ended, tell)
        self._unsent: dict[PeerId, deque[bytes]] = {}
        self._lately: dict[PeerId, deque[tuple[float, Head]]] = {}
        self._wanted_at: dict[PeerId, float] = {}
        self._served, self._laps, self._lost = protocol.Served(0, 0, 0), 0, 0
        """Of the stage server there is, and of those before."""

    async def close(self) -> None:
        for writer in self._gateways:
            writer.close()
        await self._server.close()

    async def renew(self) -> None:
        """Other stages are held here from now on: what is under way through the old ones is lost."""
        await self._server.renew()

    # ---------------------------------------------------------------------------- who is there

    def hosts_are(self, hosts: Hosts, behind: tuple[PeerId, ...] = (), ways_s: WaysS = ()) -> None:
        """`behind`: those with old weights, for where there is nobody else. `ways_s`: as `effects.TellHosts` has them."""
        self._hosts, self._behind, self._ways_s = hosts, behind, ways_s
        for writer in self._gateways:
            self._tell_hosts(writer)

    @property
    def _serves(self) -> bool:
        return any(peer == self._me for peer, _, _ in self._hosts)

    def channel_is(self, peer: PeerId, is_open: bool) -> None:
        """A channel has opened, or is over."""
        if is_open:
            for data in self._unsent.pop(peer, ()):
                self._send(peer, data)
        else:
            self._wanted_at.pop(peer, None)
            self._lose(self._lately.pop(peer, ()), peer, "its connection broke")

    # ------------------------------------------------------------------------------------- laps

    def hear(self, peer: PeerId, data: bytes) -> None:
        """A lap of another node."""
        self._want(peer)
        try:
            self._deliver(peer, data)
        except WireError as error:
            self._post(events.Misbehaved(peer, str(error)))

    def _deliver(self, source: PeerId, data: bytes) -> None:
        head = laps.read_head(data)
        if head.kind in (Kind.HOME, Kind.LOST):
            self._to_gateway(source, head, data)
        elif self._serves:
            if not self._server.give(source, head, data) and head.kind is Kind.FORWARD:
                self._answer(head, self._me, self._server.why)
        elif head.kind is Kind.FORWARD:
            self._answer(head, self._me, "no texts are advanced here")

    def _to_gateway(self, source: PeerId, head: Head, data: bytes) -> None:
        if head.origin != self._me:
            return
        for writer, number in self._gateways.items():
            if number == head.gateway:
                _write(writer, Hop(source, data))

    def _pass_on(self, target: PeerId, data: bytes) -> None:
        """What a process of this machine says to `target`. Raises `WireError`."""
        if target == self._me:
            self._deliver(self._me, data)
        else:
            self._send(target, data)

    def _send(self, target: PeerId, data: bytes) -> None:
        head, now = laps.read_head(data), _now()
        if self._say(target, data):
            self._want(target)
            if head.kind is Kind.FORWARD:
                lately = self._lately.setdefault(target, deque(maxlen=LATELY_MAX))
                lately.append((now, head))
        elif not self._knows(target):
            self._lose([(now, head)], target, "it is not known here")
        elif self._is_crowded(target, len(data)):
            self._lose([(now, head)], target, CROWDED)
        else:
            if target not in self._unsent:
                self._unsent[target] = deque()
                self._post(events.ChannelWanted(target))
            self._unsent[target].append(data)
            asyncio.get_running_loop().call_later(UNSENT_S, self._give_up, target, data)

    def _is_crowded(self, target: PeerId, more: int) -> bool:
        waiting_bytes = sum(len(data) for unsent in self._unsent.values() for data in unsent)
        is_too_much = waiting_bytes + more > WAITING_BYTES_MAX
        return is_too_much or len(self._unsent.get(target, ())) >= LATELY_MAX

    def _give_up(self, target: PeerId, data: bytes) -> None:
        unsent = self._unsent.get(target)
        if unsent and unsent[0] is data:  # they are given up in the order in which they came
            unsent.popleft()
            if not unsent:
                del self._unsent[target]
            lost = [(_now(), laps.read_head(data))]
            self._lose(lost, target, f"no connection within {UNSENT_S:g} s")

    def _lose(self, lost: Iterable[tuple[float, Head]], culprit: PeerId, reason: str) -> None:
        """Tell the gateways of laps that went there at these times and were not too long ago."""
        for when, head in lost:
            if head.kind is Kind.FORWARD and when > _now() - LATELY_S:
                self._answer(head, culprit, reason)

    def _answer(self, head: Head, culprit: PeerId, reason: str) -> None:
        """Tell its gateway that a lap is lost."""
        self._pass_on(head.origin, laps.lost(head, culprit, reason))

    def _want(self, peer: PeerId) -> None:
        """The channel is in use."""
        if peer not in self._wanted_at or self._wanted_at[peer] + WANT_EVERY_S <= _now():
            self._wanted_at[peer] = _now()
            self._post(events.ChannelWanted(peer))

    # ----------------------------------------------------------------------------- stage server

    def _from_server(self, message: Message) -> None:
        match message:
            case Hop(peer, data):
                self._pass_on(peer, data)
            case protocol.Served():
                self._count(message)
            case protocol.Nonsense(peer, why) if peer != self._me:
                self._post(events.Misbehaved(peer, why))

    def _count(self, served: protocol.Served) -> None:
        before, self._served = self._served, served
        if served.sessions != before.sessions:
            self._post(events.TextsCounted(served.sessions))

    @property
    def counters(self) -> dict[str, int]:
        """Sessions that are remembered here now; laps that came since the daemon's start, and those that were lost here."""
        served = self._served
        laps, lost = self._laps + served.laps, self._lost + served.lost
        return {"sessions": served.sessions, "laps": laps, "lost": lost}

    def _server_ended(self, given: list[tuple[float, Head]]) -> None:
        served = self._served
        self._count(protocol.Served(0, 0, 0))
        self._laps, self._lost = self._laps + served.laps, self._lost + served.lost
        self._lose(given, self._me, "its stage server ended")

    # -------------------------------------------------------------------------------- gateways

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """With a gateway, until it hangs up or talks nonsense."""
        self._gateways[writer] = None
        self._tell_hosts(writer)
        frames = Frames()
        try:
            while data := await reader.read(RECEIVE_BYTES):
                for message in frames.feed(data):
                    self._from_gateway(writer, message)
        except WireError:
            return
        finally:
            del self._gateways[writer]

    def _from_gateway(self, writer: asyncio.StreamWriter, message: Message) -> None:
        if not isinstance(message, Hop):
            raise WireError(f"gateway sent {type(message).__name__}")
        head = laps.read_head(message.data)
        number = self._gateways[writer]
        is_taken = number is None and head.gateway in self._gateways.values()
        if head.origin != self._me or number not in (None, head.gateway) or is_taken:
            raise WireError("gateway: a lap that is not its own")
        self._gateways[writer] = head.gateway
        self._pass_on(message.peer, message.data)

    def _tell_hosts(self, writer: asyncio.StreamWriter) -> None:
        peers, firsts, lasts = zip(*self._hosts, strict=True) if self._hosts else ((), (), ())
        here, onward = zip(*self._ways_s, strict=True) if self._ways_s else ((), ())
        told = protocol.Hosts(self._me, peers, firsts, lasts, self._behind, here, onward)
        _write(writer, told)


class StageServerProcess:
    """The process `peerlm.serve.stage_server`: started when there is something for it, and again when it has ended.

    Args:
        heed: takes what it says.
        ended: told when it has ended, with the laps that it was given lately.
    """

    def __init__(
        self,
        setup: Callable[[], ServeSetup],
        heed: Callable[[Message], None],
        ended: Callable[[list[tuple[float, Head]]], None],
        tell: Callable[[str, str, Mapping[str, object]], None],
    ) -> None:
        self._setup, self._heed, self._ended, self._tell = setup, heed, ended, tell
        self._life: asyncio.Task[None] | None = None
        self._outbox: deque[bytes] = deque()
        self._bytes = 0
        self._has_words = asyncio.Event()
        self._given: deque[tuple[float, Head]] = deque(maxlen=LATELY_MAX)
        self._not_before, self._failed_s = 0.0, FAILED_S
        self.why = ""
        """Why it takes nothing now."""

    def give(self, source: PeerId, head: Head, data: bytes) -> bool:
        """A lap for it. False: it is not taken."""
        if self._life is None:
            if head.kind is Kind.OVER:
                return False  # it knows no session
            if _now() < self._not_before:
                return False
            self._life = asyncio.create_task(self._live())
        if self._bytes > WAITING_BYTES_MAX:
            self.why = CROWDED
            return False
        self._given.append((_now(), head))
        self._say(Hop(source, data))
        return True

    async def close(self) -> None:
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)

    async def renew(self) -> None:
        """End it; the next one is set up anew."""
        await self.close()
        given, self._given = list(self._given), deque(maxlen=LATELY_MAX)
        self._ended(given)

    def _say(self, message: Message) -> None:
        framed = protocol.frame(message)
        self._bytes += len(framed)
        self._outbox.append(framed)
        self._has_words.set()

    async def _live(self) -> None:
        """From its start to its end."""
        words, status, began = "", 0, _now()
        try:
            words, status = await self._run()
        except OSError as error:
            words, status = f"it cannot be started: {error}", 1
        except (
            Exception
        ) as error:  # a fault of ours: the laps it has go back, and it is started again
            words, status = f"{type(error).__name__}: {error}", 1
        finally:
            self._life, self._bytes = None, 0
            self._outbox.clear()
        if words or status:
            self._failed_s = FAILED_S if _now() - began > FAILED_S_MAX else self._failed_s
            self._not_before = _now() + self._failed_s
            self._failed_s = min(2 * self._failed_s, FAILED_S_MAX)
            self.why = f"the stage server fails: {words or f'exit status {status}'}"[:200]
            self._tell("warning", "stage_server_failed", {"why": self.why})
        else:
            self._tell("info", "stage_server_ended", {"why": "nothing to do"})
        given, self._given = list(self._given), deque(maxlen=LATELY_MAX)
        self._ended(given)

    async def _run(self) -> tuple[str, int]:
        """Its last words and its exit status. Raises `OSError`."""
        ours, its = socket.socketpair()
        with contextlib.closing(ours):
            ours.setblocking(False)
            setup = self._setup()
            process = await _spawn(its, setup.threads)
            self._tell("info", "stage_server_started", {"pid": process.pid})
            sending = asyncio.create_task(self._send_all(ours, setup))
            try:
                words = await self._listen(ours)
                return words, await asyncio.wait_for(process.wait(), UNSENT_S)
            except TimeoutError:
                return "it closed its end and lingers", 1
            finally:
                sending.cancel()
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    async def _send_all(self, connection: socket.socket, setup: ServeSetup) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # the reader sees it too
            await loop.sock_sendall(connection, protocol.frame(setup))
            while True:
                while self._outbox:
                    framed = self._outbox.popleft()
                    await loop.sock_sendall(connection, framed)
                    self._bytes -= len(framed)
                self._has_words.clear()
                await self._has_words.wait()

    async def _listen(self, connection: socket.socket) -> str:
        loop, frames, words = asyncio.get_running_loop(), Frames(), ""
        try:
            while data := await loop.sock_recv(connection, RECEIVE_BYTES):
                for message in frames.feed(data):
                    if isinstance(message, protocol.Failed):
                        words = message.error
                    else:
                        self._heed(message)
        except WireError as error:
            return str(error)
        except ConnectionResetError:
            pass
        return words


async def _spawn(connection: socket.socket, threads: int) -> Process:
    with contextlib.closing(connection):
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-X", "faulthandler", "-m", "peerlm.serve.stage_server"),
            *(str(connection.fileno()), str(os.getpid())),
            stdin=DEVNULL,
            stdout=2,
            stderr=2,
            pass_fds=(connection.fileno(),),
            env=torch_environment(threads),
        )


def _write(writer: asyncio.StreamWriter, message: Message) -> None:
    """To a gateway. One that leaves too much unread is hung up on: it comes again, and is told anew."""
    transport = writer.transport
    if transport.get_write_buffer_size() > WAITING_BYTES_MAX:
        transport.abort()
    if not transport.is_closing():
        writer.write(protocol.frame(message))


def _now() -> float:
    return asyncio.get_running_loop().time()
