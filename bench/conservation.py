"""Conservation: exchanges between real daemons over real sockets, and what becomes of Σφ.

Two daemons, then four, each in a process of its own and without a worker, so nothing moves φ but
exchanges: int8 requests, int4 replies. Every node starts some of them, of all fragments in turn. Before
and after, all φ are summed in fp64. Both sides use one decoded difference, so the sum may change by
rounding alone. That is seen with a clipping bound too wide to matter. Clipping by one side bends the
sum, and the most by which it can have is booked: a third run has the plan's own bound, and there what
is booked is subtracted and shown. A finer request codec is used by nodes that have come close; those exchanges are counted apart.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench import report
from bench.report import Row, say
from peerlm.bench.founding import Values
from peerlm.bench.mixers import Weights, mixers, read_weights, snapshot_now

DRIFT_MAX = 1e-6
CODECS = ("int8", "int4")

PLAN = {
    "mix.fragment_max": 40_000,
    "mix.codec_request": CODECS[0],
    "mix.codec_reply": CODECS[1],
}
"""The model of `tiny`, cut finer: a fragment must not be mixed so often that its nodes come close."""


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    rows: list[Row] = []
    for size in args.nodes:
        rows += drift(folder / f"of-{size}", size, {"mix.clip_factor": 1000}, args)
    return rows + drift(folder / "clipped", args.nodes[-1], {}, args)


def drift(folder: Path, size: int, changes: Values, args: argparse.Namespace) -> list[Row]:
    """Mix, and weigh everything before and after."""
    exchanges = args.exchanges
    with mixers(folder, size, {**PLAN, **changes}, args.seed) as members:
        say(f"{size} daemons see each other")
        before = [read_weights(member.node.layout) for member in members]
        shares = [len(part) for part in np.array_split(range(exchanges), size)]
        for member, share in zip(members, shares, strict=True):
            member.tell("exchange", share)
        answers = [member.hear() for member in members]
        after = [snapshot_now(member) for member in members]
        for member in members:
            member.node.look()
        statuses = [m.node.status for m in members if m.node.status is not None]
    total = total_of(before)
    change = float(np.linalg.norm(total_of(after) - total) / np.linalg.norm(total))
    booked = sum(s["clip_booked"] for s in statuses) / float(np.linalg.norm(total))
    sides = sum(s["exchanges"]["ok"] for s in statuses)
    lost = sum(s["exchanges"]["timed_out"] + s["exchanges"]["refused"] for s in statuses)
    done, planned = (sum(a[key] for a in answers) for key in ("ok", "as_planned"))
    who = f"{size} nodes:" if changes else f"{size} nodes, clipping as usual:"
    strict = [
        Row(f"{who} booked by clipping ÷ ‖Σφ‖", booked, at_most=0),
        Row(f"{who} ‖ΔΣφ‖ ÷ ‖Σφ‖", change, at_most=DRIFT_MAX),
    ]
    clipped = [
        Row(f"{who} ‖ΔΣφ‖ ÷ ‖Σφ‖", change),
        Row(f"{who} booked by clipping ÷ ‖Σφ‖", booked),
        Row(f"{who} what is left", max(change - booked, 0.0), at_most=DRIFT_MAX),
    ]
    return [
        Row(f"{who} exchanges started and done", done, at_least=exchanges),
        Row(f"{who} sides of them done", sides, at_least=2 * done, at_most=2 * done),
        Row(f"{who} exchanges lost or refused", lost, at_most=0),
        Row(f"{who} exchanges with {' and '.join(CODECS)}", planned, at_least=exchanges),
        Row(f"{who} spread of φ, before", spread_of(before)),
        Row(f"{who} spread of φ, after", spread_of(after)),
        *(strict if changes else clipped),
    ]


def total_of(nodes: Sequence[Weights]) -> NDArray[np.float64]:
    """Σφ over nodes, all fragments in a row, fp64."""
    total: NDArray[np.float64] = np.sum([flat(weights) for weights in nodes], axis=0)
    return total


def spread_of(nodes: Sequence[Weights]) -> float:
    """The largest distance of a node from the mean ÷ the mean's norm."""
    mean = total_of(nodes) / len(nodes)
    largest = max(float(np.linalg.norm(flat(weights) - mean)) for weights in nodes)
    return largest / float(np.linalg.norm(mean))


def flat(weights: Weights) -> NDArray[np.float64]:
    return np.concatenate(weights).astype(np.float64)


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--exchanges", type=int, default=100, help="in all, for each swarm [100]")
    flags.add_argument("--nodes", type=int, nargs="+", default=[2, 4], help="swarm sizes [2 4]")
    flags.add_argument("--seed", type=int, default=1)
    return report.perform("conservation", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
