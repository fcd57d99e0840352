"""What a simulated process works with: slow weights, a worker, its disk and its transfers.

The arithmetic is the daemon's own (`mix.fragment`, `mix.flow`, the worker's `Cadence`) on the
learner's few parameters; only time is made up: an inner step takes what the plan's tokens take at
the machine's speed, a disk write `WRITE_S`. Effects become events as the daemon's driver makes them:
late, and not at all once cancelled or of an older generation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from peerlm import effects as fx
from peerlm import events as ev
from peerlm.config import Plan
from peerlm.effects import Effect
from peerlm.identity.root import verify_plan
from peerlm.mix import algorithms
from peerlm.mix.fragment import Batch, Kind, Outcome, SlowFragment
from peerlm.mix.sketch import distance, sketch
from peerlm.mix.vector import Vector
from peerlm.sim.channels import ChannelEnds
from peerlm.sim.disk import WRITE_S, Offer, Snapshot, State
from peerlm.sim.learner import Pupil, part_of
from peerlm.sim.stage_work import Hop, StageWork
from peerlm.sim.transfers import Transfers
from peerlm.train.cadence import Cadence
from peerlm.train.schedule import rate, rewarm
from peerlm.types import FragmentId, ObjectHash, PeerId

if TYPE_CHECKING:
    from peerlm.sim.machine import Machine

READY_S = 0.4
"""From a worker's start to its first step."""
OUTER_S = 0.001
EVALUATION_S = 0.1
STOP_S = 0.05
REPORT_S = 1.0


@dataclass(slots=True)
class Worker:
    """One generation's life."""

    generation: int
    pupil: Pupil
    cadence: Cadence
    theta: dict[FragmentId, Vector] = field(default_factory=dict)
    training: bool = False
    draining: bool = False
    ticking: bool = False
    swarm_tokens: int = 0
    steps: int = 0
    tokens: int = 0
    reported: float = 0.0
    loss: float = 0.0
    absent: tuple[int, ...] = ()
    """Shards of the text that it knows not to be here."""
    applied: dict[FragmentId, int] = field(default_factory=dict)
    mail: list[tuple[FragmentId, Batch]] = field(default_factory=list)
    boundaries: dict[FragmentId, Vector] = field(default_factory=dict)
    nonfinite_steps: int = 0
    is_ready: bool = False
    stage: StageWork | None = None
    """What it does that holds some stages only."""


