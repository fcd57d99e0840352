"""What happened: one digest of it all, and on demand a line for each thing that did.

The digest takes in every effect of every node with its time, messages as they would be on the wire.
Two runs with one digest did the same; the first line in which two traces differ is where to look.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from peerlm import effects as fx
from peerlm.effects import Effect
from peerlm.events import Event, Received
from peerlm.types import Instant

SHOWN_CHARS = 400

Teller = Callable[[Instant, int, str, str], None]
"""Takes (when, machine, direction, what); the direction is `<` for an event, `>` for an effect."""


class Trace:
    """`tell` hears everything, in order; None for the digest alone."""

    def __init__(self, tell: Teller | None = None) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._tell = tell

    def digest(self) -> str:
        return self._hash.hexdigest()

    def event(self, now: Instant, number: int, event: Event) -> None:
        if self._tell is not None:
            what = event.message if isinstance(event, Received) else event
            sender = f" from {event.peer.hex()[:8]}" if isinstance(event, Received) else ""
            self._tell(now, number, "<", f"{str(what)[:SHOWN_CHARS]}{sender}")

    def effect(self, now: Instant, number: int, effect: Effect) -> None:
        if self._tell is not None:
            self._tell(now, number, ">", str(effect)[:SHOWN_CHARS])
        match effect:
            case fx.Send() | fx.SendFresh():
                self._hash.update(f"{now!r} {number}".encode())  # `message` brings the rest
            case fx.Save(name=name, data=data):
                self._hash.update(f"{now!r} {number} {name}".encode() + data)
            case _:
                self._hash.update(f"{now!r} {number} {effect!r}".encode())

    def message(self, a: int, b: int, data: bytes) -> None:
        self._hash.update(b"%d %d" % (a, b))
        self._hash.update(data)
