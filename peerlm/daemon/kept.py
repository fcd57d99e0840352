"""Bulk connections that outlive their transfer, and wait for the next one between the same two ends.

A fresh connection has to be dialled and to learn what the line can carry; on a line of 50 ms that is most of a second in
which little moves. So whoever dialled keeps it, if the other end says KEEP, and begins its next transfer there.

A connection that is kept has no rights and no keys: the next transfer on it shows its own preface and proves its own
key, as it would on a fresh one, so whose it was does not matter. It costs a descriptor, and is worth one for a
minute or two. Pure bookkeeping; times are arguments, and whoever owns this closes what it hands out.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from dataclasses import dataclass

Target = tuple[str, int]

KEPT_MAX = 128
"""Dialled by us and by others together; beyond it the one that has waited longest is closed."""

DIALLED_S = 60.0
CALLED_S = 75.0
"""How long one waits that we have dialled, and one that has called us: who dialled gives up first, so that it
hardly ever begins on a connection that is just being closed."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    target: Target | None
    """Where it was dialled; None: it has called us."""
    until: float


class Kept:
    def __init__(self) -> None:
        self._waiting: OrderedDict[socket.socket, _Waiting] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, connection: socket.socket) -> bool:
        return connection in self._waiting

    def add(
        self, connection: socket.socket, target: Target | None, now: float
    ) -> list[socket.socket]:
        """Keep one more; returns those that must be closed for it."""
        lasts_s = CALLED_S if target is None else DIALLED_S
        self._waiting[connection] = _Waiting(target, now + lasts_s)
        return [self._waiting.popitem(last=False)[0] for _ in range(len(self) - KEPT_MAX)]

    def take(self, target: Target) -> socket.socket | None:
        """One that was dialled there, if there is one; the latest that was used knows the line best."""
        for connection, waiting in reversed(self._waiting.items()):
            if waiting.target == target:
                del self._waiting[connection]
                return connection
        return None

    def drop(self, connection: socket.socket) -> None:
        """Whether it was kept or not, it is not any more."""
        self._waiting.pop(connection, None)

    def take_all(self, target: Target) -> list[socket.socket]:
        """All that were dialled there."""
        return list(iter(lambda: self.take(target), None))

    def overdue(self, now: float) -> list[socket.socket]:
        """Those that have waited long enough."""
        late = [c for c, waiting in self._waiting.items() if now >= waiting.until]
        for connection in late:
            del self._waiting[connection]
        return late

    def clear(self) -> list[socket.socket]:
        """All of them."""
        return self.overdue(float("inf"))

    @property
    def next_at(self) -> float:
        """When one will be overdue; infinity for never."""
        return min((waiting.until for waiting in self._waiting.values()), default=float("inf"))
