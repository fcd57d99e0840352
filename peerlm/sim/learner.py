"""What a simulated swarm learns: tasks of a few microseconds to a millisecond a step.

A *learner* is the task: the sizes of its fragments, where training starts, and the loss of given
weights on what nobody trains on. A *pupil* is one worker's life at one node: its batches and its
optimizer's state, both gone when the worker dies. Three learners:

    Quadratic   a pull towards a target with noise of each node's own; costs next to nothing
    Teacher     symbols drawn from a random network, so the loss is exact and its floor known
    ByteModel   real text, with a part held out

The last two train the same small network (perceptron.py) with Adam. Their parameters are one flat
vector cut into equal pieces, so they can stand in for a plan of any number of fragments. Everything
is drawn from the generators handed in; nothing here reads a file or knows of mixing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol, TypeVar

import numpy as np

from peerlm.errors import ConfigError
from peerlm.mix.vector import Vector
from peerlm.sim.perceptron import Adam, Matrix, Perceptron, Symbols
from peerlm.types import FragmentId

T = TypeVar("T")


def by_id(values: Sequence[T]) -> dict[FragmentId, T]:
    """What each fragment has, where a list has it for all."""
    return {FragmentId(index): value for index, value in enumerate(values)}


class Pupil(Protocol):
    """One worker's life: its batches and its optimizer's state."""

    def steps(self, theta: Sequence[Vector], n: int, rate: float = 1.0) -> float:
        """`n` inner steps, moving `theta` (a vector a fragment) in place.

        `rate` is the share of the learner's own peak learning rate. Returns the mean training loss.
        """
        ...

    def forget(self, fragment: int) -> None:
        """θ of this fragment was reset: what the optimizer knew of it is void."""
        ...


class Learner(Protocol):
    """A task, the same for all nodes."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each fragment."""
        ...

    def initial(self, seed: int) -> list[Vector]:
        """Where training starts: a vector a fragment."""
        ...

    def pupil(self, node: int, rng: np.random.Generator) -> Pupil:
        """A worker starts at node number `node`, from nothing; its batches are drawn from `rng`."""
        ...

    def loss(self, phi: Sequence[Vector]) -> float:
        """Of these weights, on what nobody trains on; the same for the same weights."""
        ...


# ---------------------------------------------------------------------------------- quadratic


class Quadratic:
    """Each element is pulled towards a target by `pull` of its distance a step, with noise."""

    def __init__(self, sizes: Sequence[int], pull: float = 0.01, noise: float = 0.002) -> None:
        self.sizes = tuple(sizes)
        self.pull, self.noise = pull, noise
        self.target = [_normal(size, 900 + number) for number, size in enumerate(self.sizes)]

    def initial(self, seed: int) -> list[Vector]:
        rng = np.random.default_rng(seed)
        return [rng.standard_normal(size, np.float32) for size in self.sizes]

    def pupil(self, node: int, rng: np.random.Generator) -> Pupil:
        return _Pulled(self, rng)

    def loss(self, phi: Sequence[Vector]) -> float:
        """Mean square distance from the target, a fragment; summed over fragments."""
        pairs = zip(phi, self.target, strict=True)
        return sum(float(np.mean((values - target) ** 2)) for values, target in pairs)


def part_of(learner: Learner, fragments: Sequence[FragmentId]) -> Learner:
    """The task of a node that holds these fragments alone. Raises `ConfigError` where a task has no parts."""
    if len(fragments) == len(learner.sizes):
        return learner
    if not isinstance(learner, Quadratic):
        raise ConfigError("a network is learnt whole; only a quadratic task has parts")
    return _QuadraticPart(learner, fragments)


class _QuadraticPart(Quadratic):
    def __init__(self, whole: Quadratic, fragments: Sequence[FragmentId]) -> None:
        self._whole, self._fragments = whole, fragments
        self.sizes = tuple(whole.sizes[f] for f in fragments)
        self.pull, self.noise = whole.pull, whole.noise
        self.target = [whole.target[f] for f in fragments]

    def initial(self, seed: int) -> list[Vector]:
        """The same as where the whole begins."""
        values = self._whole.initial(seed)
        return [values[f] for f in self._fragments]


