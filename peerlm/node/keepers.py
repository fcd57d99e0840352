"""Nodes that offer room to the swarm's store, as one node knows them.

Who goes away stays a keeper for a while, so that a reboot moves nothing (`store.owners`: the stable set).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from peerlm.node.stored import Offer
from peerlm.store.catalog import StoreNode
from peerlm.types import Instant, PeerId


@dataclass(slots=True)
class _Keeper:
    offer: Offer
    away_since: Instant | None = None


class Keepers:
    """Other nodes than this one. `version` grows when what is worth keeping on the disk changes."""

    def __init__(self, remembered: Iterable[tuple[PeerId, int, str]], now: Instant) -> None:
        self._known = {
            peer: _Keeper((capacity, label), away_since=now) for peer, capacity, label in remembered
        }
        self.version = 0

    def are(self, live: Mapping[PeerId, Offer], now: Instant) -> None:
        """These live, all others are away."""
        for peer, offer in live.items():
            known = self._known.get(peer)
            self.version += known is None or known.offer != offer
            self._known[peer] = _Keeper(offer)
        for peer, keeper in self._known.items():
            if peer not in live and keeper.away_since is None:
                keeper.away_since = now

    def forget(self, patience: float, now: Instant) -> None:
        """Those that have been away for so many seconds."""
        gone = [
            peer
            for peer, keeper in self._known.items()
            if keeper.away_since is not None and now - keeper.away_since >= patience
        ]
        for peer in gone:
            del self._known[peer]
        self.version += len(gone)

    def is_away(self, peer: PeerId) -> bool:
        """It offers room, and does not live."""
        known = self._known.get(peer)
        return known is not None and known.away_since is not None

    def nodes(
        self, distrusted: Collection[PeerId] = (), gone: Collection[PeerId] = ()
    ) -> list[StoreNode]:
        """All but those that are `gone`; those that are `distrusted` count as away."""
        return [
            StoreNode(peer, *keeper.offer, keeper.away_since is None and peer not in distrusted)
            for peer, keeper in self._known.items()
            if peer not in gone
        ]
