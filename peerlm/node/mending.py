"""Whether a checkpoint outlives those that made it: what they took with them when they died is to be made anew by others.

A name is written as soon as its chunks lie with those that cut them, one copy of each, and others fetch theirs from there. Who
dies before that takes its share along, and nobody can have it from elsewhere. So who has gathered a checkpoint watches it: when
one that made a part of it is gone, all nodes of the store are asked who has its chunks, and parts of which a chunk is at none
of them are lost. It ends when each chunk was found on two nodes, or as many as there are.

Who made a part and is there counts as having it, even if it offers the store no room and so is not asked. Who does not answer
may have all of it: then it is asked again, a few times; one that hangs must not keep back what is lost.

Pure: no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from peerlm.effects import CheckpointPart, Effect
from peerlm.node.succession import HeldBy
from peerlm.node.survey import SURVEYS, Survey
from peerlm.store.names import Entry
from peerlm.types import FragmentId, Instant, ObjectHash, PeerId, after

WATCHED_S = 600.0
"""So long after the name was written."""

AGAIN_S = 2.0
"""Between two surveys."""

Parts = Mapping[FragmentId, CheckpointPart]


@dataclass(slots=True)
class _Watched:
    name: str
    manifest: ObjectHash
    parts: Parts
    since: Instant
    look_at: Instant
    survey: tuple[Survey, int] | None = None
    lost: int = 0
    """Surveys in a row that have found something nowhere."""


class Mending:
    """Of one node, of the checkpoint that it has gathered last. `names`: those that stand for something."""

    def __init__(self, me: PeerId, names: Callable[[], Sequence[Entry]], held_by: HeldBy) -> None:
        self._me, self._names, self._held_by = me, names, held_by
        self._watched: _Watched | None = None

    @property
    def is_at_it(self) -> bool:
        return self._watched is not None

    def wrote(self, name: str, manifest: ObjectHash, parts: Parts, now: Instant) -> None:
        """This node has just given the name to it."""
        self._watched = _Watched(name, manifest, dict(parts), now, now)

    def end(self) -> None:
        self._watched = None

    def wake(
        self, peers: AbstractSet[PeerId], now: Instant
    ) -> tuple[frozenset[FragmentId], list[Effect]]:
        """Fragments that are lost: then it is watched no more. `peers`: who holds weights and is there."""
        watched, nothing = self._watched, frozenset[FragmentId]()
        if watched is None:
            return nothing, []
        if now - watched.since > WATCHED_S or not self.is_named(watched.name, watched.manifest):
            self.end()
            return nothing, []
        gone = {f: p for f, p in watched.parts.items() if p.peer not in {*peers, self._me}}
        if watched.survey is None:
            return nothing, self._ask(watched, now) if gone and now >= watched.look_at else []
        survey, enough = watched.survey
        if not survey.is_done:
            return nothing, []
        watched.survey, watched.look_at = None, after(now, AGAIN_S)
        if survey.least >= enough:
            self.end()
            return nothing, []
        lost = _lost(gone, survey)
        watched.lost = watched.lost + 1 if lost else 0
        if not lost or (survey.silent and watched.lost < SURVEYS):
            return nothing, []
        self.end()
        return lost, []

    def is_named(self, name: str, manifest: ObjectHash) -> bool:
        """The name stands for it still."""
        return any(e.record.name == name and e.record.manifest == manifest for e in self._names())

    def _ask(self, watched: _Watched, now: Instant) -> list[Effect]:
        asked = self._held_by(watched.manifest, now)
        if asked is None:  # its chunks are not known here yet
            return []
        survey, enough, effects = asked
        watched.survey = survey, enough
        return effects


def _lost(gone: Parts, survey: Survey) -> frozenset[FragmentId]:
    """Of these parts."""
    nowhere = {h for h, count in zip(survey.hashes, survey.counts, strict=True) if not count}
    return frozenset(f for f, part in gone.items() if any(h in nowhere for h, _ in part.chunks))
