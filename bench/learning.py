"""What a swarm learns: a node alone, four nodes that mix, and four that average every gradient.

Equal tokens per node: the one alone trains on N, the swarm on 4 N in all, and torch's DDP on 4 N in all
in steps of four batches. Same plan, initial weights, optimizer and schedule; each model that was
written is evaluated by the same code on the same held-out text. Bytes of the swarm's nodes are what
they count; those of DDP follow from ring all-reduce: 2 (n − 1) / n × 4 bytes × parameters × steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import report
from bench.report import Missed, Row, say
from peerlm.bench.nodes import Swarm, running
from peerlm.cli.demo_proof import relative_spread, validation_loss
from peerlm.cli.plan import current_plan
from peerlm.cli.settings_text import parse_changes
from peerlm.model.plan import parameter_count
from peerlm.store.layout import Layout

NODES = 4
FP32_BYTES = 4
SPREAD_MAX = 1e-3
PATIENCE_S = 3600.0


@dataclass(frozen=True, slots=True)
class Learnt:
    """What came of one way to train. `mb_sent`: per node; `seconds`: of training, settling included."""

    loss: float
    tokens: list[int]
    mb_sent: float
    seconds: float
    spread: float = 0.0


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    plan = {
        "run.rng_seed": args.seed,
        "train.val_every_s": 100_000,
        **parse_changes(args.set, "--set"),
    }
    alone = by_swarm(folder / "alone", 1, plan, args.tokens)
    say(f"a node alone: {alone.loss:.4f}")
    swarm = by_swarm(folder / "swarm", NODES, plan, NODES * args.tokens)
    say(f"{NODES} nodes: {swarm.loss:.4f}")
    ddp = by_ddp(folder / "swarm" / "node-1", folder / "ddp", args.tokens)
    say(f"DDP of {NODES}: {ddp.loss:.4f}")
    least, most = (f"{bound(swarm.tokens):,}" for bound in (min, max))
    return [
        Row("node alone: tokens", sum(alone.tokens)),
        Row("node alone: validation loss", alone.loss, "nats"),
        Row("node alone: training took", alone.seconds, "s"),
        Row(f"{NODES} nodes: tokens in all", sum(swarm.tokens)),
        Row(f"{NODES} nodes: tokens of a node", f"{least} to {most}"),
        Row(f"{NODES} nodes: validation loss", swarm.loss, "nats", below=alone.loss),
        Row(f"{NODES} nodes: spread of the written models", swarm.spread, below=SPREAD_MAX),
        Row(f"{NODES} nodes: sent per node, measured", swarm.mb_sent, "MB"),
        Row(f"{NODES} nodes: training took", swarm.seconds, "s"),
        Row(f"DDP of {NODES}: tokens in all", sum(ddp.tokens)),
        Row(f"DDP of {NODES}: validation loss", ddp.loss, "nats"),
        Row(f"DDP of {NODES}: sent per node, computed", ddp.mb_sent, "MB"),
        Row(f"DDP of {NODES}: training took", ddp.seconds, "s"),
    ]


def by_swarm(folder: Path, size: int, plan: Mapping[str, object], tokens: int) -> Learnt:
    """Train `size` nodes on `tokens` in all, and take the model that they write."""
    with running(Swarm(folder, size, {**plan, "run.token_budget": tokens})) as swarm:
        swarm.start()
        seconds = swarm.wait("every node is done", swarm.all_done, PATIENCE_S)
        return Learnt(
            loss=validation_loss(swarm.models()[0], swarm.nodes[0].layout),
            tokens=[status["tokens"] for status in swarm.statuses()],
            mb_sent=statistics.mean(node.bytes_sent for node in swarm.nodes) / 1e6,
            seconds=seconds,
            spread=relative_spread(swarm.models()),
        )


def by_ddp(state: Path, model_dir: Path, tokens: int) -> Learnt:
    """Train a DDP group; `state` is the folder of a node of the same plan."""
    layout = Layout(state)
    plan = current_plan(layout).plan
    per_step = plan.train.batch * plan.model.context
    steps = tokens // per_step
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "bench.ddp", str(rank), str(NODES)),
                *(str(state), str(model_dir), str(steps)),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        )
        for rank in range(NODES)
    ]
    try:
        until = time.monotonic() + PATIENCE_S
        said = [p.communicate(timeout=until - time.monotonic())[0] for p in processes]
    except subprocess.TimeoutExpired:
        raise Missed(f"DDP was not done within {PATIENCE_S:g} s") from None
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(process.returncode for process in processes):
        raise Missed("a process of DDP has failed; what it said is above")
    parameters = parameter_count(plan.model, plan.data.vocab)
    return Learnt(
        loss=validation_loss(model_dir, layout),
        tokens=[steps * per_step] * NODES,
        mb_sent=2 * (NODES - 1) / NODES * FP32_BYTES * parameters * steps / 1e6,
        seconds=max(json.loads(line)["seconds"] for line in said),
    )


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--tokens", type=int, default=400_000, help="per node [400000]")
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the plan, for all",
    )
    return report.perform("learning", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
