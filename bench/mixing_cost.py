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
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench import report
from bench.nodes import Swarm, processes, running
from bench.report import Missed, Row, say
from peerlm.bench.child import cpu_seconds
from peerlm.cli.demo_nodes import end_all, peerlm
from peerlm.cli.settings_text import change_node_settings

NODES = 2
RATIO_MIN = 0.97
CPU_SHARE_MAX = 0.6
CPU_SHARE_AIMED = 0.5
PACE_SHARE_MAX = 0.9
"""Of the unpaced rate, where cores are plenty."""

SETTLE_S = 5.0
POLL_S = 0.1

PLAN = {
    "run.token_budget": 1_000_000_000,
    "mix.inner_steps": 20,
    "train.val_every_s": 100_000,
}
"""Nothing is evaluated meanwhile: an evaluation in one window and none in the next would tell of itself."""


@dataclass(frozen=True, slots=True)
class Window:
    """Rates of one stretch of time: tokens/s of a worker (mean of the nodes), share of all cores."""

    tokens_s: float
    cpu_share: float


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


def alternate(swarm: Swarm, pairs: int, seconds: float) -> list[tuple[Window, Window]]:
    found = []
    for number in range(pairs):
        order = (1, 0) if number % 2 == 0 else (0, 1)  # a drift of the machine's speed cancels
        windows = {exchanges: window(swarm, exchanges, seconds) for exchanges in order}
        say(f"on {windows[1].tokens_s:.0f}, off {windows[0].tokens_s:.0f} tokens/s a node")
        found.append((windows[1], windows[0]))
    return found


def window(swarm: Swarm, exchanges: int, seconds: float) -> Window:
    """Turn exchanges on (1) or off (0), let it settle, measure."""
    use_exchanges(swarm, exchanges)
    swarm.let_pass(SETTLE_S)
    generations = [status["worker"]["restarts"] for status in swarm.statuses()]
    seen: list[list[tuple[float, int]]] = [[] for _ in swarm.nodes]
    of = processes(swarm)
    began, busy = time.monotonic(), cpu_seconds(of)
    while time.monotonic() - began < seconds:
        swarm.look()
        for reports, node in zip(seen, swarm.nodes, strict=True):
            node.check_up()
            if node.status is None:
                continue
            tokens = node.status["tokens"]
            if reports and tokens == reports[-1][1]:
                continue
            reports.append((time.monotonic(), tokens))
        time.sleep(POLL_S)
    cores = psutil.cpu_count() or 1
    share = (cpu_seconds(of) - busy) / (time.monotonic() - began) / cores
    if generations != [status["worker"]["restarts"] for status in swarm.statuses()]:
        raise Missed("a worker was started again within a window")
    return Window(statistics.mean(map(rate, seen)), share)


def rate(reports: Sequence[tuple[float, int]]) -> float:
    """Between reports; the first look saw none arrive. Raises `Missed` when there are too few."""
    if len(reports) < 3:
        raise Missed("a worker has hardly reported: the window is too short for its rate")
    (began, first), (ended, last) = reports[1], reports[-1]
    return (last - first) / (ended - began)


def use_exchanges(swarm: Swarm, exchanges: int) -> None:
    """A revision of the plan that holds on every node. Nothing if it says so already."""
    state = str(swarm.nodes[0].layout.root)
    if f"\nexchanges = {exchanges}\n" in peerlm("plan", "show", "--state", state):
        return
    revision = max(status["plan_revision"] for status in swarm.statuses())
    peerlm("plan", "set", f"mix.exchanges={exchanges}", "--state", state)
    swarm.wait(
        "every node has the new plan",
        lambda: all(s["plan_revision"] > revision for s in swarm.statuses()),
    )


def set_pace(swarm: Swarm, tokens_s: float) -> None:
    """Stop all nodes, change node.toml, start them again."""
    end_all(swarm.nodes)
    for node in swarm.nodes:
        change_node_settings(node.layout, {"train.pace_tokens_s": f"{tokens_s:.1f}"}, "pace")
        node.start("up")
    swarm.wait("both workers run again", lambda: all_work(swarm))


def all_work(swarm: Swarm) -> bool:
    """Every worker takes steps and has mixed."""
    return len(swarm.statuses()) == len(swarm.nodes) and all(
        s["worker"]["tokens_per_s"] > 0 and s["participating"] for s in swarm.statuses()
    )


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--pairs", type=int, default=4, help="windows with and without [4]")
    flags.add_argument("--seconds", type=float, default=30.0, help="of a window [30]")
    return report.perform("mixing_cost", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
