"""What is done here: weights, worker, exchanges and the run's end, as the other half of a node.

This file turns the lifecycle's phase into effects. It is told who is there (`see`) and how many
tokens the swarm has seen, and it never asks a peer anything but through exchanges and acquisition.
Tensors are elsewhere; here a fragment is a number and a boundary an event.

What may happen to a worker is decided here too: it runs while there are inner steps to take or an
evaluation to make, is started again from the slow weights when it dies, and is told twice a second
what the swarm's token count is and who else is training, so that the learning rate and the share
of the text follow without a coordinator.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peerlm.config import NodeSettings, Plan
from peerlm.effects import (
    DrainWorker,
    Effect,
    EvaluateSlow,
    InstallSnapshot,
    Log,
    PrepareCorpus,
    Send,
    StartWorker,
    SteerWorker,
    StepOuter,
    StopWorker,
    WriteModel,
)
from peerlm.events import (
    BoundaryReached,
    CorpusMissing,
    CorpusReady,
    Evaluated,
    OuterStepped,
    SnapshotWritten,
    WorkerExited,
    WorkerProgressed,
    WorkerReady,
)
from peerlm.identity.root import SignedPlan
from peerlm.mix.exchange import Exchanges
from peerlm.node.acquire import Acquisition
from peerlm.node.finals import Finals
from peerlm.node.lifecycle import BEHIND_STEPS, FRESH_GRACE_S, NEXT, Facts, Phase, decide
from peerlm.node.settling import Settling
from peerlm.node.snapshots import Restored, Snapshots
from peerlm.node.supervision import Supervision
from peerlm.swarm.sampler import sampler_named
from peerlm.types import FragmentId, Instant, PeerId, TransferId, after
from peerlm.wire.message import PullRequest, StateGive

RAMP_STEPS = 3
"""Outer steps over which a newcomer's weight in exchanges rises to the usual."""

STEER_S = 0.5

MODEL_AGAIN_S = 30.0
"""A finished model that could not be written is tried again after so long."""

FIRST_EVALUATION_S = 8.0
"""A new worker is left to its first steps for so long."""

