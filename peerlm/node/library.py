"""The third part of a node: what it does for the swarm's store, beside company and work.

It joins `storing` (what is kept), `checkpoints` (what is added by itself) and `jobs` (what is made together) to a node's
events and messages.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

from peerlm.config import StoreSection
from peerlm.effects import Effect
from peerlm.events import CheckpointWritten, Event, FragmentCut, ManifestRead
from peerlm.node.checkpoints import Around, Checkpoints
from peerlm.node.jobs import Jobs
from peerlm.node.lifecycle import Phase
from peerlm.node.stored import Stored
from peerlm.node.storing import Storing
from peerlm.types import FragmentId, Instant, ObjectHash, PeerId, Role, TransferId, WallTime, after
from peerlm.wire.message import (
    HaveAsk,
    HaveGive,
    JobAsk,
    JobNews,
    Message,
    NamesAsk,
    NamesGive,
    PartAsk,
    PartGive,
    ProofAsk,
    ProofGive,
)

if TYPE_CHECKING:
    from peerlm.node.company import Company
    from peerlm.node.work import Work

TALK = (
    *(NamesAsk, NamesGive, HaveAsk, HaveGive, ProofAsk, ProofGive),
    *(PartAsk, PartGive, JobNews, JobAsk),
)
"""Messages about the store."""

SOON, NEVER = Instant(-inf), Instant(inf)

LOOK_S = 1.0
"""How often it is looked whether a checkpoint is due."""


class Library:
    """Of one node. `work`: as it is now; it may be replaced."""

    def __init__(
        self,
        company: Company,
        work: Callable[[], Work],
        settings: StoreSection,
        stored: Stored,
        stage_of: Mapping[FragmentId, int],
        rng: random.Random,
        now: Instant,
    ) -> None:
        certificates, me = company.certificates, company.me
        self._company, self._work = company, work
        self._may_store = company.allows(me, Role.STORE)
        self.storing = Storing(
            me,
            settings,
            stored if self._may_store else stored.without_room(),
            certificates.sign_name,
            certificates.author_of,
            company.spread_name,
            company.endpoint,
            rng,
            now,
        )
        register = self.storing.register
        register.wall = self._wall
        self.checkpoints = Checkpoints(
            me,
            settings,
            stage_of,
            register.living,
            self.storing.write,
            self.storing.raise_floor,
            self.storing.held_by,
            rng,
            now,
            lambda: work().plan.run.checkpoint_optimizer,
            lambda: work().coverage.for_steering(),
            lambda: bytes.fromhex(work().plan.run.continues),
        )
        self.jobs = Jobs(
            me,
            may_make=self.storing.capacity > 0 and settings.preprocess,
            names=register.living,
            has=self.storing.here.__contains__,
            survey=self.storing.survey,
            write=self.storing.write,
            rng=rng,
            now=now,
            kept=stored.made,
        )
        self.storing.makers_of, self.storing.is_held = self.jobs.makers_of, self._holds
        self._followed = -1
        company.hear_name = self.storing.hear
        self._seen_at: object = None
        self._look_at = now

    def start(self, now: Instant) -> list[Effect]:
        return self.storing.start(now)

    def _holds(self, object_hash: ObjectHash) -> bool:
        """Made and not named yet, or of the text that is trained on."""
        return self.jobs.holds(object_hash) or object_hash in self._work().reading.objects

    def link_up(self, peer: PeerId) -> list[Effect]:
        return [*self.storing.link_up(peer), *self.jobs.link_up(peer)]

    def look(self, now: Instant) -> list[Effect]:
        """Who is there may have changed."""
        if self._seen_at == self._company.version:
            return []
        self._seen_at = self._company.version
        stores = self._company.stores()
        may_store = [p for p in self._company.linked() if self._company.allows(p, Role.STORE)]
        met = self.jobs.nodes_are(frozenset(may_store), now)
        return [*self.storing.nodes_are(stores, now), *met]

    def handle(self, event: Event, now: Instant) -> list[Effect]:
        match event:
            case FragmentCut():
                if event.reason:
                    self.storing.awaited.disk_was(event.reason, now)
                return self.checkpoints.cut(event, now)
            case CheckpointWritten():
                return self.checkpoints.written(event, self._wall, now)
            case ManifestRead():
                return [*self.storing.handle(event, now), *self.jobs.read(event, now)]
        return self.storing.handle(event, now)

    def want_checkpoint(self, name: str, *, is_pinned: bool) -> list[Effect]:
        """A person wants one now: the next `wake`, which is due at once, begins it. → `TellCheckpoint`"""
        self.checkpoints.want(name, is_pinned=is_pinned)
        self._look_at = SOON
        return []

    def received(self, peer: PeerId, message: Message, now: Instant) -> list[Effect]:
        self.storing.register.wall = self._wall
        match message:
            case NamesAsk(is_current=True) | NamesGive(is_current=True):
                if not self._company.allows(peer, Role.STORE):  # nobody's names go by its word
                    message = replace(message, is_current=False)
                return self.storing.received(peer, message, now)
            case PartAsk():
                if not self._company.allows(peer, Role.STORE):
                    return []
                return self.checkpoints.asked(peer, message, self._around(), now)
            case PartGive():
                return self.checkpoints.given(peer, message, now)
            case JobNews() | JobAsk():
                return self.jobs.received(peer, message, now)
        return self.storing.received(peer, message, now)

    def is_taken(self, transfer: TransferId) -> bool:
        return self.storing.is_taken(transfer)

    def wake(self, linked: Callable[[], Sequence[PeerId]], now: Instant) -> list[Effect]:
        self.storing.register.wall = self._wall
        if self._is_idle:
            return []
        effects = self.storing.wake(linked, now)
        if self._look_at <= now:
            self._look_at = after(now, LOOK_S)
            effects += self.checkpoints.wake(self._around(), self._wall, now)
        version = self.storing.register.names.version
        if version != self._followed:
            self._followed = version
            effects += self.jobs.follow(now)
        return [*effects, *self.jobs.wake(now)]

    @property
    def _is_idle(self) -> bool:
        return self.storing.is_idle and not self.checkpoints.is_at_it

    def deadline(self) -> Instant:
        if self._is_idle:
            return NEVER
        due = min(self.storing.deadline(), self.jobs.due)
        return min(self._look_at, due) if self.checkpoints.is_at_it else due

    def check(self) -> None:
        if not self._is_idle:
            self.storing.check()
            self.jobs.check()

    def audit(self) -> None:
        self.storing.audit()

    @property
    def _wall(self) -> WallTime:
        return self._company.certificates.wall

    def _around(self) -> Around:
        work = self._work()
        seen, hosting = work.seen, work.hosting
        is_active = work.installed and work.exchanges.standing.active
        runs = {peer: seen.runs[peer] for peer in seen.donors}
        if is_active and not hosting.is_none:
            runs[self._company.me] = (hosting.first, hosting.last)
        return Around(
            runs=runs,
            is_active=is_active,
            is_done=work.phase is Phase.DONE and work.settled,
            tokens=seen.swarm_tokens,
            may_store=self._may_store,
        )
