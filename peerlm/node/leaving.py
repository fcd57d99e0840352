"""How a node leaves: what only it holds is handed over, the worker's progress comes in, a snapshot is written, and a goodbye is said.

Each of these may fail to come about, and a person waits; so each has its time, and when that is over the node goes without
it. Whoever leaves at once (a signal) hands nothing over.
"""

from __future__ import annotations

from peerlm.effects import Effect, Halt
from peerlm.node.company import Company
from peerlm.node.coverage import Coverage
from peerlm.node.handing_over import HandingOver, held_alone
from peerlm.node.work import Work
from peerlm.types import Instant

LEAVE_S_MAX = 8.0
"""Longest time from `Leave` to `Halt`: worker's progress, snapshot and goodbye."""

GOODBYE_S = 1.0
"""A goodbye is given at least this long to reach somebody."""


class Leaving:
    """Of one node. `since`: when it began to wind up; None: it has not. `has_said_goodbye`: others hear no more of it."""

    def __init__(self, company: Company, coverage: Coverage) -> None:
        self._company, self._coverage = company, coverage
        self._handing_over = HandingOver()
        self.since: Instant | None = None
        self._goodbye_at: Instant | None = None

    @property
    def is_handing_over(self) -> bool:
        """It is going to leave, or leaving."""
        return self._handing_over.since is not None

    @property
    def has_said_goodbye(self) -> bool:
        return self._goodbye_at is not None

    def has_handed_over(self, work: Work, now: Instant) -> bool:
        """Whether it need wait no longer for others to hold what only it holds. Begins to wait."""
        self._handing_over.begin(now)
        seen = {p: self._company.vitals_of(p) for p in self._company.linked()}
        others = {peer: vitals for peer, vitals in seen.items() if vitals is not None}
        active = {peer: others[peer] for peer in work.seen.donors if peer in others}
        return self._handing_over.is_over(held_alone(work.hosting, active), others, now)

    def wind_up(self, work: Work, now: Instant) -> list[Effect]:
        """Once `since` is set, until it says `Halt`."""
        assert self.since is not None, "it does not leave"
        took_s = now - self.since
        overdue = took_s > LEAVE_S_MAX
        if self._goodbye_at is None:
            if not (work.has_wound_up or overdue):
                return work.wind_up(now, overdue=took_s > LEAVE_S_MAX / 2)
            self._goodbye_at = now
            return self._coverage.leave(work.seen.trainers) + self._company.leave(now)
        alone = not self._company.membership.n_live
        told = self._company.membership.goodbye_spread and now - self._goodbye_at > GOODBYE_S
        return [Halt("")] if alone or told or overdue else []
