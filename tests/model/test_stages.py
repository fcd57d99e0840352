"""Stages: every module in exactly one, both ends in the first, and no cut that is plainly better."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlm import config
from peerlm.errors import ConfigError
from peerlm.model.plan import fragments, modules
from peerlm.model.stages import held_stages, stages

KINDS = st.lists(st.sampled_from(("attention", "feedforward", "recurrent")), min_size=1, max_size=7)


def plan_of(blocks: tuple[str, ...], count: int, vocab: int = 32) -> config.Plan:
    model = config.ModelSection(blocks=blocks, dim=16, hidden=40, context=8, stages=count)
    return config.Plan(
        model=model, data=config.DataSection(vocab=vocab), mix=config.MixSection(fragment_max=600)
    )


@given(kinds=KINDS, data=st.data(), vocab=st.sampled_from((2, 300, 3000)))
def test_the_largest_stage_is_as_small_as_can_be(
    kinds: list[str], data: st.DataObject, vocab: int
) -> None:
    count = data.draw(st.integers(1, len(kinds)))
    plan = plan_of(tuple(kinds), count, vocab)
    cut = stages(plan)
    names = modules(plan.model)
    assert sorted(name for stage in cut for name in stage.modules) == sorted(names)
    assert [index for stage in cut for index in stage.blocks] == list(range(len(kinds)))
    assert {names[0], names[-1]} <= set(cut[0].modules)
    assert all(stage.blocks for stage in cut[1:])
    assert sorted(f for stage in cut for f in stage.fragments) == [s.id for s in fragments(plan)]
    one = {stage.modules: stage.parameters for stage in cut}
    sizes = {name: _size(plan, name) for name in names}
    best = min(
        max(
            sum(sizes[names[1 + i]] for i in range(start, stop)) + (0 if stage else ends)
            for stage, (start, stop) in enumerate(pairwise((0, *inside, len(kinds))))
        )
        for ends in (sizes[names[0]] + sizes[names[-1]],)
        for inside in _insides(len(kinds), count)
    )
    assert max(one.values()) == best


def _insides(blocks: int, count: int) -> list[tuple[int, ...]]:
    """Where stages behind the first may start: the first may hold no block at all."""
    return list(combinations(range(blocks), count - 1))


def _size(plan: config.Plan, module: str) -> int:
    return sum(spec.size for spec in fragments(plan) if spec.module == module)


def test_a_wish_names_stages() -> None:
    plan = plan_of(("attention",) * 4, 3)
    assert held_stages("all", plan) == range(3)
    assert held_stages("1", plan) == range(1, 2)
    assert held_stages("1-2", plan) == range(1, 3)
    for wrong in ("", "3", "2-1", "-1", "1-", "one", "0-3", "9" * 5000):
        with pytest.raises(ConfigError, match=r"host\.stages"):
            held_stages(wrong, plan)


def test_a_plan_has_no_more_stages_than_blocks() -> None:
    with pytest.raises(ConfigError, match=r"model\.stages = 3"):
        config.from_dict(
            config.Plan, {"model": {"stages": 3, "blocks": ["attention", "feedforward"]}}, "plan"
        )
