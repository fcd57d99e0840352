"""What a CUDA device answers is what a processor answers."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from ring_scene import Host, Ring, ring_service, staged
from serve_scene import KINDS, drained, fragment_values, job_of, model_of, plan_of, service_of

from peerlm.model.generate import generate
from peerlm.model.model import LanguageModel
from peerlm.model.plan import fragments
from peerlm.model.stages import held_fragments, stages
from peerlm.serve.engine import Held, Slots, Whole
from peerlm.serve.route import Turn
from peerlm.serve.service import Service

PROMPTS = [
    tuple(random.Random(i).randrange(256) for _ in range(1 + (7 * i) % 48)) for i in range(20)
]


def assert_texts_are_a_processors(service: Service, model: LanguageModel) -> None:
    """Written together by the service, they are those of the model on the CPU, one by one."""
    jobs = [job_of(prompt, 5 + 3 * (i % 8)) for i, prompt in enumerate(PROMPTS)]
    for job in jobs:
        service.submit(job)
    found = drained(service)
    for i, job in enumerate(jobs):
        alone = generate(model, job.prompts[0], job.tokens_max, temperature=0.0)
        assert found[job] == list(alone), f"prompt {i}"


@pytest.mark.parametrize("kind", KINDS)
def test_texts_written_together_are_a_processors_one_by_one(kind: str) -> None:
    plan = plan_of(kind)
    model = model_of(plan)
    service = service_of(plan, model, slots=7, chunk=24, device="cuda")
    assert_texts_are_a_processors(service, model)


def test_parts_on_the_device_are_the_whole_on_the_processor() -> None:
    plan = plan_of("hybrid")
    plan = replace(plan, model=replace(plan.model, stages=3))
    values = fragment_values(plan, model_of(plan))
    by_id = {spec.id: each for spec, each in zip(fragments(plan), values, strict=True)}
    turns = [Turn(slot, 0, prompt) for slot, prompt in enumerate(PROMPTS[:4])]
    expected = Whole(Slots(plan, 4, 1 << 30), values).advance(turns)
    stream = None
    for stage in range(3):
        held = range(stage, stage + 1)
        mine = [by_id[spec.id] for spec in held_fragments(plan, held)]
        slots = Slots(plan, 4, 1 << 30, "cuda", stages(plan)[stage].blocks)
        part = Held(slots, held, mine)
        stream = part.advance(turns, stream, stage, stage)
        if stage == 0:
            ends = part
    last = np.cumsum([len(turn.tokens) for turn in turns]) - 1
    assert np.allclose(ends.logits(stream[last]), expected, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_through_stage_servers_on_the_device_are_a_processors(kind: str) -> None:
    plan = staged(plan_of(kind), 2)
    model = model_of(plan)
    hosts = [Host(plan, model, f"h{stage}", stage, stage, device="cuda") for stage in range(2)]
    assert {host.server._slots.device.type for host in hosts} == {"cuda"}
    service = ring_service(Ring(plan, hosts), slots=7, chunk=24)
    assert_texts_are_a_processors(service, model)
