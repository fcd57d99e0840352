"""A simulated worker that holds some stages: the stream from host to host, and inner steps on what comes home.

What `train.stage_loop` does, with its routes and its batches (`train.routes`, `train.batch_round`) and without tensors: a hop says
which microbatch it is, a pass takes its share of the time that the whole model takes at the machine's speed. Inner
steps are the learner's. What a node sees of a worker is thereby all there: when it works, what it hands in, what it
counts, which hops go over which channels; and what is lost when one of these breaks.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from peerlm import effects as fx
from peerlm import events as ev
from peerlm.sim.ring import ENDS, Part
from peerlm.train.batch_round import WINDOW, BatchRound
from peerlm.train.routes import Key, Routes, is_past
from peerlm.types import PeerId

if TYPE_CHECKING:
    from peerlm.sim.labour import Labour, Worker

LOOK_S = 0.25
REPORT_S = 1.0
WAITING_MAX = 32

FORWARD_SHARE, BACKWARD_SHARE, LOSS_SHARE = 0.3, 0.6, 0.1
"""Of the time of a microbatch."""

NUMBER_MAX = 1 << 61

LOST, BACKWARD, FORWARD = "lost", "backward", "forward"
KINDS = (LOST, BACKWARD, FORWARD)
"""The most urgent first."""


@dataclass(frozen=True, slots=True)
class Hop:
    """As `train.hop.Hop`. `part`: what it is really, for those who look at all."""

    kind: str
    origin: PeerId
    number: int
    part: Part
    stage: int = 0


@dataclass(slots=True)
class _Pass:
    part: Part
    stages: tuple[int, ...]


class StageWork:
    """Of one worker. `held`: stages."""

    def __init__(self, labour: Labour, worker: Worker, held: range, seed: list[int]) -> None:
        self._labour, self._worker, self._held = labour, worker, held
        self._machine, self._world = labour.machine, labour.world
        self._plan = labour.plan
        self._me = labour.machine.keys.peer_id
        self._count = self._plan.model.stages
        rng = random.Random(str(seed))
        self._routes = Routes(rng)
        self._arrived: dict[str, deque[tuple[PeerId, Hop]]] = {kind: deque() for kind in KINDS}
        self._upstream: dict[Key, tuple[PeerId, int]] = {}
        self._passes: dict[Key, _Pass] = {}
        self._round: BatchRound | None = None
        self._batch, self._number = 0, rng.randrange(NUMBER_MAX)
        self._sequences = dict.fromkeys(held, 0.0)
        self._not_before, self._readers, self._lost = 0.0, 1, 0
        self._bytes = [0, 0]
        self._busy_s, self._passed, self._reported_at = 0.0, 0, self._world.now
        self._worked = 0.0
        self._loss: float | None = None
        self._passed_then = self._tokens_then = 0
        self.is_busy = False
        self.stepped_at = -math.inf
        """When its last inner step was."""

    # ------------------------------------------------------------------------------- what it is told

    def begin(self) -> None:
        """It is ready."""
        self._look()

    def steer(self, told: fx.SteerWorker) -> None:
        if not told.training:
            self.keep_still()
        elif not self._worker.training:
            self._worker.training, self._worker.draining = True, False
        self._readers = max(1, len(told.members))
        runs = {peer: (first, last) for peer, first, last in told.hosts}
        ways_s = dict(zip(runs, told.ways_s, strict=False))
        for key in self._routes.hosts_are(runs, ways_s):
            self._lose(key)
        for key in [key for key, (peer, _) in self._upstream.items() if peer not in runs]:
            self._drop(key)
        self._go_on()

    def keep_still(self) -> None:
        """A batch under way comes to nothing: nobody would step by it."""
        if self._round is not None:
            for key in [key for key in self._passes if self._is_entry(key)]:
                self._routes.forget(key)
                del self._passes[key]
            self._number, self._round = self._round.next_number, None
        if self._worker.training:
            self._worker.training = False
            self._report()

    def hear(self, peer: PeerId, hop: Hop) -> None:
        """From another node's worker."""
        self._bytes[1] += self._size(hop)
        waiting = sum(source == peer for arrived in self._arrived.values() for source, _ in arrived)
        if waiting < WAITING_MAX:
            self._arrived[hop.kind].append((peer, hop))
            self._go_on()

    # -------------------------------------------------------------------------------------- its time

    def _look(self) -> None:
        for key in self._routes.overdue(self._world.now):
            self._lose(key)
        if self._world.now - self._reported_at >= REPORT_S:
            self._report()
        self._go_on()
        self._later(LOOK_S, self._look)

    def _later(self, delay_s: float, act: Callable[..., None], *args: object) -> None:
        self._labour.for_worker(self._worker.generation, delay_s, lambda _: act(*args))

    def _go_on(self) -> None:
        """Begin the most urgent piece of work, if there is any and none is under way."""
        while not self.is_busy:
            for kind in KINDS:
                if self._arrived[kind]:
                    peer, hop = self._arrived[kind].popleft()
                    if kind == LOST:
                        self._do(peer, hop)
                    else:
                        self._begin(peer, hop)
                    break
            else:
                if not self._may_enter():
                    return
                last, host = self._way_from(0)
                self._take(FORWARD_SHARE * (last + 1), self._enter, last, host)

    def _begin(self, peer: PeerId, hop: Hop) -> None:
        """Do what came, which takes its time."""
        if hop.kind == FORWARD and hop.stage in self._held and hop.stage:
            last, host = self._way_from(hop.stage)
            cost = FORWARD_SHARE * (last + 1 - hop.stage)
            self._take(cost, self._forward, peer, hop, last, host)
        elif hop.kind == FORWARD:
            self._take(LOSS_SHARE, self._come_around if hop.stage == 0 else self._refuse, peer, hop)
        else:
            self._take(BACKWARD_SHARE * self._stages_of(peer, hop), self._do, peer, hop)

    def _way_from(self, first: int) -> tuple[int, PeerId | None]:
        for stage in range(first + 1, self._held.stop):
            host = self._routes.hand_over(stage, len(self._passes))
            if host is not None:
                return stage - 1, host
        return self._held[-1], None

    def _stages_of(self, peer: PeerId, hop: Hop) -> int:
        key = self._sent_to(peer, hop)
        return len(self._passes[key].stages) if key in self._passes else 0

    def _take(self, cost: float, act: Callable[..., None], *args: object) -> None:
        self.is_busy = True
        took_s = max(cost, 0.01) * self._part_tokens / self._count / self._machine.speed
        self._busy_s += took_s
        self._later(took_s, self._done, act, args)

    def _done(self, act: Callable[..., None], args: tuple[object, ...]) -> None:
        self.is_busy = False
        self._labour.read_mail(self._worker)
        act(*args)
        self._go_on()

    @property
    def _part_tokens(self) -> float:
        train = self._plan.train
        return train.batch * self._plan.model.context / train.accumulate

    def _do(self, peer: PeerId, hop: Hop) -> None:
        """What is said of something that was sent on, if it was."""
        key = self._sent_to(peer, hop)
        if key is not None:
            self._lose(key) if hop.kind == LOST else self._back(key)

    def _sent_to(self, peer: PeerId, hop: Hop) -> Key | None:
        return self._routes.sent_to(peer, (hop.origin, hop.number, hop.stage))

    def _refuse(self, peer: PeerId, hop: Hop) -> None:
        self._say(peer, Hop(LOST, hop.origin, hop.number, hop.part, hop.stage))

    # ------------------------------------------------------------------------- between the two ends

    def _forward(self, peer: PeerId, hop: Hop, last: int, host: PeerId | None) -> None:
        if self._is_known(hop) or not self._has_room(peer):
            self._refuse(peer, hop)
            return
        if max(self._sequences.values()) >= self._plan.train.batch:
            self._step()
        key = (hop.origin, hop.number, self._behind(last))
        self._upstream[key] = (peer, hop.stage)
        self._passes[key] = _Pass(hop.part, tuple(range(hop.stage, last + 1)))
        self._passed += int(self._part_tokens)
        self._send_on(key, host)

    def _behind(self, stage: int) -> int:
        return (stage + 1) % self._count

    def _is_entry(self, key: Key) -> bool:
        return key[0] == self._me and key not in self._upstream

    def _is_known(self, hop: Hop) -> bool:
        if hop.origin == self._me and (
            self._round is None or self._round.part_of(hop.number) is None
        ):
            return True
        return is_past(hop.stage, hop.origin, hop.number, self._passes, self._count)

    def _has_room(self, peer: PeerId) -> bool:
        passes = sum(source == peer for source, _ in self._upstream.values())
        return self._worker.training and passes < 2 * WINDOW * self._readers

    def _send_on(self, key: Key, host: PeerId | None) -> None:
        stage, part = key[2], self._passes[key].part
        self._worked += self._part_tokens * len(self._passes[key].stages) / len(self._held)
        is_finite = self._is_finite()
        if host is None:
            host = self._routes.choose(stage) if stage else key[0]
        if host is None or not self._routes.knows(host) or not is_finite:
            self._lose(key)
            return
        self._routes.sent(key, host, self._world.now)
        self._say(host, Hop(FORWARD, *key[:2], part, stage))

    @property
    def _next_stage(self) -> int:
        return self._held.stop % self._count

    def _back(self, key: Key) -> None:
        is_entry = self._is_entry(key)
        if is_entry and not (self._round and self._round.is_around(key[1])):
            self._lose(key)
            return
        done = self._passes.pop(key)
        self._world.ring.gradient(self._machine.number, done.part, done.stages)
        for stage in done.stages:
            self._sequences[stage] += self._plan.train.batch / self._plan.train.accumulate
        took_s = self._routes.came_back(key, self._world.now)
        if len(done.stages) > 1:
            self._routes.went_on(took_s)
        if not is_entry:
            upstream, stage = self._upstream.pop(key)
            self._say(upstream, Hop(BACKWARD, *key[:2], done.part, stage))
        elif self._round is not None:
            self._round.came_home(key[1])
            self._world.ring.counted(done.part, self._count)
            self._end_round()

    def _step(self) -> None:
        worker = self._worker
        self._loss = worker.pupil.steps(list(worker.theta.values()), 1)
        self._labour.poison(worker)
        self._sequences = dict.fromkeys(self._held, 0.0)
        self.stepped_at = self._world.now
        worker.steps += 1
        worker.cadence.stepped()
        self._labour.hand_in(worker)

    # --------------------------------------------------------------------------------- at the ends

    def _may_enter(self) -> bool:
        is_open = self._worker.training and self._routes.has(self._next_stage)
        if self._held.start or not is_open:
            return False
        if self._round is not None:
            return self._round.may_enter
        return self._world.now >= self._not_before

    def _enter(self, last: int, host: PeerId | None) -> None:
        if not self._may_enter():
            return
        if self._round is None:
            self._batch += 1
            self._round = BatchRound(self._plan.train.accumulate, self._number)
        part, number = self._round.enter()
        key, worker = (self._me, number, self._behind(last)), self._worker
        name = Part(self._machine.number, self._machine.life, worker.generation, self._batch, part)
        self._passes[key] = _Pass(name, tuple(range(last + 1)))
        self._send_on(key, host)

    def _come_around(self, peer: PeerId, hop: Hop) -> None:
        entered = (key for key in self._passes if key[:2] == (hop.origin, hop.number))
        key = next(filter(self._is_entry, entered), None)
        part = self._round.part_of(hop.number) if self._round and key else None
        if key is None or part is None or self._round is None:
            self._refuse(peer, hop)
            return
        assert part == hop.part.part, "another part has come around"
        self._round.came_around(hop.number)
        if self._is_finite():
            self._world.ring.gradient(self._machine.number, hop.part, (ENDS,))
            self._say(peer, Hop(BACKWARD, *key[:2], hop.part))
        else:
            self._lose(key)
            self._refuse(peer, hop)

    def _end_round(self) -> None:
        batch = self._round
        if batch is None or not batch.is_over:
            return
        self._round, self._number = None, batch.next_number
        if not batch.done:
            self._not_before = self._world.now + LOOK_S
            return
        tokens = int(len(batch.done) * self._part_tokens)
        self._worker.tokens += tokens
        self._machine.tokens_trained += tokens
        self._step()

    # --------------------------------------------------------------------------------- what is lost

    def _lose(self, key: Key) -> None:
        self._routes.lost(key)
        if self._is_entry(key):
            self._passes.pop(key, None)
            if self._round is not None:
                self._lost += 1
                self._round.lost(key[1])
                self._end_round()
            return
        self._drop(key)

    def _drop(self, key: Key) -> None:
        self._routes.forget(key)
        dropped, upstream = self._passes.pop(key, None), self._upstream.pop(key, None)
        if upstream is not None:
            assert dropped is not None, "a pass without its stream"
            peer, stage = upstream
            self._say(peer, Hop(LOST, *key[:2], dropped.part, stage))

    def _is_finite(self) -> bool:
        """Else nothing is sent, and that is told as a step that moves nothing."""
        if all(np.isfinite(theta).all() for theta in self._worker.theta.values()):
            return True
        self._worker.nonfinite_steps += 1
        self._worker.steps += 1
        self._worker.cadence.stepped()
        self._worker.cadence.drain()
        self._labour.hand_in(self._worker)
        return False

    # ------------------------------------------------------------------------------------- inside

    def _say(self, peer: PeerId, hop: Hop) -> None:
        size = self._size(hop)
        self._bytes[0] += size
        self._labour.channels.hop(peer, size, hop)

    def _size(self, hop: Hop) -> int:
        """Bytes, as int8 or fp16."""
        numbers = int(self._part_tokens * self._plan.model.dim)
        return 100 + {LOST: 0, BACKWARD: 2, FORWARD: 1}[hop.kind] * numbers

    def _report(self) -> None:
        worker, now = self._worker, self._world.now
        elapsed_s = max(now - self._reported_at, 1e-9)
        has_ends = not self._held.start
        seen, then = (
            (worker.tokens, self._tokens_then) if has_ends else (self._passed, self._passed_then)
        )
        event = ev.WorkerProgressed(
            generation=worker.generation,
            steps=worker.steps,
            tokens=worker.tokens,
            loss=self._loss if has_ends else None,
            tokens_per_s=(seen - then) / elapsed_s,
            nonfinite_steps=worker.nonfinite_steps,
            stream_lost=self._lost,
            stream_sent=self._bytes[0],
            stream_received=self._bytes[1],
            busy=min(1.0, self._busy_s / elapsed_s),
            worked_tokens_s=self._worked / elapsed_s,
        )
        self._reported_at, self._busy_s, self._loss = now, 0.0, None
        self._worked = 0.0
        self._tokens_then, self._passed_then = worker.tokens, self._passed
        self._machine.post(event)
