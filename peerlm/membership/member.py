"""A member and the order of facts about it.

Each fact about a member has a place in one total order, so tables merge by taking the later fact,
whatever the order of arrival: the merge is commutative, associative and idempotent. An incarnation
(boot epoch, counter) is minted by its owner alone, who signs it; others only add a verdict to one
they have the signed record of. So a later incarnation beats every verdict on an earlier one, a
restart (higher epoch) beats its own old death, and a goodbye is final for its epoch.

    order: epoch, goodbye, counter, then alive < suspect < dead

After SWIM (Das, Gupta, Motivala 2002), section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache

from peerlm.errors import WireError
from peerlm.types import Instant, PeerId
from peerlm.wire.codec import decode_as
from peerlm.wire.message import Alive, NodeRecord


class State(IntEnum):
    """What we hold of a member; the numbers are those of a digest entry."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


SUSPECT = State.SUSPECT
"""By a name of its own: Python 3.11 looks a member of an enumeration up slowly, and this is asked for
each member again and again."""


@dataclass(frozen=True, slots=True)
class Member:
    """A peer's entry in the membership list."""

    peer: PeerId
    record: NodeRecord
    """Decoded from `alive`, whose signature and chain were verified."""
    alive: Alive
    """The proof, for relaying."""
    state: State
    since: Instant
    """When this node came to hold `state`; local, never sent."""

    @property
    def incarnation(self) -> tuple[int, int]:
        return (self.record.epoch, self.record.counter)

    @property
    def is_live(self) -> bool:
        """Alive or merely suspected."""
        return self.state <= SUSPECT


def record_of(alive: Alive) -> NodeRecord | None:
    """What a record says, not whether it is true; None for junk."""
    return _decoded(alive.record)


@lru_cache(maxsize=2048)
def _decoded(record: bytes) -> NodeRecord | None:
    """Read once, though it is heard from many, and by all nodes of a process (a simulation)."""
    try:
        return decode_as(NodeRecord, record)
    except WireError:
        return None


def rank_of(record: NodeRecord) -> tuple[int, bool, int]:
    """Where a record stands among its owner's records: the later one is greater."""
    return (record.epoch, record.left, record.counter)


def from_alive(record: NodeRecord, alive: Alive, now: Instant) -> Member:
    """The entry that a verified record alone makes: alive, or left if it says goodbye."""
    state = State.LEFT if record.left else State.ALIVE
    return Member(PeerId(record.peer), record, alive, state, now)


def accused(member: Member, state: State, now: Instant) -> Member:
    """The same incarnation under a verdict, SUSPECT or DEAD. A goodbye has no verdict above it."""
    assert state in (State.SUSPECT, State.DEAD), state
    return replace(member, state=state, since=now) if state > member.state else member


def precedence(member: Member) -> tuple[object, ...]:
    """Key of the total order. Bytes of the proof break ties that only an owner who signs two
    records with one number can make; the earlier `since` breaks the rest."""
    proof = (member.alive.record, member.alive.signature, member.alive.chain)
    return (*rank_of(member.record), int(member.state), *proof, -member.since)
