"""A task small enough for a test: a model of some thousand parameters that learns to count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from peerlm.bench.task import Task
from peerlm.config import Plan, with_changes
from peerlm.data.shards import Corpus

SMALL = {
    "model.blocks": ("recurrent", "attention"),
    "model.dim": 16,
    "model.heads": 2,
    "model.kv_heads": 1,
    "model.context": 8,
    "data.vocab": 32,
    "train.batch": 2,
    "train.val_batches": 2,
    "train.warmup": 0.0,
    "train.rewarm_steps": 0,
    "mix.inner_steps": 4,
    "mix.bandwidth_share": 0.0,
}


def plan_of(**changes: Any) -> Plan:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return with_changes(Plan(), {**SMALL, **named}, "test")


def counting(tokens: int = 6_000, by: int = 1) -> Corpus:
    ids = (np.arange(tokens) * by % 32).astype(np.uint16)
    return Corpus([ids], vocab=32, val_fraction=0.1)


def task_of(plan: Plan, nodes: int, corpora: Sequence[Corpus] | None = None) -> Task:
    return Task(plan, corpora or [counting()], nodes)
