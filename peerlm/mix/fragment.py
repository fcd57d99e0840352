"""The slow weights of one fragment at one node, and their agreement with the worker's fast weights.

φ lives here, θ lives on the worker's device. Both move all the time: θ by inner steps, φ by outer
steps and by exchanges. Neither side ever waits for the other, because whatever moves φ is also
queued as a *correction* to θ, which the worker adds between two inner steps. So at any moment

    θ + Σ corrections not applied yet − φ  =  inner progress since the last boundary

which is how progress is found without asking the worker to stop: a snapshot S of θ comes with the
number of the last correction in it, the later ones are added, and what exceeds φ is progress.
Corrections are additive, hence summed while they wait; one batch at a time is with the worker.

Every start of a worker is a new *generation* that begins at θ = φ with an empty queue; what an older
one says is void. A boundary that is void loses nothing: the next one finds the same progress.

A fragment never decides when to step or with whom to mix, and takes no locks: calls on one fragment
must not overlap, and come in the order of the worker's messages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from peerlm.config import MixSection
from peerlm.mix.algorithms import Algorithm
from peerlm.mix.loops import add, norm, squares
from peerlm.mix.rounds import warmed
from peerlm.mix.vector import Vector, pieces


class Kind(StrEnum):
    """What the worker does with a batch."""

    ADD = "add"
    """θ += values."""
    RESET = "reset"
    """θ := values, and this fragment's optimizer state is forgotten."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Corrections up to and including number `seq`, summed. `values` [n] must not be written to."""

    seq: int
    kind: Kind
    values: Vector


class Outcome(StrEnum):
    """What became of a boundary."""

    STEPPED = "stepped"
    """φ took an outer step."""
    RESET = "reset"
    """θ was not finite (or beyond about 1e19 from φ): θ := φ is queued, φ and m are untouched."""
    VOID = "void"
    """The snapshot is an older generation's, or older than a reset or an acknowledged correction."""


@dataclass(frozen=True, slots=True)
class BoundaryResult:
    outcome: Outcome
    version: int
    progress_norm: float
    """|Δ|; 0 unless stepped."""
    phi_norm: float
    """|φ| after the step; 0 unless stepped."""

    @property
    def finite(self) -> bool:
        return self.outcome is not Outcome.RESET


@dataclass(frozen=True, slots=True)
class FragmentState:
    """A copy of what survives the worker: `phi` [n], `momentum` [n], `version` (outer steps taken)."""

    phi: Vector
    momentum: Vector
    version: int


