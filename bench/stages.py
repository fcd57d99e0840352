"""A model in three stages with two hosts for each, all on this machine: hosts are killed in turn, and then the only
host of a stage.

Two swarms train to the same budget, one in peace, one in which each node in turn gets SIGKILL, stays down for ten
seconds and is started again. Measured: how many tokens a second the swarm learns from while one of its hosts is down,
beside what it does with all of them; and the loss of the finished models, put together by a node that joins at the end
and holds every stage. Then one host a stage: the one of the middle is killed, and after a while started; training
holds, and goes on.

Of two equal hosts that do all they can, one does half: what is left when the other is killed is a question only where hosts have
something to spare. So a pace is set for the swarm as a whole (`train.pace_of_all_tokens_s`), at which no host and no core is at its
limit. A pace for each node that reads text would be such a limit: with one of two killed, half would be left, whatever the swarm does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.report import Missed, Row, say
from peerlm.bench.founding import Values
from peerlm.bench.nodes import Swarm, processes, running
from peerlm.cli.demo_nodes import DemoNode
from peerlm.cli.demo_proof import validation_loss

STAGES = 3
DOWN_S = 10.0
WHOLE_S = 60.0
"""Between two kills: what is lost, is back and mixed."""

LOSS_APART_MAX = 1.01
SHARE_MIN = 0.6
BACK_S_MAX = 30.0
RUN_S_MAX = 3600.0

PLAN: Values = {
    "model.stages": STAGES,
    "train.accumulate": 4,
    "model.context": 64,  # tokens are counted by the batch: short ones, of which many go into ten seconds
    "mix.bandwidth_share": 0,
    "mix.inner_steps": 5,
}


class Grid(Swarm):
    """Node n holds stage (n − 1) mod `STAGES`; one more than `hosts` of each would hold everything."""

    def __init__(self, folder: Path, hosts: int, budget: int, pace: float) -> None:
        plan = {**PLAN, "run.token_budget": budget}
        super().__init__(folder, hosts * STAGES, plan, {"train.pace_of_all_tokens_s": pace})
        self.whole = DemoNode(hosts * STAGES + 1, folder)

    def _local_of(self, node: DemoNode) -> Values:
        held = "all" if node is self.whole else str((node.number - 1) % STAGES)
        return {**super()._local_of(node), "host.stages": held}

    def finished_loss(self) -> float:
        """Of the model that a newcomer puts together, on the held-out text."""
        self.nodes.append(self.whole)
        self.join(self.whole)
        self.wait("a newcomer has the whole model", self._is_written)
        assert self.whole.status is not None
        return validation_loss(Path(self.whole.status["model_dir"]), self.whole.layout)

    def _is_written(self) -> bool:
        status = self.whole.status
        return bool(status and status["state"] == "done" and status["model_dir"])

    def is_done(self) -> bool:
        states = [status["state"] for status in self.statuses()]
        return len(states) == len(self.nodes) and set(states) == {"done"}

    def wait_back(self, node: DemoNode) -> None:
        """Until it works again: else the next one is not the only one that is missing. A node counts as one that reads, with a share of
        the pace, before its worker is there, which takes half a minute where the cores are full."""

        def works() -> bool:
            return bool(node.status and node.status["worker"]["state"] == "running")

        self.wait(f"{node.name} works again", works)

    @property
    def cpu_s(self) -> float:
        """What its processes have taken so far."""
        times = [process.cpu_times() for process in processes(self)]
        return sum(time.user + time.system for time in times)

    def rate_over(self, seconds: float) -> float:
        """Tokens a second that the swarm learns from, over so long from now."""
        before, began = self.tokens, time.monotonic()
        self.let_pass(seconds)
        return (self.tokens - before) / (time.monotonic() - began)


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    budget = int(args.tokens)
    with running(Grid(folder / "peace", 2, budget, args.pace)) as grid:
        grid.start()
        say(f"{len(grid.nodes)} nodes of {STAGES} stages train in peace")
        before_s = grid.cpu_s
        whole_rate = grid.rate_over(WHOLE_S)
        cores = (grid.cpu_s - before_s) / WHOLE_S
        grid.wait("the run is done", grid.is_done, RUN_S_MAX)
        peace = grid.finished_loss()
        tracebacks = grid.tracebacks()
    with running(Grid(folder / "trouble", 2, budget, args.pace)) as grid:
        grid.start()
        rates: list[float] = []
        """While each node is down, in their order."""
        returns: list[float] = []
        """While it comes back."""
        for node in list(grid.nodes):
            grid.rate_over(5.0)
            node.kill()
            rates.append(grid.rate_over(DOWN_S))
            grid.start_again(node)
            returns.append(grid.rate_over(WHOLE_S / 3))
            grid.wait_back(node)
            if grid.tokens >= budget:
                raise Missed("the run was over before each node was killed: raise --tokens")
            say(f"{node.name} killed: {rates[-1]:.0f} tokens/s; coming back: {returns[-1]:.0f}")
        grid.wait("the run is done", grid.is_done, RUN_S_MAX)
        trouble = grid.finished_loss()
        tracebacks += grid.tracebacks()
        fell = len(grid.steps_back)
    with running(Grid(folder / "line", 1, 1_000_000_000, args.pace)) as grid:
        grid.start()
        grid.rate_over(20.0)
        middle = grid.nodes[1]
        middle.kill()
        grid.rate_over(10.0)
        held_rate = grid.rate_over(10.0)
        why = [line for node in (grid.nodes[0],) if node.status for line in node.status["why"]]
        before = grid.tokens
        grid.start_again(middle)
        back_s = grid.wait("training goes on", lambda: grid.tokens > before + 1024)
        tracebacks += grid.tracebacks()
    return [
        Row("2 × 3 hosts, all there: rate", whole_rate, "tokens/s"),
        Row("cores that all nodes take meanwhile", cores),
        *(
            Row(
                f"a host of stage {stage} killed, worst of two ÷ all there",
                min(rates[stage::STAGES]) / whole_rate,
                at_least=SHARE_MIN,
            )
            for stage in range(STAGES)
        ),
        Row("median of all kills ÷ all there", statistics.median(rates) / whole_rate),
        Row("20 s from its start, worst ÷ all there", min(returns) / whole_rate),
        Row("kills", len(rates)),
        Row("loss of the finished model, in peace", peace, "nats"),
        Row("loss of the finished model, with kills", trouble, "nats"),
        Row("with kills ÷ in peace", trouble / peace, at_most=LOSS_APART_MAX),
        Row("counts that went back within a node's life", fell, at_most=0),
        Row("only host of a stage down: rate", held_rate, "tokens/s", at_most=0),
        Row("what the first node says of it", why[0] if why else "nothing"),
        Row("started again → training goes on", back_s, "s", at_most=BACK_S_MAX),
        Row("tracebacks in all logs", tracebacks, at_most=0),
    ]


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--tokens", type=float, default=300_000, help="of each run [300,000]")
    flags.add_argument("--pace", type=float, default=800.0, help="of the swarm, tokens/s [800]")
    return report.perform("stages", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
