"""Sessions advanced together write what each would alone."""

from __future__ import annotations

import random

import pytest
import torch
from serve_scene import KINDS, drained, job_of, model_of, plan_of, service_of

from peerlm.model.generate import generate


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=KINDS, ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def prompts(count: int, longest: int) -> list[tuple[int, ...]]:
    rng = random.Random(3)
    return [tuple(rng.randrange(256) for _ in range(rng.randint(1, longest))) for _ in range(count)]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 0.9},
        {"temperature": 1.3, "top_k": 20},
    ],
    ids=["greedy", "sampled", "top_k"],
)
def test_twenty_prompts_together_are_as_one_at_a_time(
    kind: str, sampling: dict[str, float]
) -> None:
    """Mixed lengths, prompts read in chunks beside others that write, and texts longer than the context."""
    plan = plan_of(kind)
    model = model_of(plan)
    service = service_of(plan, model, slots=7, chunk=24)
    jobs = [
        job_of(prompt, 20 + 3 * (i % 15), rng_seed=i, **sampling)
        for i, prompt in enumerate(prompts(20, plan.model.context))
    ]
    for job in jobs:
        service.submit(job)
    found = drained(service)
    for i, job in enumerate(jobs):
        alone = generate(model, job.prompts[0], job.tokens_max, rng_seed=i, **sampling)
        assert found[job] == list(alone), f"prompt {i}"
