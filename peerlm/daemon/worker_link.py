"""The daemon's side of its worker: starts it, heeds it, notices its end.

Carries out the worker effects and reports what comes of them; decides nothing. One worker lives at a
time, and each is a new generation with its own socket and its own shared memory, so nothing that an
old one still does can reach a new one. Corrections flow by themselves: whenever a fragment has some
and its slot is free, they are laid into shared memory and announced.

The worker is spawned, never forked (a fork would share sockets and locks), in the daemon's own
session, so that whatever ends the session ends it too. Nothing here ever waits for it on the loop: a
stopped or swamped worker only stays behind.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peerlm import events
from peerlm.config import NodeSettings, Plan
from peerlm.daemon.slow_weights import SlowWeights
from peerlm.daemon.worker_process import WorkerProcess
from peerlm.errors import WireError
from peerlm.events import Event
from peerlm.mix import algorithms
from peerlm.mix.fragment import Batch, Outcome, SlowFragment
from peerlm.mix.vector import Vector
from peerlm.model.stages import held_fragments
from peerlm.train import protocol
from peerlm.train.protocol import Frames, Message
from peerlm.types import FragmentId, PeerId

STOP_PATIENCE_S = 3.0
"""How long a worker that should be gone gets before the next, harder means."""


class WorkerLink:
    """Use as an async context manager: leaving it kills a worker that still lives.

    Args:
        post: Takes the events this link reports, on the loop.
        slow: This node's slow weights.
        plan: May be replaced (`link.plan = …`); holds from the next start on.
        settings, peer: This node's.
        corpus: Paths of the token shards, in order; asked for at each start.
        threads: CPU threads of the worker, at least 1.
        log: Descriptor the worker's output goes to; None: this process's stderr.
        held: Stages of the model that this node holds.
        hop: Sends a hop of the worker's to a peer.
        moments: Where the worker keeps its optimizer's state; None: it does not.
    """

    def __init__(
        self,
        post: Callable[[Event], None],
        slow: SlowWeights,
        plan: Plan,
        settings: NodeSettings,
        peer: PeerId,
        corpus: Callable[[], Sequence[Path]],
        *,
        threads: int,
        log: int | None = None,
        held: range = range(1),
        hop: Callable[[PeerId, bytes], None] = lambda peer, data: None,
        moments: Path | None = None,
    ) -> None:
        self.plan = plan
        self._moments = "" if moments is None else str(moments)
        self._held, self._hop = held, hop
        self._post, self._slow, self._settings, self._peer = post, slow, settings, peer
        self._corpus, self._threads, self._log = corpus, threads, log
        self._worker: WorkerProcess | None = None
        self._is_over = False
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> WorkerLink:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *failure: Any) -> None:
        self._is_over = True
        if self._worker is not None:
            self._worker.asked_to_stop = True
            self._worker.signal(signal.SIGKILL)
        await self._tasks.__aexit__(*failure)

    # ------------------------------------------------------------------------------- effects

    def start(
        self,
        generation: int,
        fresh: bool,
        passes: bytes = b"",
        absent: tuple[int, ...] = (),
        *,
        cold: bool = False,
    ) -> None:
        """Start a worker → `WorkerReady`, or `WorkerExited`. The one before must have exited. `absent`: shards that are
        not here yet; `cold`: without what is kept of the optimizer's state. Nothing once this link is left for another: the end of its worker may look like a death."""
        if self._is_over:
            return
        assert self._worker is None, f"generation {self._worker.generation} is still here"
        try:
            self._worker = WorkerProcess(generation, held_fragments(self.plan, self._held))
        except OSError as error:
            self._post(events.WorkerExited(generation, f"worker cannot start: {error}"))
        else:
            setup = self._setup(self._worker, fresh, passes, absent, cold)  # by the plan of now
            self._spawn(self._live(self._worker, setup))

    def stop(self, generation: int) -> None:
        """Ask it to exit, then insist → `WorkerExited` within some six seconds."""
        worker = self._current(generation)
        if worker is not None and not worker.asked_to_stop:
            worker.asked_to_stop = True
            worker.say(protocol.Stop())
            self._spawn(_insist(worker))

    def steer(
        self,
        generation: int,
        training: bool,
        swarm_tokens: int,
        members: tuple[PeerId, ...],
        inner_steps: int,
        hosts: tuple[tuple[PeerId, int, int], ...] = (),
        passes: bytes = b"",
        ways_s: tuple[float, ...] = (),
    ) -> None:
        """A later word takes the place of one that has not left yet."""
        if (worker := self._current(generation)) is not None:
            budget = self.plan.run.token_budget
            steer = protocol.Steer(
                training,
                swarm_tokens,
                budget,
                members,
                inner_steps,
                tuple(peer for peer, _, _ in hosts),
                tuple(first for _, first, _ in hosts),
                tuple(last for _, _, last in hosts),
                passes,
                ways_s,
            )
            worker.say(steer)

    def tell_shards(self, generation: int, absent: tuple[int, ...]) -> None:
        """All shards but these are here now."""
        if (worker := self._current(generation)) is not None:
            worker.say(protocol.Shards(absent))

    def hear(self, peer: PeerId, data: bytes) -> None:
        """A hop from another node's worker; lost if ours is not there."""
        if self._worker is not None and self._worker.is_ready:
            self._worker.say(protocol.Hop(peer, data))

    def evaluate(self, generation: int, tokens: int) -> None:
        """Copy φ and have it evaluated → `Evaluated`. Ignored before the worker is ready and while
        an evaluation is under way: the memory is in use then."""
        worker = self._current(generation)
        if worker is not None and worker.is_ready and worker.evaluating is None:
            worker.evaluating = tokens
            self._spawn(self._hand_over_slow(worker))

    def keep_optimizer(self, generation: int) -> None:
        """→ `OptimizerKept`."""
        if (worker := self._current(generation)) is not None:
            worker.say(protocol.Keep())

    def drain(self, generation: int) -> None:
        """→ `WorkerDrained`, once every last boundary has had its outer step."""
        if (worker := self._current(generation)) is not None:
            worker.say(protocol.Drain())

    async def step_outer(self, generation: int, fragment: FragmentId, applied_seq: int) -> None:
        """Take the outer step of a boundary → `OuterStepped`. Ignored if its worker is gone."""
        worker = self._current(generation)
        if worker is None:
            return
        mix = self.plan.mix
        step = partial(
            SlowFragment.boundary,
            snapshot=worker.memory.boundary[fragment],
            applied_seq=applied_seq,
            generation=generation,
            algorithm=algorithms.get(mix.algorithm),
            mix=mix,
        )
        result = await self._slow.on(fragment, step)
        worker.say(protocol.BoundaryTaken(fragment))
        self._post(
            events.OuterStepped(
                generation=generation,
                fragment=fragment,
                finite=result.finite,
                stepped=result.outcome is Outcome.STEPPED,
                version=result.version,
                progress_norm=result.progress_norm,
                phi_norm=result.phi_norm,
            )
        )
        self.kick(fragment)

    def kick(self, fragment: FragmentId) -> None:
        """θ of this fragment has corrections waiting: hand them over as soon as the slot is free."""
        if self._worker is not None:
            self._spawn(self._deliver(self._worker, fragment))

    # ------------------------------------------------------------------------ a worker's life

    async def _live(self, worker: WorkerProcess, setup: protocol.Setup) -> None:
        """From spawn to exit. `WorkerExited` is the last event of its generation."""
        try:
            error = await self._run(worker, setup)
        except OSError as failure:
            error = f"worker cannot start: {failure}"
        finally:
            worker.close()
            await worker.wait_exit()
            self._worker = None
        self._post(events.WorkerExited(worker.generation, "" if worker.asked_to_stop else error))

    async def _run(self, worker: WorkerProcess, setup: protocol.Setup) -> str:
        """What ended it, in one line. Raises `OSError` if it cannot be started."""
        if not setup.fresh:
            for fragment in self._slow:
                slot = worker.memory.slow[fragment]
                begin = partial(_begin, generation=worker.generation, slot=slot)
                await self._slow.on(fragment, begin)
        await worker.spawn(self._threads, self._log)
        if self._is_over:  # meanwhile, when there was nothing to kill yet
            worker.signal(signal.SIGKILL)
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(worker.send_all(setup))
            exiting = tasks.create_task(worker.wait_exit())
            await self._listen(worker)
            sending.cancel()
            await asyncio.wait({exiting}, timeout=STOP_PATIENCE_S)
            worker.signal(signal.SIGKILL)  # it has closed its end, and lingers
        return worker.last_words or _ending(exiting.result(), self._settings.limits.memory_bytes)

    def _setup(
        self,
        worker: WorkerProcess,
        fresh: bool,
        passes: bytes,
        absent: tuple[int, ...],
        cold: bool,
    ) -> protocol.Setup:
        return protocol.Setup(
            generation=worker.generation,
            fresh=fresh,
            peer=self._peer,
            plan=protocol.packed(self.plan),
            settings=protocol.packed(self._settings),
            corpus=tuple(str(path) for path in self._corpus()),
            threads=self._threads,
            passes=passes,
            first_stage=self._held[0],
            last_stage=self._held[-1],
            absent=absent,
            moments=self._moments,
            cold=cold,
        )

    async def _listen(self, worker: WorkerProcess) -> None:
        """Heed what the worker says, in order, until it is gone or talks nonsense."""
        frames = Frames()
        try:
            while data := await worker.receive():
                for message in frames.feed(data):
                    await self._heed(worker, message)
        except WireError as error:
            worker.last_words = str(error)
            worker.signal(signal.SIGKILL)

    async def _heed(self, worker: WorkerProcess, message: Message) -> None:
        generation = worker.generation
        match message:
            case protocol.Initialised():
                await self._take_over_initial(worker)
                self._post(events.StateInstalled("fresh"))
            case protocol.Ready(device, threads, optimizer, paces):
                worker.is_ready = True
                self._post(events.WorkerReady(generation, device, threads, optimizer, paces))
            case protocol.Kept(seconds, error):
                self._post(events.OptimizerKept(generation, seconds, error))
            case protocol.Boundary(fragment, seq, steps):
                await self._slow.on(fragment, lambda slow: slow.expect_boundary(seq, generation))
                self._post(events.BoundaryReached(generation, fragment, seq, steps))
            case protocol.Applied(fragment, seq):
                await self._slow.on(fragment, lambda slow: slow.applied(seq, generation))
                await self._deliver(worker, fragment)
            case protocol.Progress():
                self._post(_progressed(generation, message))
            case protocol.Evaluated(val_loss, noise_scale, losses):
                tokens, worker.evaluating = worker.evaluating, None
                assert tokens is not None, "an evaluation nobody asked for"
                self._post(events.Evaluated(generation, val_loss, tokens, noise_scale, losses))
            case protocol.Drained():
                self._post(events.WorkerDrained(generation))
            case protocol.Hop(peer, data):
                self._hop(peer, data)
            case protocol.Nonsense(peer, why):
                self._post(events.Misbehaved(peer, why))
            case protocol.Failed(error):
                worker.last_words = error
            case _:
                raise WireError(f"worker sent {type(message).__name__}")

    # --------------------------------------------------------------------- numbers, both ways

    async def _take_over_initial(self, worker: WorkerProcess) -> None:
        for fragment in self._slow:
            install = partial(
                _install_fresh, phi=worker.memory.boundary[fragment], generation=worker.generation
            )
            await self._slow.on(fragment, install)

    async def _hand_over_slow(self, worker: WorkerProcess) -> None:
        for fragment in self._slow:
            slot = worker.memory.slow[fragment]
            await self._slow.on(fragment, partial(_copy_phi, slot=slot))
        worker.say(protocol.Evaluate())

    async def _deliver(self, worker: WorkerProcess, fragment: FragmentId) -> None:
        """The fragment itself says whether the slot is free: one batch is with the worker at most."""
        slot = worker.memory.correction[fragment]
        take = partial(_take_batch, generation=worker.generation, slot=slot)
        if (batch := await self._slow.on(fragment, take)) is not None:
            worker.say(protocol.Correction(fragment, batch.seq, batch.kind.value))

    def _current(self, generation: int) -> WorkerProcess | None:
        is_current = self._worker is not None and self._worker.generation == generation
        return self._worker if is_current else None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.create_task(work)


