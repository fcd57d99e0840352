"""Stages: every module in exactly one, both ends in the first, in balance; and what holding one takes."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlm.config import (
    DataSection,
    MixSection,
    ModelSection,
    Plan,
    from_dict,
    preset,
    with_changes,
)
from peerlm.errors import ConfigError
from peerlm.model.plan import fragments, modules, parameter_count
from peerlm.model.stages import (
    held_fragments,
    held_parameters,
    held_stages,
    memory_of,
    stage_count,
    stages,
)
from peerlm.types import Memory

KINDS = st.lists(st.sampled_from(("attention", "feedforward", "recurrent")), min_size=1, max_size=7)


def plan_of(blocks: tuple[str, ...], count: int, vocab: int = 32, *, tied: bool = True) -> Plan:
    model = ModelSection(blocks=blocks, dim=16, hidden=40, context=8, stages=count, tied=tied)
    return Plan(model=model, data=DataSection(vocab=vocab), mix=MixSection(fragment_max=600))


@given(kinds=KINDS, data=st.data(), vocab=st.sampled_from((2, 300, 3000)), tied=st.booleans())
def test_the_heaviest_stage_is_as_light_as_can_be(
    kinds: list[str], data: st.DataObject, vocab: int, tied: bool
) -> None:
    count = data.draw(st.integers(1, len(kinds)))
    plan = plan_of(tuple(kinds), count, vocab, tied=tied)
    cut, names = stages(plan), modules(plan.model)
    assert sorted(name for stage in cut for name in stage.modules) == sorted(names)
    assert [index for stage in cut for index in stage.blocks] == list(range(len(kinds)))
    assert {names[0], names[-1]} <= set(cut[0].modules)
    assert all(stage.blocks for stage in cut[1:])
    specs = fragments(plan)
    assert sorted(f for stage in cut for f in stage.fragments) == [s.id for s in specs]
    for stage in cut:
        assert sum(specs[f].size for f in stage.fragments) == stage.parameters
    single = stages(plan, len(kinds) + 1)
    parameters, flops = sum(s.parameters for s in single), sum(s.flops for s in single)

    def weight(held: int, cost: int) -> int:
        return max(held * flops, cost * parameters)

    best = min(
        max(
            weight(
                sum(s.parameters for s in single[start:stop]),
                sum(s.flops for s in single[start:stop]),
            )
            for start, stop in pairwise((0, *inside, len(single)))
        )
        for inside in combinations(range(1, len(single)), count - 1)
    )
    assert max(weight(stage.parameters, stage.flops) for stage in cut) == best


@given(kinds=KINDS, data=st.data())
def test_parts_make_up_the_whole(kinds: list[str], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(kinds)))
    plan = plan_of(tuple(kinds), count)
    cut, (whole,) = stages(plan), stages(plan, 1)
    assert memory_of(cut, range(count)) == whole.training
    assert whole.training.host == 8 * parameter_count(plan.model, 32)
    assert held_parameters(plan, range(count)) == whole.parameters
    assert held_fragments(plan, range(count)) == fragments(plan)


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
        from_dict(Plan, {"model": {"stages": 3, "blocks": ["attention", "feedforward"]}}, "plan")
    with pytest.raises(ConfigError, match="so 1 to 17"):
        stages(preset("small"), 18)


def test_ends_cost_memory_and_the_head_time() -> None:
    plan = with_changes(preset("gpt-124m"), {"data.vocab": 50_257}, "test")
    first, *others = stages(plan, 4)
    assert first.parameters > 50_257 * 768
    assert first.flops >= 2 * 50_257 * 768
    assert {stage.boundary_bytes for stage in (first, *others)} == {2 * 768}
    assert stages(plan, 1)[0].boundary_bytes == 0


@pytest.mark.parametrize(("optimizer", "numbers"), [("sgd", 2), ("adamw", 4)])
def test_training_takes_weights_gradient_and_state_there_and_slow_weights_here(
    optimizer: str, numbers: int
) -> None:
    plan = with_changes(preset("small"), {"train.optimizer": optimizer}, "test")
    (whole,) = stages(plan, 1)
    parameters = parameter_count(plan.model, plan.data.vocab)
    assert whole.training == Memory(4 * numbers * parameters, 8 * parameters)
    assert whole.inference == Memory(4 * parameters, 0)


def test_there_are_as_few_stages_as_the_smallest_memory_allows() -> None:
    plan = preset("gpt-124m")
    whole = stages(plan, 1)[0].training
    assert stage_count(plan, [whole]) == 1
    assert stage_count(plan, [Memory(None, whole.total())]) == 1
    half = Memory(whole.total(), whole.host // 2)
    count = stage_count(plan, [whole, half])
    assert count > 1
    assert all(half.holds(stage.training) for stage in stages(plan, count))
    assert not all(half.holds(stage.training) for stage in stages(plan, count - 1))


def test_a_memory_below_one_module_is_told() -> None:
    with pytest.raises(ConfigError, match=r"1,000 bytes free cannot take part: .* alone takes"):
        stage_count(preset("small"), [Memory(None, 1000)])
    with pytest.raises(ConfigError, match="needs one memory"):
        stage_count(preset("small"), [])
