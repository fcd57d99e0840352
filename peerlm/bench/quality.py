"""What ways to train together learn from equal tokens, what they send for it, and how long it takes.

A *trial* is one method, one set of settings and one seed, from the same initial weights and text. The
methods of lockstep.py are what others do. `outer_mix`, `noloco` and `adpsgd` are peerlm's: whole nodes in the
simulator, with their exchanges, codecs, clocks, lines and settling, that train the plan's own model. All of
a trial's nodes share one process, which changes nothing of what they learn: seconds are those that the given
speed and line would take, not those of this machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from peerlm.bench.lockstep import METHODS as LOCKSTEP
from peerlm.bench.lockstep import Lockstep, Weights
from peerlm.bench.rows import Missed, Row
from peerlm.bench.task import Task
from peerlm.config import Plan, with_changes
from peerlm.data.shards import Corpus
from peerlm.sim.network import read_wire
from peerlm.sim.training import train as train_swarm
from peerlm.train import schedule
from peerlm.train.device import use_threads

SWARM = {
    "outer_mix": {"mix.algorithm": "outer_mix"},
    "noloco": {"mix.algorithm": "noloco"},
    "adpsgd": {"mix.algorithm": "adpsgd"},
}
"""Methods that whole nodes play, and what makes a plan theirs."""

METHODS = (*LOCKSTEP, *SWARM)

MOMENTUM = {"diloco": 0.5, "gasloc": 0.5, "noloco": 0.5}
"""α of methods that are nothing without it, where neither plan nor trial says one."""

LOOKS = 5
"""At the loss on the way."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all trials share. `link` as `--link` takes it; `speeds`: tokens a second of each node, in turn;
    `shards`: of each corpus, which is one for all or one for each node in turn; `device` as `train.device`
    in node.toml."""

    plan: Plan
    shards: tuple[tuple[str, ...], ...]
    nodes: int
    tokens: int
    link: str
    speeds: tuple[float, ...]
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Trial:
    """`lr` multiplies the plan's rates; `changes` are made to the plan."""

    method: str
    lr: float
    changes: tuple[tuple[str, Any], ...]
    seed: int


def plan_of(setting: Setting, trial: Trial) -> Plan:
    """The plan that a trial trains by. Raises `ConfigError`."""
    plan = with_changes(setting.plan, dict(trial.changes), "--vary")
    changes: dict[str, Any] = {
        "run.rng_seed": trial.seed,
        "run.token_budget": setting.tokens,
        "train.lr": plan.train.lr * trial.lr,
        "train.adamw_lr": plan.train.adamw_lr * trial.lr,
        **SWARM.get(trial.method, {}),
    }
    if not plan.mix.outer_momentum and "mix.outer_momentum" not in dict(trial.changes):
        changes["mix.outer_momentum"] = MOMENTUM.get(trial.method, 0.0)
    return with_changes(plan, changes, "--lr")


def live(setting: Setting, trial: Trial) -> dict[str, Any]:
    """Train once, on one thread; what came of it as plain values."""
    use_threads(1)
    plan = plan_of(setting, trial)
    corpora = [
        Corpus.open([Path(p) for p in paths], plan.data.vocab, plan.data.val_fraction)
        for paths in setting.shards
    ]
    if trial.method in SWARM:
        task = Task(plan, corpora, setting.nodes, setting.device)
        return _live_as_swarm(setting, plan, task, trial.seed)
    return _live_in_lockstep(setting, plan, corpora, trial.method)


def _live_in_lockstep(
    setting: Setting, plan: Plan, corpora: Sequence[Corpus], method: str
) -> dict[str, Any]:
    nodes = 1 if method in ("solo", "alone") else setting.nodes
    budget = setting.tokens // setting.nodes if method == "alone" else setting.tokens
    task = Task(plan, corpora, nodes, setting.device)
    swarm = LOCKSTEP[method](task, read_wire(setting.link))
    steps = max(1, round(budget / swarm.tokens_per_step))
    looks = {max(1, round(steps * look / LOOKS)) for look in range(1, LOOKS)}
    curve = []
    for step in range(steps):
        rate = schedule.rate(step, steps, plan.train.warmup, plan.train.final_lr)
        swarm.step(rate * schedule.rewarm(step, plan.train.rewarm_steps))
        if step + 1 in looks:
            curve.append(((step + 1) * swarm.tokens_per_step, _merged_loss(swarm)[0]))
    swarm.finish()
    tokens, (loss, spread) = steps * swarm.tokens_per_step, _merged_loss(swarm)
    each = swarm.task.losses(_merged(swarm)[0])
    speed = min(setting.speeds[node % len(setting.speeds)] for node in range(nodes))
    seconds = steps * swarm.task.tokens_per_step / speed + swarm.waited_s
    return _found(tokens, loss, each, spread, swarm.sent, seconds, [*curve, (tokens, loss)])


