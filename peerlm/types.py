"""The few words every room shares.

They are `NewType`s so that a type checker keeps an `Instant` from being used as a `WallTime`, or a
peer's id from being used as a run's; at run time they are plain ints, floats and bytes.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

PeerId = NewType("PeerId", bytes)
"""16 bytes: the first half of BLAKE3(Ed25519 public key). Names a node for as long as it lives."""

RunId = NewType("RunId", bytes)
"""16 bytes: the first half of BLAKE3(root public key ‖ run name ‖ nonce)."""

FragmentId = NewType("FragmentId", int)
"""Index of a fragment in the plan's list of fragments (`model.plan.fragments`), from 0."""

ObjectHash = NewType("ObjectHash", bytes)
"""32 bytes: BLAKE3-256 of an object's bytes (a corpus shard, a fragment of a snapshot)."""

TransferId = NewType("TransferId", bytes)
"""16 random bytes naming one exchange or one pull, on the control and on the bulk plane."""

Instant = NewType("Instant", float)
"""Seconds on a monotonic clock with an arbitrary zero. Never compared between machines."""

WallTime = NewType("WallTime", float)
"""Seconds since the Unix epoch; only certificates and people need it."""

HOST_LETTERS = frozenset(string.ascii_letters + string.digits + ".:-_")
"""What host names and addresses are made of. No `%`: what follows it in an IPv6 address is an interface of whoever wrote
it. Of spaces, NULs and other letters sockets make errors that do not say "no such host"."""


class Role(StrEnum):
    """What a certificate lets its holder do. Enforced where the effect happens."""

    TRAIN = "train"
    """Take inner steps and mix with others."""
    STORE = "store"
    """Keep and donate state and corpus objects."""
    SERVE = "serve"
    """Answer inference from its own copy of the weights."""
    OBSERVE = "observe"
    """Be a member and see the swarm's state."""
    INVITE = "invite"
    """Sign invites of its own."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on a device and on its host: what a machine has free, or what something takes.

    `device` is None for a machine that computes in the host's memory: both parts then come out of `host`.
    """

    device: int | None
    host: int

    def holds(self, need: Memory) -> bool:
        """Whether `need`, both parts given, fits into these free bytes."""
        if self.device is None:
            return need.total() <= self.host
        return (need.device or 0) <= self.device and need.host <= self.host

    def total(self) -> int:
        return (self.device or 0) + self.host

    def __add__(self, other: Memory) -> Memory:
        return Memory((self.device or 0) + (other.device or 0), self.host + other.host)

    def __sub__(self, other: Memory) -> Memory:
        return Memory((self.device or 0) - (other.device or 0), self.host - other.host)


def after(now: Instant, delay_s: float) -> Instant:
    """The instant `delay_s` seconds after `now`."""
    return Instant(now + delay_s)


def printable(text: str) -> str:
    """`text` on one line and without control characters: whoever wrote it, it can be shown."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def short(identifier: bytes) -> str:
    """The first eight hex digits: how people see a peer, a run or an object."""
    return identifier.hex()[:8]
