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
from peerlm.sim.disk import WRITE_S, Offer, Snapshot
from peerlm.sim.learner import Pupil, by_id
from peerlm.sim.transfers import Transfers
from peerlm.train.cadence import Cadence
from peerlm.train.schedule import rate, rewarm
from peerlm.types import FragmentId, ObjectHash

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
    theta: list[Vector] = field(default_factory=list)
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
    applied: list[int] = field(default_factory=list)
    mail: list[tuple[FragmentId, Batch]] = field(default_factory=list)
    boundaries: dict[FragmentId, Vector] = field(default_factory=dict)


class Labour:
    """Carries out the effects of work for one process."""

    def __init__(self, machine: Machine, plan: Plan, seed: int) -> None:
        self.machine, self.world, self.disk = machine, machine.world, machine.disk
        self.plan = plan
        self.learner = machine.world.learner
        self.slow = [SlowFragment(np.zeros(size, np.float32)) for size in self.learner.sizes]
        self.worker: Worker | None = None
        self.transfers = Transfers(self, np.random.default_rng(seed))
        self._donated: set[ObjectHash] = set()

    def phi(self) -> Vector:
        """All slow weights in one vector."""
        return np.concatenate([slow.phi for slow in self.slow])

    def loss(self) -> float:
        """Of the slow weights, on what nobody trains on."""
        return self.learner.loss([slow.phi for slow in self.slow])

    def perform(self, effect: Effect) -> None:
        match effect:
            case fx.RunExchange() | fx.RunPull():
                self.transfers.run(effect)
            case fx.ServeExchange() | fx.ServePull():
                self.transfers.serve(effect)
            case fx.CancelTransfer(transfer):
                self.transfers.cancel(transfer)
            case fx.StepOuter():
                self._for_worker(effect.generation, OUTER_S, self._step_outer, effect)
            case fx.StartWorker():
                self._start_worker(effect)
            case fx.StopWorker():
                self._for_worker(effect.generation, STOP_S, lambda w: self.worker_ends(""))
            case fx.SteerWorker():
                self._for_worker(effect.generation, 0.0, self._steer, effect)
            case fx.TellShards():
                self._for_worker(effect.generation, 0.0, self._see_shards, effect)
            case fx.EvaluateSlow():
                self._for_worker(effect.generation, EVALUATION_S, self._evaluate, effect)
            case fx.KeepOptimizer():
                pass  # what a simulated optimizer remembers dies with its worker
            case fx.DrainWorker():
                self._for_worker(effect.generation, 0.0, self._drain)
            case _:
                self._perform_disk(effect)

    def _perform_disk(self, effect: Effect) -> None:
        disk = self.disk
        match effect:
            case fx.PrepareCorpus():
                wanted = [ObjectHash(bytes.fromhex(s)) for s in self.plan.data.shards]
                missing = tuple(h for h in wanted if h not in disk.objects)
                here = tuple((h, len(disk.objects[h])) for h in wanted if h in disk.objects)
                ready = ev.CorpusReady(here, effect.number)
                event = ev.CorpusMissing(missing, here, effect.number) if missing else ready
                self.machine.later(WRITE_S, self.machine.post, event)
            case fx.InstallSnapshot():
                self.machine.later(WRITE_S, self._install_snapshot)
            case fx.InstallObjects():
                self.machine.later(WRITE_S, self._install_objects, effect)
            case fx.WriteSnapshot():
                self._write_snapshot(effect)
            case fx.WriteModel():
                model = [slow.phi.copy() for slow in self.slow]
                self.machine.later(WRITE_S, self._model_written, model)
            case fx.Save(name="address_book", data=data):
                disk.book = data
            case fx.Save(name="plan", data=data):
                disk.plan = data
            case fx.Save(name="passes", data=data):
                disk.passes = data
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
        assert self.worker is None, "two workers at once"
        machine = self.machine
        seed = [self.world.seed, machine.number, machine.life, effect.generation]
        pupil = self.learner.pupil(machine.number, np.random.default_rng(seed))
        worker = Worker(
            effect.generation, pupil, Cadence(by_id(self.slow), self.plan.mix.inner_steps)
        )
        worker.absent = effect.absent
        self.worker = worker
        if machine.fatal:
            self._for_worker(effect.generation, STOP_S, lambda w: self.worker_ends(machine.fatal))
        else:
            self._for_worker(effect.generation, READY_S, self._worker_ready, effect.fresh)

    def _worker_ready(self, worker: Worker, fresh: bool) -> None:
        if fresh:
            initial = self.learner.initial(self.plan.run.rng_seed)
            for slow, values in zip(self.slow, initial, strict=True):
                slow.install(values, 0)
        worker.theta = [slow.new_generation(worker.generation) for slow in self.slow]
        worker.applied = [0] * len(self.slow)
        if fresh:
            self.machine.post(ev.StateInstalled("fresh"))
        self.machine.post(ev.WorkerReady(worker.generation, "cpu", 1))

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
        if effect.training and not worker.ticking:
            worker.draining, worker.ticking = False, True
            self._next_tick(worker)

    def _next_tick(self, worker: Worker) -> None:
        self._for_worker(worker.generation, self._tick_tokens / self.machine.speed, self._tick)

    @property
    def _tick_tokens(self) -> int:
        return self.world.tick_steps * self.plan.train.batch * self.plan.model.context

    def _tick(self, worker: Worker) -> None:
        """A few inner steps, then whatever the daemon asked for."""
        worker.ticking = worker.training
        if not worker.training:
            return
        ticks = self.world.tick_steps
        worker.loss = worker.pupil.steps(worker.theta, ticks, self._rate(worker))
        if self.machine.poisoned:
            self.machine.poisoned = False
            for theta in worker.theta:
                theta[0] = np.nan
        for _ in range(ticks):
            worker.steps += 1
            worker.cadence.stepped()
        worker.tokens += self._tick_tokens
        self.machine.tokens_trained += self._tick_tokens
        self._read_mail(worker)
        self._hand_in(worker)
        if self.world.now - worker.reported >= REPORT_S:
            self._report(worker)
        self._next_tick(worker)

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
        worker.training, worker.draining = False, True
        self._report(worker)
        worker.cadence.drain()
        self._hand_in(worker)

    def _hand_in(self, worker: Worker) -> None:
        for fragment in worker.cadence.ready():
            worker.cadence.handed_in(fragment)
            seq = worker.applied[fragment]
            worker.boundaries[fragment] = worker.theta[fragment].copy()
            self.slow[fragment].expect_boundary(seq, worker.generation)
            event = ev.BoundaryReached(worker.generation, fragment, seq, worker.steps)
            self._for_worker(worker.generation, 0.0, self._tell, event)
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
            worker.pupil.forget(fragment)
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
            self._hand_in(worker)

    def moved(self, fragment: FragmentId) -> None:
        """φ moved: θ follows between two inner steps."""
        worker = self.worker
        if worker is None or self.slow[fragment].generation != worker.generation:
            return
        batch = self.slow[fragment].take_batch()
        if batch is not None:
            worker.mail.append((fragment, batch))
            if not worker.training:
                self._for_worker(worker.generation, 0.0, self._read_mail)

    def _read_mail(self, worker: Worker) -> None:
        mail, worker.mail = worker.mail, []
        for fragment, batch in mail:
            theta = worker.theta[fragment]
            theta[...] = batch.values if batch.kind is Kind.RESET else theta + batch.values
            worker.applied[fragment] = batch.seq
            self.slow[fragment].applied(batch.seq, worker.generation)
            self.moved(fragment)

    def _for_worker(
        self, generation: int, delay_s: float, act: Callable[..., None], *args: object
    ) -> None:
        """Later, if this generation still lives then."""
        self.machine.later(delay_s, self._if_alive, generation, act, args)

    def _if_alive(
        self, generation: int, act: Callable[..., None], args: tuple[object, ...]
    ) -> None:
        if self.worker is not None and self.worker.generation == generation:
            act(self.worker, *args)

    # -------------------------------------------------------------------------------------- disk

    def _install_snapshot(self) -> None:
        fragments = self.disk.snapshots[-1].fragments
        for slow, (phi, momentum, version) in zip(self.slow, fragments, strict=True):
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
        last = self.disk.snapshots[-1].number if self.disk.snapshots else 0
        fragments = tuple((s.phi.copy(), s.momentum.copy(), s.version) for s in self.slow)
        offers = tuple(
            self._offer(FragmentId(i), phi, version)
            for i, (phi, _, version) in enumerate(fragments)
        )
        snapshot = Snapshot(last + 1, effect.tallies, effect.final, fragments, offers)
        self.machine.later(WRITE_S, self._snapshot_written, snapshot, effect.tokens)

    def _offer(self, fragment: FragmentId, phi: Vector, version: int) -> Offer:
        shown = tuple(float(x) for x in sketch(phi, self.plan.run.rng_seed, fragment))
        size = 4 * self.world.sizes[fragment]
        return (fragment, version, hash_of(phi), size, shown)

    def _snapshot_written(self, snapshot: Snapshot, tokens: int) -> None:
        disk = self.disk
        disk.snapshots = [*disk.snapshots[-1:], snapshot]
        kept = {offer[2] for s in disk.snapshots for offer in s.offers}
        for gone in self._donated - kept:
            disk.objects.pop(gone, None)
        self._donated = kept
        for (phi, _, _), offer in zip(snapshot.fragments, snapshot.offers, strict=True):
            disk.objects[offer[2]] = phi
        self.machine.post(ev.SnapshotWritten(snapshot.number, tokens, snapshot.offers, WRITE_S))

    def _model_written(self, model: list[Vector]) -> None:
        self.disk.models.append(model)
        self.machine.post(ev.ModelWritten("/model"))


def hash_of(data: Vector | bytes) -> ObjectHash:
    """Name of an object by its content."""
    raw = data if isinstance(data, bytes) else data.tobytes()
    return ObjectHash(hashlib.blake2b(raw, digest_size=32).digest())
