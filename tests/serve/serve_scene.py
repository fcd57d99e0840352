"""Small models and what serves them, for the tests of this folder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from peerlm.cli.plan import current_plan
from peerlm.config import ModelSection, Plan
from peerlm.data.tokenizer import ByteTokenizer
from peerlm.model.model import LanguageModel
from peerlm.model.plan import fragments
from peerlm.model.weights import copy_out
from peerlm.serve.engine import Slots, TorchSampler, Whole
from peerlm.serve.route import Version
from peerlm.serve.scheduler import Scheduler
from peerlm.serve.service import Job, Service
from peerlm.serve.session import Sampling
from peerlm.store import snapshot
from peerlm.store.layout import Layout
from peerlm.store.snapshot import Contents, FragmentState
from peerlm.types import PeerId, RunId, WallTime

SMALL = {"dim": 32, "heads": 4, "kv_heads": 2, "hidden": 48, "context": 48}
KINDS = {
    "attention": ModelSection(blocks=("attention", "feedforward") * 2, **SMALL),
    "lstm": ModelSection(blocks=("recurrent", "feedforward"), cell="lstm", **SMALL),
    "gru": ModelSection(blocks=("recurrent",) * 2, cell="gru", tied=False, **SMALL),
    "hybrid": ModelSection(blocks=("recurrent", "attention", "feedforward"), **SMALL),
}


INIT = ("--set", "model.dim=16", "--set", "model.heads=2", "--set", "model.hidden=16")
"""Options of `peerlm init`: a run of a small model."""


def plan_of(kind: str) -> Plan:
    return replace(Plan(), model=KINDS[kind])


def model_of(plan: Plan, rng_seed: int = 1) -> LanguageModel:
    """Random, and far from uniform: weights are larger than initial ones."""
    model = LanguageModel(plan.model, plan.data.vocab)
    model.initialise(rng_seed)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data.mul_(3.0)
    return model.eval()


def fragment_values(plan: Plan, model: LanguageModel) -> list:
    values = []
    for spec in fragments(plan):
        values.append(np.empty(spec.size, np.float32))
        copy_out(model, spec, values[-1])
    return values


def put_snapshot(layout: Layout, tokens: int, value: float | None = None) -> None:
    """As a daemon writes it; all weights are `value`, or random."""
    signed, rng = current_plan(layout), np.random.default_rng(tokens)
    states = []
    for spec in fragments(signed.plan):
        phi = rng.normal(size=spec.size).astype(np.float32)
        if value is not None:
            phi[:] = value
        states.append(FragmentState(spec.id, 1, phi, np.zeros_like(phi), ()))
    contents = Contents(
        run_id=RunId(bytes(16)),
        plan_hash=bytes(32),
        plan_revision=1,
        tokens={(PeerId(bytes(16)), 1): tokens},
        own_tokens=tokens,
        epoch=1,
        wall=WallTime(1.0),
    )
    snapshot.write(layout, contents, fragments(signed.plan), states)


def version_of(slots: Slots, model: LanguageModel, name: str = "v1") -> Version:
    return Version(name, 0, Whole(slots, fragment_values(slots.plan, model)))


def service_of(
    plan: Plan,
    model: LanguageModel,
    *,
    slots: int = 8,
    queue: int = 64,
    chunk: int = 32,
    device: str = "cpu",
) -> Service:
    room = Slots(plan, slots, 1 << 30, device)
    scheduler = Scheduler(room.count, queue, chunk)
    return Service(scheduler, TorchSampler(), ByteTokenizer(), version_of(room, model))


def job_of(prompt: tuple[int, ...], tokens: int, rng_seed: int = 0, **sampling: float) -> Job:
    return Job((prompt,), (rng_seed,), Sampling(**{"temperature": 0.0, **sampling}), tokens)


def drained(service: Service) -> dict[Job, list[int]]:
    """Steps until nobody is left; the ids that each job got."""
    ids: dict[Job, list[int]] = {}
    while not service.is_idle:
        for told in service.step():
            assert told.error == ""
            ids.setdefault(told.job, []).extend(p.token for p in told.piece.picks)
    return ids
