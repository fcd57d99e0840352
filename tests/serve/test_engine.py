"""Sessions advanced together write what each would alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from serve_scene import (
    KINDS,
    drained,
    fragment_values,
    job_of,
    model_of,
    plan_of,
    service_of,
    version_of,
)

from peerlm.errors import ConfigError
from peerlm.model.generate import choose, generate
from peerlm.serve.engine import Slots, TorchSampler, Whole, _groups, slot_bytes
from peerlm.serve.service import Told
from peerlm.serve.session import Sampling

WAYS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.9},
    {"temperature": 0.0},
    {"temperature": 1.3, "top_k": 20},
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def prompts(count: int, longest: int) -> list[tuple[int, ...]]:
    rng = random.Random(3)
    return [tuple(rng.randrange(256) for _ in range(rng.randint(1, longest))) for _ in range(count)]


def test_a_long_turn_pads_no_others() -> None:
    lengths = [1, 2048, 2, 1, 300, 2, 300, 400, 1]
    groups = _groups(lengths)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert [sorted(lengths[i] for i in group) for group in groups] == [
        [1, 1, 1],
        [2, 2, 300],
        [300, 400],
        [2048],
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_prompts_together_are_as_one_at_a_time(kind: str) -> None:
    """Mixed lengths, prompts read in chunks beside others that write, texts longer than the context, greedy ones and
    drawn ones in one batch."""
    plan = plan_of(kind)
    model = model_of(plan)
    service = service_of(plan, model, slots=7, chunk=24)
    jobs = [
        job_of(prompt, 5 + 3 * (i % 8), rng_seed=i, **WAYS[i % len(WAYS)])
        for i, prompt in enumerate(prompts(20, plan.model.context))
    ]
    for job in jobs:
        service.submit(job)
    found = drained(service)
    for i, job in enumerate(jobs):
        alone = generate(model, job.prompts[0], job.tokens_max, rng_seed=i, **WAYS[i % len(WAYS)])
        assert found[job] == list(alone), f"prompt {i}"


def test_a_slot_that_held_numbers_that_are_none_is_as_new_for_the_next() -> None:
    plan = plan_of("hybrid")
    model = model_of(plan)
    service = service_of(plan, model, slots=1)
    good = service.version
    spoilt = version_of(service.version.route._slots, model, "spoilt")
    spoilt.route.model.embedding.weight.data.fill_(float("nan"))
    service.version = spoilt
    service.submit(job_of((1, 2, 3), 4))
    (told,) = service.step()
    assert "not finite" in told.error
    assert service.is_idle
    service.version = good
    job = job_of((1, 2, 3), 12)
    service.submit(job)
    assert drained(service)[job] == list(generate(model, (1, 2, 3), 12, temperature=0.0))


def test_weights_that_are_not_finite_are_refused() -> None:
    plan = plan_of("gru")
    values = fragment_values(plan, model_of(plan))
    values[-1] = np.full_like(values[-1], np.nan)
    with pytest.raises(ConfigError, match="not finite"):
        Whole(Slots(plan, 1, 1 << 30), values)


def test_there_are_as_many_slots_as_fit_the_memory() -> None:
    plan = plan_of("hybrid")
    one = Slots(plan, 1, 1 << 30).bytes
    assert slot_bytes(plan) == one
    assert Slots(plan, 99, 10 * one + 1).count == 10
    assert Slots(plan, 3, 10 * one).count == 3
    with pytest.raises(ConfigError, match="--cache-mb"):
        Slots(plan, 3, one - 1)


def test_a_session_keeps_its_version_and_the_next_gets_the_newest() -> None:
    plan = plan_of("hybrid")
    old, new = model_of(plan, 1), model_of(plan, 2)
    service = service_of(plan, old)
    first, second = job_of((5, 6, 7), 20), job_of((5, 6, 7), 20)
    service.submit(first)
    ids: dict[object, list[int]] = {first: [], second: []}

    def note(news: list[Told]) -> None:
        for told in news:
            ids[told.job] += [pick.token for pick in told.piece.picks]

    for _ in range(5):
        note(service.step())
    service.version = version_of(service.version.route._slots, new, "v2")
    service.submit(second)
    note(service.step())
    assert [v.name for v in service.versions()] == ["v1", "v2"]
    while not service.is_idle:
        note(service.step())
    assert [v.name for v in service.versions()] == ["v2"]
    assert ids[first] == list(generate(old, (5, 6, 7), 20, temperature=0.0))
    assert ids[second] == list(generate(new, (5, 6, 7), 20, temperature=0.0))
    assert (first.version.name, second.version.name) == ("v1", "v2")


def test_a_route_that_breaks_ends_its_sessions_alone() -> None:
    plan = plan_of("gru")
    model = model_of(plan)
    service = service_of(plan, model)
    service.submit(job_of((1,), 50))
    service.step()

    class Broken(Whole):
        def advance(self, turns: Any) -> Any:
            raise RuntimeError("no memory")

    broken = Broken(service.version.route._slots, fragment_values(plan, model))
    service.version = type(service.version)("broken", 0, broken)
    service.submit(job_of((2,), 50))
    errors = sorted(told.error for told in service.step())
    assert errors == ["", "RuntimeError: no memory"]
    assert service.scheduler.active == 1


def test_what_is_cancelled_frees_its_slot_at_once() -> None:
    plan = plan_of("gru")
    service = service_of(plan, model_of(plan), slots=1)
    first, second = job_of((1,), 500), job_of((2,), 3)
    service.submit(first)
    service.submit(second)
    service.step()
    service.cancel(first)
    service.cancel(first)
    assert set(drained(service)) == {second}


def test_the_nucleus_is_what_has_the_probability_together() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(1)
    drawn = {choose(logits, 1.0, 0, generator, top_p=0.7) for _ in range(200)}
    assert drawn == {0, 1}
    assert {choose(logits, 1.0, 0, generator, top_p=0.0) for _ in range(50)} == {0}


def test_logprobs_are_those_of_the_model_whatever_the_temperature() -> None:
    logits = np.array([[0.5, 0.3, 0.2]], np.float32)
    sampler = TorchSampler()
    asked = [(Sampling(temperature=0.0, logprobs=2), sampler.generator(1))]
    (pick,) = sampler.draw(np.log(logits), asked)
    assert pick is not None
    assert pick.token == 0
    assert pick.logprob == pytest.approx(np.log(0.5), abs=1e-5)
    assert [token for token, _ in pick.top] == [0, 1]