class Labour:
    """Carries out the effects of work for one process."""

    def __init__(self, machine: Machine, plan: Plan, seed: int) -> None:
        self.machine, self.world, self.disk = machine, machine.world, machine.disk
        self.plan = plan
        self.held = machine.holding.fragments
        self.learner = learner = part_of(machine.world.learner, self.held)
        self.slow = {
            fragment: SlowFragment(np.zeros(size, np.float32))
            for fragment, size in zip(self.held, learner.sizes, strict=True)
        }
        self.worker: Worker | None = None
        self.transfers = Transfers(self, np.random.default_rng(seed))
        self.channels = ChannelEnds(self)
        self._reads = machine.holding.hosting.has_ends
        self._donated = {offer[2] for s in self.disk.snapshots for offer in s.offers}
        self._life, self._is_left = machine.life, False

    def phi(self) -> Vector:
        """All slow weights in one vector."""
        return np.concatenate([slow.phi for slow in self.slow.values()])

    def loss(self) -> float:
        """Of the slow weights, on what nobody trains on."""
        return self.learner.loss([slow.phi for slow in self.slow.values()])

    def perform(self, effect: Effect) -> None:
        match effect:
            case fx.RunExchange() | fx.RunPull():
                self.transfers.run(effect)
            case fx.ServeExchange() | fx.ServePull():
                self.transfers.serve(effect)
            case fx.RunChannel():
                self.channels.run(effect)
            case fx.ServeChannel():
                self.channels.serve(effect)
            case fx.CancelTransfer(transfer):
                self.transfers.cancel(transfer)
                self.channels.cancel(transfer)
            case fx.StepOuter():
                self.for_worker(effect.generation, OUTER_S, self._step_outer, effect)
            case fx.StartWorker():
                self._start_worker(effect)
            case fx.StopWorker():
                self.for_worker(effect.generation, STOP_S, lambda w: self.worker_ends(""))
            case fx.SteerWorker():
                self.for_worker(effect.generation, 0.0, self._steer, effect)
            case fx.TellShards():
                self.for_worker(effect.generation, 0.0, self._see_shards, effect)
            case fx.EvaluateSlow():
                self.for_worker(effect.generation, EVALUATION_S, self._evaluate, effect)
            case fx.KeepOptimizer():
                pass  # what a simulated optimizer remembers dies with its worker
            case fx.DrainWorker():
                self.for_worker(effect.generation, 0.0, self._drain)
            case _:
                self._perform_disk(effect)

    def _perform_disk(self, effect: Effect) -> None:
        disk = self.disk
        match effect:
            case fx.PrepareCorpus():
                self._reads |= effect.is_kept
                shards = self.plan.data.shards if self._reads else ()
                wanted = [ObjectHash(bytes.fromhex(s)) for s in shards]
                missing = tuple(h for h in wanted if h not in disk.objects)
                here = tuple((h, len(disk.objects[h])) for h in wanted if h in disk.objects)
                ready = ev.CorpusReady(here, effect.number)
                event = ev.CorpusMissing(missing, here, effect.number) if missing else ready
                self.machine.later(WRITE_S, self.machine.post, event)
            case fx.InstallSnapshot():
                self.later(WRITE_S, self._install_snapshot)
            case fx.InstallObjects():
                self.later(WRITE_S, self._install_objects, effect)
            case fx.WriteSnapshot():
                self._write_snapshot(effect)
            case fx.WriteModel():
                model = [slow.phi.copy() for slow in self.slow.values()]
                self.later(WRITE_S, self._model_written, model)
            case fx.Save(name="address_book", data=data):
                disk.book = data
            case fx.Save(name="plan", data=data):
                disk.plan = data
            case fx.Save(name="passes", data=data):
                disk.passes = data
            case fx.Save(name="placement", data=data):
                disk.placement = data
            case fx.DropObjects(hashes):
                for name in hashes:
                    if name not in self._donated:
                        disk.objects.pop(name, None)
            case fx.SaveChain(chain):
                disk.chain = chain
            case fx.SaveRevocations(blobs):
                disk.revocations = blobs
            case fx.UsePlan(blob):
                root = self.world.root
                self.plan = verify_plan(blob, root.public_key, root.run_id).plan
            case fx.TellHosts():
                pass  # nobody asks for texts here
            case _:
                raise AssertionError(f"no driver for {effect}")

    # ------------------------------------------------------------------------------------ worker

    def _start_worker(self, effect: fx.StartWorker) -> None:
        if self._is_left:
            return  # the end of the last one looked like a death
        assert self.worker is None, "two workers at once"
        machine = self.machine
        seed = [self.world.seed, machine.number, machine.life, effect.generation]
        pupil = self.learner.pupil(machine.number, np.random.default_rng(seed))
        worker = Worker(effect.generation, pupil, Cadence(self.slow, self.plan.mix.inner_steps))
        if not machine.holding.is_whole:
            worker.stage = StageWork(self, worker, machine.holding.held, seed)
        worker.absent = effect.absent
        self.worker = worker
        if machine.fatal:
            self.for_worker(effect.generation, STOP_S, lambda w: self.worker_ends(machine.fatal))
        else:
            self.for_worker(effect.generation, READY_S, self._worker_ready, effect.fresh)

    def _worker_ready(self, worker: Worker, fresh: bool) -> None:
        if fresh:
            initial = self.learner.initial(self.plan.run.rng_seed)
            for slow, values in zip(self.slow.values(), initial, strict=True):
                slow.install(values, 0)
        worker.theta = {f: s.new_generation(worker.generation) for f, s in self.slow.items()}
        worker.applied = dict.fromkeys(self.slow, 0)
        worker.is_ready = True
        if fresh:
            self.machine.post(ev.StateInstalled("fresh"))
        self.machine.post(ev.WorkerReady(worker.generation, "cpu", 1))
        if worker.stage is not None:
            self.for_worker(worker.generation, 0.0, lambda w: w.stage.begin())

    def worker_ends(self, error: str) -> None:
        """It exits, or is killed; nothing it had said and was not heard counts."""
        if self.worker is not None:
            generation, self.worker = self.worker.generation, None
            self.machine.post(ev.WorkerExited(generation, error))

    def _see_shards(self, worker: Worker, effect: fx.TellShards) -> None:
        worker.absent = effect.absent

    def _steer(self, worker: Worker, effect: fx.SteerWorker) -> None:
        worker.training, worker.swarm_tokens = effect.training, effect.swarm_tokens
        worker.cadence.change(effect.inner_steps)
        if worker.stage is not None:
            worker.stage.steer(effect)
            return
        if effect.training and not worker.ticking:
            worker.draining, worker.ticking = False, True
            self._next_tick(worker)

    def _next_tick(self, worker: Worker) -> None:
        self.for_worker(worker.generation, self._tick_tokens / self.machine.speed, self._tick)

    @property
    def _tick_tokens(self) -> int:
        return self.world.tick_steps * self.plan.train.batch * self.plan.model.context

    def _tick(self, worker: Worker) -> None:
        """A few inner steps, then whatever the daemon asked for."""
        worker.ticking = worker.training
        if not worker.training:
            return
        ticks = self.world.tick_steps
        worker.loss = worker.pupil.steps(list(worker.theta.values()), ticks, self._rate(worker))
        self.poison(worker)
        for _ in range(ticks):
            worker.steps += 1
            worker.cadence.stepped()
        worker.tokens += self._tick_tokens
        self.machine.tokens_trained += self._tick_tokens
        self.read_mail(worker)
        self.hand_in(worker)
        if self.world.now - worker.reported >= REPORT_S:
            self._report(worker)
        self._next_tick(worker)

    def poison(self, worker: Worker) -> None:
        """An inner step breaks θ, where that is to happen."""
        if self.machine.poisoned:
            self.machine.poisoned = False
            for theta in worker.theta.values():
                theta[0] = np.nan

    def _rate(self, worker: Worker) -> float:
        """Share of the peak learning rate, by the plan's schedule where the world goes by it."""
        if not self.world.scheduled:
            return 1.0
        train, budget = self.plan.train, self.plan.run.token_budget
        share = rate(worker.swarm_tokens, budget, train.warmup, train.final_lr)
        return share * rewarm(worker.steps, train.rewarm_steps)

    def _report(self, worker: Worker) -> None:
        worker.reported = self.world.now
        self.machine.post(
            ev.WorkerProgressed(
                generation=worker.generation,
                steps=worker.steps,
                tokens=worker.tokens,
                loss=worker.loss,
                tokens_per_s=self.machine.speed,
                nonfinite_steps=0,
            )
        )

    def _evaluate(self, worker: Worker, effect: fx.EvaluateSlow) -> None:
        self.machine.post(ev.Evaluated(effect.generation, self.loss(), effect.tokens))

    def _drain(self, worker: Worker) -> None:
        if worker.stage is None:
            worker.training = False
            self._report(worker)
        else:
            worker.stage.keep_still()
        worker.draining = True
        worker.cadence.drain()
        self.hand_in(worker)

    def hand_in(self, worker: Worker) -> None:
        for fragment in worker.cadence.ready():
            worker.cadence.handed_in(fragment)
            seq = worker.applied[fragment]
            worker.boundaries[fragment] = worker.theta[fragment].copy()
            self.slow[fragment].expect_boundary(seq, worker.generation)
            event = ev.BoundaryReached(worker.generation, fragment, seq, worker.steps)
            self.for_worker(worker.generation, 0.0, self._tell, event)
        if worker.draining and worker.cadence.is_idle():
            worker.draining = False
            self.machine.post(ev.WorkerDrained(worker.generation))

    def _tell(self, worker: Worker, event: ev.Event) -> None:
        self.machine.post(event)

    def _step_outer(self, worker: Worker, effect: fx.StepOuter) -> None:
        fragment, mix = effect.fragment, self.plan.mix
        result = self.slow[fragment].boundary(
            worker.boundaries.pop(fragment),
            effect.applied_seq,
            worker.generation,
            algorithms.get(mix.algorithm),
            mix,
        )
        if result.outcome is Outcome.RESET:
            worker.pupil.forget(self.held.index(fragment))
        worker.cadence.taken(fragment)
        self.machine.post(
            ev.OuterStepped(
                generation=worker.generation,
                fragment=fragment,
                finite=result.finite,
                stepped=result.outcome is Outcome.STEPPED,
                version=result.version,
                progress_norm=result.progress_norm,
                phi_norm=result.phi_norm,
            )
        )
        self.moved(fragment)
        if self.worker is worker and worker.draining:
            self.hand_in(worker)

    def moved(self, fragment: FragmentId) -> None:
        """φ moved: θ follows between two inner steps."""
        worker = self.worker
        if worker is None or self.slow[fragment].generation != worker.generation:
            return
        batch = self.slow[fragment].take_batch()
        if batch is not None:
            worker.mail.append((fragment, batch))
            if not worker.training or (worker.stage is not None and not worker.stage.is_busy):
                self.for_worker(worker.generation, 0.0, self.read_mail)

    def read_mail(self, worker: Worker) -> None:
        mail, worker.mail = worker.mail, []
        for fragment, batch in mail:
            theta = worker.theta[fragment]
            theta[...] = batch.values if batch.kind is Kind.RESET else theta + batch.values
            worker.applied[fragment] = batch.seq
            self.slow[fragment].applied(batch.seq, worker.generation)
            self.moved(fragment)

    def for_worker(
        self, generation: int, delay_s: float, act: Callable[..., None], *args: object
    ) -> None:
        """Later, if this generation still lives then."""
        self.later(delay_s, self._if_alive, generation, act, args)

    def _if_alive(
        self, generation: int, act: Callable[..., None], args: tuple[object, ...]
    ) -> None:
        if self.worker is not None and self.worker.generation == generation:
            act(self.worker, *args)

    def later(self, delay_s: float, act: Callable[..., None], *args: object) -> None:
        """Later, if this work still goes on then."""
        self.machine.later(delay_s, self._if_here, act, args)

    def here(self, act: Callable[..., None], *args: object) -> None:
        """Something has come for this work: now, or when the machine thaws."""
        self.machine.act(self._life, self._if_here, act, args)

    def _if_here(self, act: Callable[..., None], args: tuple[object, ...]) -> None:
        if self.machine.labour is self and not self._is_left:
            act(*args)

    def hear(self, peer: PeerId, hop: Hop) -> None:
        """From another node's worker; lost if ours is not there."""
        if self.worker is not None and self.worker.stage is not None and self.worker.is_ready:
            self.worker.stage.hear(peer, hop)

    def leave(self) -> None:
        """Other work takes the place of this: nothing of it goes on."""
        self._is_left = True
        self.channels.close()
        self.transfers.close()
        self.worker_ends("")

    # -------------------------------------------------------------------------------------- disk

    def _install_snapshot(self) -> None:
        found = self.disk.snapshots[-1].fragments
        for fragment, slow in self.slow.items():
            phi, momentum, version = found[fragment]
            slow.phi[...], slow.momentum[...], slow.version = phi, momentum, version
        self.machine.post(ev.StateInstalled("snapshot"))

    def _install_objects(self, effect: fx.InstallObjects) -> None:
        for fragment, version, wanted, shown in effect.objects:
            if wanted not in self.disk.objects:
                self.machine.post(ev.StateRejected(fragment, "it is not here any more"))
                return
            values = self.disk.objects[wanted]
            assert not isinstance(values, bytes), "a fragment that is text"
            ours = sketch(values, self.plan.run.rng_seed, fragment)
            if not np.isfinite(values).all() or distance(ours, shown) > 1e-3:
                self.machine.post(ev.StateRejected(fragment, "not what its donor had shown"))
                return
            self.slow[fragment].install(values, version)
        self.machine.post(ev.StateInstalled("peers"))

    def _write_snapshot(self, effect: fx.WriteSnapshot) -> None:
        snapshot = self._snapshot(effect, self.states())
        self.later(WRITE_S, self._snapshot_written, snapshot, effect.tokens)

    def states(self) -> dict[FragmentId, State]:
        """Of what is held, as it is now."""
        return {f: (s.phi.copy(), s.momentum.copy(), s.version) for f, s in self.slow.items()}

    def _snapshot(self, effect: fx.WriteSnapshot, states: dict[FragmentId, State]) -> Snapshot:
        last = self.disk.snapshots[-1].number if self.disk.snapshots else 0
        offers = tuple(self._offer(f, phi, version) for f, (phi, _, version) in states.items())
        return Snapshot(last + 1, effect.tallies, effect.final, states, offers)

    def _offer(self, fragment: FragmentId, phi: Vector, version: int) -> Offer:
        shown = tuple(float(x) for x in sketch(phi, self.plan.run.rng_seed, fragment))
        size = 4 * self.world.sizes[fragment]
        return (fragment, version, hash_of(phi), size, shown)

    def _snapshot_written(self, snapshot: Snapshot, tokens: int) -> None:
        self._keep(snapshot)
        self.machine.post(ev.SnapshotWritten(snapshot.number, tokens, snapshot.offers, WRITE_S))

    def keep(self, effect: fx.WriteSnapshot, states: dict[FragmentId, State]) -> None:
        """A last snapshot, of what is held and of what will be."""
        self._keep(self._snapshot(effect, dict(sorted(states.items()))))

    def _keep(self, snapshot: Snapshot) -> None:
        disk = self.disk
        disk.snapshots = [*disk.snapshots[-1:], snapshot]
        kept = {offer[2] for s in disk.snapshots for offer in s.offers}
        for gone in self._donated - kept:
            disk.objects.pop(gone, None)
        self._donated = kept
        for offer in snapshot.offers:
            disk.objects[offer[2]] = snapshot.fragments[offer[0]][0]

    def _model_written(self, model: list[Vector]) -> None:
        self.disk.models.append(model)
        self.machine.post(ev.ModelWritten("/model"))


def hash_of(data: Vector | bytes) -> ObjectHash:
    """Name of an object by its content."""
    raw = data if isinstance(data, bytes) else data.tobytes()
    return ObjectHash(hashlib.blake2b(raw, digest_size=32).digest())
