"""The daemon alone: how soon it listens, what memory it takes, and how late its loop is under load.

Start: from the execution of `peerlm up` to the first answer on its control socket, which is there
after the three ports are bound; asked every 5 ms, median of five starts. Memory: of a member that has
no weights yet, two seconds after its start. Lag: two daemons exchange 25 M parameters as fp32, which is
100 MB each way, again and again, while each measures how late its own loop wakes up: first in fragments
of at most 4 M parameters, as plans have them, then in a single one, to see where the limit is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from bench import report
from bench.report import Missed, Row, say
from peerlm.bench.child import cpu_seconds
from peerlm.bench.member import Member
from peerlm.bench.mixers import mixers
from peerlm.bench.nodes import Swarm, running
from peerlm.cli.plan import current_plan
from peerlm.cli.state import ORIGIN
from peerlm.daemon.control import ask
from peerlm.model.plan import fragments

LISTEN_S_MAX = 0.6
RSS_MB_MAX = 70.0
LAG_MS_MAX = 50.0

POLL_S = 0.005
START_S = 30.0
REST_S = 2.0
REST_LAG_S = 5.0
STATUS_S = 30.0

BIG = {
    "model.blocks": "feedforward",
    "model.dim": 1024,
    "model.hidden": 8139,
    "mix.codec_request": "fp32",
    "mix.codec_reply": "fp32",
}
"""One block of 25 M parameters, beside two small modules."""

WHOLE = {"mix.fragment_max": 30_000_000}
"""The block is a single fragment."""


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    starts = Swarm(folder / "starts", 1, {}, {"train.enabled": "false"})
    starts.found()
    # Without its mark as the run's origin it makes no weights: a member that waits for its swarm.
    (starts.nodes[0].layout.root / ORIGIN).unlink()
    took, busy, sizes = zip(*(start_once(starts) for _ in range(args.starts)), strict=True)
    say(f"{args.starts} starts: {', '.join(f'{s:.2f} s' for s in took)}")
    return [
        Row("start to listening, median", statistics.median(took), "s", at_most=LISTEN_S_MAX),
        Row("start to listening, slowest", max(took), "s"),
        Row("processor time until then, median", statistics.median(busy), "s"),
        Row("memory (RSS) without a model, largest", max(sizes), "MB", at_most=RSS_MB_MAX),
        *lag_under_load(folder / "cut", args.seconds, args.seed, {}, "fragments"),
        *lag_under_load(folder / "whole", args.seconds, args.seed, WHOLE, "one fragment"),
    ]


def start_once(swarm: Swarm) -> tuple[float, float, float]:
    """(seconds to listening, processor seconds of them, RSS in MB)."""
    node = swarm.nodes[0]
    with running(swarm):
        began = time.monotonic()
        node.start("up")
        while node.status is None:
            node.check_up()
            if time.monotonic() - began > START_S:
                raise Missed(f"the daemon did not listen within {START_S:g} s")
            time.sleep(POLL_S)
            node.look()
        took_s = time.monotonic() - began
        process = psutil.Process(node.status["daemon"]["pid"])
        busy_s = cpu_seconds([process])
        time.sleep(REST_S)
        rss_mb = process.memory_info().rss / 1e6
    return took_s, busy_s, rss_mb


def lag_under_load(
    folder: Path, seconds: float, rng_seed: int, changes: dict[str, Any], name: str
) -> list[Row]:
    with mixers(folder, 2, {**BIG, **changes}, rng_seed) as members:
        plan = current_plan(members[0].node.layout).plan
        sizes_mb = [4 * spec.size / 1e6 for spec in fragments(plan)]
        for member in members:
            member.tell("rest", REST_LAG_S)
        for member in members:
            member.hear()
        at_rest = [status_of(member)["daemon"]["loop_lag_p99_ms"] for member in members]
        say(f"two daemons exchange {sum(sizes_mb):.0f} MB for {seconds:.0f} s, {name}")
        members[1].tell("rest", 0)
        members[0].tell("load", seconds)
        members[1].hear()
        took_s = members[0].hear()["seconds"]
        statuses = [status_of(member) for member in members]
    lags = [status["daemon"]["loop_lag_p99_ms"] for status in statuses]
    sent_mb = sum(status["bytes_sent"] for status in statuses) / 1e6
    return [
        Row(f"{name}: of the model, each way", sum(sizes_mb), "MB", at_least=100),
        Row(f"{name}: largest exchange", max(sizes_mb), "MB"),
        Row(f"{name}: moved, both ways", sent_mb, "MB", at_least=2 * sum(sizes_mb)),
        Row(f"{name}: in", took_s, "s"),
        Row(f"{name}: loop lag p99 at rest, worse of two", max(at_rest), "ms"),
        Row(f"{name}: loop lag p99, initiator", lags[0], "ms", at_most=LAG_MS_MAX),
        Row(f"{name}: loop lag p99, responder", lags[1], "ms", at_most=LAG_MS_MAX),
    ]


def status_of(member: Member) -> dict[str, Any]:
    status = ask(member.node.layout, "status", timeout_s=STATUS_S)
    return status


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--starts", type=int, default=5)
    flags.add_argument("--seconds", type=float, default=40.0, help="of exchanges [40]")
    flags.add_argument("--seed", type=int, default=1)
    return report.perform("daemon", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
