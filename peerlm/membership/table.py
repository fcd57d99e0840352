"""The membership list: one entry per peer, merged by precedence, bounded, with a log of changes.

Entries only ever move up the order of `member`, so an incarnation never decreases (invariant I3).
Leaving the table is the one exception: retention ran out, the peer was expelled, or a full table
made room by forgetting the oldest dead.

What readers ask for all the time (who lives, everybody in order) is computed once per `version`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from peerlm.membership.member import Member, State, precedence, rank_of
from peerlm.membership.profile import Profile
from peerlm.types import Instant, PeerId
from peerlm.wire.message import NodeRecord

CHANGES_MAX = 8192
"""Changes kept for a reader (a simulation); without one the oldest are lost, the table is not."""


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """A member's state or record changed. `old` is None for one not listed before."""

    peer: PeerId
    old: State | None
    new: State
    record: NodeRecord
    """The newest one: addresses may have changed even where the state has not."""
    restarted: bool = False
    """Its boot epoch grew: links of the old epoch lead nowhere."""


class Table:
    """Members without this node itself."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._members: dict[PeerId, Member] = {}
        self._changes: deque[MemberChanged] = deque(maxlen=CHANGES_MAX)
        self._ranks: dict[PeerId, tuple[int, bool, int]] = {}
        self._touched: dict[PeerId, None] = {}
        self._live: tuple[PeerId, ...] | None = ()
        self._sorted: tuple[int, Mapping[PeerId, Member]] = (-1, {})
        self.n_live = 0
        self.version = 0
        """Grows with every change."""

    def get(self, peer: PeerId) -> Member | None:
        return self._members.get(peer)

    def all(self) -> Mapping[PeerId, Member]:
        """Read-only use; in order of arrival."""
        return self._members

    def in_order(self) -> Mapping[PeerId, Member]:
        """Read-only; sorted by PeerId. The same object until something changes."""
        if self._sorted[0] != self.version:
            ordered = {peer: self._members[peer] for peer in sorted(self._members)}
            self._sorted = (self.version, ordered)
        return self._sorted[1]

    def live(self) -> tuple[PeerId, ...]:
        """Alive and suspect, sorted. The same object until somebody comes or goes."""
        if self._live is None:
            self._live = tuple(sorted(p for p, member in self._members.items() if member.is_live))
        return self._live

    def remember(self, members: Mapping[PeerId, Member]) -> None:
        """Begin with these entries, which may be shared with other tables. Only in an empty table;
        the change log does not show them."""
        assert not self._members, "remembered after others were met"
        self._members = dict(members)
        self._touched = dict.fromkeys(members)
        self.n_live = sum(member.is_live for member in members.values())
        self._live = None
        self.version += 1

    def put(self, new: Member) -> bool:
        """Take this fact if it is later than what is held. False: it is not, or there is no room."""
        old = self._members.get(new.peer)
        if old is not None and precedence(new) <= precedence(old):
            return False
        if old is None and not self._make_room():
            return False
        self._members[new.peer] = new
        self._touch(new.peer)
        was_live = old is not None and old.is_live
        if new.is_live != was_live:
            self.n_live += new.is_live - was_live
            self._live = None
        restarted = old is not None and new.record.epoch > old.record.epoch
        old_state = None if old is None else old.state
        self._changes.append(MemberChanged(new.peer, old_state, new.state, new.record, restarted))
        return True

    def remove(self, peer: PeerId) -> Member | None:
        """Forget a peer. If it was live, the change log shows it as dead."""
        old = self._members.pop(peer, None)
        self._ranks.pop(peer, None)
        self._touched.pop(peer, None)
        if old is None:
            return None
        self.version += 1
        if old.is_live:
            self.n_live -= 1
            self._live = None
            self._changes.append(MemberChanged(peer, old.state, State.DEAD, old.record))
        return old

    def expire(self, now: Instant) -> None:
        """Forget dead and left members whose retention has run out."""
        for member in list(self._members.values()):
            age_s = now - member.since
            dead_long = member.state is State.DEAD and age_s > self._profile.dead_retention_s
            left_long = member.state is State.LEFT and age_s > self._profile.left_retention_s
            if dead_long or left_long:
                self.remove(member.peer)

    def drain_changes(self) -> list[MemberChanged]:
        """Changes since the last call, in order."""
        drained = list(self._changes)
        self._changes.clear()
        return drained

    def check(self) -> list[PeerId]:
        """Assert that entries put since the last check are sound and did not move down. Returns
        whose they are."""
        assert 0 <= self.n_live <= len(self._members) <= self._profile.members_max, "bounds"
        touched, self._touched = list(self._touched), {}
        for peer in touched:
            self._check_entry(peer, self._members[peer])
        return touched

    def audit(self) -> None:
        """`check` of everything."""
        assert self.n_live == sum(m.is_live for m in self._members.values()), "live count is off"
        assert self.n_live == len(self.live()), "the list of the living is stale"
        assert self.in_order() == self._members, "the list of everybody is stale"
        for peer, member in self._members.items():
            self._check_entry(peer, member)

    def _check_entry(self, peer: PeerId, member: Member) -> None:
        assert member.peer == peer == member.record.peer, "an entry under another's name"
        assert (member.state is State.LEFT) == member.record.left, "left without a goodbye"
        rank = rank_of(member.record)
        assert rank >= self._ranks.get(peer, rank), "an incarnation decreased"
        self._ranks[peer] = rank

    def _touch(self, peer: PeerId) -> None:
        self._touched[peer] = None
        self.version += 1

    def _make_room(self) -> bool:
        if len(self._members) < self._profile.members_max:
            return True
        gone = [member for member in self._members.values() if not member.is_live]
        if not gone:
            return False
        self.remove(min(gone, key=lambda m: (m.since, m.peer)).peer)
        return True
