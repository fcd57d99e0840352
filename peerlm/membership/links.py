"""Whom this node has a link with, and whom it could ask for a sign of life: what the detector must know (`Reach`).

A link is a connection that both ends keep. Its end is no verdict on whoever was there; its being there is no proof of
life. But only over links is gossip told, help asked, and tables compared, so who is linked decides who hears of what.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator

from peerlm.membership.member import State
from peerlm.membership.table import Table
from peerlm.types import PeerId


class Links:
    """See `Membership` for `curve_of`, `lasts` and `mesh_max`. Iterates over who is linked, in the order of the links."""

    def __init__(
        self,
        me: PeerId,
        table: Table,
        curve_of: Callable[[PeerId], bytes | None],
        lasts: Callable[[PeerId], bool],
        mesh_max: int,
    ) -> None:
        self._me, self._table = me, table
        self._curve_of, self._lasts, self._mesh_max = curve_of, lasts, mesh_max
        self._up: dict[PeerId, None] = {}
        self._changed = 0
        self._linked: tuple[object, tuple[PeerId, ...]] = (None, ())
        self._heard_by: tuple[object, tuple[PeerId, ...]] = (None, ())

    def __len__(self) -> int:
        return len(self._up)

    def __iter__(self) -> Iterator[PeerId]:
        return iter(self._up)

    @property
    def version(self) -> int:
        """Grows with every change of the table or of who is linked."""
        return self._table.version + self._changed

    def up(self, peer: PeerId) -> None:
        self._up[peer] = None
        self._changed += 1

    def down(self, peer: PeerId) -> None:
        self._up.pop(peer, None)
        self._changed += 1

    def live_peers(self) -> tuple[PeerId, ...]:
        """Other members alive or suspect, sorted."""
        return self._table.live()

    def linked_peers(self) -> tuple[PeerId, ...]:
        """Those of them we have a link with, sorted."""
        if self._linked[0] != self.version:
            linked = tuple(peer for peer in sorted(self._up) if self.is_live(peer))
            self._linked = (self.version, linked)
        return self._linked[1]

    def listeners(self) -> tuple[PeerId, ...]:
        """Linked members but those who left, in the order of their links."""
        if self._heard_by[0] != self.version:
            known = self._table.all()
            able = tuple(p for p in self._up if p in known and known[p].state is not State.LEFT)
            self._heard_by = (self.version, able)
        return self._heard_by[1]

    def helpers(self) -> list[PeerId]:
        """Linked members whom nobody doubts, sorted."""
        return [peer for peer in self.linked_peers() if self.is_alive(peer)]

    def successor(self) -> PeerId | None:
        """The next member after us in the order of ids (the first one follows the last) whom nobody
        doubts: of several dead neighbours one after the other is found."""
        live = self._table.live()
        start = bisect(live, self._me)
        following = (live[(start + i) % len(live)] for i in range(len(live)))
        able = (peer for peer in following if self.is_alive(peer) and self.can_ask(peer))
        return next(able, None)

    def is_live(self, peer: PeerId) -> bool:
        """Alive or suspect."""
        member = self._table.get(peer)
        return member is not None and member.is_live

    def is_alive(self, peer: PeerId) -> bool:
        """And nobody doubts it."""
        member = self._table.get(peer)
        return member is not None and member.state is State.ALIVE

    def is_linked(self, peer: PeerId) -> bool:
        return peer in self._up

    def can_dial(self, peer: PeerId) -> bool:
        member = self._table.get(peer)
        dialable = member is not None and member.record.host and member.record.control_port
        return bool(dialable) and self._curve_of(peer) is not None

    def can_ask(self, peer: PeerId) -> bool:
        """Whether its silence would mean anything. A node that cannot be dialled answers over links that it
        has dialled itself: in a small swarm to everybody whom we could ask for help, in a large one
        to a few. There only those watch it."""
        if self._table.n_live < self._mesh_max or self.can_dial(peer):
            return True
        return self.is_linked(peer) and self._lasts(peer)
