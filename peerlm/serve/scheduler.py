"""Who is admitted, and who advances by which tokens in each step.

A session holds a *slot* from its admission to its end; there are so many of them, and a bounded queue in front,
first come, first served. In every step each session that has one unread token (the one it drew last) reads it,
and those with more (a prompt) share `chunk` tokens evenly, so neither a long prompt nor many of them hold up those
that are writing, and a short prompt is not held up by a long one. Who is still on the way from an earlier step is
passed over. Nothing here knows of weights, texts or time.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

SHARE_MIN = 16
"""Tokens a prompt gets on in a step, however many share it: less is not worth its pass through the model."""


class QueueFull(Exception):
    """No room for sessions of one more request."""


@dataclass(frozen=True, slots=True)
class Advance:
    """The session in `slot` reads its tokens `start` to `stop`."""

    session: int
    slot: int
    start: int
    stop: int
    is_last: bool
    """Nothing is left unread: a token is to be drawn."""


@dataclass(slots=True)
class _Seat:
    slot: int
    known: int
    """Tokens of the prompt, and those drawn."""
    read: int = 0


class Scheduler:
    """`slots` sessions at once, `queue_max` waiting, at most about `chunk` tokens of prompts a step."""

    def __init__(self, slots: int, queue_max: int, chunk: int) -> None:
        self.slots, self._queue_max, self._chunk = slots, queue_max, chunk
        self._free = list(range(slots))
        self._waiting: deque[tuple[int, int]] = deque()
        self._seats: dict[int, _Seat] = {}
        """By session, the longest served first among those with a prompt to read."""

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def active(self) -> int:
        return len(self._seats)

    def offer(self, sessions: Sequence[tuple[int, int]]) -> None:
        """Sessions, each with the length of its prompt, of one request: all wait, or none.

        Raises `QueueFull`. One request alone may always wait where nobody does.
        """
        room = self._queue_max + len(self._free) - len(self._waiting)
        if len(sessions) > room and (self._waiting or self._seats):
            raise QueueFull
        self._waiting.extend(sessions)

    def admit(self) -> list[int]:
        """Gives slots to those who wait, the lowest first; returns their sessions."""
        admitted = []
        while self._free and self._waiting:
            session, prompt = self._waiting.popleft()
            self._seats[session] = _Seat(heapq.heappop(self._free), prompt)
            admitted.append(session)
        return admitted

    def step(self, under_way: Collection[int] = ()) -> list[Advance]:
        """What everybody reads now, but for sessions `under_way`; `drawn` and `end` say what came of it."""
        seats = {s: seat for s, seat in self._seats.items() if s not in under_way}
        unread = {session: seat.known - seat.read for session, seat in seats.items()}
        lengths = {session: 1 for session, left in unread.items() if left == 1}
        lengths |= dict(self._shares({s: left for s, left in unread.items() if left > 1}))
        return [self._advance(session, length) for session, length in lengths.items()]

    def _shares(self, prompts: dict[int, int]) -> Iterator[tuple[int, int]]:
        """Tokens for each prompt. Who got some goes behind those who did not."""
        budget = self._chunk
        share = max(SHARE_MIN, budget // max(len(prompts), 1))
        for session, left in prompts.items():
            if budget <= 0:
                return
            length = min(left, share, max(budget, SHARE_MIN))
            budget -= length
            self._seats[session] = self._seats.pop(session)
            yield session, length

    def _advance(self, session: int, length: int) -> Advance:
        seat = self._seats[session]
        start, seat.read = seat.read, seat.read + length
        return Advance(session, seat.slot, start, seat.read, seat.read == seat.known)

    def drawn(self, session: int) -> None:
        """The session has one more token to read."""
        self._seats[session].known += 1

    def end(self, session: int) -> int | None:
        """Forget it, wherever it is; returns the slot it held. May be called again."""
        seat = self._seats.pop(session, None)
        if seat is None:
            self._waiting = deque(w for w in self._waiting if w[0] != session)
            return None
        heapq.heappush(self._free, seat.slot)
        return seat.slot
