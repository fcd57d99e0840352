"""What a worker can do with each kind of module, tried when it begins."""

from __future__ import annotations

import math
import time

import pytest
import torch

from peerlm.config import Plan, preset, with_changes
from peerlm.model.stages import KINDS, kind_flops, stages
from peerlm.train import paces

CPU = torch.device("cpu")


def test_each_kind_that_the_plan_has_is_tried_and_that_is_soon_over() -> None:
    plan = with_changes(Plan(), {"model.blocks": ("attention", "feedforward", "recurrent")}, "test")
    began = time.perf_counter()
    found = paces.tried(plan, CPU)
    assert time.perf_counter() - began < 10
    assert len(found) == len(KINDS)
    assert all(pace > 1 and math.isfinite(pace) for pace in found)
    alone = paces.tried(with_changes(plan, {"model.blocks": ("feedforward",)}, "test"), CPU)
    known = dict(zip(KINDS, alone, strict=True))
    assert [kind for kind in KINDS if not known[kind]] == ["recurrent", "attention"]


def test_a_device_without_room_for_the_trial_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> float:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(paces, "_tried", full)
    assert paces.tried(Plan(), CPU) == ()


def test_flops_of_kinds_are_those_of_stages() -> None:
    plan = with_changes(preset("gpt-124m"), {"model.stages": 3}, "test")
    cut, flops = stages(plan), kind_flops(plan)
    for stage in cut:
        assert stage.flops == sum(n * each for n, each in zip(stage.kinds, flops, strict=True))
    assert sum(sum(stage.kinds) for stage in cut) == len(plan.model.blocks) + 2
