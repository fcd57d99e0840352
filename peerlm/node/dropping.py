"""What of a node's part of the store may go: never on a guess, nor on another's word.

What is in nothing that has a name goes by its age (`node.leftovers`). What is others' to keep goes when as many of them as should
keep it have said that they do, as their own, and have shown it to this node within half a minute (`node.witnesses`). As their own: two nodes that
both keep what is a third's would else each drop it because the other has it. Who says of something that it will stay asks no
more whether it may go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet

from peerlm.effects import Effect
from peerlm.node.leftovers import Leftovers
from peerlm.node.survey import Survey, Surveys
from peerlm.node.witnesses import Called, Shown, Witnesses
from peerlm.store.catalog import Catalog
from peerlm.types import Instant, ObjectHash, PeerId

DROPPED_AT_ONCE = 1024


class Dropping:
    """Of one node. One survey at a time, with the proofs that follow it.

    Args:
        witnesses: of this alone.
        is_used: it must stay, whoever else has it.
    """

    def __init__(
        self,
        catalog: Catalog,
        leftovers: Leftovers,
        surveys: Surveys,
        witnesses: Witnesses,
        is_used: Callable[[ObjectHash], bool],
    ) -> None:
        self._catalog, self._leftovers, self._surveys = catalog, leftovers, surveys
        self._witnesses, self._is_used = witnesses, is_used
        self._survey: Survey | None = None

    def loose(self, manifests: AbstractSet[ObjectHash], now: Instant) -> list[ObjectHash]:
        """What goes at once: it is in no manifest that a living name stands for, and is none of these, which are all such."""
        if manifests - self._catalog.manifests:
            return []  # it may be in one that is not known yet
        loose = self._unused(h for h in self._catalog.unreferenced() if h not in manifests)
        return self._leftovers.loose_to_go(loose, now)[:DROPPED_AT_ONCE]

    def ask(
        self, live: Sequence[PeerId], trusted: Sequence[PeerId], now: Instant, *, is_full: bool
    ) -> list[Effect]:
        """Who else keeps what is not due here?"""
        if self._survey is not None or self._witnesses.are_called or not live:
            return []
        self._leftovers.settle(self._catalog.is_due)
        surplus = self._unused(self._catalog.surplus())
        going = self._unused(self._leftovers.surplus_to_go(surplus, now, is_full=is_full))
        return self.ask_about(going[:DROPPED_AT_ONCE], trusted, now) if going else []

    def ask_about(
        self, hashes: Sequence[ObjectHash], trusted: Sequence[PeerId], now: Instant
    ) -> list[Effect]:
        self._survey, effects = self._surveys.begin(hashes, (), trusted, now, is_due=True)
        return effects

    def is_about(self, survey: Survey) -> bool:
        return survey is self._survey

    def said(self, kept: Iterable[ObjectHash]) -> None:
        """Another may drop these, because we said that we will not."""
        kept = tuple(kept)
        self._witnesses.give_up(kept)
        if self._survey is not None and self._survey.is_about(kept):
            self._surveys.give_up(self._survey)
            self._survey = None

    def surveyed(self, survey: Survey, now: Instant) -> list[Effect]:
        """Who has said to keep something is to show it."""
        assert survey is self._survey, "another survey"
        self._survey = None
        called: list[Called] = []
        for object_hash, keepers in survey.keepers.items():
            if needed := self._needed(object_hash):
                called.append((object_hash, needed, keepers))
        return self._witnesses.call(called, now)

    def may_go(self, shown: Shown) -> list[ObjectHash]:
        """What was shown by as many as it takes, now; it may have come into use since they were asked."""
        if shown.chunk is None or not 0 < self._needed(shown.chunk) <= shown.count:
            return []
        return self._unused([shown.chunk])

    def _needed(self, object_hash: ObjectHash) -> int:
        """How many others are to have it as their own to keep before it goes: as many as should; of what was only read here, no more
        than there are. 0: it stays; what is in nothing that is known now may be in what is being learnt."""
        if self._catalog.is_due(object_hash):
            return 0
        replicas = self._catalog.replicas(object_hash)
        if self._leftovers.is_borrowed(object_hash):
            return max(1, min(len(self._catalog.owners(object_hash)), replicas))
        return replicas

    def _unused(self, hashes: Iterable[ObjectHash]) -> list[ObjectHash]:
        return [object_hash for object_hash in hashes if not self._is_used(object_hash)]
