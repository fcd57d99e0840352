"""What to pull next of all that is lacking here.

Manifests come first, since without them nobody knows what else is. Then what is urgent, as the catalog says, and the rest
under a ceiling, as far as there is room. Who has made something new has a copy, be it due there or not; so where it is not, one
of those that it is due to fetches its own when there is nothing else to fetch, and all is in as many copies as are wanted the
sooner. What nobody has is set aside after a while, so that it does not keep back what
somebody has, and is asked for again when all else had its turn, or when somebody new came.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from peerlm.config import StoreSection
from peerlm.effects import Effect
from peerlm.node.awaited import Awaited
from peerlm.node.ceiling import Ceiling
from peerlm.node.makers import Makers
from peerlm.node.manifests import Manifests
from peerlm.node.pulls import Pulls
from peerlm.store.catalog import Catalog, Want
from peerlm.types import Instant, ObjectHash, after

UNDER_WAY = 32
"""Chunks of repair that are being pulled or looked for at once."""

LOOKED_AT = 4 * UNDER_WAY
"""Of what is wanted, so much at once: there may be no room for some of it."""

POSTPONED = 8 * LOOKED_AT
"""But what is fetched last does not count, up to so much at once, and is passed over by the next look."""

LATER_S = 1.0
"""For so long; then it may be another's turn."""

UNFOUND = 32
"""Of what nobody has, so much is asked for again and again; what is beyond it waits until all else had its turn."""

AGAIN_S = 60.0
"""Then it has its own, no more often."""

MANIFESTS_BYTES = 256 << 20
"""Manifests may take so much more than is offered: a node that could not read them would not know what may go."""


class Repair:
    """`is_full`: something was lacking for which there was no room, when it was looked last."""

    def __init__(
        self,
        settings: StoreSection,
        catalog: Catalog,
        pulls: Pulls,
        awaited: Awaited,
        manifests: Manifests,
        fresh: Makers,
        now: Instant,
    ) -> None:
        self._catalog, self._pulls, self._awaited = catalog, pulls, awaited
        self._manifests, self._fresh = manifests, fresh
        self._ceiling = Ceiling(settings.repair_bytes_s, now)
        self._nowhere: dict[ObjectHash, None] = {}
        """What nobody has, but for what is asked for again and again."""
        self._again_at = self._later_until = now
        self._later: set[ObjectHash] = set()
        """What is fetched when there is nothing else."""
        self._hurry = False
        self.is_full = False

    @property
    def unfound(self) -> int:
        """What nobody has."""
        return len(self._pulls.unfound()) + len(self._nowhere)

    def hurry(self) -> None:
        """There is no ceiling until nothing is lacking."""
        self._hurry = True

    def somebody_came(self) -> None:
        """Who may have what nobody had."""
        self._nowhere.clear()

    def look(self, free: int, now: Instant, *, keeps: bool) -> list[Effect]:
        """Pull what is due here and lacking. `free`: bytes of what this node offers; `keeps`: it offers anything."""
        self._ceiling.accrue(now)
        effects = self._set_aside()
        coming = set(self._pulls.wanted).difference(self._pulls.unfound())
        room = free - sum(map(self._pulls.size_of, coming))
        wants = self._lacked_manifests(room, UNDER_WAY - len(coming), keeps=keeps)
        room -= sum(size for _, size in wants)
        self.is_full = False
        known = {*self._pulls.wanted, *self._nowhere}
        if now >= self._later_until:
            self._later, self._later_until = set(), after(now, LATER_S)
        looked_at = 0
        for want in islice(self._catalog.each_wanted(known | self._later), POSTPONED):
            if len(coming) + len(wants) >= UNDER_WAY or looked_at == LOOKED_AT:
                break
            if want.size > room:
                self.is_full, looked_at = True, looked_at + 1
                continue
            if not want.is_urgent and self._is_one_more(want.hash):
                self._later.add(want.hash)
                continue
            looked_at += 1
            if not want.is_urgent and not self._may_spend(want.size):
                break
            room -= want.size
            wants.append((want.hash, want.size))
        if not wants and not coming:
            each = (w for w in self._catalog.each_wanted(known) if w.hash in self._later)
            later = list(islice(each, UNDER_WAY))
            wants = _fitting(later, room)
            self.is_full |= len(wants) < len(later)
        if self._hurry and not self._catalog.lacking:
            self._hurry = False
        if not wants and now >= self._again_at:
            self._nowhere.clear()
            self._again_at = after(now, AGAIN_S)
        return [*effects, *(self._pulls.want(wants, now) if wants else [])]

    def _lacked_manifests(
        self, room: int, count: int, *, keeps: bool
    ) -> list[tuple[ObjectHash, int]]:
        """Of those that are not asked for yet, what there is room for; who reads only has no room to mind."""
        wants: list[tuple[ObjectHash, int]] = []
        room += MANIFESTS_BYTES
        for manifest, size in self._manifests.lacked.items():
            is_asked = manifest in self._pulls.wanted or manifest in self._nowhere
            if len(wants) < count and not is_asked and (size <= room or not keeps):
                room -= size
                wants.append((manifest, size))
        return wants

    def _set_aside(self) -> list[Effect]:
        """What nobody has must not keep back what somebody has."""
        unfound = [h for h in self._pulls.unfound() if h not in self._awaited]
        aside = unfound[UNFOUND:]
        self._nowhere |= dict.fromkeys(aside)
        self._ceiling.give_back(sum(map(self._pulls.size_of, aside)))
        return self._pulls.forget(aside)

    def _is_one_more(self, object_hash: ObjectHash) -> bool:
        maker = self._fresh.maker_of(object_hash)
        return maker is not None and self._catalog.is_one_more(object_hash, maker)

    def _may_spend(self, size: int) -> bool:
        """Whether the ceiling leaves room. What a name that was just written needs is no repair."""
        return self._hurry or bool(self._fresh) or self._ceiling.take(size)


def _fitting(wants: Iterable[Want], room: int) -> list[tuple[ObjectHash, int]]:
    """As many of them as there is room for."""
    fitting = []
    for want in wants:
        if want.size <= room:
            room -= want.size
            fitting.append((want.hash, want.size))
    return fitting
