"""Join while training: from `peerlm join` to the newcomer's first inner step, preset `small`.

The founder trains all the while, paced, so that it leaves a core free. The newcomer enrols, fetches the
text and the weights, compares them with what their donor had shown, starts a worker and takes a step.
Phases come from its log; the first step from its status, which counts tokens once a second, so the
figure is an upper bound by up to that. Each newcomer leaves before the next one comes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import report
from bench.report import Missed, Row, say
from peerlm.bench.nodes import Swarm, running
from peerlm.cli.demo_nodes import DemoNode, end_all

STEP_S_MAX = 20.0
PHASES = ("enrolled", "listening", "state fetched", "worker ready", "first step")
POLL_S = 0.02

PLAN = {"run.token_budget": 1_000_000_000, "train.val_every_s": 600}


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    local = {"train.pace_tokens_s": args.pace}
    with running(Swarm(folder, 1 + args.joins, PLAN, local, preset="small")) as swarm:
        founder, *newcomers = swarm.nodes
        swarm.found()
        founder.start("up")
        swarm.wait("the founder trains", lambda: swarm.tokens > 0)
        say("the founder trains")
        joins = []
        for newcomer in newcomers:
            joins.append(join(swarm, newcomer))
            say(", ".join(f"{name} {s:.1f} s" for name, s in joins[-1].items()))
            newcomer.ask_to_stop()
            end_all([newcomer])
            before = swarm.tokens
            swarm.wait("the founder trains on", lambda before=before: swarm.tokens > before)  # type: ignore[misc]
    rows = [
        Row(f"{name}, median", statistics.median(j[name] for j in joins), "s") for name in PHASES
    ]
    worst = max(j["first step"] for j in joins)
    return [
        Row("joins", len(joins)),
        *rows,
        Row("first step on fetched, verified state, slowest", worst, "s", at_most=STEP_S_MAX),
    ]


def join(swarm: Swarm, newcomer: DemoNode) -> dict[str, float]:
    """Seconds from the start of the command to each phase."""
    address, token = swarm.invitation()
    settings = ("network.host=127.0.0.1", "network.port=0", "limits.threads=1")
    flags = [part for setting in settings for part in ("--set-node", setting)]
    began, began_wall = time.monotonic(), time.time()
    newcomer.start("join", address, "--token", token, *flags)
    took: dict[str, float] = {}
    while not (newcomer.status and newcomer.status["tokens"] > 0):
        now_s = time.monotonic() - began
        if newcomer.layout.chain.exists():
            took.setdefault("enrolled", now_s)
        if newcomer.status:
            took.setdefault("listening", now_s)
        newcomer.check_up()
        if now_s > 10 * STEP_S_MAX:
            raise Missed(
                f"{newcomer.name} took no step within {now_s:.0f} s; it is {newcomer.state}"
            )
        time.sleep(POLL_S)
        newcomer.look()
    took["first step"] = time.monotonic() - began
    for name, event in (("state fetched", "state_installed"), ("worker ready", "worker_ready")):
        entry = first_entry(newcomer, event)
        if event == "state_installed" and entry["origin"] != "peers":
            raise Missed(f"{newcomer.name} took its state from {entry['origin']}, not from peers")
        took[name] = datetime.fromisoformat(entry["time"]).timestamp() - began_wall
    return {name: took[name] for name in PHASES}


def first_entry(node: DemoNode, event: str) -> dict[str, Any]:
    """The first of this kind in the node's log. Raises `Missed`."""
    for line in node.layout.log.read_text().splitlines():
        entry: dict[str, Any] = json.loads(line)
        if entry["event"] == event:
            return entry
    raise Missed(f"{node.name}: nothing about {event} in its log")


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--joins", type=int, default=3)
    flags.add_argument("--pace", type=float, default=200.0, help="founder's tokens/s [200]")
    return report.perform("join", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
