"""Placement by the simulator: is every stage hosted, how near to the best, and how many moves does that take?

Nodes decide by themselves, from news that is late and lost, which stages they host of a model that none of them can
hold (`peerlm sim placement`). Four swarms: 100 nodes of which a tenth goes in each minute; 100 nodes for a day, untroubled;
100 nodes for a day of which 144 go; and many small ones at rest, each beside the best of all its placements.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import report
from bench.report import Row, say
from peerlm.cli.sim_membership import Broken
from peerlm.cli.sim_placement import compared, lived, one_comparison, one_run
from peerlm.cli.sim_pool import all_runs

SMALL = ((4, 2), (4, 3), (5, 3), (6, 3))
"""(nodes, stages)"""

LIGHT = 144 / 24 / 60 / 100


LARGE = {
    "churn": ("10 % a minute", 1.0, 0.1),
    "peace": ("no churn", 24.0, 0.0),
    "light": ("light churn", 24.0, LIGHT),
}
"""What is said of it, hours, and the part of the nodes that goes in a minute."""


def measure(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    if "best" in args.parts:
        yield from against_best(args)
    for what, hours, churn in (LARGE[part] for part in LARGE if part in args.parts):
        say(f"100 nodes, {what}")
        calls = [(100, 0, hours, churn, args.seed + i, 2) for i in range(args.runs)]
        yield from swarm(
            f"100 nodes, {what}, {args.runs} × {hours:g} h:", churn, ended(one_run, calls, args)
        )


def against_best(args: argparse.Namespace) -> Iterator[Row]:
    for nodes, stages in SMALL:
        say(f"{nodes} nodes, {stages} stages")
        calls = [(nodes, stages, args.seed + i, 2) for i in range(args.small)]
        found = compared(ended(one_comparison, calls, args))
        who = f"{nodes} nodes, {stages} stages, {args.small} swarms:"
        yield Row(f"{who} hosted less than it could be", found["less_hosted"], at_most=0)
        yield Row(f"{who} rate ÷ best, median", 1 - found["rate_lost"]["p50"])
        yield Row(f"{who} rate ÷ best, worst", 1 - found["rate_lost"]["max"], at_least=0.9)
        yield Row(f"{who} moves a node", found["switches"] / args.small / nodes)


def swarm(who: str, churn: float, outcomes: list[Any]) -> Iterator[Row]:
    found = lived(outcomes)
    yield Row(f"{who} looks, one each 10 s", found["samples"])
    yield Row(f"{who} with a stage without host", found["samples_with_unhosted"], at_most=0)
    yield Row(f"{who} with a stage with one host", found["samples_with_single"])
    yield Row(f"{who} rate ÷ upper bound, median", 1 - found["rate_lost"]["p50"])
    yield Row(f"{who} rate ÷ upper bound, least", 1 - found["rate_lost"]["max"])
    if churn:
        yield Row(f"{who} joins, deaths and leaves", found["changes"])
        yield Row(f"{who} leaves before all was handed over", found["late_leaves"])
        yield Row(f"{who} moves a change", found["switches_per_change"], at_most=1.5)
        yield Row(f"{who} loadings given up", found["withdrawn"])
        yield Row(f"{who} back to what was given up within 1 h", found["returns"])
    else:
        yield Row(f"{who} moves", found["takes"] + found["moves"], at_most=0)


def ended(call: Any, calls: list[tuple[Any, ...]], args: argparse.Namespace) -> list[Any]:
    """Raises `Missed` for a run that broke."""
    runs = list(all_runs(call, calls, args.jobs, "placement"))
    if broken := [run for run in runs if isinstance(run, Broken)]:
        raise report.Missed(f"seed {broken[0].seed}: {broken[0].story}")
    return runs


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--runs", type=int, default=3, help="swarms of 100 nodes, of each kind [3]")
    flags.add_argument("--small", type=int, default=200, help="small swarms, of each size [200]")
    flags.add_argument("--jobs", type=int, default=1, help="processes at once [1]")
    parts = ("best", *LARGE)
    flags.add_argument("--parts", nargs="+", choices=parts, default=parts, help="of them [all]")
    flags.add_argument("--seed", type=int, default=1)
    return report.perform("placement", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