def _merged_loss(swarm: Lockstep) -> tuple[float, float]:
    """Of the mean of all models, and their spread."""
    mean, spread = _merged(swarm)
    return swarm.task.loss(mean), spread


def _merged(swarm: Lockstep) -> tuple[Weights, float]:
    """The mean of all models, and how far the farthest of them is from it, relatively."""
    models = swarm.models()
    parts = zip(*models, strict=True)
    mean = [np.asarray(np.mean(part, axis=0, dtype=np.float64), np.float32) for part in parts]
    centre = np.concatenate(mean)
    away = max(float(np.linalg.norm(np.concatenate(model) - centre)) for model in models)
    return mean, away / max(float(np.linalg.norm(centre)), 1e-12)


def _live_as_swarm(setting: Setting, plan: Plan, task: Task, seed: int) -> dict[str, Any]:
    """Raises `Missed`: the nodes did not come to an end."""
    trained = train_swarm(
        plan,
        setting.nodes,
        task,
        task.sizes,
        setting.speeds,
        read_wire(setting.link),
        (),
        seed,
        points=LOOKS,
        each=False,
        tick_steps=1,
    )
    if not trained.ended or trained.model is None:
        raise Missed(
            f"the swarm was not done after {trained.seconds:,.0f} virtual s on {setting.link}"
        )
    last = trained.points[-1]
    sent = (sum(trained.bulk_bytes.values()) + sum(trained.control_bytes.values())) / setting.nodes
    loss, each = fmean(trained.model_losses), task.losses(trained.model)
    curve = [(p.tokens, p.loss_mean) for p in trained.points if p.loss_mean is not None]
    found = _found(last.tokens, loss, each, last.spread or 0.0, sent, trained.seconds, curve)
    done, busy = trained.exchanges.get("ok", 0), trained.exchanges.get("busy", 0)
    return found | {"exchanges": done, "busy": busy}


def _found(
    tokens: int,
    loss: float,
    each: Sequence[float],
    spread: float,
    sent: float,
    seconds: float,
    curve: list[Any],
) -> dict[str, Any]:
    """`each`: the loss on each corpus."""
    return {
        "tokens": tokens,
        "val_loss": loss,
        "val_losses": list(each),
        "spread": spread,
        "bytes_per_node": sent,
        "seconds": seconds,
        "curve": [list(point) for point in curve],
    }


# ------------------------------------------------------------------------------------------ rows


def rows_of(done: Iterable[tuple[Trial, Mapping[str, Any]]]) -> list[Row]:
    """A row for each method, rate and change, over all its seeds, in the order in which they come.

    `best` marks each method's rate of least loss among equal changes; `vs_ddp` is the loss ÷ that
    of the best `ddp` with equal changes, or of the best of all `ddp`, − 1; `fewer_bytes` how many times less it sends.
    """
    grouped: dict[tuple[str, float, tuple[tuple[str, Any], ...]], list[Mapping[str, Any]]] = {}
    for trial, found in done:
        grouped.setdefault((trial.method, trial.lr, trial.changes), []).append(found)
    rows = [_row(*key, found) for key, found in grouped.items()]
    for row in rows:
        same = [r for r in rows if (r["method"], r["changes"]) == (row["method"], row["changes"])]
        row["best"] = row is min(same, key=_loss)
    for row in rows:
        _compare(row, [r for r in rows if r["method"] == "ddp"])
    return rows


def _row(
    method: str, lr: float, changes: tuple[tuple[str, Any], ...], found: Sequence[Mapping[str, Any]]
) -> Row:
    losses = [one["val_loss"] for one in found]
    means = {
        key: fmean(one[key] for one in found) for key in ("tokens", "bytes_per_node", "seconds")
    }
    return {
        "method": method,
        "lr": lr,
        "changes": dict(changes),
        "seeds": len(found),
        "val_loss": fmean(losses),
        "val_loss_min": min(losses),
        "val_loss_max": max(losses),
        "val_losses": [
            fmean(of_one) for of_one in zip(*(one["val_losses"] for one in found), strict=True)
        ],
        "spread": max(one["spread"] for one in found),
        **means,
        "curve": found[0]["curve"],
    }


def _loss(row: Row) -> float:
    """To find the least: one that is no number is more than any."""
    loss = float(row["val_loss"])
    return math.inf if math.isnan(loss) else loss


def _compare(row: Row, ddp: Sequence[Row]) -> None:
    equal = [r for r in ddp if r["changes"] == row["changes"]] or ddp
    best = min(equal, key=_loss, default=None)
    known = best is not None and math.isfinite(_loss(best) + _loss(row))
    row["vs_ddp"] = row["val_loss"] / best["val_loss"] - 1 if best is not None and known else None
    sent = row["bytes_per_node"]
    row["fewer_bytes"] = best["bytes_per_node"] / sent if best is not None and sent else None
