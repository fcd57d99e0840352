"""A run so small that a worker takes hundreds of inner steps a second of it."""

from __future__ import annotations

from pathlib import Path

from peerlm.config import NodeSettings, Plan, preset, with_changes
from peerlm.data.shards import prepare
from peerlm.data.tokenizer import ByteTokenizer
from peerlm.model.plan import fragments
from peerlm.types import PeerId

BUDGET = 1_000_000
PLAN = with_changes(
    preset("tiny"),
    {
        "run.token_budget": BUDGET,
        "model.blocks": ["attention", "feedforward"],
        "model.dim": 32,
        "model.heads": 2,
        "model.kv_heads": 1,
        "model.hidden": 64,
        "model.context": 32,
        "train.batch": 4,
        "train.warmup": 0.0,
        "train.final_lr": 0.0,  # at the budget steps go on, but move nothing
        "train.rewarm_steps": 0,
        "train.val_batches": 2,
        "mix.inner_steps": 4,
        "mix.fragment_max": 4000,
    },
    "tiny_run",
)
FRAGMENTS = fragments(PLAN)
ME = PeerId(b"m" * 16)


def settings(**changes: object) -> NodeSettings:
    return with_changes(NodeSettings(), {"train.device": "cpu", **changes}, "tiny_run")


def plan(**changes: object) -> Plan:
    return with_changes(PLAN, changes, "tiny_run")


def shards(directory: Path) -> list[Path]:
    text = directory / "plays.txt"
    text.write_text("To be, or not to be, that is the question.\n" * 1000)
    return [shard.path for shard in prepare(str(text), ByteTokenizer(), directory / "shards")]
