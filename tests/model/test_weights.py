"""Fragments between numpy and the model: nothing lost, nothing else touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from peerlm import config
from peerlm.model.model import LanguageModel
from peerlm.model.plan import fragments
from peerlm.model.weights import add_in, copy_in, copy_out

PLAN = config.Plan(
    model=config.ModelSection(
        blocks=("recurrent", "attention", "feedforward"), dim=32, hidden=64, context=16
    ),
    mix=config.MixSection(fragment_max=1500),
)
SPECS = fragments(PLAN)


@pytest.fixture
def model() -> LanguageModel:
    language_model = LanguageModel(PLAN.model, PLAN.data.vocab)
    language_model.initialise(1)
    return language_model


def read(model: LanguageModel) -> list[np.ndarray]:
    values = [np.full(spec.size, np.nan, np.float32) for spec in SPECS]
    for spec, out in zip(SPECS, values, strict=True):
        copy_out(model, spec, out)
    return values


def test_all_fragments_carry_the_whole_model(model: LanguageModel) -> None:
    values = read(model)
    other = LanguageModel(PLAN.model, PLAN.data.vocab)
    for spec, mine in zip(SPECS, values, strict=True):
        copy_in(other, spec, mine)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("index", [0, len(SPECS) // 2, len(SPECS) - 1])
def test_a_correction_moves_its_fragment_and_nothing_else(model: LanguageModel, index: int) -> None:
    before = read(model)
    delta = np.linspace(-1, 1, SPECS[index].size, dtype=np.float32)
    add_in(model, SPECS[index], delta)
    for place, (old, new) in enumerate(zip(before, read(model), strict=True)):
        np.testing.assert_array_equal(new, old + delta if place == index else old)


def test_weights_read_only_in_memory_can_be_copied_in(model: LanguageModel) -> None:
    values = np.ones(SPECS[1].size, np.float32)
    values.flags.writeable = False
    copy_in(model, SPECS[1], values)
    np.testing.assert_array_equal(read(model)[1], values)


@pytest.mark.parametrize("bad", [np.zeros(7, np.float32), np.zeros(SPECS[0].size, np.float64)])
def test_a_wrong_shape_or_type_is_a_broken_promise(model: LanguageModel, bad: np.ndarray) -> None:
    with pytest.raises(AssertionError):
        add_in(model, SPECS[0], bad)
