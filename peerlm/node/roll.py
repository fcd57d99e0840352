"""The stable set: nodes that offer the store room, and since when those that are away have been.

Who was away for longer than the patience is on it no more. What is kept of it over a restart is who there was: all of them
count as away from then on, until they are seen.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from peerlm.node.stored import Offer
from peerlm.store.catalog import StoreNode
from peerlm.types import Instant, PeerId


@dataclass(slots=True)
class _Node:
    offer: Offer
    away_since: Instant | None = None


class Roll:
    """All but this node. `version` grows with each change of what `offers` says."""

    def __init__(self) -> None:
        self.version = 0
        self._nodes: dict[PeerId, _Node] = {}

    def restore(self, offers: Iterable[tuple[PeerId, int, str]], now: Instant) -> None:
        for peer, capacity, label in offers:
            self._nodes[peer] = _Node((capacity, label), away_since=now)

    def live_are(self, live: Mapping[PeerId, Offer], now: Instant) -> None:
        for peer, offer in live.items():
            known = self._nodes.get(peer)
            self.version += known is None or known.offer != offer
            self._nodes[peer] = _Node(offer)
        for peer, node in self._nodes.items():
            if peer not in live and node.away_since is None:
                node.away_since = now

    def expire(self, patience_s: float, now: Instant) -> None:
        gone = [
            peer
            for peer, node in self._nodes.items()
            if node.away_since is not None and now - node.away_since >= patience_s
        ]
        for peer in gone:
            del self._nodes[peer]
        self.version += len(gone)

    def nodes(self, without: Container[PeerId] = ()) -> list[StoreNode]:
        return [
            StoreNode(peer, *node.offer, node.away_since is None)
            for peer, node in self._nodes.items()
            if peer not in without
        ]

    def offers(self) -> list[tuple[PeerId, int, str]]:
        return [(peer, *node.offer) for peer, node in sorted(self._nodes.items())]
