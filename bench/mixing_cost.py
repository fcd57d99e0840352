"""What mixing costs a worker: its tokens/s with exchanges ÷ without, from one run of two nodes.

Exchanges are turned on and off again and again by a new revision of the plan, which does not touch the
workers; outer steps are taken in both cases. First both workers go as fast as they can, then at a
pace at which all processes together leave cores free, as on machines with an accelerator or with
room. Tokens are counted between the first and the last report within a window, so that the second
between two reports does not blur the rate.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.report import Row, say
from peerlm.bench.nodes import Swarm, running
from peerlm.bench.windows import Window, all_work, alternate
from peerlm.cli.demo_nodes import end_all
from peerlm.cli.settings_text import change_node_settings

NODES = 2
RATIO_MIN = 0.97
CPU_SHARE_MAX = 0.6
CPU_SHARE_AIMED = 0.5
PACE_SHARE_MAX = 0.9
"""Of the unpaced rate, where cores are plenty."""

PLAN = {
    "run.token_budget": 1_000_000_000,
    "mix.inner_steps": 20,
    "mix.bandwidth_share": 0,
    "train.warmup": 0,
    "train.val_every_s": 100_000,
}
"""Rates are at their peak, lest nodes be nearer each other than in training. Nothing is evaluated: an evaluation in
one window and none in the next would tell of itself."""


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    with running(Swarm(folder, NODES, PLAN)) as swarm:
        swarm.start()
        swarm.wait("both workers run", lambda: all_work(swarm))
        plain = alternate(swarm, args.pairs, args.seconds)
        fastest = statistics.mean(w.tokens_s for pair in plain for w in pair)
        share = statistics.mean(w.cpu_share for pair in plain for w in pair)
        pace = fastest * min(CPU_SHARE_AIMED / share, PACE_SHARE_MAX)
        say(f"{fastest:.0f} tokens/s a node take {share:.0%} of the cores; pace {pace:.0f}")
        set_pace(swarm, pace)
        paced = alternate(swarm, args.pairs, args.seconds)
    return [
        *rows("as fast as it goes", plain, None, None),
        Row("pace asked for", pace, "tokens/s"),
        *rows("paced", paced, RATIO_MIN, CPU_SHARE_MAX),
    ]


def rows(
    name: str,
    pairs: Sequence[tuple[Window, Window]],
    ratio_min: float | None,
    share_max: float | None,
) -> list[Row]:
    """`pairs`: windows (with exchanges, without) that followed each other."""
    on, off = ([pair[side].tokens_s for pair in pairs] for side in (0, 1))
    ratios = sorted(a / b for a, b in zip(on, off, strict=True))
    share = statistics.mean(w.cpu_share for pair in pairs for w in pair)
    return [
        Row(f"{name}: worker's rate, exchanges on", statistics.mean(on), "tokens/s"),
        Row(f"{name}: worker's rate, exchanges off", statistics.mean(off), "tokens/s"),
        Row(f"{name}: on ÷ off", sum(on) / sum(off), at_least=ratio_min),
        Row(f"{name}: on ÷ off of {len(pairs)} pairs", f"{ratios[0]:.3f} to {ratios[-1]:.3f}"),
        Row(f"{name}: share of the cores used", share, at_most=share_max),
    ]


def set_pace(swarm: Swarm, tokens_s: float) -> None:
    """Stop all nodes, change node.toml, start them again."""
    end_all(swarm.nodes)
    for node in swarm.nodes:
        change_node_settings(node.layout, {"train.pace_tokens_s": f"{tokens_s:.1f}"}, "pace")
        node.start("up")
    swarm.wait("both workers run again", lambda: all_work(swarm))


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--pairs", type=int, default=4, help="windows with and without [4]")
    flags.add_argument("--seconds", type=float, default=30.0, help="of a window [30]")
    return report.perform("mixing_cost", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
