"""When this node compares tables, and what it shows of its own: the timing of anti-entropy (`sync`).

Tables are compared with a random linked member every half minute or rarer, and with whoever is new on the line. A newcomer
does so soon after its first link, then twice as late each time, until it is as late as usual: rumors of those who
came with it passed while it knew nobody.
"""

from __future__ import annotations

import math
import random

from peerlm.membership import sync
from peerlm.membership.beliefs import Beliefs
from peerlm.membership.profile import Profile
from peerlm.types import Instant, PeerId, after
from peerlm.wire.message import DigestEntry, Gossip, Sync


class Comparing:
    """`due`: when to compare tables with somebody."""

    def __init__(
        self,
        profile: Profile,
        rng: random.Random,
        beliefs: Beliefs,
        vitals: sync.VitalsShelf,
        now: Instant,
    ) -> None:
        self._profile, self._rng = profile, rng
        self._beliefs, self._vitals = beliefs, vitals
        self._digested: tuple[object, tuple[DigestEntry, ...]] = (None, ())
        self._synced: dict[PeerId, Instant] = {}
        """When each showed us its table."""
        self._shown_at = Instant(-math.inf)
        self._newcomer_wait_s = profile.probe_interval_s
        self.due = after(now, self._usual_wait_s())

    # ------------------------------------------------------------------------------------- when

    def remember(self, now: Instant) -> None:
        """The swarm has met: this node is no newcomer."""
        self._newcomer_wait_s = math.inf
        self.due = after(now, self._wait_s() * self._rng.random())

    def begin(self, now: Instant) -> None:
        """The first link is up."""
        if math.isfinite(self._newcomer_wait_s):
            self.due = min(self.due, after(now, self._wait_s()))

    def is_due_with(self, peer: PeerId, now: Instant, *, is_alive: bool) -> bool:
        """Whether to show our table to who is new on the line, unless both just did. A member that we
        hold alive brings little news (in a large swarm it probes us over a connection of its own,
        every few seconds another one): with those only now and then."""
        if is_alive:
            rest_s = self._profile.heal_interval_s * sync.stretch(self._beliefs.table.n_live + 1)
            return now - self._shown_at > rest_s
        return now - self._synced.get(peer, -math.inf) > self._profile.probe_interval_s

    def take_turn(self, now: Instant, *, has_links: bool) -> bool:
        """Whether it is time; then the next time is set."""
        if now < self.due:
            return False
        self.due = after(now, self._wait_s() if has_links else self._usual_wait_s())
        return True

    def _usual_wait_s(self) -> float:
        return sync.interval_s(self._profile, self._beliefs.table.n_live + 1, self._rng)

    def _wait_s(self) -> float:
        usual_s = self._usual_wait_s()
        if self._newcomer_wait_s >= usual_s:
            self._newcomer_wait_s = math.inf
            return usual_s
        wait_s = self._newcomer_wait_s * self._rng.uniform(1.0, 2.0)
        self._newcomer_wait_s *= 2
        return min(wait_s, usual_s)

    # ------------------------------------------------------------------------------------- what

    def digest(self, now: Instant, *, reply: bool) -> Sync:
        """Our table, to be shown now."""
        state = self._state()
        if self._digested[0] != state:
            self._digested = (state, self._entries())
        self._shown_at = now
        return Sync(self._digested[1], reply)

    def heard(self, peer: PeerId, now: Instant) -> None:
        """It has shown us its table."""
        self._synced[peer] = now

    def forget(self, peer: PeerId) -> None:
        """Its link is down."""
        self._synced.pop(peer, None)

    def lacking(self, entries: tuple[DigestEntry, ...], me: PeerId) -> list[Gossip]:
        """What whoever shows these entries does not know."""
        theirs = {PeerId(entry.peer): entry for entry in entries}
        lacking = sync.newer_than(theirs, self._beliefs.everyone(), self._vitals, me)
        return sync.in_batches(lacking)

    def audit(self) -> None:
        """Assert that what would be shown is what we know."""
        assert self._digested[0] != self._state() or self._digested[1] == self._entries()

    def _state(self) -> tuple[object, ...]:
        return self._beliefs.table.version, self._beliefs.us, self._vitals.version

    def _entries(self) -> tuple[DigestEntry, ...]:
        return sync.digest(self._beliefs.everyone(), self._vitals)
