"""Training by nodes that take each step at the same moment: what others do, to compare a swarm with.

    solo        one node that trains on everybody's tokens, one batch after another
    alone       one node that trains on its own share of them, in the time that the swarm takes
    ddp         the mean gradient of all in every step
    local_sgd   the mean of all weights every H steps (Stich, arXiv 1805.09767)
    diloco      an outer Nesterov step on the mean progress of all every H steps (arXiv 2311.08105);
                with Muon inside it is MuLoCo (2505.23725)
    gasloc      the same for each node by itself, then the mean of random pairs (2606.11081)

All are written down as they are published: exact means, fp32, everybody at once, nobody missing. What they
send is counted as ring all-reduce sends it (Patarasuk and Yuan 2009), or as a pair sends a model
each way, and takes as long as the line takes for it; nothing is hidden behind computation.

    gasloc:   y ← φ + ν (θ − φ)      φ ← mean of a pair's y + γ (y − the last y)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from peerlm.bench.rows import FP32_BYTES
from peerlm.bench.task import Pupil, Task
from peerlm.mix.vector import Vector
from peerlm.sim.network import Wire

Weights = list[Vector]
"""A vector a fragment."""


class Lockstep(ABC):
    """Nodes that step together. `sent`: bytes by each so far; `waited_s`: on the line, so far."""

    def __init__(self, task: Task, wire: Wire) -> None:
        self.task, self.wire = task, wire
        self.sent = self.waited_s = 0.0
        self.steps = 0

    @property
    def tokens_per_step(self) -> int:
        return self.task.nodes * self.task.tokens_per_step

    def step(self, rate: float) -> None:
        """Everybody takes an inner step; then whatever is due between nodes."""
        self.take_steps(rate)
        self.steps += 1
        if self.task.nodes > 1:
            self.after_step()

    @abstractmethod
    def take_steps(self, rate: float) -> None: ...

    def after_step(self) -> None:
        """What nodes do with each other."""

    def finish(self) -> None:
        """The last step has been taken: what would be due at some later one is now."""

    @abstractmethod
    def models(self) -> Sequence[Weights]:
        """What each node holds."""

    def _all_reduce(self) -> None:
        """Everybody has learnt the sum of everybody's vectors."""
        n, size = self.task.nodes, FP32_BYTES * sum(self.task.sizes)
        hops = 2 * (n - 1)
        self.sent += hops / n * size
        self.waited_s += hops * (self._delay_s + size / n / self.wire.stream_bytes_s())

    def _swap(self) -> None:
        """Pairs have sent each other a model."""
        size = FP32_BYTES * sum(self.task.sizes)
        self.sent += size
        self.waited_s += self._delay_s + size / self.wire.stream_bytes_s()

    @property
    def _delay_s(self) -> float:
        return sum(self.wire.delay_s) / 2


class Together(Lockstep):
    """`solo`, `alone` (of a task of one node) and `ddp`: one model, one worker in effect."""

    def __init__(self, task: Task, wire: Wire) -> None:
        super().__init__(task, wire)
        self._theta = task.initial(task.plan.run.rng_seed)
        self._worker = task.joined()

    def take_steps(self, rate: float) -> None:
        self._worker.steps(self._theta, 1, rate)

    def after_step(self) -> None:
        self._all_reduce()

    def models(self) -> Sequence[Weights]:
        return [self._theta]


class Apart(Lockstep):
    """Each node trains by itself for `mix.inner_steps`; then comes `outer`."""

    def __init__(self, task: Task, wire: Wire) -> None:
        super().__init__(task, wire)
        self.mix = task.plan.mix
        first = task.initial(task.plan.run.rng_seed)
        self.theta: list[Weights] = [[v.copy() for v in first] for _ in range(task.nodes)]
        self._workers: list[Pupil] = [task.pupil(node) for node in range(task.nodes)]

    def take_steps(self, rate: float) -> None:
        for worker, theta in zip(self._workers, self.theta, strict=True):
            worker.steps(theta, 1, rate)

    def after_step(self) -> None:
        if self.steps % self.mix.inner_steps == 0:
            self.outer()

    def finish(self) -> None:
        if self.task.nodes > 1 and self.steps % self.mix.inner_steps:
            self.outer()

    @abstractmethod
    def outer(self) -> None: ...

    def models(self) -> Sequence[Weights]:
        return self.theta

    def _mean_theta(self, fragment: int) -> Vector:
        parts = [theta[fragment] for theta in self.theta]
        return np.asarray(np.mean(parts, axis=0, dtype=np.float64), np.float32)


class LocalSgd(Apart):
    def outer(self) -> None:
        self._all_reduce()
        for fragment in range(len(self.task.sizes)):
            mean = self._mean_theta(fragment)
            for theta in self.theta:
                theta[fragment][...] = mean


class DiLoCo(Apart):
    """m ← α m + Δ, φ ← φ + ν (Δ + α m), with Δ the mean progress."""

    def __init__(self, task: Task, wire: Wire) -> None:
        super().__init__(task, wire)
        self._phi = [v.copy() for v in self.theta[0]]
        self._momentum = [np.zeros_like(v) for v in self._phi]

    def outer(self) -> None:
        self._all_reduce()
        alpha, nu = np.float32(self.mix.outer_momentum), np.float32(self.mix.outer_lr)
        for fragment, (phi, m) in enumerate(zip(self._phi, self._momentum, strict=True)):
            progress = self._mean_theta(fragment) - phi
            m *= alpha
            m += progress
            phi += nu * (progress + alpha * m)
            for theta in self.theta:
                theta[fragment][...] = phi


class GasLoC(Apart):
    """Pairs are drawn anew each time; of an odd number one has nobody."""

    def __init__(self, task: Task, wire: Wire) -> None:
        super().__init__(task, wire)
        self._phi = [[v.copy() for v in theta] for theta in self.theta]
        self._last = [[v.copy() for v in theta] for theta in self.theta]
        self._rng = np.random.default_rng(task.plan.run.rng_seed)

    def outer(self) -> None:
        self._swap()
        order = self._rng.permutation(self.task.nodes)
        for fragment in range(len(self.task.sizes)):
            y = [self._stepped(node, fragment) for node in range(self.task.nodes)]
            mixed = list(y)
            for a, b in zip(order[::2], order[1::2], strict=False):
                mixed[a] = mixed[b] = (y[a] + y[b]) / 2
            for node in range(self.task.nodes):
                self._arrive(node, fragment, y[node], mixed[node])

    def _stepped(self, node: int, fragment: int) -> Vector:
        phi = self._phi[node][fragment]
        y: Vector = phi + np.float32(self.mix.outer_lr) * (self.theta[node][fragment] - phi)
        return y

    def _arrive(self, node: int, fragment: int, y: Vector, mixed: Vector) -> None:
        gamma, last = np.float32(self.mix.outer_momentum), self._last[node]
        self._phi[node][fragment] = mixed + gamma * (y - last[fragment])
        last[fragment] = y
        self.theta[node][fragment][...] = self._phi[node][fragment]


METHODS: dict[str, type[Together] | type[Apart]] = {
    "solo": Together,
    "alone": Together,
    "ddp": Together,
    "local_sgd": LocalSgd,
    "diloco": DiLoCo,
    "gasloc": GasLoC,
}
