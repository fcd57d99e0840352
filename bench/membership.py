"""Membership by the simulator: how soon a swarm knows what happened, how often it errs, what it costs.

The bars are memberlist's, from its own parameters (lan), and what SWIM and Lifeguard promise; each
row's bound stands beside what was measured. Runs are whole nodes without work on a virtual clock, one
seed each. `--share` runs only that part of the usual numbers, for a look.

All of it takes hours. With `--record` each case's outcome is kept in docs/membership.jsonl as it comes (else in
`--keep DIR`), and the page has what there is after every case. So it can be interrupted and go on, at a later commit
too for those scenarios of which a short run still gives the same in all that is measured. `--limit S` plays no case
that is not kept once so many seconds have passed.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import re
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench import report
from bench.kept import Kept
from bench.report import Row, say
from peerlm.cli.sim_membership import Broken, one_run, replay_command, summarise
from peerlm.cli.sim_pool import all_runs
from peerlm.data.processes import processors
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
COST = ("messages_per_node_s", "extra_messages_per_node")
"""At rest, and what the crash costs besides until all know of it."""


def crash(nodes: int, runs: int, p50: float, p99: float, more_s: float) -> Case:
    last = "p99" if nodes < 1000 else "max"
    bounds = {
        "first_suspect_s": {"p50": 2.5, last: 7.0},
        "first_dead_s": {"p50": p50, last: p99},
        "all_know_dead_s": {"p50": p50 + more_s, last: p99 + more_s},
    }
    return Case(f"crash, N = {nodes}", "crash", nodes, runs, {}, {**bounds, **NOBODY}, COST)


def quarter(nodes: int, runs: int) -> Case:
    bounds = {"all_know_dead_s": {"p50": 20.0, "max": 25.0}, **NOBODY}
    what = f"25 % crash at once, N = {nodes}"
    return Case(what, "crash", nodes, runs, {"share": "0.25"}, bounds, COST)


def loss(percent: int, kind: str, given: dict[str, str], deaths: float | None) -> Case:
    """Ten minutes of it, then a crash, which may take half as long again to be found as without loss.

    `deaths`: verdicts a node and minute on live nodes that are borne, each counted at every node that
    takes it; 0: none at all; None: no promise.
    """
    found = {"first_dead_s": {"p50": 15.0, "max": 22.5}}
    bounds: Bounds = {} if deaths is None else {**found, **NOBODY}
    if deaths:
        bounds = {**found, "false_deaths_per_node_minute": {"total": deaths}}
    params = {"rate": str(percent / 100), **given}
    shown = ("false_deaths", "false_suspicions", "suspicions_per_node_minute", "first_dead_s")
    return Case(f"{percent} % loss, {kind}, N = 64", "loss", 64, 6, params, bounds, shown)


def freeze(seconds: int, share: float) -> Case:
    what = f"freeze of {seconds} s, {share:.0%} of N = 128"
    params = {"seconds": str(seconds), "share": str(share)}
    if seconds < 20:
        return Case(
            what, "freeze", 128, 20, params, {"frozen_declared_dead": {"total": 0.0}, **NOBODY}
        )
    bounds = {"alive_again_s": {"max": 5.0}, **NOBODY}
    return Case(what, "freeze", 128, 20, params, bounds, ("frozen_declared_dead",))


def partition(kind: int, what: str, runs: int) -> Case:
    bounds: Bounds = {"heal_s": {"p99" if runs >= 100 else "max": 30.0}, **NOBODY}
    if kind == 0:
        bounds["other_half_dead_s"] = {"p50": 30.0, "max": 55.0}
    what = f"{what} partition of 5 min, N = 64"
    return Case(what, "partition", 64, runs, {"kind": str(kind)}, bounds)


TCP: dict[str, str] = {"datagrams": "0"}
SURE: dict[str, str] = {}
BARE = {"fallback": "0"}
OFF = {"lifeguard": "0"}
SURELY, BARELY = "datagrams, probes over fresh connections sure", "datagrams throughout"

CASES = (
    # What a swarm is for, in minutes.
    crash(16, 200, 8, 13, 1),
    crash(64, 200, 10, 15, 1),
    quarter(64, 200),
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
        200,
        {},
        {"suspicions_of_the_leaver": {"total": 0.0}, "left_known_by_all_s": {"p99": 2.0}, **NOBODY},
    ),
    Case(
        "a newcomer, N = 64",
        "join",
        64,
        200,
        {},
        {"joiner_complete_s": {"p99": 1.0}, "join_known_by_all_s": {"p99": 3.0}, **NOBODY},
    ),
    Case(
        "at rest, N = 64",
        "rest",
        64,
        4,
        {},
        {"bytes_per_node_s": {"p50": 5000}, **NOBODY},
        ("messages_per_node_s",),
    ),
    Case(
        "crash, N = 64, early verdicts off",
        "crash",
        64,
        200,
        {"early": "0"},
        NOBODY,
        ("first_dead_s", "all_know_dead_s", *COST),
    ),
    # What must not happen, and what it takes.
    *(freeze(seconds, share) for seconds in (2, 5) for share in (0.05, 0.25)),
    freeze(20, 0.05),
    partition(0, "half/half", 200),
    partition(1, "one-way", 50),
    partition(2, "bridged", 50),
    *(loss(percent, "TCP", TCP, 0) for percent in (5, 10)),
    *(loss(percent, SURELY, SURE, 0) for percent in (5, 10)),
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
        OFF,
        {},
        ("healthy_declared_dead", "false_suspicions", "sick_declared_dead"),
    ),
    Case(
        "64 newcomers at once, N = 64",
        "join",
        64,
        20,
        {"count": "64"},
        {"join_known_by_all_s": {"max": 10.0}, **NOBODY},
    ),
    # The large and the long.
    crash(256, 100, 13, 16, 1),
    quarter(256, 100),
    crash(1000, 16, 16, 20, 2),
    Case(
        "at rest, N = 1000",
        "rest",
        1000,
        1,
        {},
        {"bytes_per_node_s": {"p50": 10_000}, **NOBODY},
        ("messages_per_node_s",),
    ),
    Case(
        "churn of 10 % a minute, 10 min, N = 256",
        "churn",
        256,
        2,
        {"minutes": "10"},
        {"entries_wrong": {"max": 0.01}, **NOBODY},
        ("entries_wrong_strictly",),
    ),
    *(loss(percent, BARELY, BARE, most) for percent, most in ((5, 0.002), (10, 0.01))),
    loss(25, SURELY, SURE, 0.01),
    loss(25, BARELY, BARE, 0.05),
    loss(25, f"{SURELY}, Lifeguard off", OFF, None),
    loss(25, f"{BARELY}, Lifeguard off", {**BARE, **OFF}, None),
)

SOME_NODES = 12
SHORT = {
    **{key: {"minutes": "1"} for key in ("loss", "slow", "partition", "churn", "rest")},
    "restart": {"times": "3"},
    "join": {"count": "8"},
}
"""For a look at what nodes do."""

NONE = {"false_suspicions": 0}
"""Counts that a run does not mention when there are none."""

SAID = {
    "entries_wrong": "wrong entries (a dead node under suspicion is right)",
    "entries_wrong_strictly": "wrong entries (a dead node under suspicion is wrong)",
}
"""Figures whose names do not say enough."""


def measure(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    began = time.monotonic()
    path = report.CASES if args.record else folder / "cases.jsonl"
    with closing(Kept(path)) as kept:
        for case in CASES:
            if not re.search(args.only, case.what):
                continue
            found = kept_case(case, args, kept)
            if found is None and time.monotonic() - began >= args.limit:
                yield Row(f"{case.what}: runs played yet", 0, at_least=case.runs)
                continue
            yield from rows_of(case, found or play_case(case, args, kept))


@cache
def behaviour(scenario: str) -> str:
    """A digest of what simulated nodes do, as far as it is measured: every sample of a short run. What they say may
    differ, by a plan with one more field, say."""
    params = read_params(scenario, SHORT.get(scenario, {}), SOME_NODES)
    run = one_run(scenario, SOME_NODES, 1, params, "lan", None)
    assert not isinstance(run, Broken), run.story
    measured = repr((sorted(run.samples.items()), sorted(run.totals.items())))
    return hashlib.blake2b(measured.encode(), digest_size=16).hexdigest()


def asked_of(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    runs = max(1, math.ceil(case.runs * args.share))
    params = read_params(case.scenario, case.params, case.nodes)
    return {"nodes": case.nodes, "runs": runs, "seed": args.seed, "params": params}


def kept_case(case: Case, args: argparse.Namespace, kept: Kept) -> dict[str, Any] | None:
    """What it came to, if it was played before and nodes still do the same: the last time."""
    asked = {**asked_of(case, args), "what": case.what, "basis": behaviour(case.scenario)}
    same = [f for f in kept.found if all(f.get(key) == value for key, value in asked.items())]
    return same[-1] if same else None


def play_case(case: Case, args: argparse.Namespace, kept: Kept) -> dict[str, Any]:
    asked = asked_of(case, args)
    runs, params = asked["runs"], asked["params"]
    began = time.monotonic()
    calls = [(case.scenario, case.nodes, args.seed + i, params, "lan", None) for i in range(runs)]
    played = list(all_runs(one_run, calls, args.jobs, case.what))
    for run in played:
        if isinstance(run, Broken):
            again = replay_command(case.scenario, case.nodes, run.seed, params, "lan", "")
            say(f"seed {run.seed}: {run.story}\n{again}")
    found = summarise(case.scenario, case.nodes, args.seed, params, "lan", None, played)
    found.update(what=case.what, basis=behaviour(case.scenario))
    kept.keep(found)
    say(f"{case.what}: {runs} runs in {time.monotonic() - began:.0f} s")
    return found


def rows_of(case: Case, found: dict[str, Any]) -> list[Row]:
    rows, over = [], ""
    if found["failed"]:
        rows.append(Row(f"{case.what}: runs that failed", len(found["failed"]), at_most=0))
    if case.scenario == "loss":
        node_minutes = (
            case.nodes * found["params"]["minutes"] * (found["runs"] - len(found["failed"]))
        )
        found = {**found, "false_deaths_per_node_minute": found["false_deaths"] / node_minutes}
        over = f" in {node_minutes:,.0f} node-minutes"
    for name in dict.fromkeys((*case.bounds, *case.shown)):
        bounds, value = case.bounds.get(name, {}), found.get(name, NONE.get(name))
        unit = "s" if name.endswith("_s") and "_per_" not in name else ""
        what = f"{case.what}: {SAID.get(name, name)}"
        if not isinstance(value, dict):
            rows.append(Row(f"{what}{over}", value, at_most=bounds.get("total")))
            continue
        for quantile in bounds or ("p50", "p99" if value["n"] >= 100 else "max"):
            of = f"{what} {quantile} of {value['n']}"
            rows.append(Row(of, value[quantile], unit, at_most=bounds.get(quantile)))
    return rows


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument("--share", type=float, default=1.0, help="of the usual number of runs [1]")
    flags.add_argument("--jobs", type=int, default=processors(), help="processes [all processors]")
    flags.add_argument("--limit", type=float, default=math.inf, help="seconds to play cases in")
    flags.add_argument("--only", default="", help="cases whose name this pattern finds")
    return report.perform("membership", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
