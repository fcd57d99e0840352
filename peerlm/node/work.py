"""What is done here: weights, worker, exchanges and the run's end, as the other half of a node.

This file turns the lifecycle's phase into effects. It is told who is there (`see`) and how many
tokens the swarm has seen, and it never asks a peer anything but through exchanges and acquisition.
Tensors are elsewhere; here a fragment is a number and a boundary an event.

When there is work for a worker (worker.py) is decided here too: it runs while there are inner steps to
take or an evaluation to make, and is started again from the slow weights when it dies. What it is told
meanwhile is said in steering.py, and in reasons.py what a person is told of all this.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence

from peerlm.config import NodeSettings, Plan
from peerlm.effects import Effect, InstallSnapshot, Log, PrepareCorpus, Send, WriteModel
from peerlm.events import (
    CorpusMissing,
    CorpusReady,
    CorpusUnusable,
    Evaluated,
    OuterStepped,
    SnapshotWritten,
    WorkerExited,
    WorkerProgressed,
    WorkerReady,
)
from peerlm.identity.root import SignedPlan
from peerlm.mix.algorithms import RAMP_STEPS
from peerlm.mix.exchange import Exchanges
from peerlm.model.stages import AUTO, STREAM_BYTES
from peerlm.node.acquire import Acquisition
from peerlm.node.advice import Advice
from peerlm.node.channels import Channels
from peerlm.node.coverage import Coverage
from peerlm.node.facts import Facts
from peerlm.node.finals import Finals
from peerlm.node.lifecycle import BEHIND_STEPS, FRESH_GRACE_S, NEXT, Phase, decide
from peerlm.node.reading import Reading
from peerlm.node.seen import Seen
from peerlm.node.settling import Settling
from peerlm.node.snapshots import Restored, Snapshots
from peerlm.node.steering import STEER_S, Steering
from peerlm.node.straying import Straying
from peerlm.node.texts import Texts
from peerlm.node.worker import Worker
from peerlm.swarm.hosting import Hosting, holders
from peerlm.swarm.sampler import sampler_named
from peerlm.swarm.ways import Way
from peerlm.types import FragmentId, Instant, ObjectHash, PeerId, TransferId, after
from peerlm.wire.message import PullRequest, StateGive

MODEL_AGAIN_S = 30.0
"""A finished model that could not be written is tried again after so long."""

PHASES = tuple(Phase)

LEARNING = frozenset({Phase.TRAINING, Phase.SEEKING})
"""Phases in which a worker that is backing off may be due to be started."""

PARTICIPATING_S = 15.0
"""An exchange this recent counts as taking part, whatever the pace of outer steps."""


class Work:
    """The work of one node. Each method returns effects to carry out.

    Args:
        corpus_objects: hashes the plan's corpus consists of; donated on request.
        may_train: this node's certificate has the role and its settings do not forbid it.
    """

    def __init__(
        self,
        me: PeerId,
        plan: Plan,
        plan_hash: bytes,
        sizes: Mapping[FragmentId, int],
        hosting: Hosting,
        settings: NodeSettings,
        endpoint: Callable[[PeerId], tuple[str, int] | None],
        rate_of: Callable[[PeerId], float],
        way_to: Callable[[PeerId], Way],
        rng: random.Random,
        now: Instant,
        *,
        coverage: Coverage,
        origin: bool,
        restored: Restored | None,
        may_train: bool,
        may_serve: bool = True,
    ) -> None:
        self.me = me
        self.plan = plan
        self.plan_hash = plan_hash
        self.settings = settings
        self.origin = origin
        self.restored = restored
        self.may_train, self.may_serve = may_train, may_serve
        self.hosting = hosting
        self.phase = Phase.STARTING
        self.paused = False
        self.may_draw = not hosting.is_whole
        """While nothing was learnt, it may make the weights of what it holds, though it does not begin the run. Who holds
        everything knows too little of the others for that, unless it has decided to."""
        self.model_dir = ""
        self.settled = False
        self.installed = False
        self.has_final = False
        self.last_exchange: Instant | None = None
        self.seen = Seen()
        self.worker = Worker(rng, now)
        self.settling = Settling()
        self.snapshots = Snapshots(settings.limits.snapshot_every_s, restored, now)
        sampler = sampler_named(plan.mix.sampler, plan.run.rng_seed)
        self.exchanges = Exchanges(me, plan, sizes, sampler, endpoint, rng)
        self.exchanges.standing.plan_hash = plan_hash
        self.acquisition = Acquisition(sizes, endpoint, rng)
        self.channels = Channels(me, endpoint, rng)
        token_bytes = plan.model.dim * STREAM_BYTES if plan.model.stages > 1 else 0
        self.texts = Texts(me, endpoint, rng, way_to, token_bytes)
        self.finals = Finals()
        self.coverage = coverage
        self.straying = Straying()
        self.steering = Steering(
            me,
            plan,
            settings,
            hosting,
            self.worker,
            self.exchanges,
            self.channels,
            coverage,
            rate_of,
            way_to,
            now,
        )
        self.started = now
        self.reading = Reading(
            plan, hosting, self.worker, self.acquisition, self.snapshots, coverage
        )
        self._advice = Advice()
        self._model_due: Instant | None = None
        self._last_snapshot = ""

    # --------------------------------------------------------------------------------- phases

    def start(self, seen: Seen, now: Instant) -> list[Effect]:
        return [PrepareCorpus(), *self.see(seen, now)]

    def see(self, seen: Seen, now: Instant) -> list[Effect]:
        """Who is there has changed, or time has passed: look again."""
        before, self.seen = self.seen, seen
        effects: list[Effect] = []
        if seen.partners is not before.partners:
            for peer in [p for p in before.partners if p not in seen.partners]:
                effects += self.exchanges.peer_gone(peer, now)
        effects += self._mind_straying(now)
        # What comes over a channel is for the worker alone: without one there is none, and peers see so at once.
        has_worker = self.worker.supervision.state == "running"
        effects += self.channels.see(seen.neighbours if has_worker else (), now)
        effects += self.texts.see(seen, self._serves(), now)
        if seen.donors is not before.donors:
            effects += self.acquisition.donors_are(seen.donors, now)
        return [*effects, *self.reading.look(), *self.step(now)]

    def step(self, now: Instant) -> list[Effect]:
        """Follow the facts from phase to phase until none follows, then keep the phase's duties."""
        effects: list[Effect] = []
        for _ in PHASES:
            following = decide(self.phase, Facts(self, now))
            if following is self.phase:
                break
            effects += self._enter(following, now)
        return effects + self._duties(now)

    def _mind_straying(self, now: Instant) -> list[Effect]:
        """Suspend everything when our weights have gone astray, and go on when that comes to nothing."""
        standing, outcomes = self.exchanges.standing, self.exchanges.outcomes
        if self.straying.since is not None:
            if self.straying.ends(self.seen.donors, now):
                standing.active, standing.frozen = self.installed, not self.installed
                outcomes.caught_up()
            return []
        is_behind = outcomes.is_behind(self.seen.partners, now)
        is_unmixed = self.last_exchange is None and self._has_partners
        is_outrun = self.straying.is_fresh and is_unmixed and self._is_outrun()
        if self.straying.begins(now, is_behind=is_behind, is_outrun=is_outrun):
            return self._suspend(now)
        return []

    def _is_outrun(self) -> bool:
        """The others have trained on far more than this node."""
        others_tokens = self.seen.swarm_tokens - self.worker.tokens
        far = BEHIND_STEPS * self.steering.tokens_per_round() * (1 + len(self.seen.trainers))
        return others_tokens > far

    def _enter(self, phase: Phase, now: Instant) -> list[Effect]:
        assert phase in NEXT[self.phase] or phase is Phase.LEAVING, f"{self.phase} to {phase}"
        log = Log("info", "phase", (("was", self.phase), ("is", phase)))
        left, self.phase = self.phase, phase
        match phase:
            case Phase.SEEKING:
                return [log, *self.acquisition.forget_state()]
            case Phase.FETCHING:
                return [log, *self._suspend(now), *self.acquisition.want_state(now)]
            case Phase.INSTALLING:
                return [log, *self._install(left, now)]
            case Phase.READY | Phase.TRAINING:
                return [log, *self._be_ready(left, now)]
            case Phase.DRAINING:
                return [log, *self.worker.drain()]
            case Phase.SETTLING:
                self.exchanges.standing.settling = True
                self.settling.begin(self.exchanges.outcomes, now)
            case Phase.DONE:
                return [log, *self._finish(now)]
        return [log]

    def _suspend(self, now: Instant) -> list[Effect]:
        """Other weights are on their way: these neither learn nor mix any more."""
        if not self.exchanges.standing.active:
            return []
        self.exchanges.standing.active = False
        return [*self.exchanges.freeze(now), *self.steer(now)]

    def _install(self, left: Phase, now: Instant) -> list[Effect]:
        if left is Phase.FETCHING:
            self.installed = False
            self.finals.forget()
            self.has_final = self.acquisition.is_final
            return [self.acquisition.installation()]
        if self.restored is not None:
            return [InstallSnapshot()]
        return self.reading.start_worker(now, fresh=True)

    def _be_ready(self, left: Phase, now: Instant) -> list[Effect]:
        standing = self.exchanges.standing
        standing.active, standing.frozen, standing.settling = True, False, False
        self.settled = False
        self.settling.end()
        self.snapshots.is_final = False
        self.finals.forget()
        self.has_final = self.has_final and self.seen.swarm_tokens >= self.plan.run.token_budget
        self.worker.forget_drain()
        effects: list[Effect] = []
        if left is Phase.INSTALLING:
            self.snapshots.due = now
        if self.phase is Phase.TRAINING and self.worker.supervision.state == "off":
            effects += self.reading.start_worker(now, fresh=False)
        return effects + self.steer(now)

    def _finish(self, now: Instant) -> list[Effect]:
        """Who ran out of time to settle is done too, but its weights are nobody's final ones."""
        self.settled = self.settled or self.has_final
        effects = [*self.exchanges.freeze(now), *self.worker.stop()]
        if (
            not self.hosting.is_whole
        ):  # a part is kept, in a last snapshot, and is no model by itself
            self.snapshots.due = now
            return effects
        return [WriteModel(self.seen.swarm_tokens), *effects]

    # --------------------------------------------------------------------------------- duties

    def _duties(self, now: Instant) -> list[Effect]:
        """What has to be done again and again in the present phase."""
        effects: list[Effect] = []
        is_training = self.phase is Phase.TRAINING
        if is_training:
            if self.worker.supervision.due(now):
                effects += self.reading.start_worker(now, fresh=False)
        elif self.phase is Phase.SETTLING:
            effects += self._settle_on(now)
        elif self.phase is Phase.DONE:
            effects += self._stay_done(now)
        if self.steering.due <= now:
            effects += [*self.steer(now), *self._watch_worker(now)]
        if self.installed and self.snapshots.due <= now:
            effects += self._snapshot_unless_held(now)
        if is_training and self.settings.train.keep_optimizer:
            every_s = self.settings.limits.snapshot_every_s
            effects += self.worker.keep_if_due(every_s, now)
        can_evaluate = self.hosting.has_ends and self.reading.has_held_out
        if is_training and can_evaluate and not self.lacking():
            tokens, every_s = self.seen.swarm_tokens, self.plan.train.val_every_s
            effects += self.worker.evaluate_if_due(every_s, tokens, now)
        return effects

    def _stay_done(self, now: Instant) -> list[Effect]:
        """Write a model that could not be written, and look whose finished weights count."""
        effects: list[Effect] = []
        if self._model_due is not None and self._model_due <= now:
            self._model_due = None
            effects.append(WriteModel(self.seen.swarm_tokens))
        if self.snapshots.is_final:
            effects += self.finals.ask(self._comparable(), now)
        return effects

    def _comparable(self) -> Sequence[PeerId]:
        """Who is done and holds something that this node holds too."""
        return self.hosting.overlapping(self.seen.runs, self.seen.done)

    def donors(self) -> int:
        """How many could give weights; 0 unless together they have all that this node holds."""
        donors = self.seen.donors
        return len(donors) if self.hosting.is_held_by(donors, self.seen.runs) else 0

    def keepers(self) -> int:
        """How many may have copies, where this node can have its weights from nobody else: it has none itself, and some stage of
        it nobody holds. A node that decides by itself looks for copies before it takes a stage."""
        is_decided = self.settings.host.stages != AUTO
        is_learnt = self.plan.run.initial != "drawn" or self.seen.swarm_tokens > 0
        may_look = is_decided and is_learnt and self.restored is None and not self.origin
        return len(self.seen.donors) if may_look and self.hosting.count > 1 else 0

    def unheld(self) -> list[int]:
        """Stages of this node that no donor holds."""
        runs, donors = self.seen.runs, self.seen.donors
        return [s for s in self.hosting.held if not holders(s, runs, donors)]

    def donors_done(self) -> bool:
        """Nodes that are done have, together, all that this node holds."""
        done = self.seen.done
        return bool(done) and self.hosting.is_held_by(done, self.seen.runs)

    def lacking(self) -> list[int]:
        """Stages that nobody here trains for others, as who holds everything does not: without them nothing can be
        learnt."""
        return self.hosting.untrained(self.seen.runs, self.seen.trainers)

    def _serves(self) -> tuple[PeerId, int, int] | None:
        """The stages that texts of others go through here."""
        may = self.installed and self.may_serve and self.settings.host.sessions > 0
        return (self.me, self.hosting.first, self.hosting.last) if may else None

    @property
    def _has_partners(self) -> bool:
        """Somebody holds what this node holds, and mixes."""
        return self.exchanges.mixes and any(
            map(self.partners_of, self.exchanges.outcomes.fragments)
        )

    def steer(self, now: Instant) -> list[Effect]:
        """Tell the worker what to go by."""
        training = self.phase is Phase.TRAINING and not self.lacking()
        return self.steering.steer(self.seen, now, training=training)

    def _settle_on(self, now: Instant) -> list[Effect]:
        spread = self.plan.mix.settle_spread
        effects, self.settled = self.settling.go_on(self.exchanges, self.partners_of, spread, now)
        return effects

    def partners_of(self, fragment: FragmentId) -> Sequence[PeerId]:
        """Whom an exchange of this fragment may be started with: who holds it too."""
        return self.hosting.holders_of(fragment, self.seen.runs, self.seen.partners)

    # ----------------------------------------------------------------------- weights and worker

    def corpus_ready(self, event: CorpusReady, now: Instant) -> list[Effect]:
        return [*self.reading.ready(event), *self.step(now)]

    def corpus_missing(self, event: CorpusMissing, now: Instant) -> list[Effect]:
        return [*self.reading.missing(event, now), *self.step(now)]

    def corpus_unusable(self, event: CorpusUnusable, now: Instant) -> list[Effect]:
        return [*self.reading.unusable(event), *self.step(now)]

    def state_installed(self, origin: str, now: Instant) -> list[Effect]:
        self.installed = True
        self.origin = False
        self.straying.installed(fresh=origin == "fresh")
        self.exchanges.outcomes.installed(ours=origin == "snapshot" or not self.may_train)
        self.steering.outer_steps = RAMP_STEPS if origin == "fresh" else 0
        self.steering.weigh(self.seen)
        return [Log("info", "state_installed", (("origin", origin),)), *self.step(now)]

    def state_rejected(self, fragment: FragmentId, reason: str, now: Instant) -> list[Effect]:
        self.phase = Phase.FETCHING
        return self.acquisition.rejected(fragment, reason, now)

    def worker_ready(self, event: WorkerReady, now: Instant) -> list[Effect]:
        if not self.worker.ready(event, now):
            return []
        about: tuple[tuple[str, str | int], ...] = ()
        about = (("device", event.device), ("threads", event.threads))
        if event.optimizer:
            about += (("optimizer", event.optimizer),)
        log = Log("info", "worker_ready", about)
        if self.phase is Phase.DRAINING:
            return [log, *self.worker.drain()]
        return [log, *self.steer(now)]

    def outer_stepped(self, event: OuterStepped, now: Instant) -> list[Effect]:
        if not self.worker.outer_stepped(event):
            return []
        if not event.finite:
            fields = (("fragment", event.fragment), ("why", "not finite: θ set back to φ"))
            return [Log("warning", "outer_step_refused", fields), *self._after_drain(now)]
        if not event.stepped:
            return self._after_drain(now)
        self.exchanges.outcomes.stepped(event.fragment, event.version, event.phi_norm)
        if event.fragment == 0:
            self.steering.outer_steps += 1
            self.steering.weigh(self.seen)
        effects = self._after_drain(now)
        if self.phase in (Phase.TRAINING, Phase.READY):
            partners = self.partners_of(event.fragment)
            effects += self.exchanges.stepped(event.fragment, partners, now)
        return effects

    def worker_progressed(self, event: WorkerProgressed, now: Instant) -> list[Effect]:
        self.coverage.read(event)
        return self._watch_worker(now) if self.worker.progressed(event, now) else []

    def _watch_worker(self, now: Instant) -> list[Effect]:
        expected = self.phase in (Phase.TRAINING, Phase.DRAINING) and not self.lacking()
        return self.worker.watch(now, expected=expected)

    def evaluated(self, event: Evaluated, now: Instant) -> list[Effect]:
        effects = self.worker.evaluated(event, now)
        tokens = self.steering.tokens_per_step()
        return effects + self._advice.look(tokens, self.worker.noise_scale)

    def worker_drained(self, now: Instant) -> list[Effect]:
        if self.phase not in (Phase.DRAINING, Phase.LEAVING):
            return []
        self.worker.handed_in()
        return self._after_drain(now)

    def _after_drain(self, now: Instant) -> list[Effect]:
        return self.step(now) if self.worker.finish_drain() else []

    def worker_exited(self, event: WorkerExited, now: Instant) -> list[Effect]:
        was_to_begin = self.phase is Phase.INSTALLING and not self.installed
        wanted = self.phase is Phase.TRAINING or was_to_begin
        if not self.worker.exited(event, wanted, now):
            return []
        if self.phase in (Phase.DRAINING, Phase.LEAVING):
            self.worker.drained = True
        if was_to_begin:
            # It was to make the initial weights: seek again, and try again after the back-off.
            self.phase = Phase.SEEKING
        log = Log("warning" if event.error else "info", "worker_exited", (("error", event.error),))
        return [log, *(self.reading.check_again() if event.error else []), *self.step(now)]

    # ------------------------------------------------------------------------------ snapshots

    def _snapshot(self, now: Instant) -> list[Effect]:
        final = self.phase is Phase.DONE and self.settled
        return self.snapshots.write(self.seen.swarm_tokens, self.worker.tokens, now, final=final)

    def _snapshot_unless_held(self, now: Instant) -> list[Effect]:
        if self.phase is not Phase.DONE and self.snapshots.is_held(now):
            self.snapshots.due = after(now, STEER_S)
            return []
        return self._snapshot(now)

    def snapshot_now(self, now: Instant) -> list[Effect]:
        return self._snapshot(now) if self.installed else []

    def snapshot_written(self, event: SnapshotWritten, now: Instant) -> list[Effect]:
        self.snapshots.written(event, now)
        effects = self.snapshots.offer_to_askers(self._offer())
        if event.trouble:
            effects.append(Log("warning", "old_snapshot_stays", (("why", event.trouble),)))
        return effects

    def snapshot_failed(self, reason: str) -> list[Effect]:
        return [*self.snapshots.failed(reason), *self.snapshots.offer_to_askers(self._offer())]

    def state_shown(self, peer: PeerId, give: StateGive, now: Instant) -> list[Effect]:
        """A donor shows what it has: to be fetched, or compared with what we have finished."""
        if self.phase is Phase.DONE:
            spread = self.plan.mix.settle_spread
            self.finals.shown(self.me, self._offer(), peer, give, spread)
            return self.step(now)
        return self.acquisition.on_state_give(peer, give, self.plan_hash, now)

    def asked_for_state(self, peer: PeerId, now: Instant) -> list[Effect]:
        """Offer the latest snapshot, or make a newer one first."""
        standing = self.exchanges.standing
        is_finishing = self.snapshots.is_finishing
        if not is_finishing and (
            self.snapshots.is_fresh(peer, now) or not standing.active or standing.frozen
        ):
            return [Send(peer, self._offer())]
        self.snapshots.offer_later(peer)
        return self._snapshot(now)

    def _offer(self) -> StateGive:
        offer = self.snapshots.offer(self.plan_hash, active=self.exchanges.standing.active)
        return dataclasses.replace(offer, final=offer.final and self.phase is Phase.DONE)

    def donate(
        self,
        peer: PeerId,
        request: PullRequest,
        stored: Callable[[ObjectHash], int | None],
        now: Instant,
    ) -> list[Effect]:
        """Answer a pull: a corpus object, a fragment of a recent snapshot, or what is `stored` for the swarm."""
        transfer = TransferId(request.transfer)
        taken = self.is_taken(transfer) or self.exchanges.is_taken(transfer)
        active = self.exchanges.standing.active
        size = stored(ObjectHash(request.object_hash))
        return self.snapshots.donate(peer, request, now, active=active, taken=taken, stored=size)

    def is_taken(self, transfer: TransferId) -> bool:
        """Some pull has this id, served or our own."""
        pulls = self.snapshots.is_serving(transfer) or self.acquisition.is_taken(transfer)
        channels = self.channels.is_taken(transfer) or self.texts.channels.is_taken(transfer)
        return pulls or channels

    # ------------------------------------------------------------------------------ for people

    def is_participating(self, now: Instant) -> bool:
        if self.settled:
            return True
        if not self.hosting.is_whole and not self._has_partners:
            return self.phase is Phase.TRAINING and self.worker.tokens_per_s > 0
        if self.last_exchange is None:
            return False
        tokens_per_s = self.worker.tokens_per_s
        pace_s = self.steering.tokens_per_round() / tokens_per_s if tokens_per_s else 0.0
        return now - self.last_exchange < max(PARTICIPATING_S, 3 * pace_s)

    def pause(self, paused: bool, now: Instant) -> list[Effect]:
        self.paused = paused
        return self.step(now)

    def use_plan(self, plan: SignedPlan, now: Instant) -> list[Effect]:
        """A newer revision holds. The model and its tokenizer cannot have changed; all else can."""
        old = self.plan
        self.plan, self.plan_hash = plan.plan, plan.plan_hash
        self.exchanges.use_plan(plan.plan)
        self.exchanges.standing.plan_hash = plan.plan_hash
        self.steering.use_plan(plan.plan, now)
        self.coverage.use_plan(plan.plan)
        return [*self.reading.use_plan(old, self.plan), *self.step(now)]

    def model_failed(self, reason: str, now: Instant) -> list[Effect]:
        """The finished weights are safe in a snapshot; the model is written again later."""
        self.snapshots.error = reason
        self._model_due = after(now, MODEL_AGAIN_S)
        return [Log("error", "model_not_written", (("why", reason),))]

    def model_written(self, directory: str, now: Instant) -> list[Effect]:
        self.model_dir = directory
        self._model_due, self.snapshots.error = None, ""
        self.snapshots.due = now
        return [Log("info", "model_written", (("directory", directory),)), *self.step(now)]

    # -------------------------------------------------------------------------------- leaving

    def go_on_from(self, old: Work) -> None:
        """This is the work of the same daemon with other stages: what it has trained on is counted on, and it has looked
        for others long enough. What was finished is so in its new stages, too: nobody has anything newer than what it took over."""
        self.origin, self.paused, self.may_draw = old.origin, old.paused, True
        self.reading.asked = old.reading.asked
        self.started = after(old.started, -FRESH_GRACE_S)
        self.worker.tokens = old.worker.tokens
        self.worker.supervision.generation = old.worker.supervision.generation + 1
        self.has_final = old.settled

    def leave(self, now: Instant) -> list[Effect]:
        """Stop inner steps and hand in the worker's progress; then call `wind_up` until
        `has_wound_up`."""
        return [*self._enter(Phase.LEAVING, now), *self.worker.drain()]

    def wind_up(self, now: Instant, *, overdue: bool, keeps: bool = True) -> list[Effect]:
        """Once the worker has handed in its progress, or too long has gone by, freeze and, if it `keeps` what it has,
        write a last snapshot."""
        is_early = not (self.worker.drained or overdue) or self.snapshots.is_writing
        if is_early or self._last_snapshot != "":
            return []
        if not (self.installed and keeps):
            self._last_snapshot = "none"
            return [*self.exchanges.freeze(now), *self.worker.stop()]
        self._last_snapshot = "writing"
        return [*self.exchanges.freeze(now), *self.worker.stop(), *self._snapshot(now)]

    @property
    def has_wound_up(self) -> bool:
        return self._last_snapshot != "" and not self.snapshots.is_writing

    def deadline(self, now: Instant) -> Instant:
        due = self.steering.due
        if self.installed and self.snapshots.due < due:
            due = self.snapshots.due
        own = None
        if self.phase in LEARNING:
            own = self.worker.supervision.deadline()
        elif self.phase is Phase.SETTLING:
            own = self.settling.deadline()
        others = (self.exchanges, self.acquisition, self.channels, self.texts.channels)
        for at in (own, *(other.deadline() for other in others)):
            if at is not None and at < due:
                due = at
        return due

    def check(self) -> None:
        self.exchanges.check()
        self.acquisition.check()
        self.worker.check()
