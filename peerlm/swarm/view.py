"""The swarm as one node sees it at one moment: immutable, sorted, with a version.

Rooms that choose (mixing, donors, data assignment) read a view and nothing else, so that two nodes
with equal views choose alike. A view is what this node believes, not what is true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from peerlm.membership.member import Member, State
from peerlm.types import PeerId
from peerlm.wire.message import NodeRecord, Vitals


@dataclass(frozen=True, slots=True)
class Seen:
    """One node: what membership holds of it, and how it says it is doing."""

    peer: PeerId
    state: State
    record: NodeRecord
    vitals: Vitals | None
    """None until its first pulse of this epoch has come."""

    @property
    def is_live(self) -> bool:
        """Alive or merely suspected."""
        return self.state <= State.SUSPECT

    @property
    def is_active(self) -> bool:
        """Live, and holding state that it may donate and mix."""
        return self.is_live and self.vitals is not None and self.vitals.active


@dataclass(frozen=True, slots=True)
class View:
    """`members`, sorted by PeerId; the node itself is one of them."""

    version: int
    members: tuple[Seen, ...]

    def get(self, peer: PeerId) -> Seen | None:
        return next((seen for seen in self.members if seen.peer == peer), None)

    def live(self) -> tuple[PeerId, ...]:
        """Alive and suspect nodes, sorted."""
        return tuple(seen.peer for seen in self.members if seen.is_live)

    def active(self) -> tuple[PeerId, ...]:
        """Live nodes one can mix with or fetch state from, sorted."""
        return tuple(seen.peer for seen in self.members if seen.is_active)


def build_view(
    version: int, members: Iterable[Member], vitals_of: Callable[[PeerId], Vitals | None]
) -> View:
    """The view these members (this node's own entry among them) and vitals make. Vitals of an
    earlier boot epoch say nothing about the node as it is now, and are left out."""
    seen = []
    for member in sorted(members, key=lambda m: m.peer):
        vitals = vitals_of(member.peer)
        if vitals is not None and vitals.epoch < member.record.epoch:
            vitals = None
        seen.append(Seen(member.peer, member.state, member.record, vitals))
    return View(version, tuple(seen))
