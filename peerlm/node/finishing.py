"""A job whose tasks are all made, until what comes of it has its name: whether it is all there, and whose turn it is.

Every chunk has to be found at some node first. Then the first of an order that all draw names it, or concludes the sweep; the
next does if it does not, each some seconds after the one before, or much later where a node says that it is at it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from peerlm.effects import Effect
from peerlm.node.dealing import Counts, Deal, turn
from peerlm.node.survey import SURVEYS, Survey
from peerlm.types import Instant, ObjectHash, PeerId

TURN_S = 10.0
"""Each in the order of those who may write the name waits so much longer than the one before."""

AGAIN_S = 0.25
"""Each survey is so much later than the one before."""

FINISH_S = 1800.0
"""So long after all is found the others wait for a node that says that it is concluding that."""

OPEN, CHECKING, READY, ENDED = "open", "checking", "ready", "ended"

SurveyOf = Callable[[Iterable[ObjectHash], Instant], tuple[Survey, list[Effect]]]


class Finishing:
    """Of one job. `is_sweep`: it ends in another job, and its chunks are asked for before they have a name."""

    def __init__(self, deal: Deal, *, is_sweep: bool) -> None:
        self._deal, self._is_sweep = deal, is_sweep
        self.stage = OPEN
        self.others: set[PeerId] = set()
        """They say that they conclude it."""
        self.made_of: dict[ObjectHash, PeerId] = {}
        """Chunk → who made it, once it is `READY`."""
        self._complete_at: Instant | None = None
        self._survey: Survey | None = None
        self._surveys = 0

    def look(self, now: Instant) -> None:
        """Tasks may have been made, or lost."""
        if not self._deal.is_complete:
            self._complete_at, self.stage, self._survey, self.made_of = None, OPEN, None, {}
        elif self._complete_at is None:
            self._complete_at, self._surveys = now, 0

    def look_again(self, now: Instant) -> None:
        """What was found cannot be had."""
        self.stage, self._complete_at = OPEN, None
        self.look(now)

    def give_up(self) -> None:
        """This node cannot do it."""
        self.stage, self._survey = OPEN, None

    def survey(
        self, me: PeerId, makers: Sequence[PeerId], survey: SurveyOf, now: Instant
    ) -> list[Effect]:
        """Ask who has the chunks, when it is this node's turn."""
        if self._complete_at is None or me not in makers or self.stage != OPEN:
            return []
        if self.others and now - self._complete_at < FINISH_S:
            return []
        before = turn(self._deal.job + b"name", me, makers)
        if now - self._complete_at < before * TURN_S + self._surveys * AGAIN_S:
            return []
        results = self._deal.done.values()
        chunks = dict.fromkeys(ObjectHash(s.hash) for r in results for s in r.shards)
        self.stage, self._surveys = CHECKING, self._surveys + 1
        self._survey, effects = survey(chunks, now)
        return effects

    def hear(self, counts: Counts, now: Instant) -> None:
        """Take in what the survey has found, once it is done: results of which chunks are nowhere are not true."""
        if self._survey is None or not self._survey.is_done:
            return
        survey, self._survey = self._survey, None
        absent = {h for h, n in zip(survey.hashes, survey.counts, strict=True) if not n}
        silent = set(survey.silent) if self._surveys < SURVEYS else set()
        is_sound = True
        for task, result in list(self._deal.done.items()):
            if absent.isdisjoint(shard.hash for shard in result.shards):
                continue
            is_sound = False
            if result.maker not in silent:
                self._deal.disown(task, PeerId(result.maker))
        self.stage = READY if is_sound else OPEN
        if is_sound and self._is_sweep:
            done = self._deal.done.values()
            self.made_of = {ObjectHash(s.hash): PeerId(r.maker) for r in done for s in r.shards}
        if not self._deal.is_complete:
            self._deal.recount(counts)
            self.look(now)
