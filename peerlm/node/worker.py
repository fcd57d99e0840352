"""The worker as the node has it: what it is told, and what it tells.

A worker is started, steered, asked for an evaluation, made to hand in its progress and stopped; it
answers with boundaries, losses and tokens, or it dies. This file turns the one into effects and keeps
what came of the other. When a dead or useless one is replaced is supervision.py's.

Whether a worker should train at all depends on the phase and on who else is there; that is known
by `work`, which asks here for what it wants.
"""

from __future__ import annotations

import math
import random

from peerlm.effects import (
    DrainWorker,
    Effect,
    EvaluateSlow,
    KeepOptimizer,
    Log,
    StartWorker,
    SteerWorker,
    StepOuter,
    StopWorker,
)
from peerlm.events import (
    BoundaryReached,
    Evaluated,
    OptimizerKept,
    OuterStepped,
    WorkerExited,
    WorkerProgressed,
    WorkerReady,
)
from peerlm.node.supervision import Supervision
from peerlm.types import Instant, PeerId, after

FIRST_EVALUATION_S = 8.0
"""A new worker is left to its first steps for so long."""


KEEPING_SHARE = 20.0
"""Keeping the optimizer's state takes at most one part in so many of the time."""


BUSY_NEWS, BUSY_OFF = 0.1, 0.8
"""Weight of a report in the share of the time in which it works; what is said of that is at most so many tenths off."""


