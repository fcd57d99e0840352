"""θ and φ agree, whatever happens between a worker and its slow weights, in whatever order."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from peerlm.config import MixSection
from peerlm.mix import algorithms
from peerlm.mix.fragment import Kind, Outcome, SlowFragment

MIX = MixSection(outer_momentum=0.5)
OUTER_MIX = algorithms.get("outer_mix")


def vector(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def deliver(fragment: SlowFragment, theta: np.ndarray) -> np.ndarray:
    """The worker applies whatever waits; returns its new θ."""
    batch = fragment.take_batch()
    if batch is None:
        return theta
    fragment.applied(batch.seq, fragment.generation)
    return batch.values.copy() if batch.kind is Kind.RESET else theta + batch.values


def test_an_outer_step_moves_phi_and_corrects_theta_to_it():
    fragment = SlowFragment(vector(1, 2), momentum=vector(0.5, 0))
    theta = fragment.new_generation(1) + vector(1, -1)
    result = fragment.boundary(theta, 0, 1, OUTER_MIX, MIX)
    assert (result.outcome, result.version) == (Outcome.STEPPED, 1)
    assert result.progress_norm == pytest.approx(np.sqrt(2))
    # m = ½·(½, 0) + (1, −1); φ += Δ + ½m
    assert np.allclose(fragment.momentum, [1.25, -1])
    assert np.allclose(fragment.phi, [2.625, 0.5])
    assert result.phi_norm == pytest.approx(np.linalg.norm([2.625, 0.5]))
    assert np.allclose(deliver(fragment, theta), fragment.phi)


def test_progress_is_found_while_corrections_are_under_way():
    fragment = SlowFragment(vector(0, 0))
    theta = fragment.new_generation(1)
    fragment.add_flow(vector(1, 0), scale=2)
    on_its_way = fragment.take_batch()
    fragment.add_flow(vector(0, 5))
    assert fragment.take_batch() is None, "one batch at a time"
    theta += vector(0.25, 0)
    fragment.check(theta, 0, vector(0.25, 0))
    result = fragment.boundary(theta, 0, 1, algorithms.get("dgd"), MIX)
    assert result.progress_norm == pytest.approx(0.25)
    fragment.applied(on_its_way.seq, 1)
    theta = deliver(fragment, theta + on_its_way.values)
    assert np.allclose(theta, [2.25, 5])
    assert np.allclose(fragment.phi, [2.25, 5])


def test_a_snapshot_older_than_an_acknowledgement():
    """θ is copied, then a batch is applied and acknowledged before the pool gets to the boundary."""
    fragment = SlowFragment(vector(0))
    theta = fragment.new_generation(1) + vector(3)
    fragment.add_flow(vector(1))
    batch = fragment.take_batch()
    fragment.expect_boundary(0, 1)
    snapshot = theta.copy()
    theta = theta + batch.values
    fragment.applied(batch.seq, 1)
    fragment.add_flow(vector(0.5))
    assert fragment.take_batch() is None, "nothing new leaves while an old one is remembered"
    result = fragment.boundary(snapshot, 0, 1, algorithms.get("dgd"), MIX)
    assert (result.outcome, result.progress_norm) == (Outcome.STEPPED, 3)
    assert np.allclose(deliver(fragment, theta), fragment.phi)
    assert fragment.phi == 4.5


def test_an_unannounced_old_snapshot_is_void_and_loses_nothing():
    fragment = SlowFragment(vector(0))
    snapshot = fragment.new_generation(1) + vector(3)
    fragment.add_flow(vector(1))
    theta = deliver(fragment, snapshot)
    assert fragment.boundary(snapshot, 0, 1, OUTER_MIX, MIX).outcome is Outcome.VOID
    assert fragment.boundary(theta, 1, 1, OUTER_MIX, MIX).progress_norm == 3


def test_a_boundary_that_never_comes_does_not_stop_deliveries():
    fragment = SlowFragment(vector(0))
    fragment.new_generation(1)
    fragment.add_flow(vector(1))
    batch = fragment.take_batch()
    fragment.expect_boundary(0, 1)
    fragment.applied(batch.seq, 1)
    fragment.add_flow(vector(1))
    assert fragment.take_batch() is None
    fragment.expect_boundary(batch.seq, 1)
    assert fragment.take_batch() is not None


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_theta_that_is_lost_is_reset_to_phi(bad):
    fragment = SlowFragment(vector(1, 2), momentum=vector(3, 4))
    fragment.new_generation(1)
    fragment.add_flow(vector(0, 1))
    result = fragment.boundary(vector(bad, 0), 0, 1, OUTER_MIX, MIX)
    assert (result.outcome, result.finite, fragment.resets) == (Outcome.RESET, False, 1)
    assert fragment.version == 0
    assert np.array_equal(fragment.phi, [1, 3])
    assert np.array_equal(fragment.momentum, [3, 4])
    fragment.add_flow(vector(1, 0))
    assert fragment.boundary(vector(bad, 0), 0, 1, OUTER_MIX, MIX).outcome is Outcome.VOID
    batch = fragment.take_batch()
    assert batch.kind is Kind.RESET
    assert np.array_equal(batch.values, [2, 3]), "a reset carries the flows that came after it"
    fragment.add_flow(vector(1, 0))
    assert np.array_equal(batch.values, [2, 3]), "and no later ones"
    assert fragment.boundary(vector(bad, 0), 0, 1, OUTER_MIX, MIX).outcome is Outcome.VOID
    result = fragment.boundary(batch.values, batch.seq, 1, OUTER_MIX, MIX)
    assert (result.outcome, result.progress_norm) == (Outcome.STEPPED, 0)


def test_what_an_older_generation_says_is_void():
    fragment = SlowFragment(vector(0))
    old = fragment.new_generation(1) + vector(100)
    fragment.add_flow(vector(1))
    fragment.take_batch()
    theta = fragment.new_generation(2)
    assert theta == 1
    assert fragment.take_batch() is None
    fragment.add_flow(vector(1))
    fragment.applied(1, 1)
    fragment.expect_boundary(1, 1)
    assert fragment.boundary(old, 0, 1, OUTER_MIX, MIX).outcome is Outcome.VOID
    assert deliver(fragment, theta) == fragment.phi == 2


def test_installed_weights_reach_a_running_worker():
    fragment = SlowFragment(vector(1), momentum=vector(1))
    theta = fragment.new_generation(1) + vector(7)
    fragment.add_flow(vector(1))
    fragment.install(vector(10), version=42)
    assert deliver(fragment, theta) == 10
    state = fragment.state()
    fragment.add_flow(vector(1))
    assert (state.phi, state.momentum, state.version) == (10, 0, 42)


def test_without_a_worker_nothing_is_queued():
    fragment = SlowFragment(vector(1))
    fragment.add_flow(vector(1))
    assert fragment.take_batch() is None
    assert fragment.phi == 2


numbers = st.integers(-8, 8).map(float)


class WorkerAndFragment(RuleBasedStateMachine):
    """A worker that acts at will, messages that travel at will, a pool that is late at will."""

    def __init__(self):
        super().__init__()
        self.fragment = SlowFragment(np.zeros(3, np.float32))
        self.generation = 0
        self.restart()

    @rule()
    def restart(self):
        self.generation += 1
        self.theta = self.fragment.new_generation(self.generation)
        self.seq, self.progress = 0, np.zeros(3, np.float32)
        self.delivered = None  # a batch in shared memory, not applied yet
        self.acknowledgement = None
        self.snapshot = None  # (copy of θ, seq, progress in it)

    @rule(values=st.tuples(numbers, numbers, numbers))
    def inner_step(self, values):
        self.theta = self.theta + vector(*values)
        self.progress = self.progress + vector(*values)

    @rule()
    def theta_breaks(self):
        self.theta = self.theta * np.float32(np.nan)

    @rule(values=st.tuples(numbers, numbers, numbers), scale=st.sampled_from([1.0, -0.5]))
    def flow(self, values, scale):
        self.fragment.add_flow(vector(*values), scale)

    @rule()
    def send(self):
        batch = self.fragment.take_batch()
        if batch is not None:
            assert self.delivered is None, "one at a time"
            self.delivered = batch

    @precondition(lambda self: self.delivered is not None)
    @rule()
    def apply(self):
        batch, self.delivered = self.delivered, None
        if batch.kind is Kind.RESET:
            self.theta, self.progress = batch.values.copy(), np.zeros(3, np.float32)
        else:
            self.theta = self.theta + batch.values
        self.seq = self.acknowledgement = batch.seq

    @precondition(lambda self: self.acknowledgement is not None)
    @rule()
    def acknowledge(self):
        self.fragment.applied(self.acknowledgement, self.generation)
        self.acknowledgement = None

    @precondition(lambda self: self.snapshot is None)
    @rule()
    def take_snapshot(self):
        self.snapshot = self.theta.copy(), self.seq, self.progress.copy()
        self.acknowledgement = None  # the announcement carries it
        self.fragment.expect_boundary(self.seq, self.generation)

    @precondition(lambda self: self.snapshot is not None)
    @rule(name=st.sampled_from(["outer_mix", "dgd"]))
    def boundary(self, name):
        (snapshot, seq, progress), self.snapshot = self.snapshot, None
        result = self.fragment.boundary(
            snapshot, seq, self.generation, algorithms.get(name), MixSection()
        )
        if result.outcome is Outcome.STEPPED:
            assert result.progress_norm == pytest.approx(np.linalg.norm(progress), abs=1e-3)
            self.progress = self.progress - progress
        else:
            assert result.outcome is Outcome.VOID or not np.isfinite(snapshot).all()

    @rule()
    def restart_with_late_messages(self):
        """The dead worker's last words arrive after its successor has started."""
        snapshot, old = self.theta, self.generation
        self.restart()
        self.fragment.applied(99, old)
        self.fragment.expect_boundary(99, old)
        result = self.fragment.boundary(snapshot, 99, old, OUTER_MIX, MIX)
        assert result.outcome is Outcome.VOID

    @invariant()
    def holds(self):
        if np.isfinite(self.theta).all():
            self.fragment.check(self.theta, self.seq, self.progress)

    def teardown(self):
        """Everything is delivered: θ is φ, and what the worker added since."""
        for _ in range(6):
            if self.delivered is not None:
                self.apply()
            if self.acknowledgement is not None:
                self.acknowledge()
            if self.snapshot is not None:
                self.boundary("outer_mix")
            self.send()
        assert self.delivered is None
        if np.isfinite(self.theta).all():
            assert np.allclose(self.theta, self.fragment.phi + self.progress, rtol=1e-5, atol=1e-3)
        assert np.isfinite(self.fragment.phi).all()


WorkerAndFragment.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)
test_any_interleaving = WorkerAndFragment.TestCase