class _Pulled:
    def __init__(self, task: Quadratic, rng: np.random.Generator) -> None:
        self._task, self._rng = task, rng

    def steps(self, theta: Sequence[Vector], n: int, rate: float = 1.0) -> float:
        task, loss = self._task, 0.0
        pull = np.float32(1 - (1 - task.pull * rate) ** n)
        noise = self._rng.standard_normal(sum(task.sizes), np.float32)
        noise *= np.float32(task.noise * rate * n**0.5)
        used = 0
        for values, target in zip(theta, task.target, strict=True):
            missing = target - values
            loss += float(missing @ missing) / values.size
            missing *= pull
            missing += noise[used : used + values.size]
            values += missing
            used += values.size
        return loss

    def forget(self, fragment: int) -> None:
        """Nothing is kept."""


def _normal(size: int, seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(size, np.float32)


# ----------------------------------------------------------------------------- symbol by symbol


class _Networked(ABC):
    """What `Teacher` and `ByteModel` share: a network whose parameters are cut into fragments."""

    def __init__(self, net: Perceptron, fragments: int, batch: int, rate: float) -> None:
        if not 1 <= fragments <= net.size:
            raise ConfigError(
                f"a learner of {net.size} parameters cannot have {fragments} fragments"
            )
        self.net, self.batch, self.rate = net, batch, rate
        bounds = [number * net.size // fragments for number in range(fragments + 1)]
        self.pieces = [slice(start, stop) for start, stop in pairwise(bounds)]
        self.sizes = tuple(piece.stop - piece.start for piece in self.pieces)

    def initial(self, seed: int) -> list[Vector]:
        flat = self.net.initial(np.random.default_rng(seed))
        return [flat[piece].copy() for piece in self.pieces]

    def pupil(self, node: int, rng: np.random.Generator) -> Pupil:
        return _Taught(self, node, rng)

    @abstractmethod
    def draw(self, node: int, rng: np.random.Generator) -> tuple[Symbols, Symbols]:
        """A batch for `node`: contexts [batch, context] and what follows each [batch]."""

    def log_probabilities(self, phi: Sequence[Vector], contexts: Symbols) -> Matrix:
        return self.net.log_probabilities(np.concatenate(phi), contexts)


class _Taught:
    def __init__(self, task: _Networked, node: int, rng: np.random.Generator) -> None:
        self._task, self._node, self._rng = task, node, rng
        self._adam = Adam(task.net.size)
        self._gradient = np.empty(task.net.size, np.float32)

    def steps(self, theta: Sequence[Vector], n: int, rate: float = 1.0) -> float:
        task, total = self._task, 0.0
        flat = np.concatenate(theta)
        for _ in range(n):
            contexts, nexts = task.draw(self._node, self._rng)
            total += task.net.gradient(flat, contexts, nexts, self._gradient)
            self._adam.step(flat, self._gradient, task.rate * rate)
        for values, piece in zip(theta, task.pieces, strict=True):
            values[...] = flat[piece]
        return total / max(n, 1)

    def forget(self, fragment: int) -> None:
        self._adam.forget(self._task.pieces[fragment])


class Teacher(_Networked):
    """Symbols that a random network draws: 32 of them, each after a context of two.

    Contexts are uniform, so the loss is an exact mean over all 1024 of them. `floor` is the entropy
    of the teacher, the least loss there is; what exceeds it is the excess.
    """

    SYMBOLS, CONTEXT = 32, 2
    WIDTH, HIDDEN = 16, 64
    SHARPNESS = 4.15
    """Of the teacher's logits; leaves about 1.4 of the 3.5 nats of a uniform guess."""

    def __init__(
        self, fragments: int = 2, *, seed: int = 7, batch: int = 16, rate: float = 0.01
    ) -> None:
        shape = (self.SYMBOLS, self.CONTEXT, self.WIDTH, self.HIDDEN)
        super().__init__(Perceptron(*shape), fragments, batch, rate)
        grid = np.indices((self.SYMBOLS,) * self.CONTEXT).reshape(self.CONTEXT, -1)
        self._contexts: Symbols = np.ascontiguousarray(grid.T.astype(np.int64))
        teacher = self.net.initial(np.random.default_rng(seed))
        self.net.layers(teacher).output[...] *= np.float32(self.SHARPNESS)
        logs = self.net.log_probabilities(teacher, self._contexts)
        self._probabilities = np.exp(logs)
        self._cumulated = np.cumsum(self._probabilities.astype(np.float64), axis=1)
        self.floor = -float(np.mean(np.sum(self._probabilities * logs, axis=1, dtype=np.float64)))

    def draw(self, node: int, rng: np.random.Generator) -> tuple[Symbols, Symbols]:
        rows = rng.integers(0, len(self._contexts), self.batch)
        below = self._cumulated[rows] < rng.random(self.batch)[:, None]
        nexts = np.minimum(below.sum(axis=1), self.SYMBOLS - 1)
        return self._contexts[rows], nexts

    def loss(self, phi: Sequence[Vector]) -> float:
        """Over all contexts, exactly, in nats a symbol."""
        logs = self.log_probabilities(phi, self._contexts)
        return -float(np.mean(np.sum(self._probabilities * logs, axis=1, dtype=np.float64)))


class ByteModel(_Networked):
    """The next byte of real text from the eight before it. Losses are in nats a byte.

    The last twentieth of the text is held out, and read at `PROBES` places by `loss`.

    Args:
        text: at least a few thousand bytes; distinct bytes in it become the symbols.
        fragments: equal pieces to cut the parameters into.
        sections: parts of the text that are some node's own: node i's is section i modulo this.
        own_share: share of a batch that comes from the node's own section, 0 to 1; the rest comes
            from anywhere in the text.
    """

    CONTEXT, WIDTH, HIDDEN = 8, 12, 112
    HELD_OUT = 0.05
    PROBES = 4096

    def __init__(
        self,
        text: bytes,
        fragments: int,
        *,
        sections: int = 1,
        own_share: float = 1.0,
        batch: int = 64,
        rate: float = 0.006,
    ) -> None:
        values, symbols = np.unique(np.frombuffer(text, np.uint8), return_inverse=True)
        super().__init__(
            Perceptron(len(values), self.CONTEXT, self.WIDTH, self.HIDDEN), fragments, batch, rate
        )
        self._symbols: Symbols = symbols.astype(np.int64)
        self._offsets = np.arange(self.CONTEXT)
        self._taught = int(len(text) * (1 - self.HELD_OUT))
        if sections < 1 or self._taught // sections <= 2 * self.CONTEXT:
            raise ConfigError(f"a text of {len(text)} bytes cannot be cut into {sections} sections")
        self._sections, self._own_share = sections, own_share
        ends = (self._taught, len(text) - self.CONTEXT - 1)
        self._probes = self._at(np.linspace(*ends, self.PROBES).astype(np.int64))

    def draw(self, node: int, rng: np.random.Generator) -> tuple[Symbols, Symbols]:
        room = (
            self._taught - self.CONTEXT
        )  # of first bytes, with a next one before the held-out part
        section = node % self._sections
        start, stop = (room * edge // self._sections for edge in (section, section + 1))
        own = rng.integers(start, stop, self.batch)
        if self._sections == 1 or self._own_share >= 1:
            return self._at(own)
        anywhere = rng.integers(0, room, self.batch)
        return self._at(np.where(rng.random(self.batch) < self._own_share, own, anywhere))

    def loss(self, phi: Sequence[Vector]) -> float:
        contexts, nexts = self._probes
        logs = self.log_probabilities(phi, contexts)
        return -float(logs[np.arange(len(nexts)), nexts].mean(dtype=np.float64))

    def _at(self, first: Symbols) -> tuple[Symbols, Symbols]:
        contexts = self._symbols[first[:, None] + self._offsets]
        return contexts, self._symbols[first + self.CONTEXT]