class Worker:
    """One node's worker, through all its lives. What takes an event and returns False has found it to
    be of a generation that is over, and void."""

    def __init__(self, rng: random.Random, now: Instant) -> None:
        self.supervision = Supervision()
        self.tokens = 0
        """Trained on in this boot epoch."""
        self.loss: float | None = None
        self.val_loss: float | None = None
        self.val_losses: dict[bytes, float] = {}
        """Of each text of a mixture; nan where nothing is held out."""
        self.noise_scale: float | None = None
        """Of its gradients, in tokens."""
        self.tokens_per_s = 0.0
        self.busy: int | None = None
        """Tenths of the time in which it works, of the last reports; None: it gives none."""
        self.nonfinite_steps = 0
        self.lacks_text = False
        """By its last report it waits for text."""
        self.stream_lost, self.stream_bytes = 0, (0, 0)
        """Of its present life: microbatches that came to nothing; bytes of the stream, sent and received."""
        self.drained = False
        """It has handed in its progress, and the outer steps that follow from it are taken."""
        self._rng = rng
        self._generation_tokens = 0
        self._busy = 0.0
        self._texts: tuple[bytes, ...] = ()
        """What it reads, by its last word."""
        self._evaluate_due = now
        self._evaluating = False
        self._keep_due, self._is_keeping = now, False
        self._handed_in = False
        self._boundaries = 0
        """Whose outer steps have not been taken."""

    # ------------------------------------------------------------------------- what it is told

    def start(
        self, passes: bytes, absent: tuple[int, ...], now: Instant, *, fresh: bool
    ) -> list[Effect]:
        """`fresh`: it is to make the initial weights. `passes`: what of the text is read; `absent`: shards that are not
        here."""
        cold = self.supervision.failures > 1  # it may be what they die of
        generation = self.supervision.start(now)
        return [StartWorker(generation, fresh=fresh, passes=passes, absent=absent, cold=cold)]

    def stop(self) -> list[Effect]:
        """For good, until somebody starts one."""
        self.supervision.hold()
        return self.restart()

    def restart(self) -> list[Effect]:
        """Stop it; where one is wanted, its exit is followed by a new one."""
        if self.supervision.state in ("running", "starting"):
            return [StopWorker(self.supervision.generation)]
        return []

    def steer(
        self,
        training: bool,
        swarm_tokens: int,
        members: tuple[PeerId, ...],
        inner_steps: int,
        hosts: tuple[tuple[PeerId, int, int], ...],
        ways_s: tuple[float, ...],
        passes: bytes,
    ) -> list[Effect]:
        """Whether to take inner steps, how far the swarm is, who shares the text (sorted), how many inner steps
        to take between two boundaries, who holds which of the stages that are elsewhere and how far each is, and what is read."""
        if self.supervision.state != "running":
            return []
        told = (training, swarm_tokens, members, inner_steps, hosts, passes, ways_s)
        return [SteerWorker(self.supervision.generation, *told)]

    def evaluate_if_due(self, every_s: float, swarm_tokens: int, now: Instant) -> list[Effect]:
        """An evaluation of the slow weights about each `every_s`, one at a time."""
        if self._evaluate_due > now or self._evaluating or self.supervision.state != "running":
            return []
        jitter = self._rng.uniform(0.9, 1.1)
        self._evaluate_due = after(now, every_s * jitter)
        self._evaluating = True
        return [EvaluateSlow(self.supervision.generation, swarm_tokens)]

    def keep_if_due(self, every_s: float, now: Instant) -> list[Effect]:
        """Its optimizer's state goes to the disk about each `every_s`, once the last time is over."""
        if self._keep_due > now or self._is_keeping or self.supervision.state != "running":
            return []
        self._is_keeping, self._keep_due = True, after(now, every_s)
        return [KeepOptimizer(self.supervision.generation)]

    def kept(self, event: OptimizerKept, now: Instant) -> list[Effect]:
        if event.generation != self.supervision.generation:
            return []
        self._is_keeping = False
        self._keep_due = max(self._keep_due, after(now, KEEPING_SHARE * event.seconds))
        return [Log("error", "optimizer_not_kept", (("why", event.error),))] if event.error else []

    def drain(self) -> list[Effect]:
        """Have it hand in its progress; follow `drained`."""
        running = self.supervision.state == "running"
        self.drained, self._handed_in = not running, False
        if self.supervision.state == "backing_off":
            self.supervision.hold()
        if self.supervision.state == "starting":
            return [StopWorker(self.supervision.generation)]
        return [DrainWorker(self.supervision.generation)] if running else []

    def forget_drain(self) -> None:
        """There is more to learn."""
        self._handed_in = self.drained = False

    def watch(self, now: Instant, *, expected: bool) -> list[Effect]:
        """Stop a worker that is of no use; its exit is followed by a new one. `expected`: it should
        be making progress."""
        if not expected:
            self.supervision.heard(now)
        return (
            [StopWorker(self.supervision.generation)]
            if self.supervision.condemn(now, evaluating=self._evaluating)
            else []
        )

    # ------------------------------------------------------------------------- what it tells

    def ready(self, event: WorkerReady, now: Instant) -> bool:
        if event.generation != self.supervision.generation:
            return False
        self.supervision.ready(event.device, event.threads)
        self._generation_tokens = 0
        self._evaluating = self.lacks_text = False
        self._texts = ()
        # Steps first: evaluating a large model takes as long as several of them.
        self._evaluate_due = max(self._evaluate_due, after(now, FIRST_EVALUATION_S))
        self._is_keeping, self._keep_due = False, after(now, FIRST_EVALUATION_S)
        return True

    def boundary(self, event: BoundaryReached) -> list[Effect]:
        if event.generation != self.supervision.generation:
            return []
        self._boundaries += 1
        return [StepOuter(event.generation, event.fragment, event.applied_seq)]

    def outer_stepped(self, event: OuterStepped) -> bool:
        """A boundary of its has been dealt with."""
        if event.generation != self.supervision.generation or not self._boundaries:
            return False
        self._boundaries -= 1
        return True

    def progressed(self, event: WorkerProgressed, now: Instant) -> bool:
        if event.generation != self.supervision.generation:
            return False
        self.tokens += event.tokens - self._generation_tokens
        self._generation_tokens = event.tokens
        self.lacks_text = event.lacks_text
        if event.loss is not None:
            self.loss = event.loss
        self.tokens_per_s, self.nonfinite_steps = event.tokens_per_s, event.nonfinite_steps
        self.stream_lost = event.stream_lost
        self.stream_bytes = (event.stream_sent, event.stream_received)
        self._texts = event.texts
        self._works(event.busy)
        self.supervision.progressed(event.loss, event.nonfinite_steps, now)
        return True

    def _works(self, share: float) -> None:
        """What is said changes when it is nearly a whole tenth off: news of it goes to everybody."""
        self._busy = share if self.busy is None else self._busy + BUSY_NEWS * (share - self._busy)
        if self.busy is None or abs(10 * self._busy - self.busy) > BUSY_OFF:
            self.busy = round(10 * self._busy)

    def evaluated(self, event: Evaluated, now: Instant) -> list[Effect]:
        if event.generation == self.supervision.generation:
            self.supervision.heard(now)
        self._evaluating = False
        if event.noise_scale is not None:
            self.noise_scale = event.noise_scale
        if not math.isfinite(event.val_loss):
            return [Log("warning", "evaluated", (("why", "no held-out text, or φ is broken"),))]
        self.val_loss = event.val_loss
        self.val_losses = dict(zip(self._texts, event.val_losses, strict=False))
        fields = (("val_loss", round(event.val_loss, 4)), ("tokens", event.tokens))
        return [Log("info", "evaluated", fields)]

    def val_loss_of(self, text: bytes) -> float | None:
        """Of one text of a mixture; None where it is not known."""
        loss = self.val_losses.get(text, math.nan)
        return loss if math.isfinite(loss) else None

    def handed_in(self) -> None:
        """All its progress is in boundaries by now."""
        self._handed_in = True

    def finish_drain(self) -> bool:
        """Whether the drain is over: once the outer step of the last boundary is taken too."""
        if not self._handed_in or self._boundaries:
            return False
        self.drained = True
        return True

    def exited(self, event: WorkerExited, wanted: bool, now: Instant) -> bool:
        """It is gone. `wanted`: a worker should be running."""
        if event.generation != self.supervision.generation:
            return False
        self.supervision.exited(event.error, wanted, now)
        self.tokens_per_s, self._evaluating, self.lacks_text = 0.0, False, False
        self.busy = None
        self._boundaries = 0
        return True

    def check(self) -> None:
        assert self._boundaries >= 0, "an outer step without a boundary"