# ---------------------------------------------------------------------- on the compute pool


def _begin(slow: SlowFragment, generation: int, slot: Vector) -> None:
    slot[:] = slow.new_generation(generation)


def _install_fresh(slow: SlowFragment, phi: Vector, generation: int) -> None:
    slow.install(phi, version=0)
    slow.new_generation(generation)


def _copy_phi(slow: SlowFragment, slot: Vector) -> None:
    slot[:] = slow.phi


def _take_batch(slow: SlowFragment, generation: int, slot: Vector) -> Batch | None:
    """The next batch, laid into `slot`; None if none is to be sent to this generation now."""
    batch = slow.take_batch() if slow.generation == generation else None
    if batch is not None:
        slot[:] = batch.values
    return batch


# ----------------------------------------------------------------------------------- endings


async def _insist(worker: WorkerProcess) -> None:
    try:
        async with asyncio.timeout(STOP_PATIENCE_S):
            await worker.closed.wait()
    except TimeoutError:
        worker.signal(signal.SIGKILL)


def _ending(status: int, memory_bytes: int) -> str:
    limit = f"; limits.memory_bytes is {memory_bytes:,}" if memory_bytes else ""
    if status < 0:
        return f"killed by signal {-status} ({signal.Signals(-status).name}){limit}"
    return f"exited with status {status} and no word why{limit}"


def _progressed(generation: int, report: protocol.Progress) -> events.WorkerProgressed:
    return events.WorkerProgressed(
        generation=generation,
        steps=report.steps,
        tokens=report.tokens,
        loss=report.loss,
        tokens_per_s=report.tokens_per_s,
        nonfinite_steps=report.nonfinite_steps,
        stream_lost=report.stream_lost,
        stream_sent=report.stream_sent,
        stream_received=report.stream_received,
        busy=report.busy,
        texts=report.texts,
        ranges=report.ranges,
        finished=report.finished,
        lanes=report.lanes,
        order=report.order,
        lacks_text=report.lacks_text,
        worked_tokens_s=report.worked_tokens_s,
    )
