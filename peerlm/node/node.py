"""The whole peer as one pure machine.

`Node` is a core made of all cores: company (who is there) and work (what is done). The daemon and
the simulator drive the same object: they call `start` once, `handle` for every event, `wake` when
`deadline()` has come, and carry out the effects they get back, in order. `now` is monotonic, `wall`
is for certificates; randomness comes from the rng given at birth. Nothing else is read, so the same
events at the same times give the same effects.

Messages and events are routed here and nowhere else; the two halves never call each other. After
whatever happened, work is shown the swarm anew, and twice a second this node says how it is doing.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass

from peerlm import events as ev
from peerlm.effects import Effect, Log, PrepareCorpus, Send, WriteSnapshot
from peerlm.events import Event
from peerlm.membership.member import Member
from peerlm.node.birth import Birth
from peerlm.node.company import TALK, Company
from peerlm.node.coverage import Coverage
from peerlm.node.leaving import Leaving
from peerlm.node.library import TALK as STORE_TALK
from peerlm.node.library import Library
from peerlm.node.lifecycle import Phase
from peerlm.node.moving import Moving
from peerlm.node.placing import Placing, look_around
from peerlm.node.publishing import Publishing, own_vitals
from peerlm.node.rate import Rate
from peerlm.node.seen import Seen, read_swarm
from peerlm.node.snapshots import Restored
from peerlm.node.status import Summary
from peerlm.node.summary import summarise
from peerlm.node.texts import Weights
from peerlm.node.work import Work
from peerlm.swarm.hosting import Hosting
from peerlm.swarm.vitals import Ledger
from peerlm.swarm.ways import Way
from peerlm.types import FragmentId, Instant, PeerId, Role, TransferId, WallTime, after, short
from peerlm.wire.message import (
    ChannelAnswer,
    ChannelRequest,
    ExchangeAnswer,
    ExchangeDone,
    ExchangeRequest,
    Message,
    PullAnswer,
    PullRequest,
    Pulse,
    RangesDone,
    StateAsk,
    StateGive,
    Tallies,
    Vitals,
)

OF_HOLDERS = (StateAsk, PullRequest, *STORE_TALK)
"""Messages of those only whose roles let them have the weights and the text."""

OF_STORE = (
    *(ev.ObjectKept, ev.ObjectLost, ev.ManifestRead, ev.ProofMade),
    *(ev.FragmentCut, ev.CheckpointWritten),
)

LOOK_S = 0.25
"""How often work is shown the swarm at least."""


@dataclass(frozen=True, slots=True)
class Acquaintance:
    """A node as others know it."""

    member: Member
    pulse: Pulse


class Node:
    """One peer. See the module's docstring for how it is driven."""

    def __init__(self, birth: Birth, rng: random.Random, now: Instant, wall: WallTime) -> None:
        self._birth, self._rng = birth, rng
        self._ledger = Ledger()
        self._ledger.restore(birth.tallies)
        self.company = Company(
            birth.keys,
            birth.chain,
            birth.gate,
            birth.plan,
            birth.ports,
            birth.epoch,
            rng,
            now,
            wall,
            seeds=birth.seeds,
            book=birth.book,
            ledger=self._ledger,
            profile=birth.profile,
        )
        self.me = self.company.me
        self.coverage = Coverage(self.company.plan.plan, birth.passes, rng, now)
        self.work = self._make_work(now)
        self.placing = self._make_placing(now)
        self.library = self._make_library(now)
        self.storing = self.library.storing
        self._moving = Moving()
        # Who knocks at a node that begins a run is nobody it would have to wait for.
        self._expects_others = bool(birth.seeds) or len(birth.book) > 0
        self._look_due = now
        self._seen_at: object = None
        self._publishing = Publishing(now)
        self._rate = Rate(self._ledger, now)
        self._talked, self._acted = False, True
        """Since the last check: whether people were talked about, whether anything else happened."""
        self._work_due: Instant | None = None
        """When work is to be woken; None until it is asked."""
        self._leaving = Leaving(self.company, self.coverage)

    def _make_work(self, now: Instant) -> Work:
        birth, plan = self._birth, self.company.plan
        return Work(
            self.me,
            plan.plan,
            plan.plan_hash,
            birth.sizes,
            birth.hosting,
            birth.settings,
            self.company.endpoint,
            self.company.rate_of,
            self._way_to,
            self._rng,
            now,
            coverage=self.coverage,
            origin=birth.origin,
            restored=birth.restored,
            may_train=birth.settings.train.enabled and self.company.allows(self.me, Role.TRAIN),
            may_serve=self.company.allows(self.me, Role.SERVE),
        )

    def _way_to(self, peer: PeerId) -> Way:
        return self.company.way_to(peer, self.work.steering.tempo.line_bytes_s)

    def _make_placing(self, now: Instant) -> Placing | None:
        birth = self._birth
        if birth.offered is None:
            return None
        held = range(birth.hosting.first, birth.hosting.last + 1)
        endpoint, rng = self.company.endpoint, self._rng
        plan = birth.plan.plan
        return Placing(self.me, plan, birth.all_sizes, held, birth.offered, endpoint, rng, now)

    def _make_library(self, now: Instant) -> Library:
        birth = self._birth
        stage_of = birth.hosting.stage_of or dict.fromkeys(birth.sizes, 0)
        settings, stored = birth.settings.store, birth.stored
        return Library(self.company, lambda: self.work, settings, stored, stage_of, self._rng, now)

    # ------------------------------------------------------------------------------- being driven

    def start(self, now: Instant, wall: WallTime) -> list[Effect]:
        """First effects. Call once, before anything else."""
        self._look_due = after(now, LOOK_S)
        effects = [*self.company.start(now), *self.work.start(self._seen(), now)]
        effects += self.library.start(now)
        return self._outcome(effects, now)

    def acquaintance(self, now: Instant) -> Acquaintance:
        """What those who have met this node know of it, as it stands now."""
        vitals = dataclasses.replace(self._vitals(now), version=self._publishing.version)
        return Acquaintance(
            self.company.membership.us, self.company.certificates.sign_vitals(vitals)
        )

    def remember(self, swarm: Mapping[PeerId, Acquaintance], now: Instant) -> list[Effect]:
        """Begin in a swarm that has met, this node among them: know its members, links aside, and
        have nothing to tell them. For simulations, right after `start`; what is given is shared
        between the nodes, which is what lets a process hold a thousand."""
        members = {peer: known.member for peer, known in swarm.items()}
        pulses = {peer: known.pulse for peer, known in swarm.items()}
        self._publishing.is_known(self._vitals(now))
        return self.company.remember(members, pulses, now)

    def handle(self, event: Event, now: Instant, wall: WallTime) -> list[Effect]:
        """What follows from an event."""
        if not isinstance(event, ev.Received):
            return self._outcome(self._handle(event, now), now)
        if isinstance(event.message, TALK):
            effects = self._talk(event.peer, event.message, now)
        else:
            effects = self._outcome(self._handle(event, now), now)
        return effects + self.company.dial_back.heard(event.peer, now)

    def wake(self, now: Instant, wall: WallTime) -> list[Effect]:
        """Do what is due."""
        effects = self.company.wake(now, wall)
        effects += self.work.exchanges.wake(now)
        effects += self.work.acquisition.wake(now)
        effects += self.work.channels.wake(now)
        effects += self.work.texts.channels.wake(now)
        effects += self._look(now)
        effects += self._place(now)
        effects += self.library.wake(self.company.linked, now)
        effects += self.coverage.wake(self.work.seen.trainers, now)
        if self._publishing.due <= now and not self._leaving.has_said_goodbye:
            effects += self._publish(now)
        if self.is_leaving:
            effects += self._leaving.wind_up(self.work, now)
        elif self._leaving.is_handing_over:
            effects += self._leave(now, hands_over=True)
        return self._outcome(effects, now)

    def deadline(self) -> Instant:
        """When to call `wake`."""
        if self._work_due is None:
            self._work_due = self.work.deadline(self._look_due)
            due = None if self.placing is None else self.placing.deadline()
            if due is not None:
                self._work_due = min(self._work_due, due)
        due = min(self.company.deadline(), self._look_due, self._work_due)
        return min(due, self.library.deadline())

    def check(self) -> None:
        """Raise `AssertionError` if a promise of ours is broken, as far as anything changed since
        the last check: cheap enough for after each event."""
        self.company.check()
        self.library.check()
        if self._acted or not self._talked:
            self.work.check()
        self._acted = self._talked = False

    def audit(self) -> None:
        """`check` of everything, changed or not."""
        self.check()
        self.company.audit()
        self.library.audit()
        if self._seen_at == self.company.version:
            seen = self.work.seen._replace(swarm_tokens=self._ledger.total())
            assert seen == self._read_anew(), "work is shown a swarm that is no more"

    # ------------------------------------------------------------------------------------- events

    def _handle(self, event: Event, now: Instant) -> list[Effect]:
        match event:
            case ev.Received():
                return self._received(event.peer, event.message, now)
            case ev.HelloCame():
                return self.company.introductions.hello_came(event)
            case ev.IntroductionAnswered():
                return self.company.introductions.answered(event, now)
            case ev.IntroductionFailed():
                return self.company.introductions.failed(event, now)
            case ev.DialTried():
                return self.company.dial_back.tried(event, now)
            case ev.LinkUp():
                known = self.library.link_up(event.peer) + self.coverage.link_up(event.peer)
                return self.company.link_up(event, now) + known
            case ev.LinkDown():
                return self.company.link_down(event, now)
            case ev.Misbehaved():
                self.company.misbehaviour["message: malformed"] += 1
                fields = (("peer", short(event.peer)), ("what", event.what))
                return [Log("warning", "misbehaved", fields)]
            case ev.LoopLagged():
                return self.company.membership.lagged(event.seconds, now)
            case ev.NewPlan():
                return self._new_plan(event.signed_plan, None, now)
            case ev.NewRevocation():
                return self.company.revoked(event.blob, now)
        return self._handle_work(event, now)

    def _handle_work(self, event: Event, now: Instant) -> list[Effect]:
        work = self.work
        match event:
            case ev.BoundaryReached():
                return work.worker.boundary(event)
            case ev.OuterStepped():
                return work.outer_stepped(event, now)
            case ev.ExchangeEnded():
                self._mind_the_way(event, now)
                return self._exchanged(event, work.exchanges.ended(event, now), now)
            case ev.ExchangeServed():
                return self._exchanged(event, work.exchanges.served(event, now), now)
            case ev.ChannelOpened():
                texts = work.texts.channels.opened(event)
                return [*work.channels.opened(event), *texts, *work.steer(now)]
            case ev.ChannelEnded():
                texts = work.texts.channels.ended(event, now)
                return [*work.channels.ended(event, now), *texts, *work.steer(now)]
            case ev.ChannelWanted():
                return work.texts.want(event.peer, work.seen, now)
            case ev.PullProgressed():
                effects = [*work.acquisition.progressed(event, now), *self._stocked(event, now)]
                return [*effects, *self.library.handle(event, now)]
            case ev.PullEnded():
                effects = [*work.acquisition.ended(event, now), *self._stocked(event, now)]
                return [*effects, *self.library.handle(event, now), *self._look(now)]
            case ev.PullServed():
                work.snapshots.served(event.transfer)
                return []
            case _ if isinstance(event, OF_STORE):
                return self.library.handle(event, now)
            case ev.TextsCounted():
                work.texts.count = event.count
                return []
            case ev.MemoryRead():
                if self.placing is not None:
                    self.placing.offers(event.offered, now)
                return []
            case ev.WorkerReady():
                if self.placing is not None:
                    self.placing.tried(event.paces)
                return work.worker_ready(event, now)
            case ev.OptimizerKept():
                return work.worker.kept(event, now)
            case ev.WorkerProgressed():
                if self.placing is not None:
                    tokens_per_s = event.worked_tokens_s or event.tokens_per_s
                    self.placing.measure(tokens_per_s, event.busy, now)
                return [*work.worker_progressed(event, now), *self._count_tokens(now)]
            case ev.Evaluated():
                return work.evaluated(event, now)
            case ev.WorkerDrained():
                return work.worker_drained(now)
            case ev.WorkerExited():
                return work.worker_exited(event, now)
        return self._handle_disk_and_person(event, now)

    def _handle_disk_and_person(self, event: Event, now: Instant) -> list[Effect]:
        work = self.work
        match event:
            case ev.CorpusReady():
                return work.corpus_ready(event, now)
            case ev.CorpusMissing():
                return work.corpus_missing(event, now)
            case ev.CorpusUnusable():
                return work.corpus_unusable(event, now)
            case ev.StateInstalled():
                return work.state_installed(event.origin, now)
            case ev.StateRejected():
                log = Log("error", "state_rejected", (("why", event.reason),))
                return [log, *work.state_rejected(event.fragment, event.reason, now)]
            case ev.SnapshotWritten():
                return work.snapshot_written(event, now)
            case ev.SnapshotFailed():
                return work.snapshot_failed(event.reason)
            case ev.SaveFailed():
                fields = (("name", event.name), ("why", event.reason))
                return [Log("error", "save_failed", fields)]
            case ev.ModelFailed():
                return work.model_failed(event.reason, now)
            case ev.ModelWritten():
                return work.model_written(event.directory, now)
            case ev.Pause():
                return work.pause(True, now)
            case ev.Resume():
                return work.pause(False, now)
            case ev.ReachWanted():
                return self.company.dial_back.ask(now)
            case ev.SnapshotWanted():
                return work.snapshot_now(now)
            case ev.Leave():
                return self._leave(now, hands_over=event.hands_over)
        raise AssertionError(f"no half of the node takes a {type(event).__name__}")

    def _received(self, peer: PeerId, message: Message, now: Instant) -> list[Effect]:
        if peer in self.company.refused_plans:
            return self.company.hear_about_plan(peer, message, now)
        work, company = self.work, self.company
        match message:
            case ExchangeRequest():
                if not company.allows(peer, Role.TRAIN):
                    answer = ExchangeAnswer(message.transfer, "refuse", "role", 0.0)
                    return [Send(peer, answer)]
                if self._is_taken(message.transfer):
                    answer = ExchangeAnswer(message.transfer, "refuse", "transfer id is taken", 0.0)
                    return [Send(peer, answer)]
                return work.exchanges.on_request(peer, message, now)
            case ExchangeAnswer():
                return work.exchanges.on_answer(peer, message, now)
            case ExchangeDone():
                return work.exchanges.on_done(peer, message, now)
            case ChannelRequest():
                if self._is_taken(message.transfer):
                    taken = ChannelAnswer(message.transfer, "refuse", "transfer id is taken")
                    return [Send(peer, taken)]
                if message.for_texts:
                    return work.texts.on_request(peer, message, work.seen, now)
                return work.channels.on_request(peer, message, now)
            case ChannelAnswer():
                texts = work.texts.channels.on_answer(peer, message, now)
                return [*work.channels.on_answer(peer, message, now), *texts]
            case _ if isinstance(message, OF_HOLDERS) and not company.may_hold(peer):
                return []
            case RangesDone():
                if company.allows(peer, Role.TRAIN):
                    self.coverage.heard(message)
                return []
            case StateAsk():
                return work.asked_for_state(peer, now) if company.asks.may(peer, now) else []
            case StateGive():
                shown = work.state_shown(peer, message, now)
                if self.placing is None:
                    return shown
                return shown + self.placing.stock.shows(peer, message, work.plan_hash, now)
            case PullRequest() if self.library.is_taken(TransferId(message.transfer)):
                refused = PullAnswer(message.transfer, "refuse", "transfer id is taken", 0)
                return [Send(peer, refused)]
            case PullRequest():
                return work.donate(peer, message, self.storing.size_of, now)
            case PullAnswer():
                answered = work.acquisition.on_pull_answer(peer, message, now)
                answered += self.library.received(peer, message, now)
                if self.placing is None:
                    return answered
                return answered + self.placing.stock.answers(peer, message, now)
            case _ if isinstance(message, STORE_TALK):
                return self.library.received(peer, message, now)
        effects = company.received(peer, message, now)
        if isinstance(message, Tallies):
            # Before anybody who says so mixes with us: are we far behind?
            effects += self._look(now)
        return [*effects, *self._follow_plan(now)]

    def _is_taken(self, transfer: bytes) -> bool:
        """Something under way has this id."""
        wanted = TransferId(transfer)
        return self.work.is_taken(wanted) or self.library.is_taken(wanted)

    def _exchanged(
        self, event: ev.ExchangeEnded | ev.ExchangeServed, effects: list[Effect], now: Instant
    ) -> list[Effect]:
        if event.outcome == "ok":
            self.work.last_exchange = now
            self.work.steering.tempo.exchanged(event.bytes_sent, event.work_s, event.line_bytes_s)
        if self.work.phase is Phase.SETTLING:
            return [*effects, *self.work.step(now)]
        return effects

    def _mind_the_way(self, event: ev.ExchangeEnded, now: Instant) -> None:
        """An exchange lost on the way to its partner may mean that there is no way."""
        partner = self.work.exchanges.partner(event.transfer)
        if event.outcome == "lost" and partner is not None:
            self.company.dial_back.lost(partner, event.reason, now)

    def _talk(self, peer: PeerId, message: Message, now: Instant) -> list[Effect]:
        """Most of what comes is about people alone: work is as it was, unless there is a new plan."""
        self._talked = True
        if peer in self.company.refused_plans:
            return self.company.hear_about_plan(peer, message, now)
        effects = self.company.received(peer, message, now)
        if self.company.plan.plan_hash == self.work.plan_hash:
            return effects
        return self._outcome([*effects, *self._follow_plan(now)], now)

    def _new_plan(self, blob: bytes, teller: PeerId | None, now: Instant) -> list[Effect]:
        effects = self.company.take_plan(blob, teller, now)
        return [*effects, *self._follow_plan(now)]

    def _follow_plan(self, now: Instant) -> list[Effect]:
        plan = self.company.plan
        if plan.plan_hash == self.work.plan_hash:
            return []
        self._publishing.due = now
        fields = (("revision", plan.revision),)
        return [Log("info", "plan_taken", fields), *self.work.use_plan(plan, now)]

    # --------------------------------------------------------------------------------- the swarm

    def _look(self, now: Instant) -> list[Effect]:
        """Show work the swarm as it is now."""
        self._look_due = after(now, LOOK_S)
        self._rate.look(now)
        effects = self.work.see(self._seen(), now)
        effects += self.work.texts.compare(self._weights_of, now)
        return [*effects, *self.library.look(now)]

    def _weights_of(self, peer: PeerId) -> Weights | None:
        """What a host answers texts with, by its own word; never newer than what this node has heard of."""
        if peer == self.me:
            own = self.work.snapshots
            return Weights(own.tokens if own.number else None, self.work.worker.tokens_per_s)
        vitals = self.company.vitals_of(peer)
        if vitals is None or vitals.weights_tokens is None:
            return None
        return Weights(min(vitals.weights_tokens, self._ledger.total()), vitals.tokens_per_s)

    def _seen(self) -> Seen:
        """The swarm as work sees it; read anew only where it changed."""
        version, tokens = self.company.version, self._ledger.total()
        if version != self._seen_at:
            self._seen_at = version
            return self._read_anew()
        seen = self.work.seen
        if seen.swarm_tokens == tokens:
            return seen
        return seen._replace(swarm_tokens=tokens)

    def _read_anew(self) -> Seen:
        hosting = self._birth.hosting
        return read_swarm(self.company, hosting, expects_others=self._expects_others)

    def _count_tokens(self, now: Instant) -> list[Effect]:
        """Our own tokens count at once; the others hear of them with the next vitals."""
        epoch, _ = self.company.membership.incarnation
        self._ledger.count_own(self.me, epoch, self.work.worker.tokens)
        return self._look(now)

    def _publish(self, now: Instant) -> list[Effect]:
        """Say how we are."""
        members = 1 + self.company.membership.n_live
        said = self._publishing.say(self._vitals(now), members, now)
        return self.company.publish(said, now) if said else []

    def _vitals(self, now: Instant) -> Vitals:
        is_draining = self.is_leaving or self._leaving.is_handing_over
        parts = (self.company, self.work, self.placing, self.library)
        return own_vitals(*parts, now, is_draining=is_draining)

    # ------------------------------------------------------------------------------------ placing

    def _place(self, now: Instant) -> list[Effect]:
        """Decide which stages to hold, and get there."""
        placing = self.placing
        if placing is None or self.is_leaving or self._moving.is_handed_over:
            return []
        effects = placing.stock.wake(now)
        if placing.is_due(now):
            is_leaving = self._leaving.is_handing_over
            around = look_around(self.company, self.work, is_leaving=is_leaving)
            before = placing.target
            effects += placing.look(around, now)
            self.work.snapshots.copies = placing.stock.shown(placing.orphans(around))
            if placing.target != before:
                self._publishing.due = now
        if placing.move is None:
            return effects
        if self._moving.since is None:
            self._publishing.due = now
        return [*effects, *self._moving.wind_up(placing, self.work, self._snapshot, now)]

    def _stocked(self, event: ev.PullProgressed | ev.PullEnded, now: Instant) -> list[Effect]:
        if self.placing is None:
            return []
        stock = self.placing.stock
        if isinstance(event, ev.PullEnded):
            return stock.ended(event, now)
        return stock.progressed(event, now)

    def rehost(
        self,
        hosting: Hosting,
        sizes: Mapping[FragmentId, int],
        restored: Restored | None,
        failure: str,
        now: Instant,
    ) -> list[Effect]:
        """The daemon has room for these stages, and `restored` on its disk: begin their work. They are the old ones
        if there was a `failure`."""
        assert self.placing is not None, "nothing is placed"
        self._birth = dataclasses.replace(
            self._birth, hosting=hosting, sizes=sizes, restored=restored
        )
        old, self.work = self.work, self._make_work(now)
        self.work.go_on_from(old)
        self._moving.end()
        self._seen_at = None
        self._publishing.due = now
        if failure:
            effects: list[Effect] = [Log("error", "placement_failed", (("why", failure),))]
        else:
            fields = (("first", hosting.first), ("last", hosting.last))
            effects = [Log("info", "placed", fields)]
        held = range(hosting.first, hosting.last + 1)
        effects += self.placing.moved(held, failure, now)
        if self.is_leaving:
            return effects
        return self._outcome([*effects, *self.work.start(self._seen(), now)], now)

    # ------------------------------------------------------------------------------------ leaving

    @property
    def is_leaving(self) -> bool:
        return self._leaving.since is not None

    def _leave(self, now: Instant, *, hands_over: bool = False) -> list[Effect]:
        """Wind up: the worker's progress, a snapshot, a goodbye, then `Halt`; before that, if it `hands_over`, wait until
        others hold what only this node holds."""
        if self.is_leaving:
            return []
        waits = hands_over and self.work.installed
        if waits and not self._leaving.has_handed_over(self.work, now):
            return []
        self._leaving.since = now
        wound_up = self.work.leave(now)
        return [*wound_up, *self._publish(now), *self._leaving.wind_up(self.work, now)]

    # --------------------------------------------------------------------------------- for people

    def summary(self, now: Instant) -> Summary:
        """What `status` shows, frozen."""
        parameters = sum(self._birth.sizes.values())
        own, rate = self._vitals(now), self._rate.tokens_per_s
        parts = (self.company, self.work, self.placing, self.storing)
        return summarise(*parts, self.library.jobs.standing(), own, rate, parameters, now)

    def _outcome(self, effects: list[Effect], now: Instant) -> list[Effect]:
        """Every exit but that of talk: work may be other than it was."""
        self._acted, self._work_due = True, None
        self.work.steering.tempo.note(now, moving=self.work.exchanges.are_moving)
        if not effects:
            return effects
        effects = [self._filled(e) if isinstance(e, WriteSnapshot) else e for e in effects]
        number = self.work.reading.number
        return [number(e) if isinstance(e, PrepareCorpus) else e for e in effects]

    def _snapshot(self) -> WriteSnapshot:
        return self._filled(WriteSnapshot(self._ledger.total(), 0, False, ()))

    def _filled(self, effect: WriteSnapshot) -> WriteSnapshot:
        """What only this file knows: the token count."""
        tallies, tokens = self._ledger.tallies(), self.work.worker.tokens
        return dataclasses.replace(effect, tallies=tallies, own_tokens=tokens)
