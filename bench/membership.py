"""Membership by the simulator: how soon a swarm knows what happened, how often it errs, what it costs.

The bars are memberlist's, from its own parameters (lan), and what SWIM and Lifeguard promise; each
row's bound stands beside what was measured. Runs are whole nodes without work on a virtual clock, one
seed each. `--share` runs only that part of the usual numbers, for a look.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import report
from bench.report import Row, say
from peerlm.cli.sim_membership import one_run, summarise
from peerlm.cli.sim_pool import all_runs, processors
from peerlm.sim.scenarios import read_params

Bounds = dict[str, dict[str, float]]
"""Figure → quantile (or `total`) → the most it may be."""


@dataclass(frozen=True, slots=True)
class Case:
    what: str
    scenario: str
    nodes: int
    runs: int
    params: dict[str, str]
    bounds: Bounds
    shown: tuple[str, ...] = ()
    """Figures without a bound that are shown too."""


NOBODY = {"false_deaths": {"total": 0.0}}


def crash(nodes: int, runs: int, p50: float, p99: float, more_s: float) -> Case:
    last = "p99" if nodes < 1000 else "max"
    bounds = {
        "first_suspect_s": {"p50": 2.5, last: 7.0},
        "first_dead_s": {"p50": p50, last: p99},
        "all_know_dead_s": {last: p99 + more_s},
    }
    shown = ("extra_messages_per_node",)
    return Case(f"crash, N = {nodes}", "crash", nodes, runs, {}, {**bounds, **NOBODY}, shown)


CASES = (
    crash(16, 200, 8, 13, 1),
    crash(64, 200, 10, 15, 1),
    crash(256, 100, 13, 16, 1),
    crash(1000, 16, 16, 20, 2),
    Case(
        "crash, N = 64, early verdicts off",
        "crash",
        64,
        100,
        {"early": "0"},
        NOBODY,
        ("first_dead_s", "all_know_dead_s", "extra_messages_per_node"),
    ),
    Case(
        "25 % crash at once, N = 64",
        "crash",
        64,
        50,
        {"share": "0.25"},
        {"all_know_dead_s": {"p50": 20, "max": 25}, **NOBODY},
    ),
    Case(
        "25 % crash at once, N = 256",
        "crash",
        256,
        8,
        {"share": "0.25"},
        {"all_know_dead_s": {"p50": 20, "max": 25}, **NOBODY},
    ),
    *(
        Case(
            f"{rate} % loss, {kind}, 10 min, N = 64",
            "loss",
            64,
            6,
            {"rate": str(rate / 100), **given},
            NOBODY if bound else {},
            ("suspicions_per_node_minute", "first_dead_s", "false_deaths"),
        )
        for kind, given, bound in (
            ("TCP", {"datagrams": "0"}, True),
            ("datagrams, fresh probes sure", {}, True),
            ("datagrams throughout", {"fallback": "0"}, False),
        )
        for rate in (5, 10)
    ),
    *(
        Case(
            f"freeze of {seconds} s, {share:.0%} of N = 128",
            "freeze",
            128,
            10,
            {"seconds": str(seconds), "share": str(share)},
            {"frozen_declared_dead": {"total": 0.0}, **NOBODY},
        )
        for seconds in (2, 5)
        for share in (0.05, 0.25)
    ),
    Case(
        "freeze of 20 s, 5 % of N = 128",
        "freeze",
        128,
        20,
        {"seconds": "20"},
        {"alive_again_s": {"max": 5.0}, **NOBODY},
        ("frozen_declared_dead",),
    ),
    Case(
        "4 slow accusers of N = 128, 5 min",
        "slow",
        128,
        5,
        {},
        {"healthy_declared_dead": {"total": 0.0}},
        ("false_suspicions", "sick_declared_dead"),
    ),
    Case(
        "the same, Lifeguard off",
        "slow",
        128,
        5,
        {"lifeguard": "0"},
        {},
        ("healthy_declared_dead", "false_suspicions", "sick_declared_dead"),
    ),
    *(
        Case(
            f"{kind} partition of 5 min, N = 64",
            "partition",
            64,
            20,
            {"kind": str(number)},
            {
                "heal_s": {"p99": 30.0},
                **({"other_half_dead_s": {"p50": 30, "max": 55}} if not number else {}),
            },
        )
        for number, kind in enumerate(("half/half", "one-way", "bridged"))
    ),
    Case(
        "killed and restarted within 1 s, 50 times a run, N = 16",
        "restart",
        16,
        4,
        {"times": "50"},
        {"alive_again_s": {"max": 3.0}, **NOBODY},
    ),
    Case(
        "a goodbye, N = 64",
        "leave",
        64,
        50,
        {},
        {"suspicions_of_the_leaver": {"total": 0.0}, "left_known_by_all_s": {"p99": 2.0}, **NOBODY},
    ),
    Case(
        "a newcomer, N = 64",
        "join",
        64,
        50,
        {},
        {"joiner_complete_s": {"p99": 1.0}, "join_known_by_all_s": {"p99": 3.0}, **NOBODY},
    ),
    Case(
        "64 newcomers at once, N = 64",
        "join",
        64,
        5,
        {"count": "64"},
        {"join_known_by_all_s": {"max": 10.0}, **NOBODY},
    ),
    Case(
        "churn of 10 % a minute, 5 min, N = 256",
        "churn",
        256,
        1,
        {"minutes": "5"},
        {"entries_wrong": {"max": 0.01}, **NOBODY},
        ("entries_wrong_strictly",),
    ),
    Case(
        "at rest, N = 64",
        "rest",
        64,
        4,
        {},
        {"bytes_per_node_s": {"p50": 5000}},
        ("messages_per_node_s",),
    ),
    Case(
        "at rest, N = 1000",
        "rest",
        1000,
        1,
        {},
        {"bytes_per_node_s": {"p50": 10_000}},
        ("messages_per_node_s",),
    ),
)


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    rows: list[Row] = []
    for case in CASES:
        if args.only and not re.search(args.only, case.what):
            continue
        began = time.monotonic()
        found = play_case(case, args)
        rows += rows_of(case, found)
        say(f"{case.what}: {found['runs']} runs in {time.monotonic() - began:.0f} s")
    return rows if args.only else [*rows, *speed()]


def play_case(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    params = read_params(case.scenario, case.params)
    runs = max(1, math.ceil(case.runs * args.share))
    calls = [(case.scenario, case.nodes, args.seed + i, params, "lan", None) for i in range(runs)]
    played = list(all_runs(one_run, calls, args.jobs, case.what))
    return summarise(case.scenario, case.nodes, args.seed, params, "lan", played)


def rows_of(case: Case, found: dict[str, Any]) -> list[Row]:
    rows = []
    names = dict.fromkeys((*case.bounds, *case.shown))
    for name in names:
        bounds, value = case.bounds.get(name, {}), found.get(name)
        unit = "s" if name.endswith("_s") and "_per_" not in name else ""
        if not isinstance(value, dict):
            rows.append(Row(f"{case.what}: {name}", value, at_most=bounds.get("total")))
            continue
        for quantile in ("p50", "p99", "max"):
            if quantile in bounds or not bounds:
                what = f"{case.what}: {name} {quantile} of {value['n']}"
                rows.append(Row(what, value[quantile], unit, at_most=bounds.get(quantile)))
    if case.scenario == "rest":
        rows.append(Row(f"{case.what}: false_deaths", found["false_deaths"], at_most=0))
    return rows


SPEED = """
import resource, sys, time
from peerlm.sim.world import WATCHING, World
began = time.perf_counter()
world = World(1)
world.met(int(sys.argv[1]), roles=WATCHING)
world.run(float(sys.argv[2]))
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def speed() -> list[Row]:
    """How long a swarm at rest takes on one core, its beginning included, and how much memory."""
    rows = []
    for nodes, seconds, most_s in ((64, 600, 20), (1000, 120, 120)):
        done = subprocess.run(
            [sys.executable, "-c", SPEED, str(nodes), str(seconds)],
            capture_output=True,
            text=True,
            check=True,
            env={"OMP_NUM_THREADS": "1"},
        )
        took_s, peak = (float(word) for word in done.stdout.split())
        what = f"N = {nodes}, {seconds} virtual s on one core"
        rows.append(Row(what, took_s, "s", at_most=most_s))
        rows.append(Row(f"{what}: peak memory", peak / 1e9, "GB", at_most=2.0))
    return rows


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument("--share", type=float, default=1.0, help="of the usual number of runs [1]")
    flags.add_argument("--jobs", type=int, default=processors(), help="processes [all processors]")
    flags.add_argument("--only", default="", help="cases whose name this pattern finds")
    return report.perform("membership", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
