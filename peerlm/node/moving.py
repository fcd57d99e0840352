"""A move of a node to other stages, while it is under way: the half that works is wound up, then the daemon begins it anew.

`placing` has decided and has the weights; here it is seen to that the worker hands in its progress first, as it does when a
node leaves, but keeps nothing of stages that are held no more. The half that knows people goes on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from peerlm.effects import Effect, Rehost, WriteSnapshot
from peerlm.node.placing import Placing
from peerlm.node.work import Work
from peerlm.types import Instant

WIND_UP_S_MAX = 4.0
"""Longest time for the worker's progress."""


class Moving:
    """`since`: when the move began; None: none is under way. `is_handed_over`: the daemon is about to begin the work with
    other stages."""

    def __init__(self) -> None:
        self.since: Instant | None = None
        self.is_handed_over = False

    def wind_up(
        self, placing: Placing, work: Work, snapshot: Callable[[], WriteSnapshot], now: Instant
    ) -> list[Effect]:
        """Until it says `Rehost`. `snapshot`: as the daemon is to write one of the new stages."""
        assert placing.move is not None, "no move is under way"
        effects: list[Effect] = []
        if self.since is None:
            self.since = now
            effects += work.leave(now) if work.installed else []
        if work.installed:
            overdue = now - self.since > WIND_UP_S_MAX
            effects += work.wind_up(now, overdue=overdue, keeps=False)
            if not work.has_wound_up:
                return effects
        self.is_handed_over = True
        run, objects = placing.move, placing.objects()
        rehost = Rehost(
            first=run.start,
            stop=run.stop,
            objects=tuple((f, c.version, c.object_hash, c.sketch) for f, c in objects.items()),
            is_installed=work.installed,
            snapshot=snapshot(),
        )
        return [*effects, rehost]

    def end(self) -> None:
        """The work has begun again, with the new stages or the old ones."""
        self.since, self.is_handed_over = None, False