class SlowFragment:
    """φ and m of one fragment with its queue of corrections.

    generation: of the worker that gets the corrections; 0 before the first one starts, when φ moves
        but nothing is queued.
    resets: how often θ had to be thrown away.
    """

    _queued_seq: int  # of the newest correction, counted since the generation's start
    _complete_from: int  # all corrections after this one are at hand
    _in_flight: Batch | None
    _kept: Batch | None  # acknowledged, but not in the snapshot that is expected
    _expected_seq: int | None
    _pending_kind: Kind | None
    _pending: Vector | None  # the sum of those that wait; None for a reset, whose values are φ

    def __init__(self, phi: Vector, momentum: Vector | None = None, version: int = 0) -> None:
        """Copies `phi` [n] and `momentum` [n] (zeros if None)."""
        self.phi: Vector = np.array(phi, np.float32)
        self.momentum: Vector = np.zeros(phi.size, np.float32)
        if momentum is not None:
            self.momentum[...] = momentum
        self.version = version
        self.generation = 0
        self.resets = 0
        self._norm: float | None = None
        self._forget_queue()

    @property
    def size(self) -> int:
        return self.phi.size

    def phi_norm(self) -> float:
        return norm(self.phi)

    def known_norm(self) -> float:
        """|φ| when it was last measured: by an outer step, a flow, or now if by none of them."""
        if self._norm is None:
            self._norm = norm(self.phi)
        return self._norm

    def state(self) -> FragmentState:
        """A copy to write to disk or to donate, whatever happens to the fragment meanwhile."""
        return FragmentState(self.phi.copy(), self.momentum.copy(), self.version)

    def install(self, phi: Vector, version: int) -> None:
        """Take over fetched weights [n]: φ := phi, m := 0, and a running worker's θ := φ."""
        self.phi[...] = phi
        self.momentum[...] = 0
        self.version = version
        self._norm = None
        self._queue_reset()

    # -------------------------------------------------------------------------- worker's life

    def new_generation(self, generation: int) -> Vector:
        """A worker starts: returns the copy of φ [n] it must start from. The old queue is void."""
        assert generation > self.generation, f"generation {generation} after {self.generation}"
        self.generation = generation
        self._forget_queue()
        return self.phi.copy()

    def take_batch(self) -> Batch | None:
        """All waiting corrections as one, now with the worker; None if none wait or one is there."""
        if self._pending_kind is None or self._in_flight is not None or self._kept is not None:
            return None
        values = self.phi.copy() if self._pending is None else self._pending
        self._in_flight = Batch(self._queued_seq, self._pending_kind, values)
        self._pending_kind = self._pending = None
        return self._in_flight

    def expect_boundary(self, applied_seq: int, generation: int) -> None:
        """A snapshot has been announced; `boundary` will follow, perhaps after acknowledgements.

        Until then a correction that the snapshot lacks is remembered, though acknowledged.
        """
        if generation == self.generation:
            self.applied(applied_seq, generation)
            if self._kept is not None and self._kept.seq <= applied_seq:
                self._release_kept()  # the boundary it was kept for never came
            self._expected_seq = applied_seq

    def applied(self, seq: int, generation: int) -> None:
        """The worker has applied all corrections up to `seq`."""
        if generation != self.generation:
            return
        assert seq <= self._queued_seq, f"correction {seq} applied, {self._queued_seq} queued"
        batch = self._in_flight
        if batch is None or batch.seq > seq:
            return
        self._kept, self._in_flight = batch, None
        if self._expected_seq is None or self._expected_seq >= batch.seq:
            self._release_kept()

    # ------------------------------------------------------------------------- what moves φ

    def boundary(
        self,
        snapshot: Vector,
        applied_seq: int,
        generation: int,
        algorithm: Algorithm,
        mix: MixSection,
    ) -> BoundaryResult:
        """Find the progress in `snapshot` [n], take the outer step, queue the correction.

        `snapshot` is θ when the worker had applied corrections up to `applied_seq`; it is read once.
        """
        if generation != self.generation:
            return self._not_stepped(Outcome.VOID)
        self.applied(applied_seq, generation)
        if not self._can_complete(applied_seq):
            self._release_kept()
            return self._not_stepped(Outcome.VOID)
        completed = self._completed(snapshot, applied_seq)
        self._release_kept()
        progress_norm = _distance(completed, self.phi)
        if not math.isfinite(progress_norm):
            self.resets += 1
            self._queue_reset()
            return self._not_stepped(Outcome.RESET)
        phi_squares, mix = 0.0, warmed(mix, self.version)
        for piece in pieces(self.size):
            phi = self.phi[piece]
            algorithm.outer(phi, self.momentum[piece], completed[piece] - phi, mix)
            np.subtract(phi, completed[piece], out=completed[piece])
            phi_squares += squares(phi)
        self._queue_owned(completed)
        self.version += 1
        self._norm = math.sqrt(phi_squares)
        return BoundaryResult(Outcome.STEPPED, self.version, progress_norm, self._norm)

    def add_flow(self, values: Vector, scale: float = 1.0) -> None:
        """φ += scale × values [n], and the same to θ through the queue. `values` stays as it is."""
        phi_squares = add(self.phi, self._pending_to_add_to(), values, scale)
        self._norm = math.sqrt(phi_squares)

    def add_to_momentum(self, values: Vector, scale: float = 1.0) -> None:
        """m += scale × values [n]; φ and θ learn of it in the next outer step."""
        for piece in pieces(self.size):
            self.momentum[piece] += values[piece] * np.float32(scale)

    # ------------------------------------------------------------------------------- promise

    def check(self, theta: Vector, applied_seq: int, progress: Vector) -> None:
        """Assert the invariant for a worker whose θ [n] has moved by `progress` [n] of its own."""
        error = np.abs(self._completed(theta, applied_seq) - self.phi - progress)
        scale = np.abs(self.phi) + np.abs(theta) + np.abs(progress) + 1
        worst = float(np.max(error / scale, initial=0.0))
        assert worst <= 1e-5, f"θ + Σ unapplied − φ misses the progress by {worst:.1e}, relative"

    # ----------------------------------------------------------------------------- the queue

    def _forget_queue(self) -> None:
        self._queued_seq = self._complete_from = 0
        self._in_flight = self._kept = None
        self._expected_seq = None
        self._pending_kind = self._pending = None

    def _unapplied(self, applied_seq: int) -> Iterator[Batch]:
        """Batches that a θ with corrections up to `applied_seq` lacks, oldest first."""
        for batch in (self._kept, self._in_flight):
            if batch is not None and batch.seq > applied_seq:
                yield batch
        if self._pending_kind is not None:
            values = self.phi if self._pending is None else self._pending
            yield Batch(self._queued_seq, self._pending_kind, values)

    def _release_kept(self) -> None:
        if self._kept is not None:
            self._complete_from, self._kept = self._kept.seq, None
        self._expected_seq = None

    def _can_complete(self, applied_seq: int) -> bool:
        """False if θ at `applied_seq` is about to be reset, or lacks a correction now forgotten."""
        resets = any(batch.kind is Kind.RESET for batch in self._unapplied(applied_seq))
        return applied_seq >= self._complete_from and not resets

    def _completed(self, theta: Vector, applied_seq: int) -> Vector:
        """What θ will be once every correction after `applied_seq` is applied."""
        completed = theta.copy()
        for batch in self._unapplied(applied_seq):
            if batch.kind is Kind.RESET:
                completed[...] = batch.values
            else:
                completed += batch.values
        return completed

    def _queue_owned(self, correction: Vector) -> None:
        """Queue `correction`, which nobody else will write to."""
        assert self._pending_kind is not Kind.RESET
        self._queued_seq += 1
        if self._pending is None:
            self._pending_kind, self._pending = Kind.ADD, correction
        else:
            self._pending += correction

    def _pending_to_add_to(self) -> Vector | None:
        """Where to add a correction; None if a reset waits (it will carry φ) or no worker does."""
        if self.generation == 0 or self._pending_kind is Kind.RESET:
            return None
        if self._pending is None:
            self._pending_kind, self._pending = Kind.ADD, np.zeros(self.size, np.float32)
        self._queued_seq += 1
        return self._pending

    def _queue_reset(self) -> None:
        if self.generation > 0:
            self._queued_seq += 1
            self._pending_kind, self._pending = Kind.RESET, None

    def _not_stepped(self, outcome: Outcome) -> BoundaryResult:
        return BoundaryResult(outcome, self.version, 0.0, 0.0)


def _distance(a: Vector, b: Vector) -> float:
    """|a − b|; inf or NaN if an element is not finite, or beyond about 1e19."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.sqrt(sum(squares(a[piece] - b[piece]) for piece in pieces(a.size)))