PARTICIPATING_S = 15.0
"""An exchange this recent counts as taking part, whatever the pace of outer steps."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The swarm as it matters to work; members sorted, without this node."""

    partners: tuple[PeerId, ...] = ()
    """Live, active, of the same plan: whom an exchange may be started with."""
    trainers: tuple[PeerId, ...] = ()
    """Live and training: who shares the text."""
    donors: tuple[PeerId, ...] = ()
    done: tuple[PeerId, ...] = ()
    """Donors that say the run is done."""
    unsettled: int = 0
    """Live active members that have not settled."""
    swarm_tokens: int = 0
    addresses_known: bool = False


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
        sizes: Sequence[int],
        settings: NodeSettings,
        endpoint: Callable[[PeerId], tuple[str, int] | None],
        rng: random.Random,
        now: Instant,
        *,
        origin: bool,
        restored: Restored | None,
        may_train: bool,
    ) -> None:
        self.me = me
        self.plan = plan
        self.plan_hash = plan_hash
        self.settings = settings
        self.origin = origin
        self.restored = restored
        self.may_train = may_train
        self.phase = Phase.STARTING
        self.reason = ""
        self.paused = False
        self.tokens = 0
        """Trained on in this boot epoch."""
        self.loss: float | None = None
        self.val_loss: float | None = None
        self.tokens_per_s = 0.0
        self.nonfinite_steps = 0
        self.data_pass, self.data_position = 0, 0.0
        self.model_dir = ""
        self.settled = False
        self.installed = False
        self.has_final = False
        self.last_exchange: Instant | None = None
        self.seen = Seen()
        self.supervision = Supervision()
        self.settling = Settling()
        self.snapshots = Snapshots(settings.limits.snapshot_every_s, restored, now)
        sampler = sampler_named(plan.mix.sampler, plan.run.rng_seed)
        self.exchanges = Exchanges(me, plan, sizes, sampler, endpoint, rng)
        self.exchanges.standing.plan_hash = plan_hash
        self.acquisition = Acquisition(sizes, endpoint, rng)
        self._finals = Finals()
        self._sizes = tuple(sizes)
        self._rng = rng
        self._started = now
        self._corpus, self._corpus_reason = "unknown", ""
        self._outer_steps = 0
        self._generation_tokens = 0
        self._evaluate_due = now
        self._evaluating = False
        self._steer_due = now
        self._is_fresh = False
        self._stray_since: Instant | None = None
        self._drain_sent = False
        self._drained = False
        self._model_due: Instant | None = None
        self._boundaries = 0
        self._last_snapshot = ""

    # --------------------------------------------------------------------------------- phases

    def start(self, seen: Seen, now: Instant) -> list[Effect]:
        return [PrepareCorpus(), *self.see(seen, now)]

    def see(self, seen: Seen, now: Instant) -> list[Effect]:
        """Who is there has changed, or time has passed: look again."""
        gone = [p for p in self.seen.partners if p not in seen.partners]
        self.seen = seen
        effects: list[Effect] = []
        for peer in gone:
            effects += self.exchanges.peer_gone(peer, now)
        effects += self._mind_straying(now)
        effects += self.acquisition.donors_are(seen.donors, now)
        if self._corpus == "missing" and self.acquisition.corpus_arrived:
            self.acquisition.corpus_arrived = False
            effects.append(PrepareCorpus())
        return effects + self.step(now)

    def step(self, now: Instant) -> list[Effect]:
        """Follow the facts from phase to phase until none follows, then keep the phase's duties."""
        effects: list[Effect] = []
        for _ in range(len(Phase)):
            following = decide(self.phase, self._facts(now))
            if following is self.phase:
                break
            effects += self._enter(following, now)
        self.reason = self._reason()
        return effects + self._duties(now)

    def _facts(self, now: Instant) -> Facts:
        seen = self.seen
        return Facts(
            waited_s=now - self._started,
            addresses_known=seen.addresses_known,
            donors=len(seen.donors),
            donors_done=bool(seen.done),
            snapshot_tokens=self.restored.tokens if self.restored else None,
            tokens_per_round=self._tokens_per_round() * (1 + len(seen.trainers)),
            swarm_tokens=seen.swarm_tokens,
            budget=self.plan.run.token_budget,
            origin=self.origin and not self.supervision.is_waiting(now),
            state_arrived=self.acquisition.state_arrived,
            installed=self.installed,
            has_final=self.has_final,
            is_stray=self._stray_since is not None,
            is_outdone=self._finals.outdone,
            corpus_ready=self._corpus == "ready",
            may_train=self.may_train and not self.paused,
            worker_drained=self._drained,
            settled=self.settled,
            settled_everywhere=self.settled and self.seen.unsettled == 0,
            settle_overdue=self.settling.is_overdue(self.plan.mix.settle_deadline_s, now),
        )

    def _mind_straying(self, now: Instant) -> list[Effect]:
        """Weights that others have left behind, found so by them, or initial ones of our own that
        nobody has mixed yet while others are far ahead: keep them to ourselves until somebody gives
        us better ones, or it turns out that nobody has any."""
        since = self._stray_since
        if since is not None:
            if self.seen.donors or now - since < FRESH_GRACE_S:
                return []
            self._stray_since, self._is_fresh = None, False
            standing = self.exchanges.standing
            standing.active, standing.frozen = self.installed, not self.installed
            self.exchanges.outcomes.caught_up()
            return []
        if self.exchanges.outcomes.is_behind(self.seen.partners, now):
            self._stray_since = now
            return self._suspend(now)
        others_tokens = self.seen.swarm_tokens - self.tokens
        behind = BEHIND_STEPS * self._tokens_per_round() * (1 + len(self.seen.trainers))
        unmixed = self._is_fresh and self.exchanges.mixes and self.last_exchange is None
        if not unmixed or others_tokens <= behind:
            return []
        self._stray_since = now
        return self._suspend(now)

    def _tokens_per_round(self) -> int:
        t = self.plan.train
        return self.plan.mix.inner_steps * t.batch * self.plan.model.context

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
                return [log, *self._drain(now)]
            case Phase.SETTLING:
                return [log, *self._settle(now)]
            case Phase.DONE:
                return [log, *self._finish(now)]
        return [log]

    def _suspend(self, now: Instant) -> list[Effect]:
        """Other weights are on their way: these neither learn nor mix any more."""
        if not self.exchanges.standing.active:
            return []
        self.exchanges.standing.active = False
        return [*self.exchanges.freeze(now), *self._steer(now)]

    def _install(self, left: Phase, now: Instant) -> list[Effect]:
        if left is Phase.FETCHING:
            self.installed = False
            self._finals.forget()
            self.has_final = self.acquisition.is_final
            return [self.acquisition.installation()]
        if self.restored is not None:
            return [InstallSnapshot()]
        return [StartWorker(self.supervision.start(now), fresh=True)]

    def _be_ready(self, left: Phase, now: Instant) -> list[Effect]:
        standing = self.exchanges.standing
        standing.active, standing.frozen, standing.settling = True, False, False
        self.settled = False
        self.settling.end()
        self.snapshots.is_final = False
        self._finals.forget()
        self.has_final = self.has_final and self.seen.swarm_tokens >= self.plan.run.token_budget
        self._drain_sent = self._drained = False
        effects: list[Effect] = []
        if left is Phase.INSTALLING:
            self.snapshots.due = now
        if self.phase is Phase.TRAINING and self.supervision.state == "off":
            effects.append(StartWorker(self.supervision.start(now), fresh=False))
        return effects + self._steer(now)

    def _drain(self, now: Instant) -> list[Effect]:
        running = self.supervision.state == "running"
        self._drained, self._drain_sent = not running, False
        if self.supervision.state == "backing_off":
            self.supervision.hold()
        if self.supervision.state == "starting":
            return [StopWorker(self.supervision.generation)]
        return [DrainWorker(self.supervision.generation)] if running else []

    def _settle(self, now: Instant) -> list[Effect]:
        self.exchanges.standing.settling = True
        self.settling.begin(now)
        for state in self.exchanges.outcomes.fragments:
            state.last.clear()
        return []

    def _finish(self, now: Instant) -> list[Effect]:
        """Who ran out of time to settle is done too, but its weights are nobody's final ones."""
        self.settled = self.settled or self.has_final
        effects = self.exchanges.freeze(now)
        return [*effects, WriteModel(self.seen.swarm_tokens), *self._stop_worker()]

    def _stop_worker(self) -> list[Effect]:
        self.supervision.hold()
        if self.supervision.state in ("running", "starting"):
            return [StopWorker(self.supervision.generation)]
        return []

    # --------------------------------------------------------------------------------- duties

    def _duties(self, now: Instant) -> list[Effect]:
        """What has to be done again and again in the present phase."""
        effects: list[Effect] = []
        if self.phase is Phase.TRAINING and self.supervision.due(now):
            effects.append(StartWorker(self.supervision.start(now), fresh=False))
        if self.phase is Phase.SETTLING:
            effects += self._settle_on(now)
        if self.phase is Phase.DONE and self._model_due is not None and self._model_due <= now:
            self._model_due = None
            effects.append(WriteModel(self.seen.swarm_tokens))
        if self.phase is Phase.DONE and self.snapshots.is_final:
            effects += self._finals.ask(self.seen.done, now)
        if self._steer_due <= now:
            effects += [*self._steer(now), *self._watch_worker(now)]
        if self.installed and self.snapshots.due <= now:
            effects += self._snapshot_unless_held(now)
        if self.phase is Phase.TRAINING and self._evaluate_due <= now:
            effects += self._evaluate(now)
        return effects

    def _steer(self, now: Instant) -> list[Effect]:
        self._steer_due = after(now, STEER_S)
        if self.supervision.state != "running":
            return []
        members = tuple(sorted((*self.seen.trainers, self.me)))
        training = self.phase is Phase.TRAINING
        return [SteerWorker(self.supervision.generation, training, self.seen.swarm_tokens, members)]

    def _evaluate(self, now: Instant) -> list[Effect]:
        if self._evaluating or self.supervision.state != "running":
            return []
        jitter = self._rng.uniform(0.9, 1.1)
        self._evaluate_due = after(now, self.plan.train.val_every_s * jitter)
        self._evaluating = True
        return [EvaluateSlow(self.supervision.generation, self.seen.swarm_tokens)]

    def _settle_on(self, now: Instant) -> list[Effect]:
        """Mix every idle fragment that is not yet close to those it could be compared with."""
        partners, spread = self.seen.partners, self.plan.mix.settle_spread
        self.settling.look(partners, now)
        effects: list[Effect] = []
        is_close = [
            self.settling.is_close(state.last, partners, spread)
            for state in self.exchanges.outcomes.fragments
        ]
        for index, state in enumerate(self.exchanges.outcomes.fragments):
            fragment = FragmentId(index)
            if not is_close[index] and not self.exchanges.is_busy(fragment):
                unmet = self.settling.to_mix_with(fragment, state.last, partners, spread)
                effects += self.exchanges.start(fragment, unmet, now)
        self.settled = all(is_close)
        return effects

    # ----------------------------------------------------------------------- weights and worker

    def corpus(self, state: str, reason: str, now: Instant) -> list[Effect]:
        """The corpus is ready, missing or unusable."""
        self._corpus = state
        self._corpus_reason = reason
        return self.step(now)

    def corpus_ready(self, event: CorpusReady, now: Instant) -> list[Effect]:
        self.snapshots.corpus = event.objects
        return self.corpus("ready", "", now)

    def corpus_missing(self, event: CorpusMissing, now: Instant) -> list[Effect]:
        effects = self.acquisition.want_corpus(event.missing, now)
        return effects + self.corpus(
            "missing", f"fetching {len(event.missing)} corpus objects", now
        )

    def state_installed(self, origin: str, now: Instant) -> list[Effect]:
        self.installed = True
        self.origin = False
        self._is_fresh, self._stray_since = origin == "fresh", None
        self.exchanges.outcomes.caught_up()
        self._outer_steps = 0 if origin == "peers" else RAMP_STEPS
        self.exchanges.standing.ramp = self._ramp()
        return [Log("info", "state_installed", (("origin", origin),)), *self.step(now)]

    def state_rejected(self, fragment: FragmentId, reason: str, now: Instant) -> list[Effect]:
        self.phase = Phase.FETCHING
        return self.acquisition.rejected(fragment, reason, now)

    def worker_ready(self, event: WorkerReady, now: Instant) -> list[Effect]:
        if event.generation != self.supervision.generation:
            return []
        self.supervision.ready(event.device, event.threads)
        self._generation_tokens = 0
        self._evaluating = False
        # Steps first: evaluating a large model takes as long as several of them.
        self._evaluate_due = max(self._evaluate_due, after(now, FIRST_EVALUATION_S))
        log = Log("info", "worker_ready", (("device", event.device), ("threads", event.threads)))
        if self.phase is Phase.DRAINING:
            return [log, *self._drain(now)]
        return [log, *self._steer(now)]

    def boundary(self, event: BoundaryReached) -> list[Effect]:
        if event.generation != self.supervision.generation:
            return []
        self._boundaries += 1
        return [StepOuter(event.generation, event.fragment, event.applied_seq)]

    def outer_stepped(self, event: OuterStepped, now: Instant) -> list[Effect]:
        if event.generation != self.supervision.generation or not self._boundaries:
            return []
        self._boundaries -= 1
        if not event.finite:
            fields = (("fragment", event.fragment), ("why", "not finite: θ set back to φ"))
            return [Log("warning", "outer_step_refused", fields), *self._after_drain(now)]
        if not event.stepped:
            return self._after_drain(now)
        self.exchanges.outcomes.stepped(event.fragment, event.version, event.phi_norm)
        if event.fragment == 0:
            self._outer_steps += 1
            self.exchanges.standing.ramp = self._ramp()
        effects = self._after_drain(now)
        if self.phase in (Phase.TRAINING, Phase.READY):
            effects += self.exchanges.start(
                event.fragment, self.seen.partners, now, self.plan.mix.exchanges
            )
        return effects

    def _ramp(self) -> float:
        return min(1.0, max(1, self._outer_steps) / RAMP_STEPS)

    def worker_progressed(self, event: WorkerProgressed, now: Instant) -> list[Effect]:
        if event.generation != self.supervision.generation:
            return []
        self.tokens += event.tokens - self._generation_tokens
        self._generation_tokens = event.tokens
        if event.loss is not None:
            self.loss = event.loss
        self.tokens_per_s, self.nonfinite_steps = event.tokens_per_s, event.nonfinite_steps
        self.data_pass, self.data_position = event.data_pass, event.data_position
        self.supervision.progressed(event.loss, event.nonfinite_steps, now)
        return self._watch_worker(now)

    def _watch_worker(self, now: Instant) -> list[Effect]:
        """Stop a worker that is of no use; its exit is followed by a new one."""
        if self.phase not in (Phase.TRAINING, Phase.DRAINING):
            self.supervision.heard(now)
        return [StopWorker(self.supervision.generation)] if self.supervision.condemn(now) else []

    def evaluated(self, event: Evaluated) -> list[Effect]:
        self._evaluating = False
        if not math.isfinite(event.val_loss):
            return [Log("warning", "evaluated", (("why", "no held-out text, or φ is broken"),))]
        self.val_loss = event.val_loss
        fields = (("val_loss", round(event.val_loss, 4)), ("tokens", event.tokens))
        return [Log("info", "evaluated", fields)]

    def worker_drained(self, now: Instant) -> list[Effect]:
        if self.phase not in (Phase.DRAINING, Phase.LEAVING):
            return []
        self._drain_sent = True
        return self._after_drain(now)

    def _after_drain(self, now: Instant) -> list[Effect]:
        """The drain is over once the outer step of the last boundary is taken too."""
        if not self._drain_sent or self._boundaries:
            return []
        self._drained = True
        return self.step(now)

    def worker_exited(self, event: WorkerExited, now: Instant) -> list[Effect]:
        if event.generation != self.supervision.generation:
            return []
        was_to_begin = self.phase is Phase.INSTALLING and not self.installed
        wanted = self.phase is Phase.TRAINING or was_to_begin
        self.supervision.exited(event.error, wanted, now)
        self.tokens_per_s, self._evaluating = 0.0, False
        self._boundaries = 0
        if self.phase in (Phase.DRAINING, Phase.LEAVING):
            self._drained = True
        if was_to_begin:
            # It was to make the initial weights: seek again, and try again after the back-off.
            self.phase = Phase.SEEKING
        level = "warning" if event.error else "info"
        return [Log(level, "worker_exited", (("error", event.error),)), *self.step(now)]

    # ------------------------------------------------------------------------------ snapshots

    def _snapshot(self, now: Instant) -> list[Effect]:
        final = self.phase is Phase.DONE and self.settled
        return self.snapshots.write(self.seen.swarm_tokens, self.tokens, now, final=final)

    def _snapshot_unless_held(self, now: Instant) -> list[Effect]:
        if self.phase is not Phase.DONE and self.snapshots.is_held(now):
            self.snapshots.due = after(now, STEER_S)
            return []
        return self._snapshot(now)

    def snapshot_now(self, now: Instant) -> list[Effect]:
        return self._snapshot(now) if self.installed else []

    def snapshot_written(self, event: SnapshotWritten, now: Instant) -> list[Effect]:
        self.snapshots.written(event, now)
        return self.snapshots.offer_to_askers(self._offer())

    def snapshot_failed(self, reason: str) -> list[Effect]:
        return [*self.snapshots.failed(reason), *self.snapshots.offer_to_askers(self._offer())]

    def state_shown(self, peer: PeerId, give: StateGive, now: Instant) -> list[Effect]:
        """A donor shows what it has: to be fetched, or compared with what we have finished."""
        if self.phase is Phase.DONE:
            spread = self.plan.mix.settle_spread
            self._finals.shown(self.me, self._offer(), peer, give, spread)
            return self.step(now)
        return self.acquisition.on_state_give(peer, give, self.plan_hash, now)

    def asked_for_state(self, peer: PeerId, now: Instant) -> list[Effect]:
        """Offer the latest snapshot, or make a newer one first."""
        standing = self.exchanges.standing
        if self.snapshots.is_fresh(now) or not standing.active or standing.frozen:
            return [Send(peer, self._offer())]
        self.snapshots.offer_later(peer)
        return self._snapshot(now)

    def _offer(self) -> StateGive:
        offer = self.snapshots.offer(self.plan_hash, active=self.exchanges.standing.active)
        return dataclasses.replace(offer, final=offer.final and self.phase is Phase.DONE)

    def donate(self, peer: PeerId, request: PullRequest, now: Instant) -> list[Effect]:
        """Answer a pull: a corpus object, or a fragment of a recent snapshot."""
        transfer = TransferId(request.transfer)
        taken = self.is_taken(transfer) or self.exchanges.is_taken(transfer)
        active = self.exchanges.standing.active
        return self.snapshots.donate(peer, request, now, active=active, taken=taken)

    def is_taken(self, transfer: TransferId) -> bool:
        """Some pull has this id, served or our own."""
        return self.snapshots.is_serving(transfer) or self.acquisition.is_taken(transfer)

    # ------------------------------------------------------------------------------ for people

    def is_participating(self, now: Instant) -> bool:
        if self.settled:
            return True
        if self.last_exchange is None:
            return False
        pace_s = self._tokens_per_round() / self.tokens_per_s if self.tokens_per_s else 0.0
        return now - self.last_exchange < max(PARTICIPATING_S, 3 * pace_s)

    def _reason(self) -> str:
        if self.phase is Phase.SEEKING:
            if self.origin and self._corpus != "ready":
                return self._corpus_line()
            return "looking for a member that has weights"
        if self.phase is Phase.FETCHING:
            return "fetching weights from peers"
        if self.phase is Phase.READY:
            if self.paused:
                return "paused: `peerlm resume` goes on"
            if not self.may_train:
                return "this node does not train (its role or node.toml train.enabled)"
            return self._corpus_line()
        return ""

    def _corpus_line(self) -> str:
        return {"unknown": "checking the corpus", "ready": ""}.get(
            self._corpus, self._corpus_reason
        )

    def pause(self, paused: bool, now: Instant) -> list[Effect]:
        self.paused = paused
        return self.step(now)

    def use_plan(self, plan: SignedPlan, now: Instant) -> list[Effect]:
        """A newer revision holds. The model and the data cannot have changed; all else can."""
        old = self.plan
        self.plan, self.plan_hash = plan.plan, plan.plan_hash
        self.exchanges.use_plan(plan.plan)
        self.exchanges.standing.plan_hash = plan.plan_hash
        is_workers = (old.train, old.mix.inner_steps) != (
            self.plan.train,
            self.plan.mix.inner_steps,
        )
        if is_workers and self.supervision.state in ("running", "starting"):
            # The worker reads the plan when it starts; only the budget it is told as it goes.
            return [StopWorker(self.supervision.generation), *self.step(now)]
        return self.step(now)

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

    def leave(self, now: Instant) -> list[Effect]:
        """Stop inner steps and hand in the worker's progress; then call `wind_up` until
        `has_wound_up`."""
        return [*self._enter(Phase.LEAVING, now), *self._drain(now)]

    def wind_up(self, now: Instant, *, overdue: bool) -> list[Effect]:
        """Once the worker has handed in its progress, or too long has gone by, freeze and write a
        last snapshot."""
        if not (self._drained or overdue) or self._last_snapshot != "":
            return []
        if not self.installed:
            self._last_snapshot = "none"
            return self._stop_worker()
        if self.snapshots.is_writing:
            return []
        self._last_snapshot = "writing"
        return [*self.exchanges.freeze(now), *self._stop_worker(), *self._snapshot(now)]

    @property
    def has_wound_up(self) -> bool:
        return self._last_snapshot != "" and not self.snapshots.is_writing

    def deadline(self, now: Instant) -> Instant:
        due = [self._steer_due, self.snapshots.due if self.installed else None]
        due += [self.exchanges.deadline(), self.acquisition.deadline()]
        if self.phase in (Phase.TRAINING, Phase.SEEKING):
            due.append(self.supervision.deadline())
        if self.phase is Phase.SETTLING:
            due.append(self.settling.deadline())
        return min(d for d in due if d is not None)

    def check(self) -> None:
        self.exchanges.check()
        self.acquisition.check()
        assert self._boundaries >= 0, "an outer step without a boundary"
