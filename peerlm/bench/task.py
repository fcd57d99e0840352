"""The plan's own model as what a simulated swarm learns: its text, its optimizer, its inner steps.

A simulator's learner (sim/learner.py) that costs what training costs; only time is made up. All
nodes share this process, each with weights, batches and an optimizer of its own, as their workers
would have. So methods that differ only in who averages what, and when, are compared on the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from peerlm.config import Plan
from peerlm.data.loader import Loader
from peerlm.data.shards import Corpus
from peerlm.mix.vector import Vector
from peerlm.model.model import LanguageModel
from peerlm.model.plan import fragments
from peerlm.model.weights import copy_in, copy_out
from peerlm.train.evaluate import evaluate
from peerlm.train.learner import Learner, choose_device
from peerlm.types import PeerId

LIVES = 1000
"""Passes over the text that a worker's next life begins beyond those of the one before."""


class Task:
    """What `nodes` of them learn from `corpora`: one for all, of which each reads its part, or one for
    each in turn, which it has for itself (`data.source = local`).

    Raises:
        ConfigError: a corpus is too short.
        DeviceLost: the device is not there.
    """

    def __init__(
        self, plan: Plan, corpora: Sequence[Corpus], nodes: int, device: str = "cpu"
    ) -> None:
        self.plan, self.nodes = plan, nodes
        self.specs = fragments(plan)
        self.sizes = tuple(spec.size for spec in self.specs)
        self.tokens_per_step = plan.train.batch * plan.model.context
        self._device = choose_device(device)
        self._corpora = corpora
        self._lives = [0] * nodes
        self._model = LanguageModel(plan.model, plan.data.vocab).to(self._device)
        self._held_out = [self._held_out_of(corpus) for corpus in corpora]

    def initial(self, seed: int) -> list[Vector]:
        """Where training starts: a vector a fragment."""
        self._model.initialise(seed)
        return self._values_of(self._model)

    def pupil(self, node: int, rng: np.random.Generator | None = None) -> Pupil:
        """A worker begins at `node`. Which text it reads follows from the plan, so `rng` is not used."""
        return Pupil(self, [self._loader(node)])

    def joined(self) -> Pupil:
        """One worker that takes the mean gradient of a batch of every node in each step: what
        synchronous data parallel training computes, without its processes."""
        return Pupil(self, [self._loader(node) for node in range(self.nodes)])

    def loss(self, phi: Sequence[Vector]) -> float:
        """On held-out text, in nats a token; of several corpora the mean."""
        return float(np.mean(self.losses(phi)))

    def losses(self, phi: Sequence[Vector]) -> list[float]:
        """On the held-out text of each corpus."""
        for spec, values in zip(self.specs, phi, strict=True):
            copy_in(self._model, spec, values)
        return [evaluate(self._model, batches) for batches in self._held_out]

    def learner(self) -> Learner:
        return Learner(self.plan, self._device)

    def _values_of(self, model: LanguageModel) -> list[Vector]:
        values = [np.empty(size, np.float32) for size in self.sizes]
        for spec, out in zip(self.specs, values, strict=True):
            copy_out(model, spec, out)
        return values

    def _loader(self, node: int) -> Loader:
        first_pass, self._lives[node] = LIVES * self._lives[node], self._lives[node] + 1
        peers = [PeerId(number.to_bytes(16, "big")) for number in range(self.nodes)]
        loader = Loader(
            self._corpus_of(node), self.plan, peers[node], self.plan.run.rng_seed, first_pass
        )
        loader.set_members(peers)
        return loader

    def _corpus_of(self, node: int) -> Corpus:
        return self._corpora[node % len(self._corpora)]

    def _held_out_of(self, corpus: Corpus) -> list[NDArray[np.int64]]:
        train = self.plan.train
        loader = Loader(corpus, self.plan, PeerId(bytes(16)), self.plan.run.rng_seed)
        return loader.validation_batches(train.val_batches, train.batch)


class Pupil:
    """One worker's life: a learner, and where it reads."""

    def __init__(self, task: Task, loaders: Sequence[Loader]) -> None:
        self._task, self._loaders = task, loaders
        self._learner = task.learner()

    def steps(self, theta: Sequence[Vector], n: int, rate: float = 1.0) -> float:
        """`n` inner steps on `theta`, in place; returns the mean loss. A step that is not finite moves
        nothing."""
        specs, model, total = self._task.specs, self._learner.model, 0.0
        for spec, values in zip(specs, theta, strict=True):
            copy_in(model, spec, values)
        for _ in range(n):
            batch = np.concatenate([loader.next_batch() for loader in self._loaders])
            total += self._learner.step(batch, rate).loss
        for spec, values in zip(specs, theta, strict=True):
            copy_out(model, spec, values)
        return total / max(n, 1)

    def forget(self, fragment: int) -> None:
        """θ of this fragment was reset: what the optimizer knew of it is void."""
        slices = self._task.specs[fragment].slices
        self._learner.optimizer.reset(piece.tensor for piece in slices)
