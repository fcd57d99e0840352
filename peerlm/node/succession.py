"""When old checkpoints go: once a newer one that stays is held by others too.

A name is written as soon as its chunks lie with those that cut them, one copy of each; others fetch theirs in the minutes
that follow, or cannot. So who has gathered a checkpoint first asks all nodes of the store who has its chunks. When two of
them, or as many as there are, have each, all but the newest few go; until then the old ones stay, and it is said why. If the
newest does not come to that in ten minutes, the next of those that stay will do: a store that is full would else
never be less so. Who sees that another has gathered a newer one leaves it all to that one.

Pinned ones are nobody's to remove. Those of the series go by raising the floor (`store.names`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf

from peerlm.effects import Effect, Log
from peerlm.errors import StateError
from peerlm.node.register import RaiseFloor, Write, Writing
from peerlm.node.survey import Survey
from peerlm.store.manifest import Kind
from peerlm.store.names import Entry, is_covered, number_of
from peerlm.types import Instant, ObjectHash, WallTime, after
from peerlm.wire.message import NameRecord

LOOK_S, AGAIN_S = 5.0, 20.0
"""The first survey comes so long after a name was written; the next ones so long after the one before."""

LATE_S = 600.0
"""So long for one checkpoint, before the next is looked at; and then it is logged."""

SKEW_S = 60.0
"""Clocks differ by so much; a checkpoint from later than that has a wrong time, and counts as older than all others."""

HeldBy = Callable[[ObjectHash, Instant], tuple[Survey, int, list[Effect]] | None]
"""A survey of a manifest and its chunks, and in how many copies they should be found; None: its chunks are not known here
yet."""


class Succession:
    """Of one node.

    Args:
        kept: so many of the newest stay.
        names: those that stand for something.
    """

    def __init__(
        self,
        kept: int,
        names: Callable[[], Sequence[Entry]],
        write: Write,
        raise_floor: RaiseFloor,
        held_by: HeldBy,
    ) -> None:
        self._kept, self._names = kept, names
        self._write, self._raise_floor, self._held_by = write, raise_floor, held_by
        self._written: str | None = None
        """The checkpoint that this node has gathered last, while older ones are to go."""
        self._since = self._look_at = Instant(0.0)
        self._survey: tuple[Survey, int, NameRecord] | None = None
        self._is_told = False
        self.kept_back = ""
        """Why old checkpoints stay; empty: none does that should not."""

    @property
    def is_at_it(self) -> bool:
        return self._written is not None

    def wrote(self, name: str, now: Instant) -> None:
        """This node has gathered it."""
        self._written, self._survey, self._is_told = name, None, False
        self._since, self._look_at = now, after(now, LOOK_S)

    def wake(self, wall: WallTime, now: Instant) -> list[Effect]:
        if self._written is None:
            return []
        kept, old = self._split(self._written, wall)
        if not old or self._is_overtaken(kept[0], [*kept, *old], wall):
            self._written, self._survey, self.kept_back = None, None, ""
            return []
        if self._survey is None:
            return self._ask(kept, now) if now >= self._look_at else []
        survey, enough, record = self._survey
        if not survey.is_done:
            return []
        self._survey, self._look_at = None, after(now, AGAIN_S)
        if record not in kept:
            return []
        if survey.least >= enough:
            self._written, self.kept_back = None, ""
            return self._remove(kept, old, wall, now)
        few = sum(count < enough for count in survey.counts)
        self.kept_back = (
            f"{len(old)} older than store.checkpoints_kept stay: {few} of {len(survey.counts)} chunks of "
            f"{record.name} were not found on {enough} nodes"
        )
        return self._tell(now)

    def _split(self, written: str, wall: WallTime) -> tuple[list[NameRecord], list[NameRecord]]:
        """The newest, of which the one that was just written is the first, and all others; pinned ones aside."""
        found = [e.record for e in self._names() if e.record.kind == Kind.CHECKPOINT]
        loose = sorted(
            (r for r in found if not r.is_pinned),
            key=lambda r: (r.name == written, is_of_past(r, wall), r.wall),
            reverse=True,
        )
        return loose[: self._kept], loose[self._kept :]

    def _is_overtaken(
        self, first: NameRecord, others: Sequence[NameRecord], wall: WallTime
    ) -> bool:
        """There is a newer one, whose gatherer sees to it: ours is none to remove that for."""
        newest = max((r.wall, r.name) for r in others if r is first or is_of_past(r, wall))
        return first.name != self._written or newest != (first.wall, first.name)

    def _ask(self, kept: Sequence[NameRecord], now: Instant) -> list[Effect]:
        record = kept[int((now - self._since) // LATE_S) % len(kept)]
        asked = self._held_by(ObjectHash(record.manifest), now)
        if asked is None:
            self._look_at = after(now, AGAIN_S)
            self.kept_back = f"the manifest of {record.name} has not been read here yet"
            return self._tell(now)
        survey, enough, effects = asked
        self._survey = (survey, enough, record)
        return effects

    def _tell(self, now: Instant) -> list[Effect]:
        if self._is_told or now - self._since < LATE_S:
            return []
        self._is_told = True
        return [Log("warning", "checkpoints_kept_back", (("why", self.kept_back),))]

    def _remove(
        self,
        kept: Sequence[NameRecord],
        old: Sequence[NameRecord],
        wall: WallTime,
        now: Instant,
    ) -> list[Effect]:
        floor = min(number_of(record.name) for record in kept)
        covered = [r for r in old if floor < inf and is_covered(r, floor)]
        effects: list[Effect] = []
        with suppress(StateError):  # the next one tries again
            if covered:
                effects += self._raise_floor(int(floor), wall, now)
        for record in old:
            if record not in covered:
                with suppress(StateError):
                    removed = Writing(record.name, Kind.CHECKPOINT, replaces=True)
                    effects += self._write(removed, wall, now)
        return effects


def is_of_past(record: NameRecord, wall: float) -> bool:
    """A checkpoint, and not from a time to come."""
    return record.kind == Kind.CHECKPOINT and record.wall <= wall + SKEW_S
