"""What happened: one digest of it all, and on demand a line for each thing that did.

The digest takes in every effect of every node with its time, messages as they would be on the wire.
Two runs with one digest did the same; the first line in which two traces differ is where to look.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable

from peerlm import effects as fx
from peerlm.effects import Effect
from peerlm.events import Event, Received
from peerlm.types import Instant, PeerId, short

SHOWN_CHARS = 140
PLAIN_BYTES = 40
"""Longer bytes are shown by how many they are."""
BYTES = re.compile(r"""\bb(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")

Teller = Callable[[Instant, int, str, str], None]
"""Takes (when, machine, direction, what); the direction is `<` for an event, `>` for an effect."""


class Trace:
    """`tell` hears everything, in order; None for the digest alone."""

    def __init__(self, tell: Teller | None = None) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._tell = tell
        self.is_told = tell is not None
        """Events need be shown too, which no digest takes in."""
        self._numbers: dict[bytes, int] = {}
        self._sends_to: PeerId | None = None

    def know(self, peer: PeerId, number: int) -> None:
        """`peer` is this machine, and is shown as it."""
        self._numbers[peer] = number

    def digest(self) -> str:
        return self._hash.hexdigest()

    def event(self, now: Instant, number: int, event: Event) -> None:
        if self._tell is not None:
            if isinstance(event, Received):
                what = f"{self._name(event.peer)}: {event.message}"
            else:
                what = str(event)
            self._tell(now, number, "<", self._readable(what))

    def effect(self, now: Instant, number: int, effect: Effect) -> None:
        if self._tell is not None:
            self._tell(now, number, ">", self._readable(str(effect)))
            self._sends_to = effect.peer if isinstance(effect, fx.Send | fx.SendFresh) else None
        match effect:
            case fx.Send() | fx.SendFresh():
                self._hash.update(f"{now!r} {number}".encode())  # `message` brings the rest
            case fx.Save(name=name, data=data):
                self._hash.update(f"{now!r} {number} {name}".encode() + data)
            case _:
                self._hash.update(f"{now!r} {number} {effect!r}".encode())

    def message(self, a: int, b: int, data: bytes) -> None:
        if self._sends_to is not None:
            self.know(self._sends_to, b)
            self._sends_to = None
        self._hash.update(b"%d %d" % (a, b))
        self._hash.update(data)

    # -------------------------------------------------------------------------------- for a person

    def _name(self, peer: bytes) -> str:
        """By its number, if anybody has sent it something yet."""
        number = self._numbers.get(peer)
        return short(peer) if number is None else f"node {number}"

    def _readable(self, what: str) -> str:
        shown = BYTES.sub(self._shorter, what)
        return shown if len(shown) <= SHOWN_CHARS else f"{shown[:SHOWN_CHARS]}…"

    def _shorter(self, literal: re.Match[str]) -> str:
        data = ast.literal_eval(literal[0])
        if data in self._numbers:
            return self._name(data)
        if data.isascii() and len(data) <= PLAIN_BYTES and data.decode().isprintable():
            return literal[0]
        return short(data) if len(data) <= PLAIN_BYTES else f"{len(data)} bytes {short(data)}"
