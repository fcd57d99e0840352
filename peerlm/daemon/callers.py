"""Who has called at the bulk port and has yet to prove its right.

The port is open to everybody. A caller has a few seconds and a few bytes to say for which transfer it comes and to prove
that it has its key; nothing is read beyond those bytes, and there are never more than so many callers. Whether what
one has said is good is for others to say: see `daemon.mover`. Runs in the bulk thread.
"""

from __future__ import annotations

import errno
import selectors
import socket
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from peerlm.daemon.sockets import drop
from peerlm.wire.frame import HEADER_BYTES, PREFACE_BYTES, TAG_BYTES

CALLERS_MAX = 256
CALLER_S = 5.0
"""A connection that has not proved its right by then is closed."""

FIRST_BYTES = PREFACE_BYTES + HEADER_BYTES + 8 + TAG_BYTES
"""The preface and BEGIN."""

PAUSE_S = 0.05
"""Until the listener is looked at again when there was no file left for a caller."""


@dataclass(slots=True, eq=False)
class Caller:
    """A connection that has yet to prove its right."""

    connection: socket.socket
    until: float
    was_kept: bool = False
    """Another transfer has been on it."""
    came: bytearray = field(default_factory=bytearray)

    @property
    def has_spoken(self) -> bool:
        """Its first words are all here."""
        return len(self.came) == FIRST_BYTES


class Callers:
    """`spoke` is told of each caller whose first words are all here. `counters`: callers turned away, and why."""

    def __init__(
        self,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        counters: Counter[str],
        spoke: Callable[[Caller], None],
    ) -> None:
        self._listener = listener
        self._selector = selector
        self._counters = counters
        self._spoke = spoke
        self._here: OrderedDict[socket.socket, Caller] = OrderedDict()
        self._listens_at = 0.0
        self._listen()

    def __len__(self) -> int:
        return len(self._here)

    def all(self) -> list[Caller]:
        """The one that has waited longest first."""
        return list(self._here.values())

    @property
    def next_at(self) -> float:
        """When to call `tick`; infinity for never."""
        first = next(iter(self._here.values()), None)
        return min(self._listens_at, first.until if first is not None else float("inf"))

    def tick(self, now: float) -> None:
        """Do what is due."""
        if now >= self._listens_at:
            self._listen()
        for caller in [c for c in self._here.values() if now >= c.until]:
            self.turn_away(caller, "denied")

    def _listen(self) -> None:
        self._listens_at = float("inf")
        self._selector.register(self._listener, selectors.EVENT_READ, self._on_caller)

    def _on_caller(self, mask: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # it stays ready until one is free
                self._selector.unregister(self._listener)
                self._listens_at = time.monotonic() + PAUSE_S
            return  # gone again, or no file left for it: whoever called will call again
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._let_in(connection, was_kept=False)

    def again(self, connection: socket.socket) -> None:
        """One whose last transfer is over has something to say, or has gone."""
        self._hear(self._let_in(connection, was_kept=True))

    def _let_in(self, connection: socket.socket, *, was_kept: bool) -> Caller:
        while len(self._here) >= CALLERS_MAX:
            self.turn_away(next(iter(self._here.values())), "denied")
        caller = Caller(connection, time.monotonic() + CALLER_S, was_kept)
        self._here[connection] = caller
        self._selector.register(connection, selectors.EVENT_READ, partial(self._hear, caller))
        return caller

    def _hear(self, caller: Caller, mask: int = 0) -> None:
        """More of a caller's first words: nothing is read beyond them."""
        if self._here.get(caller.connection) is not caller:
            return  # turned away for others, in this very turn
        try:
            data = caller.connection.recv(FIRST_BYTES - len(caller.came))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            if caller.was_kept and not caller.came:
                self._forget(caller)  # it has no further transfer: nothing is wrong with that
            else:
                self.turn_away(caller, "denied")
            return
        caller.came += data
        if caller.has_spoken:
            # Whatever else it has to say stays in the kernel until its transfer is known.
            self._selector.unregister(caller.connection)
            self._spoke(caller)

    def let_go(self, caller: Caller) -> None:
        """It has come in: its connection is somebody else's now."""
        del self._here[caller.connection]

    def turn_away(self, caller: Caller, why: str) -> None:
        self._counters[f"callers_{why}"] += 1
        self._forget(caller)

    def turn_all_away(self) -> None:
        for caller in self.all():
            self.turn_away(caller, "denied")

    def _forget(self, caller: Caller) -> None:
        self._here.pop(caller.connection, None)
        drop(self._selector, caller.connection)
