"""What a node's part of the swarm's store begins with, and what it tells people of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from peerlm.node.trust import Distrust
from peerlm.store.catalog import Summary as CatalogSummary
from peerlm.types import ObjectHash, PeerId

Offer = tuple[int, str]
"""Bytes that a node offers, and what it fails together with."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a node finds on its disk when it starts."""

    capacity: int = 0
    """Bytes that it offers; 0: it keeps nothing for others."""
    here: tuple[tuple[ObjectHash, int], ...] = ()
    """(hash, bytes) of what lies in the store."""
    memory: bytes = b""
    """What `Save("catalog")` kept."""
    made: bytes | None = b""
    """What `Save("made")` kept; None: it cannot be read."""

    def without_room(self) -> Stored:
        return replace(self, capacity=0)


@dataclass(frozen=True, slots=True)
class Standing:
    """For people."""

    capacity: int
    used: int
    names: int
    catalog: CatalogSummary
    unread: int
    """Of `Storing.unread`."""
    pulling: int
    unfound: int
    full: bool
    trouble: str
    """Of `Awaited.trouble`."""
    distrusted: Mapping[PeerId, Distrust]
    nodes: tuple[tuple[PeerId, int, str, bool], ...]
    """(node, bytes offered, label, is live), this one too."""
