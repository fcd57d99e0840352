"""Sessions of gateways elsewhere that this node remembers: which slot each holds, how far it has been read, and by
which weights.

A session is known by who hands its laps to this node, its gateway and the slot it has there. Its first token begins
it anew, whoever was there before; any other token has to follow what was read, or the session is not what its gateway
takes it for, and the gateway begins it again elsewhere or here. What belongs to an earlier life of the slot has come too
late. So nothing has to be handed over, and a node may forget a session at any time. It keeps to the version it began with; a version is dropped with its last session, unless it is the newest. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from peerlm.serve.lap import Row
from peerlm.types import Instant, PeerId

IDLE_S = 600.0
"""A session that says nothing for so long is forgotten."""

GIVEN_UP_S = 30.0
"""One that says nothing for so long makes room for another where there is none."""

CACHED, CACHE_BYTES_MAX = 0.25, 1 << 30
"""Of the memory that is free when a stage server starts, to what it remembers of sessions; and the most."""

UNKNOWN = "a session is not known here"
"""Why a lap is lost that a gateway can send again to the same host, from the beginning of its sessions."""

FULL = "no room for another session"

CROWDED = "too much waits already"
"""Why a lap is lost, here and on its way, that others were in the way of."""

Way = tuple[PeerId, PeerId, int]
"""Who hands a lap over, and its gateway: the node, and which of its processes."""

Key = tuple[Way, int]

V = TypeVar("V")


def cache_of(free_bytes: int) -> int:
    """Bytes for what is remembered of all sessions, in a memory of which so much is free."""
    return min(CACHE_BYTES_MAX, int(CACHED * free_bytes))


class Forgotten(Exception):
    """These rows cannot be advanced here. The message is for the gateway."""


@dataclass(slots=True)
class _Guest(Generic[V]):
    slot: int
    life: int
    version: V
    read: int
    heard_at: Instant


class Guests(Generic[V]):
    """Of at most `slots` sessions. `version`: what new ones begin with; may be replaced."""

    def __init__(self, slots: int, version: V) -> None:
        self.version = version
        self._free = list(reversed(range(slots)))
        self._guests: dict[Key, _Guest[V]] = {}

    def __len__(self) -> int:
        return len(self._guests)

    def versions(self) -> list[V]:
        """Those somebody is advanced with, and the newest, which is the last."""
        used = {id(guest.version): guest.version for guest in self._guests.values()}
        used.pop(id(self.version), None)
        return [*used.values(), self.version]

    def seat(self, way: Way, rows: Sequence[Row], now: Instant) -> list[tuple[int, V]]:
        """Slot and version of each row's session, whose tokens then count as read. Raises `Forgotten`, and
        then nothing has changed but that sessions may have begun."""
        if not all(self._follows((way, row.slot), row) for row in rows):
            raise Forgotten(UNKNOWN)
        for row in rows:
            if row.start:
                self._guests[(way, row.slot)].heard_at = now
        found = [self._guest((way, row.slot), row, now) for row in rows]
        for guest, row in zip(found, rows, strict=True):
            guest.read, guest.heard_at = row.start + row.length, now
        return [(guest.slot, guest.version) for guest in found]

    def version_of(self, way: Way, row: Row) -> V:
        """What this session began with. Raises `Forgotten`."""
        guest = self._guests.get((way, row.slot))
        if guest is None or guest.life != row.life:
            raise Forgotten(UNKNOWN)
        return guest.version

    def over(self, way: Way, rows: Iterable[Row]) -> None:
        for row in rows:
            guest = self._guests.get((way, row.slot))
            if guest is not None and guest.life == row.life:
                self._end((way, row.slot))

    def forget_older(self) -> None:
        """Sessions of other versions than the newest: they begin again, with it."""
        for key in [k for k, guest in self._guests.items() if guest.version is not self.version]:
            self._end(key)

    def forget_idle(self, now: Instant) -> None:
        for key in [k for k, guest in self._guests.items() if now - guest.heard_at > IDLE_S]:
            self._end(key)

    def _follows(self, key: Key, row: Row) -> bool:
        guest = self._guests.get(key)
        if row.start == 0:
            return guest is None or guest.life < row.life
        return guest is not None and (guest.life, guest.read) == (row.life, row.start)

    def _guest(self, key: Key, row: Row, now: Instant) -> _Guest[V]:
        if row.start == 0:
            self._end(key)
            self._guests[key] = _Guest(
                self._slot(key, row.life, now), row.life, self.version, 0, now
            )
        return self._guests[key]

    def _slot(self, key: Key, life: int, now: Instant) -> int:
        """A free one, or that of the same session as it was handed over by another before, or of one given up."""
        if not self._free:
            oldest = min(self._guests, key=lambda key: self._guests[key].heard_at, default=None)
            if (earlier := self._earlier(key, life)) is not None:
                self._end(earlier)
            elif oldest is None or now - self._guests[oldest].heard_at <= GIVEN_UP_S:
                raise Forgotten(FULL)
            else:
                self._end(oldest)
        return self._free.pop()

    def _earlier(self, key: Key, life: int) -> Key | None:
        (_, *gateway), slot = key
        for known, guest in self._guests.items():
            (_, *its), its_slot = known
            if its == gateway and its_slot == slot and guest.life < life:
                return known
        return None

    def _end(self, key: Key) -> None:
        guest = self._guests.pop(key, None)
        if guest is not None:
            self._free.append(guest.slot)
