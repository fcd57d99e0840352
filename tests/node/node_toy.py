"""What a machine of the world works with: weights, a worker, transfers and a disk, all tiny.

The arithmetic is real (`mix.fragment`, `mix.flow`, `mix.sketch`, the worker's `Cadence`), on three
fragments of a few numbers. The worker is a toy: plain gradient steps on a quadratic with noise of
its own, so that nodes drift apart unless they mix. Effects become events as the daemon's driver
makes them, late as there, and not at all once cancelled or of an older generation.
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
from peerlm.identity.chain import Chain
from peerlm.identity.root import verify_plan
from peerlm.mix import algorithms, flow
from peerlm.mix.codec import encoded_size
from peerlm.mix.fragment import Batch, Kind, Outcome, SlowFragment
from peerlm.mix.sketch import distance, sketch
from peerlm.mix.vector import Vector
from peerlm.train.cadence import Cadence
from peerlm.types import FragmentId, ObjectHash, PeerId, TransferId

if TYPE_CHECKING:
    from node_machine import Machine

SIZES = (64, 32, 32)
TICK_STEPS = 4
"""Inner steps between two looks of the toy worker at its mail."""
RATE, NOISE = 0.01, 0.002
READY_S = 0.4
DISK_S = 0.02
LINK_BYTES_S = 1e6


def object_hash(data: bytes) -> ObjectHash:
    return ObjectHash(hashlib.blake2b(data, digest_size=32).digest())


def target(fragment: int) -> Vector:
    """Where the inner steps lead."""
    return np.random.default_rng(900 + fragment).normal(size=SIZES[fragment]).astype(np.float32)


@dataclass
class Snapshot:
    number: int
    tallies: tuple[tuple[PeerId, int, int], ...]
    final: bool
    fragments: list[tuple[Vector, Vector, int]]
    offers: tuple[tuple[FragmentId, int, ObjectHash, int, tuple[float, ...]], ...]

    @property
    def tokens(self) -> int:
        return sum(tally[2] for tally in self.tallies)


@dataclass
class Disk:
    """What `kill -9` leaves."""

    plan: bytes
    origin: bool = False
    epoch: int = 0
    book: bytes = b""
    chain: Chain = ()
    revocations: tuple[bytes, ...] = ()
    objects: dict[ObjectHash, bytes] = field(default_factory=dict)
    snapshots: list[Snapshot] = field(default_factory=list)
    models: list[list[Vector]] = field(default_factory=list)


@dataclass
class Worker:
    """The toy learner of one generation."""

    generation: int
    theta: list[Vector]
    cadence: Cadence
    noise: np.random.Generator
    training: bool = False
    draining: bool = False
    ticking: bool = False
    steps: int = 0
    tokens: int = 0
    reported: float = 0.0
    applied: list[int] = field(default_factory=lambda: [0] * len(SIZES))
    mail: list[tuple[int, Batch]] = field(default_factory=list)
    boundaries: dict[int, Vector] = field(default_factory=dict)


class Toy:
    """Carries out the effects of work for one process."""

    def __init__(self, machine: Machine, plan: Plan, seed: int) -> None:
        self.machine, self.world, self.disk = machine, machine.world, machine.disk
        self.plan = plan
        self.slow = [SlowFragment(np.zeros(size, np.float32)) for size in SIZES]
        self.worker: Worker | None = None
        self.running: dict[TransferId, Effect] = {}
        self._rng = np.random.default_rng(seed)
        self._donated: set[ObjectHash] = set()

    def perform(self, effect: Effect) -> None:
        match effect:
            case fx.RunExchange() | fx.RunPull():
                self.running[effect.transfer] = effect
                self._run_transfer(effect)
            case fx.ServeExchange() | fx.ServePull():
                self.running[effect.transfer] = effect
                self.machine.later(
                    effect.progress_timeout_s,
                    lambda: self._ended(effect.transfer, "lost", "no byte"),
                )
            case fx.CancelTransfer():
                self.running.pop(effect.transfer, None)
            case fx.StepOuter():
                self._for_worker(effect.generation, 0.001, lambda w: self._step_outer(w, effect))
            case fx.StartWorker():
                self._start_worker(effect)
            case fx.StopWorker():
                self._for_worker(effect.generation, 0.05, lambda w: self.worker_ends(""))
            case fx.SteerWorker():
                self._for_worker(effect.generation, 0.0, lambda w: self._steer(w, effect))
            case fx.EvaluateSlow():
                evaluated = ev.Evaluated(effect.generation, self.loss(), effect.tokens)
                self._for_worker(effect.generation, 0.1, lambda w: self.machine.post(evaluated))
            case fx.DrainWorker():
                self._for_worker(effect.generation, 0.0, self._drain)
            case _:
                self._perform_disk(effect)

    def _perform_disk(self, effect: Effect) -> None:
        disk, plan = self.disk, self.plan
        match effect:
            case fx.PrepareCorpus():
                wanted = [ObjectHash(bytes.fromhex(s)) for s in plan.data.shards]
                missing = tuple(h for h in wanted if h not in disk.objects)
                ready = ev.CorpusReady(tuple((h, len(disk.objects.get(h, b""))) for h in wanted))
                event = ev.CorpusMissing(missing) if missing else ready
                self.machine.later(DISK_S, lambda: self.machine.post(event))
            case fx.InstallSnapshot():
                self.machine.later(DISK_S, self._install_snapshot)
            case fx.InstallObjects():
                self.machine.later(DISK_S, lambda: self._install_objects(effect))
            case fx.WriteSnapshot():
                self._write_snapshot(effect)
            case fx.WriteModel():
                disk.models.append([s.phi.copy() for s in self.slow])
                self.machine.later(DISK_S, lambda: self.machine.post(ev.ModelWritten("/model")))
            case fx.Save(name="address_book", data=data):
                disk.book = data
            case fx.Save(name="plan", data=data):
                disk.plan = data
            case fx.SaveChain(chain):
                disk.chain = chain
            case fx.SaveRevocations(blobs):
                disk.revocations = blobs
            case fx.UsePlan(blob):
                self.plan = verify_plan(
                    blob, self.world.root.public_key, self.world.root.run_id
                ).plan
            case _:
                raise AssertionError(f"no driver for {effect}")

    def loss(self) -> float:
        return sum(float(np.mean((s.phi - target(i)) ** 2)) for i, s in enumerate(self.slow))

    # ------------------------------------------------------------------------------------ worker

    def _start_worker(self, effect: fx.StartWorker) -> None:
        assert self.worker is None, "two workers at once"
        seed = [self.machine.number, self.machine.life, effect.generation]
        cadence = Cadence(len(SIZES), self.plan.mix.inner_steps)
        worker = Worker(effect.generation, [], cadence, np.random.default_rng(seed))
        self.worker = worker
        if self.machine.fatal:
            self._for_worker(effect.generation, 0.2, lambda w: self.worker_ends(self.machine.fatal))
            return
        self._for_worker(
            effect.generation, READY_S, lambda w: self._worker_ready(w, fresh=effect.fresh)
        )

    def _worker_ready(self, worker: Worker, *, fresh: bool) -> None:
        if fresh:
            initial = np.random.default_rng(self.plan.run.rng_seed)
            for slow in self.slow:
                slow.install(initial.normal(size=slow.size).astype(np.float32), 0)
        worker.theta = [slow.new_generation(worker.generation) for slow in self.slow]
        if fresh:
            self.machine.post(ev.StateInstalled("fresh"))
        self.machine.post(ev.WorkerReady(worker.generation, "cpu", 1))

    def worker_ends(self, error: str) -> None:
        """It exits, or is killed; nothing it had said and was not heard counts."""
        if self.worker is not None:
            generation, self.worker = self.worker.generation, None
            self.machine.post(ev.WorkerExited(generation, error))

    def _steer(self, worker: Worker, effect: fx.SteerWorker) -> None:
        worker.training = effect.training
        if effect.training and not worker.ticking:
            worker.draining, worker.ticking = False, True
            self._next_tick(worker)

    def _next_tick(self, worker: Worker) -> None:
        tokens = TICK_STEPS * self.plan.train.batch * self.plan.model.context
        self._for_worker(worker.generation, tokens / self.machine.speed, self._tick)

    def _tick(self, worker: Worker) -> None:
        """A few inner steps, then whatever the daemon asked for."""
        worker.ticking = worker.training
        if not worker.training:
            return
        for index, theta in enumerate(worker.theta):
            pull = 1 - (1 - RATE) ** TICK_STEPS
            noise = worker.noise.normal(size=theta.size) * NOISE * TICK_STEPS**0.5
            theta += (pull * (target(index) - theta) + noise).astype(np.float32)
            if self.machine.poisoned:
                theta[0] = np.nan
        self.machine.poisoned = False
        for _ in range(TICK_STEPS):
            worker.steps += 1
            worker.cadence.stepped()
        worker.tokens += TICK_STEPS * self.plan.train.batch * self.plan.model.context
        self._read_mail(worker)
        self._hand_in(worker)
        if self.world.now - worker.reported >= 1.0:
            self._report(worker)
        self._next_tick(worker)

    def _report(self, worker: Worker) -> None:
        worker.reported = self.world.now
        self.machine.post(
            ev.WorkerProgressed(
                generation=worker.generation,
                steps=worker.steps,
                tokens=worker.tokens,
                loss=self.loss(),
                tokens_per_s=self.machine.speed,
                nonfinite_steps=0,
                data_pass=0,
                data_position=0.0,
            )
        )

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
            self._for_worker(worker.generation, 0.0, lambda w, e=event: self.machine.post(e))
        if worker.draining and worker.cadence.is_idle():
            worker.draining = False
            self.machine.post(ev.WorkerDrained(worker.generation))

    def _step_outer(self, worker: Worker, effect: fx.StepOuter) -> None:
        fragment, mix = effect.fragment, self.plan.mix
        snapshot = worker.boundaries.pop(fragment)
        result = self.slow[fragment].boundary(
            snapshot, effect.applied_seq, worker.generation, algorithms.get(mix.algorithm), mix
        )
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
        self._moved(fragment)
        if self.worker is worker and worker.draining:
            self._hand_in(worker)

    def _moved(self, fragment: FragmentId) -> None:
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
            self._moved(fragment)

    def _for_worker(self, generation: int, delay_s: float, act: Callable[[Worker], None]) -> None:
        """Later, if this generation still lives then."""

        def do() -> None:
            if self.worker is not None and self.worker.generation == generation:
                act(self.worker)

        self.machine.later(delay_s, do)

    # --------------------------------------------------------------------------------- transfers

    def _run_transfer(self, effect: fx.RunExchange | fx.RunPull) -> None:
        there = self.world.machines[self.world.numbers[effect.peer]]
        assert (effect.host, effect.bulk_port) == (there.host, there.base + 2) or there.node is None
        if isinstance(effect, fx.RunPull):
            nbytes = effect.size
        else:
            nbytes = encoded_size(effect.codec_request, SIZES[effect.fragment])
        took_s = self.world.delay_s() + nbytes / LINK_BYTES_S
        lost = self.world.rng.random() < self.world.loss
        move = self._exchange if isinstance(effect, fx.RunExchange) else self._pull
        self.machine.later(took_s, lambda: None if lost else move(effect, there))
        self.machine.later(
            effect.progress_timeout_s, lambda: self._ended(effect.transfer, "lost", "no byte")
        )
        if there.node is None:
            self.machine.later(
                0.01, lambda: self._ended(effect.transfer, "lost", "connect: refused")
            )

    def _counterpart(self, transfer: TransferId, there: Machine) -> Effect | None:
        """The other end of a transfer, if it is there and hears us."""
        if there.node is None or self.world.is_silent(self.machine.number, there.number):
            return None
        return there.toy.running.get(transfer) if transfer in self.running else None

    def _exchange(self, run: fx.RunExchange, there: Machine) -> None:
        serve = self._counterpart(run.transfer, there)
        if not isinstance(serve, fx.ServeExchange):
            return
        assert (serve.key_up, serve.key_down) == (run.key_up, run.key_down)
        request = flow.make_request(self.slow[run.fragment], run.codec_request, self._rng)
        response = there.toy.respond(serve, request.payload)
        if isinstance(response, flow.Response):
            self.machine.later(
                self.world.delay_s(), lambda: self._absorb(run, there, bytes(response.payload))
            )

    def respond(self, e: fx.ServeExchange, payload: memoryview) -> flow.Response | flow.Refused:
        assert len(payload) == e.request_bytes
        response = flow.respond(
            self.slow[e.fragment],
            payload,
            codec_request=e.codec_request,
            codec_reply=e.codec_reply,
            weight=e.weight,
            clip_norm=e.clip_norm,
            rng=self._rng,
        )
        if isinstance(response, flow.Refused):
            self._ended(e.transfer, "refused", response.reason)
        else:
            self._moved(e.fragment)
            self._ended(e.transfer, "ok", "", response.flow, len(response.payload), len(payload))
        return response

    def _absorb(self, e: fx.RunExchange, there: Machine, reply: bytes) -> None:
        silent = self.world.is_silent(self.machine.number, there.number)
        if e.transfer not in self.running or there.node is None or silent:
            return
        result = flow.absorb(
            self.slow[e.fragment],
            reply,
            codec_reply=e.codec_reply,
            weight=e.weight,
            clip_norm=e.clip_norm,
        )
        if isinstance(result, flow.Refused):
            self._ended(e.transfer, "refused", result.reason)
            return
        self._moved(e.fragment)
        sent = encoded_size(e.codec_request, SIZES[e.fragment])
        self._ended(e.transfer, "ok", "", result, sent, len(reply))

    def _pull(self, run: fx.RunPull, there: Machine) -> None:
        serve = self._counterpart(run.transfer, there)
        data = there.disk.objects.get(run.object_hash)
        if not isinstance(serve, fx.ServePull) or data is None:
            return
        there.toy._ended(run.transfer, "ok", sent=len(data))
        outcome = "ok" if object_hash(data) == run.object_hash else "corrupt"
        self.disk.objects[run.object_hash] = data
        self._ended(run.transfer, outcome)

    def _ended(
        self,
        transfer: TransferId,
        outcome: str,
        reason: str = "",
        moved: flow.Flow | None = None,
        sent: int = 0,
        received: int = 0,
    ) -> None:
        """Report the end of a transfer, unless it has ended already."""
        match self.running.pop(transfer, None):
            case None:
                return
            case fx.RunPull():
                self.machine.post(ev.PullEnded(transfer, outcome, reason))
                return
            case fx.ServePull():
                self.machine.post(ev.PullServed(transfer, outcome, sent))
                return
            case fx.RunExchange():
                kind: type[ev.ExchangeEnded | ev.ExchangeServed] = ev.ExchangeEnded
            case _:
                kind = ev.ExchangeServed
        norms = {}
        if moved is not None:
            norms = {
                "raw_norm": moved.raw_norm,
                "applied_norm": moved.applied_norm,
                "phi_norm": moved.phi_norm,
                "clipped": moved.clipped,
                "booked": moved.withheld_norm,
            }
        self.machine.post(
            kind(transfer, outcome, reason, bytes_sent=sent, bytes_received=received, **norms)
        )

    # -------------------------------------------------------------------------------------- disk

    def _install_snapshot(self) -> None:
        for slow, (phi, momentum, version) in zip(
            self.slow, self.disk.snapshots[-1].fragments, strict=True
        ):
            slow.phi[...], slow.momentum[...], slow.version = phi, momentum, version
        self.machine.post(ev.StateInstalled("snapshot"))

    def _install_objects(self, effect: fx.InstallObjects) -> None:
        for fragment, version, wanted, shown in effect.objects:
            values = np.frombuffer(self.disk.objects[wanted], np.float32)
            ours = sketch(values, self.plan.run.rng_seed, fragment)
            if not np.isfinite(values).all() or distance(ours, shown) > 1e-3:
                self.machine.post(ev.StateRejected(fragment, "not what its donor had shown"))
                return
            self.slow[fragment].install(values, version)
        self.machine.post(ev.StateInstalled("peers"))

    def _write_snapshot(self, effect: fx.WriteSnapshot) -> None:
        number = self.disk.snapshots[-1].number + 1 if self.disk.snapshots else 1
        fragments = [(s.phi.copy(), s.momentum.copy(), s.version) for s in self.slow]
        data = [phi.tobytes() for phi, _, _ in fragments]
        offers = tuple(
            (
                FragmentId(i),
                version,
                object_hash(data[i]),
                len(data[i]),
                tuple(float(x) for x in sketch(phi, self.plan.run.rng_seed, i)),
            )
            for i, (phi, _, version) in enumerate(fragments)
        )
        snapshot = Snapshot(number, effect.tallies, effect.final, fragments, offers)

        def written() -> None:
            self.disk.snapshots = [*self.disk.snapshots[-1:], snapshot]
            kept = {offer[2] for s in self.disk.snapshots for offer in s.offers}
            old = self._donated - kept
            self._donated = kept
            for gone in old:
                self.disk.objects.pop(gone, None)
            self.disk.objects.update({offer[2]: data[offer[0]] for offer in offers})
            self.machine.post(ev.SnapshotWritten(number, effect.tokens, offers, DISK_S))

        self.machine.later(DISK_S, written)
