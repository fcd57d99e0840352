"""How fast a model is trained in three stages on three nodes, beside one node that has it whole, on the same cores.

The two take turns; in each the other is stopped. The one node's worker has all cores, the three have one thread each,
so the stages can at best be as fast: what is lost is the way of the stream, and the time in which a stage waits.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench import report
from bench.report import Row, say
from peerlm.bench.founding import Values
from peerlm.bench.nodes import Swarm, running
from peerlm.cli.demo_nodes import DemoNode
from peerlm.daemon.control import ask

STAGES = 3
SHARE_MIN = 0.8
WARM_S = 20.0

PLAN: Values = {"run.token_budget": 1_000_000_000, "train.val_every_s": 100_000}


class Line(Swarm):
    """Node n holds stage n − 1; one node alone holds all."""

    def _local_of(self, node: DemoNode) -> Values:
        held = "all" if len(self.nodes) == 1 else str(node.number - 1)
        return {**super()._local_of(node), "host.stages": held}

    def go(self) -> None:
        for node in self.nodes:
            ask(node.layout, "resume")

    def rest(self) -> None:
        for node in self.nodes:
            ask(node.layout, "pause")
        self.wait("nobody trains", lambda: all(s["state"] == "ready" for s in self.statuses()))

    def rate_over(self, seconds: float) -> float:
        """Tokens a second, once it runs."""
        self.go()
        self.let_pass(WARM_S)
        before, began = self.tokens, time.monotonic()
        self.let_pass(seconds)
        rate = (self.tokens - before) / (time.monotonic() - began)
        self.rest()
        return rate


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    plan = {**PLAN, "model.stages": STAGES, "train.batch": 8, "train.accumulate": 8}
    one = Line(folder / "one", 1, plan, {"limits.threads": 2}, args.preset)
    three = Line(folder / "three", STAGES, plan, {"limits.threads": 1}, args.preset)
    rates: dict[str, list[float]] = {"one": [], "three": []}
    with running(one), running(three):
        for swarm in (one, three):
            swarm.start()
            swarm.rest()
        for number in range(args.pairs):
            rates["one"].append(one.rate_over(args.seconds))
            rates["three"].append(three.rate_over(args.seconds))
            say(
                f"pair {number + 1}: {rates['one'][-1]:,.0f} and {rates['three'][-1]:,.0f} tokens/s"
            )
        tracebacks = one.tracebacks() + three.tracebacks()
    whole, parts = median(rates["one"]), median(rates["three"])
    return [
        Row("one node, the whole model", whole, "tokens/s"),
        Row("three nodes, a stage each", parts, "tokens/s"),
        Row("three ÷ one", parts / whole, at_least=SHARE_MIN),
        Row("tracebacks in all logs", tracebacks, at_most=0),
    ]


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--preset", default="small", help="whose model [small]")
    flags.add_argument("--seconds", type=float, default=40.0, help="of a window [40]")
    flags.add_argument("--pairs", type=int, default=3, help="of windows [3]")
    return report.perform("stage_speed", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
