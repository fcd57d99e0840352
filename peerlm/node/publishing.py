"""What a node says of itself, and how often: its vitals, each second while they change, and rarely while they do not.

All that is said in a swarm is heard by everybody, so in a large one each speaks the rarer the more there are. Who comes
late gets the latest word by push-pull, so nothing has to be said for ever.
"""

from __future__ import annotations

from dataclasses import replace

from peerlm.node.company import Company
from peerlm.node.lately import LATELY_S, PARTNERS_MAX, said
from peerlm.node.library import Library
from peerlm.node.placing import Placing
from peerlm.node.texts import at_most
from peerlm.node.work import Work
from peerlm.types import Instant, after
from peerlm.wire.message import Vitals

PUBLISH_S = 1.0
PUBLISH_MEMBERS = 8
"""A node says how it is doing each second, in a swarm above eight each N ÷ 8 seconds: what all say
together stays the same for each listener."""

SAY_AGAIN = 3
QUIET_FACTOR = 10
"""What a node has said so often and is still so, it says this much rarer."""


class Publishing:
    """`due`: when to say something next. `version`: of what was said last."""

    def __init__(self, now: Instant) -> None:
        self.due = now
        self.version = 0
        self._last: Vitals | None = None
        self._said = 0
        self._said_at = now

    def say(self, vitals: Vitals, members: int, now: Instant) -> Vitals | None:
        """What to tell a swarm of so many members, with its version; None: it was told often enough."""
        interval_s = max(PUBLISH_S, members / PUBLISH_MEMBERS)
        self.due = after(now, interval_s)
        if vitals == self._last:
            if self._said >= SAY_AGAIN and now - self._said_at < QUIET_FACTOR * interval_s:
                return None
        else:
            self._said = 0
        self._last = vitals
        self._said, self._said_at = self._said + 1, now
        self.version += 1
        return replace(vitals, version=self.version)

    def is_known(self, vitals: Vitals) -> None:
        """Everybody has heard this."""
        self._last, self._said = vitals, SAY_AGAIN


def own_vitals(
    company: Company,
    work: Work,
    placing: Placing | None,
    library: Library,
    now: Instant,
    *,
    is_draining: bool,
) -> Vitals:
    """How this node is doing; without a version."""
    worker, storing = work.worker, library.storing
    outcomes = work.exchanges.outcomes
    mixed_with, mixed_s = said(outcomes.lately(now, LATELY_S, PARTNERS_MAX))
    vitals = Vitals(
        peer=company.me,
        epoch=company.membership.incarnation[0],
        version=0,
        tokens=worker.tokens,
        phase=work.phase,
        active=work.exchanges.standing.active,
        participating=work.is_participating(now),
        settled=work.settled,
        plan_revision=company.plan.revision,
        loss=worker.loss,
        val_loss=worker.val_loss,
        distance=outcomes.distance(),
        tokens_per_s=worker.tokens_per_s,
        first_stage=work.hosting.first,
        last_stage=work.hosting.last,
        is_draining=is_draining,
        store_bytes=storing.capacity,
        store_used=storing.used,
        store_label=work.settings.store.label,
        store_lacking=storing.lacking,
        is_preprocessing=library.jobs.is_connected,
        weights_tokens=work.snapshots.tokens if work.snapshots.number else None,
        may_preprocess=library.jobs.may_make,
        mixed_with=mixed_with,
        mixed_s=mixed_s,
        page_port=company.ports.page,
        busy=worker.busy,
        texts=at_most(work.texts.count),
    )
    if placing is None:
        return vitals
    delay_s = company.membership.usual_delay() or 0.0
    vitals = replace(vitals, delay_us=round(delay_s * 1e6))
    return placing.say(vitals, work.steering.tempo.line_bytes_s)
