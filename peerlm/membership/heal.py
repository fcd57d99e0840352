"""The heal task: finding what failure detection has given up on.

Probes, rumors and push-pulls all skip the dead, so after a partition both halves would stay apart
for ever. Therefore each node now and then tries one dead or unknown address: with probability
max(0.1, 3/N) per interval, so the whole swarm makes about three attempts per interval whatever its
size. A node with no live member left tries addresses all the time, with back-off.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from peerlm.membership.address_book import AddressBook, address_of
from peerlm.membership.member import Member, State
from peerlm.membership.profile import Profile
from peerlm.types import Instant, PeerId, after

ANSWERED_MAX = 1024
"""Addresses whose owners are remembered; forgetting one costs one introduction."""

TRIES_AT_ONCE = 3
"""Addresses an isolated node tries in parallel; most of an old book may be gone."""


class Healer:
    """Says which addresses to introduce ourselves at, and when to ask again."""

    def __init__(self, profile: Profile, rng: random.Random, now: Instant) -> None:
        self._profile = profile
        self._rng = rng
        self._due = now
        self._retry_s = profile.isolated_retry_s
        self._pass: list[str] = []
        self._isolated = True
        self._answered: dict[str, PeerId] = {}

    def deadline(self) -> Instant:
        return self._due

    def lonely(self, now: Instant) -> None:
        """The last live member is gone: do not wait for the next interval."""
        if not self._isolated:
            self._isolated = True
            self._pass = []
            self._retry_s = self._profile.isolated_retry_s
            self._due = min(self._due, after(now, self._retry_s))

    def answered(self, address: str, peer: PeerId) -> None:
        """Who lives at an address (a seed's name tells nothing about it)."""
        if len(self._answered) >= ANSWERED_MAX:
            self._answered.clear()
        self._answered[address] = peer

    def wake(
        self, now: Instant, members: Mapping[PeerId, Member], book: AddressBook, own: str
    ) -> list[str]:
        """Addresses to try now. `members` without this node; `own` is its own address."""
        if now < self._due:
            return []
        n_live = 1 + sum(member.is_live for member in members.values())
        self._isolated = n_live == 1
        if self._isolated:
            return self._try_all(now, book, own)
        self._retry_s = self._profile.isolated_retry_s
        self._due = after(now, self._profile.heal_interval_s * self._rng.uniform(0.8, 1.2))
        if self._rng.random() >= max(0.1, 3 / n_live):
            return []
        lost = self._lost(now, members, book, own)
        return [self._rng.choice(lost)] if lost else []

    def _try_all(self, now: Instant, book: AddressBook, own: str) -> list[str]:
        """Seeds first, then the most recently seen; a pass without success doubles the wait."""
        if not self._pass:
            recent = sorted(book.contacts(), key=lambda c: (-book.seen(c.peer), c.peer))
            addresses = [*book.seeds, *(contact.address for contact in recent)]
            self._pass = [a for a in dict.fromkeys(addresses) if a and a != own]
        tries, self._pass = self._pass[:TRIES_AT_ONCE], self._pass[TRIES_AT_ONCE:]
        self._due = after(now, self._retry_s * self._rng.uniform(0.8, 1.2))
        if not self._pass:
            self._retry_s = min(2 * self._retry_s, self._profile.isolated_retry_max_s)
        return tries

    def _lost(
        self, now: Instant, members: Mapping[PeerId, Member], book: AddressBook, own: str
    ) -> list[str]:
        """Addresses of the dead, of peers in the book we do not list, of seeds nobody lives at."""
        lived_at = {own: None}
        for member in members.values():
            if member.is_live or member.state is State.LEFT:
                lived_at[address_of(member.record.host, member.record.intro_port)] = None
        for address, peer in self._answered.items():
            if (known := members.get(peer)) is not None and known.is_live:
                lived_at[address] = None
        oldest = now - self._profile.dead_retention_s
        addresses = list(book.seeds)
        for contact in book.contacts():
            member_or_none = members.get(contact.peer)
            is_dead = member_or_none is not None and member_or_none.state is State.DEAD
            is_unknown = member_or_none is None and not contact.left
            if is_dead or (is_unknown and book.seen(contact.peer) > oldest):
                addresses.append(contact.address)
        return [a for a in dict.fromkeys(addresses) if a and a not in lived_at]
