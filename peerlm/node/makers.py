"""Who has made what was named lately: its chunks are asked of them first, since the others have them from there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from peerlm.types import Instant, ObjectHash, PeerId

FRESH_S = 1800.0
"""So long after a name was heard of."""


class _Made(NamedTuple):
    makers: tuple[PeerId, ...]
    since: Instant
    each: Mapping[ObjectHash, PeerId]


Lists = Callable[[ObjectHash, ObjectHash], bool]
"""Whether a manifest is known to list an object."""


class Makers:
    """By manifest; true while something is fresh."""

    def __init__(self, me: PeerId, lists: Lists) -> None:
        self._me, self._lists = me, lists
        self._made: dict[ObjectHash, _Made] = {}

    def __bool__(self) -> bool:
        return bool(self._made)

    def heard(
        self,
        manifest: ObjectHash,
        makers: Iterable[PeerId],
        now: Instant,
        each: Mapping[ObjectHash, PeerId] | None = None,
    ) -> None:
        """In place of what was heard of it before; nothing, where this node alone has made it. `each`: of chunks of which
        it is said who made them."""
        others = tuple(peer for peer in dict.fromkeys(makers) if peer != self._me)
        if others:
            self._made[manifest] = _Made(others, now, each or {})

    def forget(self, manifest: ObjectHash) -> None:
        self._made.pop(manifest, None)

    def expire(self, now: Instant) -> None:
        self._made = {m: made for m, made in self._made.items() if now - made.since < FRESH_S}

    def maker_of(self, object_hash: ObjectHash) -> PeerId | None:
        """Who says to have made it, another than this node; None: nobody does."""
        found = (m.each[object_hash] for m in self._made.values() if object_hash in m.each)
        return next((maker for maker in found if maker != self._me), None)

    def of(self, object_hash: ObjectHash) -> list[PeerId]:
        """Who may have it because they made it, the oldest manifest's makers first."""
        found = (
            made.makers
            for manifest, made in self._made.items()
            if object_hash == manifest or self._lists(manifest, object_hash)
        )
        return [maker for makers in found for maker in makers]
