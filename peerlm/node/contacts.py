"""Whom this node keeps a connection with, and how hard it tries.

A contact begins with an introduction in the clear (both show their certificates), then a CURVE
link to the control port that the answer named. Up to `MESH_MAX` members every pair keeps a link;
beyond, each node keeps its successor in the order of ids, whom it watches, some that are nearest by
XOR of hashed ids and some that are far; it needs no agreement, and links are used both ways. One
working link per pair is enough, whoever dialled it, so a node that nobody can reach takes part by
dialling out.

An address that fails is tried again with a back-off that doubles up to ten seconds; what went wrong
last is remembered for `peerlm why`. Nothing here decides who is alive: that is membership's.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from peerlm.types import Instant, PeerId, after

NEVER = Instant(0.0)

MESH_MAX = 64
"""Members up to which everybody keeps a link with everybody."""

NEIGHBOURS = 12
"""Links a node keeps in a larger swarm: log2 n plus a few keeps a random graph connected."""

BACKOFF_S = 0.2
BACKOFF_S_MAX = 10.0
ATTEMPT_S = 10.0
"""An introduction that has not been heard of after this long counts as failed."""


@dataclass(slots=True)
class Attempt:
    """How dialling one address stands."""

    failures: int = 0
    not_before: Instant = NEVER
    running_until: Instant | None = None
    last_error: str = ""


class Contacts:
    """Dialling state by address and link state by peer. Bounded by the members there are."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._attempts: dict[str, Attempt] = {}
        self._links: dict[PeerId, bool] = {}
        """Whether we have greeted each other; a connection for a single probe brings no greeting."""
        self._software: dict[PeerId, str] = {}
        self._opening: dict[PeerId, Instant] = {}
        """Links we asked the driver to open, and until when they are waited for."""
        self._looked = NEVER
        self._due: Instant | None = None
        self._is_due_known = False
        """The deadline is asked for after every event, and seldom another one than before."""

    def may_dial(self, address: str, now: Instant) -> bool:
        attempt = self._attempts.get(address)
        if attempt is None:
            return True
        running = attempt.running_until is not None and attempt.running_until > now
        return not running and attempt.not_before <= now

    def dialling(self, address: str, now: Instant) -> None:
        self._is_due_known = False
        self._attempts.setdefault(address, Attempt()).running_until = after(now, ATTEMPT_S)

    def succeeded(self, address: str) -> None:
        self._is_due_known = False
        self._attempts.pop(address, None)

    def failed(self, address: str, error: str, now: Instant) -> None:
        """Remember why, and when to try again: 0.2 s, doubling to 10 s, jittered by a quarter."""
        self._is_due_known = False
        attempt = self._attempts.setdefault(address, Attempt())
        delay_s = min(BACKOFF_S * 2.0 ** min(attempt.failures, 10), BACKOFF_S_MAX)
        attempt.failures += 1
        attempt.not_before = after(now, delay_s * self._rng.uniform(0.75, 1.25))
        attempt.running_until = None
        attempt.last_error = error

    def opening(self, peer: PeerId, now: Instant) -> None:
        self._is_due_known = False
        self._opening[peer] = after(now, ATTEMPT_S)

    def link_up(self, peer: PeerId, *, greeted: bool) -> None:
        self._links[peer] = greeted
        self._not_opening(peer)

    def greeted(self, peer: PeerId, software: str = "") -> None:
        """`software`: the release of peerlm that it runs, by its own word."""
        if peer in self._links:
            self._links[peer] = True
            self._software[peer] = software

    def link_down(self, peer: PeerId) -> None:
        self._links.pop(peer, None)
        self._software.pop(peer, None)
        self._not_opening(peer)

    def is_linked(self, peer: PeerId) -> bool:
        return peer in self._links

    def is_greeted(self, peer: PeerId) -> bool:
        return self._links.get(peer, False)

    def software(self, peer: PeerId) -> str:
        """What a linked peer runs; empty where it has not said."""
        return self._software.get(peer, "")

    def is_pending(self, peer: PeerId, now: Instant) -> bool:
        return self._opening.get(peer, now) > now

    @property
    def attempts(self) -> int:
        """How many addresses are being tried, or failed."""
        return len(self._attempts)

    def errors(self) -> dict[str, Attempt]:
        """Addresses that do not answer as they should, with what they said."""
        return {a: attempt for a, attempt in sorted(self._attempts.items()) if attempt.last_error}

    def error_at(self, address: str) -> str:
        """What dialling it said last; empty while nothing has gone wrong there."""
        attempt = self._attempts.get(address)
        return attempt.last_error if attempt else ""

    def keep_only(self, addresses: Collection[str]) -> None:
        """Forget how dialling went at addresses that nobody lives at any more."""
        for address in [a for a in self._attempts if a not in addresses]:
            if self._attempts[address].running_until is None:
                self._is_due_known = False
                del self._attempts[address]

    def looked(self, now: Instant) -> None:
        """Whatever may be tried by now was looked at; nobody need be woken for it again."""
        self._looked = now
        self._is_due_known = False

    def deadline(self) -> Instant | None:
        """When the next address may be tried again, or a link is not waited for any longer."""
        if not self._is_due_known:
            self._due, self._is_due_known = self._next_due(), True
        return self._due

    def check(self) -> None:
        """Raise `AssertionError` if the deadline is not the one that follows from what is tried."""
        assert self.deadline() == self._next_due(), "the deadline is stale"

    def _not_opening(self, peer: PeerId) -> None:
        if self._opening.pop(peer, None) is not None:
            self._is_due_known = False

    def _next_due(self) -> Instant | None:
        waiting = [a.running_until or a.not_before for a in self._attempts.values()]
        waiting += self._opening.values()
        return min((at for at in waiting if at > self._looked), default=None)


def neighbours(me: PeerId, members: Sequence[PeerId]) -> tuple[PeerId, ...]:
    """Which of the live `members` (sorted, without `me`) this node keeps a link with."""
    if len(members) < MESH_MAX:
        return tuple(members)
    own = int.from_bytes(me[:8])
    successor = members[bisect(members, me) % len(members)]
    nearest = sorted(members, key=lambda p: own ^ int.from_bytes(p[:8]) if p != successor else -1)
    # Nearest by XOR alone would cut the swarm into corners; every second one is a far one.
    near, far = nearest[: NEIGHBOURS // 2], nearest[NEIGHBOURS // 2 :]
    step = max(1, len(far) // (NEIGHBOURS - len(near)))
    return tuple(sorted((*near, *far[::step][: NEIGHBOURS - len(near)])))
