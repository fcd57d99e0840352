"""Who has exchanged weights with whom lately, in all of the swarm.

Each node names in its vitals its latest few partners and how long ago that was, coarsely: so little that it rides on what
is said anyway, and changes seldom. What it says is its own word, so of others only what can be so is taken: partners that are members
here, once each, at a time that is not over; and of exchanges with this node none that this node has not made itself. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from peerlm.types import PeerId
from peerlm.wire.message import Vitals

PARTNERS_MAX = 4
"""That a node names; `wire.rumor` has the same bound."""

LATELY_S = 300.0
"""An exchange that is longer ago is not spoken of."""

ID_BYTES = 4
"""Of an id, as people see it. Two members that share them are told apart by nobody, and so not spoken of."""

Mixed = tuple[PeerId, float]
"""With whom, and how many seconds ago."""


def said(mixed: Iterable[Mixed]) -> tuple[tuple[bytes, ...], tuple[int, ...]]:
    """`mixed_with` and `mixed_s` of a node's vitals, for its exchanges, the latest first."""
    shown = [*mixed][:PARTNERS_MAX]
    return tuple(peer[:ID_BYTES] for peer, _ in shown), tuple(coarse(ago) for _, ago in shown)


def coarse(seconds: float) -> int:
    """Rounded down to a power of two, from 1 on: what a node says of an exchange changes nine times, and no more."""
    return 1 << max(1, int(seconds)).bit_length() - 1


def named(peers: Iterable[PeerId]) -> dict[bytes, PeerId]:
    """Members by what is said of their ids; without those who share that."""
    found: dict[bytes, PeerId] = {}
    twice: set[bytes] = set()
    for peer in peers:
        name = peer[:ID_BYTES]
        if found.setdefault(name, peer) != peer:
            twice.add(name)
    return {name: peer for name, peer in found.items() if name not in twice}


def believed(
    vitals: Vitals, members: Mapping[bytes, PeerId], me: PeerId, met_s_ago: float | None
) -> tuple[Mixed, ...]:
    """What another node's vitals say of its exchanges, as far as it can be so; the latest first.

    `members`: of `named`, this node among them. `met_s_ago`: since this node's own last exchange with it; None: there was none.
    """
    mixed: dict[PeerId, float] = {}
    for name, ago in zip(vitals.mixed_with, vitals.mixed_s, strict=False):
        peer, seconds = members.get(name), float(ago)
        if peer is None or peer == vitals.peer:
            continue
        if peer == me:
            if met_s_ago is None:
                continue
            seconds = met_s_ago
        if seconds <= LATELY_S:
            mixed.setdefault(peer, seconds)
    return tuple(sorted(mixed.items(), key=lambda item: (item[1], item[0])))
