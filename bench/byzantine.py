"""One hostile node of eight: what clipping and exclusion save, and what they cost honest nodes.

Simulated: eight nodes train a small network whose best loss is known and mix by the rules, arithmetic
and gates of the daemon, without a network in between (peerlm/sim/byzantine.py). The last node lies in every
exchange (peerlm/sim/attackers.py says how). The figure is the excess: how far the loss of the mean of the
honest nodes is above the least there is. Each attack runs with the plan's clipping, and with
none; promised is at most three times the excess of a run with honest nodes alone. Clipping itself may
cost honest nodes two hundredths of theirs.

The gate of norms stays where it is without clipping too, and all but stops `inverted` by itself: that attack
shows gates and exclusion, the others show clipping.

Then honest nodes that are unlike the others: some were away for a quarter of the run, some are slow or fast.
None of them may be excluded by another.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from bench import report
from bench.report import Row, say
from peerlm.sim.attackers import ATTACKS
from peerlm.sim.byzantine import Case, Outcome, Swarm
from peerlm.sim.learner import Teacher

HARM_MAX = 3.0
COST_MAX = 0.02

UNLIKE = {
    "1 of 8 away": {"parted": 1},
    "3 of 8 away": {"parted": 3},
    "1 of 4 away": {"parted": 1, "nodes": 4},
    "1 of 8 slow": {"slow": 1},
    "1 of 8 fast": {"slow": 7},
}


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    honest = Case(steps=args.steps)
    free, clean = outcomes(replace(honest, clip=False), args), outcomes(honest, args)
    rows = [
        Row("honest nodes alone: excess, no clipping", excess(free), "nats"),
        Row("honest nodes alone: excess", excess(clean), "nats"),
        Row(
            "honest nodes alone: cost of clipping",
            excess(clean) / excess(free) - 1,
            at_most=COST_MAX,
        ),
    ]
    for attack in ATTACKS:
        bare = outcomes(replace(honest, attack=attack, clip=False), args)
        kept = outcomes(replace(honest, attack=attack), args)
        rows += [
            Row(f"{attack}: excess, no clipping", excess(bare), "nats"),
            Row(f"{attack}: excess", excess(kept), "nats"),
            Row(
                f"{attack}: ÷ that of honest nodes", excess(kept) / excess(clean), at_most=HARM_MAX
            ),
            Row(f"{attack}: worst seed ÷ its own honest run", worst(kept, clean), at_most=HARM_MAX),
            Row(f"{attack}: excluded by all, inner step", excluded(kept)),
            Row(f"{attack}: failed a gate", fmean(o.refused for o in kept), "exchanges"),
        ]
        rows.append(Row(f"{attack}: honest nodes excluded", wronged(kept), at_most=0))
    for what, changes in UNLIKE.items():
        rows.append(
            Row(f"{what}: honest nodes excluded", wronged(unlike(changes, args)), at_most=0)
        )
    return rows


def outcomes(case: Case, args: argparse.Namespace) -> list[Outcome]:
    """One for each seed."""
    learner = Teacher(case.fragments)
    found = [Swarm(replace(case, seed=seed), learner).run() for seed in seeds(args)]
    each = " ".join(f"{outcome.excess:.4f}" for outcome in found)
    say(f"{case.attack or 'honest'}, {'clipped' if case.clip else 'not clipped'}: {each}")
    return found


def unlike(changes: dict[str, int], args: argparse.Namespace) -> list[Outcome]:
    return outcomes(replace(Case(steps=args.steps), **changes), args)  # type: ignore[arg-type]


def seeds(args: argparse.Namespace) -> range:
    return range(1, args.seeds + 1)


def excess(found: Sequence[Outcome]) -> float:
    return fmean(outcome.excess for outcome in found)


def worst(found: Sequence[Outcome], honest: Sequence[Outcome]) -> float:
    return max(ours.excess / clean.excess for ours, clean in zip(found, honest, strict=True))


def excluded(found: Sequence[Outcome]) -> str:
    """First and last over seeds."""
    steps = sorted(o.excluded_at for o in found if o.excluded_at is not None)
    if not steps:
        return "never"
    often = "" if len(steps) == len(found) else f", {len(steps)} of {len(found)} times"
    return f"{steps[0]} to {steps[-1]}{often}"


def wronged(found: Sequence[Outcome]) -> int:
    return sum(outcome.wronged for outcome in found)


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--seeds", type=int, default=5, help="runs of each case [5]")
    flags.add_argument("--steps", type=int, default=2000, help="inner steps of a run [2000]")
    return report.perform("byzantine", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
