"""All nodes killed at once with SIGKILL in mid-training, then all started again with `peerlm up`.

What the swarm had trained on before, what the newest snapshots hold, and what it goes on from. At most
what was trained in one snapshot interval may be lost. The count before is the last that any node told,
a moment before the signal.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.report import Row, say
from peerlm.bench.nodes import Swarm, running
from peerlm.store import snapshot

NODES = 3
STEPS_ON = 3
"""Inner steps of every node that count as going on."""

REPORT_S = 2.0
"""Between a worker's step and the last node's hearing of it; snapshots are that much behind too."""

PLAN = {"run.token_budget": 1_000_000_000, "train.val_every_s": 10}


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    local = {"train.pace_tokens_s": args.pace, "limits.snapshot_every_s": args.snapshot_every}
    with running(Swarm(folder, NODES, PLAN, local)) as swarm:
        swarm.start()
        say(f"{NODES} nodes train")
        began = time.monotonic()
        swarm.wait(
            "the swarm trains long enough",
            lambda: time.monotonic() - began > 60 * args.minutes and swarm.tokens > 0,
            limit_s=60 * args.minutes + 120,
        )
        history = watched(swarm, 1.3 * args.snapshot_every + REPORT_S)
        for node in swarm.nodes:
            node.kill()
        killed_at, before = history[-1]
        say(f"all killed at {before:,} tokens")
        kept = max(kept_tokens(swarm))
        for node in swarm.nodes:
            node.start("up")
        back_s = swarm.wait("all nodes answer", lambda: len(swarm.statuses()) == NODES)
        after = swarm.tokens
        goal = before + NODES * STEPS_ON * 1024
        on_s = swarm.wait("training goes on", lambda: swarm.tokens > goal) + back_s
        mixes = sum(bool(s["participating"]) for s in swarm.statuses())
        tracebacks, steps_back = swarm.tracebacks(), len(swarm.steps_back)
    cut = killed_at - args.snapshot_every - REPORT_S
    interval = before - max(tokens for at, tokens in history if at <= cut)
    return [
        Row("tokens before", before),
        Row("tokens in the newest snapshot", kept),
        Row("tokens after the restart, first answers", after),
        Row("trained in one snapshot interval", interval, "tokens"),
        Row("lost", before - after, "tokens", at_most=interval),
        Row("restart to training beyond what was before", on_s, "s"),
        Row("nodes that mix by then", mixes, at_least=NODES),
        Row("counts that went back within a node's life", steps_back, at_most=0),
        Row("tracebacks in all logs", tracebacks, at_most=0),
    ]


def watched(swarm: Swarm, seconds: float) -> list[tuple[float, int]]:
    """(time, swarm tokens) at every look for so long."""
    seen: list[tuple[float, int]] = []

    def is_over() -> bool:
        seen.append((time.monotonic(), swarm.tokens))
        return seen[-1][0] - seen[0][0] >= seconds

    swarm.wait("a snapshot interval passes", is_over, limit_s=seconds + 60, poll_s=0.1)
    return seen


def kept_tokens(swarm: Swarm) -> list[int]:
    """The swarm's tokens in each node's newest snapshot."""
    found = [snapshot.load(node.layout).snapshot for node in swarm.nodes]
    return [s.manifest.contents.swarm_tokens for s in found if s is not None]


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--minutes", type=float, default=1.0, help="of training before [1]")
    flags.add_argument("--snapshot-every", type=float, default=30.0, metavar="S", help="[30]")
    flags.add_argument("--pace", type=float, default=1500.0, help="tokens/s of a node [1500]")
    return report.perform("all_killed", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
