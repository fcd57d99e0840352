"""Thirty-two numbers say how far apart two vectors are, about, and the same on every machine."""

import math

import numpy as np
import pytest

from peerlm.mix.sketch import SKETCH_SIZE, distance, sketch
from peerlm.mix.vector import PIECE


def normal(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def test_the_squared_norm_is_unbiased():
    values, seeds = normal(3000, 0), 400
    estimates = [np.sum(sketch(values, seed, 0) ** 2) / np.sum(values**2) for seed in range(seeds)]
    standard_error = math.sqrt(2 / SKETCH_SIZE / seeds)
    assert abs(np.mean(estimates) - 1) < 3 * standard_error
    assert np.std(estimates) < 1.15 * math.sqrt(2 / SKETCH_SIZE)


def test_structure_in_the_vector_does_not_hurt():
    """All the weight in every 32nd element: sums chosen by position alone would see one number."""
    values = np.zeros(64_000, np.float32)
    values[::32] = 1
    estimates = [np.sum(sketch(values, seed, 0) ** 2) / 2000 for seed in range(100)]
    assert np.std(estimates) < 0.35


@pytest.mark.parametrize("relative", [0.01, 0.1, 0.5])
def test_distance_is_about_right(relative):
    a = normal(20_000, 1)
    b = a + relative * normal(20_000, 2)
    true = np.linalg.norm(a - b) / max(np.linalg.norm(a), np.linalg.norm(b))
    estimates = [distance(sketch(a, seed, 0), sketch(b, seed, 0)) for seed in range(30)]
    assert np.mean(estimates) == pytest.approx(true, rel=0.15)
    assert max(estimates) < 2 * true
    assert min(estimates) > true / 2


def test_sketches_are_linear_across_pieces():
    a, b = normal(PIECE + 77, 3), normal(PIECE + 77, 4)
    assert np.allclose(sketch(a + b, 5, 6), sketch(a, 5, 6) + sketch(b, 5, 6), atol=1e-2)


def test_the_same_numbers_on_every_machine():
    values = (np.arange(10, dtype=np.float32) - 4.5) ** 3
    assert sketch(values, rng_seed=1, fragment=2, k=4).tolist() == [15.5, -140.75, -75.375, 42.875]


def test_seed_and_fragment_matter():
    values = normal(1000, 0)
    assert not np.array_equal(sketch(values, 1, 0), sketch(values, 2, 0))
    assert not np.array_equal(sketch(values, 1, 0), sketch(values, 1, 1))


def test_what_cannot_be_compared_is_infinitely_far():
    values = normal(1000, 0)
    bad = values.copy()
    bad[5] = np.nan
    good = sketch(values, 1, 0)
    assert distance(good, sketch(bad, 1, 0)) == math.inf
    assert distance(good, good[:5]) == math.inf
    assert distance(good.tolist(), tuple(good.tolist())) == 0
    assert distance([0.0] * 4, [0.0] * 4) == 0


def test_a_sketch_beyond_all_numbers_is_infinitely_far():
    assert distance([1.0, 2.0], [1.7e308, -1.7e308]) == math.inf
    assert distance([-1.7e308], [1.7e308]) == math.inf
