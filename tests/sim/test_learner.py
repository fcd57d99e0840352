"""Learners learn, the same from the same seed, and count what they promise to count."""

from __future__ import annotations

import numpy as np
import pytest

from peerlm.errors import ConfigError
from peerlm.mix.vector import Vector
from peerlm.sim.learner import ByteModel, Learner, Quadratic, Teacher
from peerlm.sim.perceptron import Perceptron

TEXT = b"the quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 60


def learners() -> list[Learner]:
    return [Quadratic((64, 32, 32)), Teacher(3), ByteModel(TEXT, 3, batch=16)]


def trained(learner: Learner, steps: int, seed: int = 1, at_once: int = 10) -> list[Vector]:
    theta = learner.initial(1)
    pupil = learner.pupil(0, np.random.default_rng(seed))
    for _ in range(steps // at_once):
        pupil.steps(theta, at_once)
    return theta


@pytest.mark.parametrize("learner", learners(), ids=lambda found: type(found).__name__)
def test_a_learner_learns_and_the_same_seed_ends_in_the_same_bits(learner: Learner) -> None:
    before = learner.initial(1)
    after, again, other = (trained(learner, 100, seed) for seed in (1, 1, 2))
    assert tuple(values.size for values in before) == learner.sizes
    assert learner.loss(after) < 0.9 * learner.loss(before)
    assert all(np.array_equal(a, b) for a, b in zip(after, again, strict=True))
    assert not np.array_equal(after[0], other[0])
    assert learner.loss(after) == learner.loss(again)


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    net, rng = Perceptron(symbols=5, context=2, width=3, hidden=4), np.random.default_rng(1)
    flat = net.initial(rng)
    contexts, nexts = rng.integers(0, 5, (7, 2)), rng.integers(0, 5, 7)
    gradient, unused = np.empty_like(flat), np.empty_like(flat)
    net.gradient(flat, contexts, nexts, gradient)
    for _ in range(20):
        way = rng.standard_normal(net.size).astype(np.float32)
        way *= np.float32(1e-3)
        ahead = net.gradient(flat + way, contexts, nexts, unused)
        behind = net.gradient(flat - way, contexts, nexts, unused)
        assert ahead - behind == pytest.approx(2 * float(way @ gradient), rel=0.05, abs=2e-5)


@pytest.mark.parametrize("fragments", [1, 2, 7])
def test_the_number_of_fragments_changes_nothing_but_where_the_vector_is_cut(
    fragments: int,
) -> None:
    whole, cut = ByteModel(TEXT, 1, batch=8), ByteModel(TEXT, fragments, batch=8)
    assert len(cut.sizes) == fragments
    assert max(cut.sizes) - min(cut.sizes) <= 1
    assert np.array_equal(np.concatenate(trained(cut, 20)), trained(whole, 20)[0])


def test_a_restarted_worker_has_forgotten_its_optimizer() -> None:
    learner = Teacher(2)
    theta = trained(learner, 50)
    warm, cold = [values.copy() for values in theta], [values.copy() for values in theta]
    pupil = learner.pupil(0, np.random.default_rng(5))
    pupil.steps([values.copy() for values in theta], 20)
    pupil.steps(warm, 1)
    learner.pupil(0, np.random.default_rng(6)).steps(cold, 1)
    # Adam's first step moves every element that has a gradient by the whole learning rate.
    assert np.abs(cold[0] - theta[0]).max() == pytest.approx(learner.rate, rel=0.01)
    assert np.abs(warm[0] - theta[0]).mean() < np.abs(cold[0] - theta[0]).mean()


def test_a_reset_fragment_is_forgotten_alone() -> None:
    def stepped(*, forgetting: bool) -> list[Vector]:
        learner = Teacher(2)
        theta = learner.initial(1)
        pupil = learner.pupil(0, np.random.default_rng(5))
        pupil.steps(theta, 50)
        if forgetting:
            pupil.forget(0)
        pupil.steps(theta, 1)
        return theta

    kept, forgot = stepped(forgetting=False), stepped(forgetting=True)
    assert not np.array_equal(kept[0], forgot[0])
    assert np.array_equal(kept[1], forgot[1])


def test_a_smaller_rate_moves_less() -> None:
    learner, start = Teacher(1), Teacher(1).initial(1)[0]
    moved = []
    for rate in (1.0, 0.1):
        theta = [start.copy()]
        learner.pupil(0, np.random.default_rng(1)).steps(theta, 1, rate)
        moved.append(float(np.abs(theta[0] - start).max()))
    assert moved[1] == pytest.approx(0.1 * moved[0], rel=1e-3)


def test_the_teachers_loss_is_exact_and_never_below_its_floor() -> None:
    learner = Teacher()
    theta = trained(learner, 400, at_once=100)
    assert 1.3 < learner.floor < 1.6
    assert learner.floor < learner.loss(theta) < learner.floor + 1.0
    learner.batch = 6400
    contexts, nexts = learner.draw(0, np.random.default_rng(1))
    logs = learner.log_probabilities(theta, contexts)
    drawn = -float(logs[np.arange(len(logs)), nexts].mean())
    assert drawn == pytest.approx(learner.loss(theta), abs=0.08), "what it draws is what it counts"


def test_a_node_reads_its_own_section_and_nobody_the_held_out_part() -> None:
    text = b"".join(bytes([letter]) * 1000 for letter in b"abcd") + b"z" * 211
    learner = ByteModel(text, 1, sections=4, batch=50)
    symbols = dict(enumerate(sorted(set(text))))
    for node, letter in enumerate(b"abcd" + b"abcd"):
        _, nexts = learner.draw(node, np.random.default_rng(node))
        read = [symbols[int(symbol)] for symbol in nexts]
        assert read.count(letter) >= 45
        assert ord("z") not in read


def test_an_own_share_of_half_leaves_half_to_the_whole_text() -> None:
    text = b"".join(bytes([letter]) * 2000 for letter in b"abcd") + b"d" * 500
    learner = ByteModel(text, 1, sections=4, own_share=0.5, batch=4000)
    _, nexts = learner.draw(0, np.random.default_rng(1))
    assert float(np.mean(nexts == 0)) == pytest.approx(0.5 + 0.5 / 4, abs=0.03)


@pytest.mark.parametrize("make", [lambda: ByteModel(b"ab" * 40, 1, sections=9), lambda: Teacher(0)])
def test_what_cannot_be_learnt_or_cut_is_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]
