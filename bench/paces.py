"""Nodes of speed 1 : 2 : 4 in one swarm: does each keep its own speed, and does the model suffer?

Three nodes whose workers are held to paces of 1 : 2 : 4 (`train.pace_tokens_s`) train until the budget is reached; so do three
equal ones with the same pace in all. Beforehand each pace is run by a node alone. Nobody waits for the slow one:
promised is 0.97 of the sum of the nodes alone, and, at equal tokens, a loss no worse than that of equal nodes; as seeds differ by
about that much, up to 1 % more counts as none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.report import Row, say
from peerlm.bench.founding import Values
from peerlm.bench.nodes import Swarm, running
from peerlm.bench.windows import rates
from peerlm.cli.demo_nodes import DemoNode
from peerlm.cli.demo_proof import validation_loss

SPEEDS = (1, 2, 4)
PATIENCE_S = 1800.0


class Paced(Swarm):
    """`paces`: tokens/s of each node's worker."""

    paces: Sequence[float] = ()

    def _local_of(self, node: DemoNode) -> Values:
        pace = self.paces[node.number - 1]
        return {**super()._local_of(node), "train.pace_tokens_s": f"{pace:.1f}"}


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    paces = [args.pace * speed for speed in SPEEDS]
    plan = {
        "run.rng_seed": args.seed,
        "train.val_every_s": 100_000,
        "run.token_budget": args.tokens,
    }
    alone = [
        trained(folder / f"alone-{i}", [pace], plan, args.seconds)[0][0]
        for i, pace in enumerate(paces)
    ]
    say(f"alone: {', '.join(f'{rate:.0f}' for rate in alone)} tokens/s")
    found, loss = trained(folder / "unequal", paces, plan, args.seconds, to_the_end=True)
    say(f"together: {', '.join(f'{rate:.0f}' for rate in found)} tokens/s; loss {loss:.4f}")
    equal = [sum(paces) / len(paces)] * len(paces)
    _, other = trained(folder / "equal", equal, plan, args.seconds, to_the_end=True)
    say(f"equal nodes: loss {other:.4f}")
    kept = [mine / own for mine, own in zip(found, alone, strict=True)]
    return [
        Row("nodes alone, in all", sum(alone), "tokens/s"),
        Row("in one swarm, in all", sum(found), "tokens/s"),
        Row("÷ the sum of the nodes alone", sum(found) / sum(alone), at_least=0.97),
        *(Row(f"÷ alone, the node of speed {s}", k) for s, k in zip(SPEEDS, kept, strict=True)),
        Row(f"loss after {args.tokens:,} tokens", loss, "nats"),
        Row("loss of equal nodes after as many", other, "nats"),
        Row("÷ that of equal nodes", loss / other, at_most=1.01),
    ]


def trained(
    folder: Path, paces: Sequence[float], plan: Values, seconds: float, to_the_end: bool = False
) -> tuple[list[float], float]:
    """(tokens/s of each node in a stretch of training, validation loss of the first node's finished model or 0)."""
    swarm = Paced(folder, len(paces), plan)
    swarm.paces = paces
    with running(swarm):
        swarm.start()
        swarm.wait("every worker runs", lambda: all(map(_works, swarm.statuses())))
        found = rates(swarm, seconds)
        if not to_the_end:
            return found, 0.0
        swarm.wait("the run is over", swarm.all_done, PATIENCE_S)
        return found, validation_loss(swarm.models()[0], swarm.nodes[0].layout)


def _works(status: Mapping[str, Any]) -> bool:
    return bool(status["worker"]["tokens_per_s"] > 0)


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--pace", type=float, default=1000.0, help="of the slowest, tokens/s [1000]")
    flags.add_argument("--tokens", type=int, default=1_000_000, help="of a swarm, in all [1 M]")
    flags.add_argument("--seconds", type=float, default=60.0, help="in which rates are taken [60]")
    flags.add_argument("--seed", type=int, default=1)
    return report.perform("paces", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
