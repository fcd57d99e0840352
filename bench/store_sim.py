"""The swarm's store by the simulator: is anything lost, how near to it, and how much is moved?

Two hundred nodes keep 10,000 chunks of 4 MiB in three replicas for thirty days (`peerlm sim store`); one in a hundred dies for
good each hour, and a new and empty one comes for it. Lost chunks come with the seed that shows them again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from bench import report
from bench.report import Quantiles, Row, say
from peerlm.cli.sim_membership import Broken
from peerlm.cli.sim_pool import all_runs
from peerlm.cli.sim_store import lived, one_run, told
from peerlm.sim.storing import Setting, deviation_of_many

MANY = 250_000
"""Chunks: a terabyte."""

DETECTED_AND_FETCHED_S = 60.0
"""Noticing takes 10 s, news up to 3 s; a minute is generous for one chunk."""


def measure(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    calls = [
        (args.nodes, args.chunks, args.replicas, args.days, args.deaths, args.seed + i)
        for i in range(args.runs)
    ]
    outcomes = []
    for run in all_runs(one_run, calls, args.jobs, "store"):
        if isinstance(run, Broken):
            raise report.Missed(f"seed {run.seed}: {run.story}")
        if story := told(run):
            say(f"seed {run.setting.seed}: {story}")
            say(
                f"see it again: peerlm sim store --seed {run.setting.seed} --nodes {args.nodes} --chunks {args.chunks} "
                f"--replicas {args.replicas} --days {args.days} --deaths {args.deaths}"
            )
        outcomes.append(run)
    found = lived(outcomes)
    yield Row("deaths for good, each made up for by a new node", found["deaths"])
    yield Row("reboots of a node", found["reboots"])
    yield Row("chunks lost", found["lost"], at_most=0)
    yield Row("chunks that for a moment no live node had", found["unreachable_ever"])
    yield Row("chunks ever on one live node", found["single_reachable_ever"])
    yield Row(
        "longest time on one live node",
        found["single_reachable_longest_s"],
        "s",
        at_most=DETECTED_AND_FETCHED_S,
    )
    yield Row(
        "chunks ever on one disk, those of rebooting nodes too", found["single_existing_ever"]
    )
    yield Row("longest time on one disk", found["single_existing_longest_s"], "s")
    yield Row("copies lacking after eight hours of peace", found["lacking_at_the_end"], at_most=0)
    yield Row("urgent fetches, of all", found["urgent_fetches"] / found["fetches"])
    yield Row("fetched for repair a day", found["repair_bytes_a_day"] / 1e9, "GB")
    yield Row("÷ what the dead held", found["repair_to_least"], at_most=1.2)
    yield Row("fetched by new nodes a day", found["filled_bytes_a_day"] / 1e9, "GB")
    yield Row("÷ their shares by capacity", found["filled_to_least"], at_most=1.2)
    yield Row("all that was moved ÷ both", found["moved_to_least"], at_most=1.2)
    if hours := [value for outcome in outcomes for value in outcome.hottest]:
        yield Row("repair's hottest node ÷ mean, by the hour, p50 / p90 / max", Quantiles.of(hours))
    yield Row(
        "hottest node's repair traffic in its busiest hour", found["hottest_bytes_s"] / 1e6, "MB/s"
    )
    yield Row(
        f"worst share ÷ share of capacity - 1, {args.chunks:,} chunks, any hour",
        found["deviation_worst"],
        at_most=0.15,
    )
    yield Row(
        f"the same, {MANY:,} chunks (1 TB), worst of {args.swarms} swarms",
        max(
            deviation_of_many(Setting(args.nodes, 1, args.replicas, seed=args.seed + i), MANY)
            for i in range(args.swarms)
        ),
        at_most=0.15,
    )


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--nodes", type=int, default=200, help="nodes that store [200]")
    flags.add_argument("--chunks", type=int, default=10_000, help="chunks of 4 MiB [10000]")
    flags.add_argument("--replicas", type=int, default=3, help="copies of each [3]")
    flags.add_argument("--days", type=float, default=30.0, help="of the swarm's time [30]")
    flags.add_argument("--deaths", type=float, default=0.01, help="of all nodes, an hour [0.01]")
    flags.add_argument("--runs", type=int, default=1, help="runs; run i has seed + i [1]")
    flags.add_argument("--swarms", type=int, default=5, help="whose shares are looked at [5]")
    flags.add_argument("--jobs", type=int, default=1, help="processes at once [1]")
    flags.add_argument("--seed", type=int, default=1)
    return report.perform("store_sim", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
