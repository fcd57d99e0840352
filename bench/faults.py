"""Random faults by the thousand: a minute of trouble each, then peace; no promise may break.

What `peerlm sim faults` plays (peerlm/sim/menus.py says what befalls a swarm), with the outcome of
every seed kept in `--keep DIR` as it comes, so that hours of it can be interrupted and go on. Kept
outcomes count only for the commit that they were played at.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import report
from bench.kept import Kept
from bench.report import Missed, Quantiles, Row, say
from peerlm.cli.sim_pool import all_runs, processors
from peerlm.sim.menus import FAULTS, NODES, RECOVERY_S, TROUBLE_S, live_through

SAY_EVERY = 250


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    if args.seeds < 1:
        raise Missed(f"--seeds {args.seeds}: must be 1 or more")
    with closing(Kept(folder / "seeds.jsonl")) as kept:
        done = {lived["seed"]: lived for lived in kept.found}
        left = [(seed, NODES) for seed in range(1, args.seeds + 1) if seed not in done]
        for outcome in all_runs(live_through, left, args.jobs or processors(), "random faults"):
            lived = done[outcome.seed] = asdict(outcome)
            kept.keep(lived)
            if lived["story"]:
                say(f"seed {lived['seed']} broke a promise: peerlm sim replay {lived['seed']}")
            if len(done) % SAY_EVERY == 0:
                say(f"{len(done)} of {args.seeds} seeds")
    return rows([done[seed] for seed in range(1, args.seeds + 1)])


def rows(lives: Sequence[dict[str, Any]]) -> list[Row]:
    failed = [lived["seed"] for lived in lives if lived["story"]]
    well = [lived["recovery_s"] for lived in lives if not lived["story"]]
    menus = {fault for lived in lives for fault in lived["menu"]}
    return [
        Row(f"seeds, {NODES} nodes, {TROUBLE_S:g} s of trouble each", len(lives)),
        Row("kinds of fault that came", len(menus), at_least=len(FAULTS)),
        Row("faults", sum(lived["faults"] for lived in lives)),
        Row("seeds that broke a promise", len(failed), at_most=0),
        Row("which", ", ".join(map(str, failed[:20])) or "none"),
        Row("after everything was mended all is well: p50 / p90 / max", Quantiles.of(well), "s"),
        Row("the slowest", max(well, default=None), "s", at_most=RECOVERY_S),
    ]


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--seeds", type=int, default=1000, help="how many, from 1 [1000]")
    flags.add_argument("--jobs", type=int, default=0, help="processes [all processors]")
    return report.perform("faults", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
