"""Fifteen minutes in which a random node is killed every 30 to 60 s, beside a swarm left in peace.

Two swarms of three nodes train at the same time, with the same plan, seed, pace and token budget. In one,
the first node and then any that is drawn gets SIGKILL again and again, stays down for up to ten
seconds and is started with `peerlm up`. Watched all the while: how soon it takes part again, whether
its worker outlives it, whether any node's count of the swarm's tokens falls, whether training ever
stands still, what the logs hold, how much of the processors the killed swarm takes. At the budget both swarms settle, and their written models are
compared on the held-out text. The budget is what the paces allow in the time, so that kills do not end before it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench import report
from bench.report import Missed, Row, say
from peerlm.bench.nodes import Swarm, processor_time, running
from peerlm.chaos.verdict import CORES_MAX, Usage
from peerlm.cli.demo_nodes import DemoNode
from peerlm.cli.demo_proof import relative_spread, validation_loss
from peerlm.data.processes import processors

NODES = 3
RETURN_S_MAX = 30.0
LOSS_APART_MAX = 0.03
SPREAD_MAX = 1e-3
STILL_S_MAX = 30.0
"""Longest time in which the swarm's count may not grow before the budget: more is a hang."""

WORKER_GONE_S = 2.0
POLL_S = 0.2
SAMPLE_S = 5.0
"""Between looks at processor time; what a process uses after the last look before its death is not seen."""


@dataclass(slots=True)
class Havoc:
    """Kills one node after another. `returns`: seconds from each start to taking part; inf: cut short."""

    swarm: Swarm
    rng: random.Random
    every: tuple[float, float]
    down_s_max: float
    kills: int = 0
    first_killed: int = 0
    orphans: int = 0
    returns: list[float] = field(default_factory=list)
    began: float = 0.0
    lasted_s: float = 0.0
    """From the beginning until it was over."""
    due: float = 0.0
    down: dict[int, float] = field(default_factory=dict)
    """Node number → when it is started again."""
    coming: dict[int, float] = field(default_factory=dict)
    """Node number → when it was started."""

    def step(self, now: float, over: bool) -> None:
        """What is due now; nobody is killed once it is `over`."""
        if not over:
            self.lasted_s = now - self.began
        for node in self.swarm.nodes:
            if self.down.get(node.number, now + 1) <= now:
                del self.down[node.number]
                node.start("up")
                self.coming[node.number] = now
            elif node.number in self.coming and node.status and node.status["participating"]:
                took_s = now - self.coming.pop(node.number)
                self.returns.append(took_s)
                say(f"{node.name} takes part again after {took_s:.1f} s")
        if now >= self.due and not over:
            self.due = now + self.rng.uniform(*self.every)
            first = self.swarm.nodes[0]
            self._kill(self.rng.choice(self.swarm.nodes) if self.first_killed else first, now)

    def _kill(self, node: DemoNode, now: float) -> None:
        if not node.is_up:
            return
        if self.coming.pop(node.number, None) is not None:
            self.returns.append(float("inf"))
        gone, alive = psutil.wait_procs(node.kill(), timeout=WORKER_GONE_S)
        self.kills += 1
        self.first_killed += node.number == 1
        self.orphans += len(alive)
        self.down[node.number] = now + self.rng.uniform(0.0, self.down_s_max)
        say(f"{node.name} killed, {len(gone)} processes went with it")

    @property
    def is_quiet(self) -> bool:
        """Everybody is back."""
        return not (self.down or self.coming)


class Stillness:
    """The longest time in which a swarm's count did not grow."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._tokens, self._since = -1, 0.0

    def see(self, tokens: int, now: float) -> None:
        if tokens > self._tokens:
            self._tokens, self._since = tokens, now
        self.longest_s = max(self.longest_s, now - self._since)


class Share:
    """Of all processors' time, what a swarm's processes have used, from the first look on."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm, self._usage = swarm, Usage()
        self._began = self._last = self._due = 0.0

    def see(self, now: float) -> None:
        if now < self._due:
            return
        self._began = self._began or now
        self._last, self._due = now, now + SAMPLE_S
        self._usage.see(processor_time(self._swarm.nodes))

    @property
    def value(self) -> float:
        return self._usage.seconds / (max(self._last - self._began, SAMPLE_S) * processors())


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    # All that the paces allow in the time: kills cost some of it, so that they last their time.
    budget = int(NODES * args.pace * 60 * args.minutes)
    plan = {
        "run.token_budget": budget,
        "run.rng_seed": args.seed,
        "swarm.profile": args.profile,
    }
    local = {"train.pace_tokens_s": args.pace}
    killed = Swarm(folder / "killed", NODES, plan, local)
    calm = Swarm(folder / "calm", NODES, plan, local)
    with ExitStack() as stack:
        for swarm in (killed, calm):
            stack.enter_context(running(swarm))
            swarm.start()
        say(f"both swarms train, {budget:,} tokens each")
        havoc = Havoc(killed, random.Random(args.seed), tuple(args.every), args.down)
        share = Share(killed)
        stillness = watch(killed, calm, havoc, share, budget, 60 * args.minutes)
        say("both are done")
        apart = [validation_loss(s.models()[0], s.nodes[0].layout) for s in (killed, calm)]
        spreads = [relative_spread(s.models()) for s in (killed, calm)]
        tokens = [s.tokens for s in (killed, calm)]
        faults = sum(s.tracebacks() for s in (killed, calm))
        backwards = sum(len(s.steps_back) for s in (killed, calm))
    returns = havoc.returns
    return [
        Row("kills", havoc.kills, at_least=1),
        Row("kills went on for", havoc.lasted_s / 60, "min"),
        Row("of the first node", havoc.first_killed, at_least=1),
        Row("restarts after which the node took part again", len(returns), at_least=havoc.kills),
        Row("restart to taking part, median", statistics.median(returns), "s"),
        Row("restart to taking part, slowest", max(returns), "s", at_most=RETURN_S_MAX),
        Row(f"workers alive {WORKER_GONE_S:g} s after their daemon", havoc.orphans, at_most=0),
        Row("longest stillness, killed swarm", stillness[0], "s", at_most=STILL_S_MAX),
        Row("longest stillness, calm swarm", stillness[1], "s", at_most=STILL_S_MAX),
        Row("of all processors' time, the killed swarm", share.value, at_most=CORES_MAX),
        Row("counts of tokens that fell", backwards, at_most=0),
        Row("tracebacks in all logs", faults, at_most=0),
        Row("tokens, killed swarm", tokens[0], at_least=budget),
        Row("tokens, calm swarm", tokens[1], at_least=budget),
        Row("validation loss, killed swarm", apart[0], "nats"),
        Row("validation loss, calm swarm", apart[1], "nats"),
        Row("their distance", abs(apart[0] / apart[1] - 1), at_most=LOSS_APART_MAX),
        Row("spread of the final models, killed swarm", spreads[0], at_most=SPREAD_MAX),
        Row("spread of the final models, calm swarm", spreads[1], at_most=SPREAD_MAX),
    ]


def watch(
    killed: Swarm, calm: Swarm, havoc: Havoc, share: Share, budget: int, seconds: float
) -> tuple[float, float]:
    """Until both are done; returns the longest stillness of each. Raises `Missed` at a deadline."""
    began = time.monotonic()
    havoc.began = began
    havoc.due = began + havoc.rng.uniform(*havoc.every)
    still = (Stillness(), Stillness())
    while not (havoc.is_quiet and killed.all_done() and calm.all_done()):
        now = time.monotonic()
        for swarm, watched in zip((killed, calm), still, strict=True):
            swarm.look()
            for node in swarm.nodes:
                if node.state != "killed":
                    node.check_up()
            if swarm.tokens < budget:
                watched.see(swarm.tokens, now)
        if killed.tokens < budget:
            share.see(now)
        havoc.step(now, over=now - began >= seconds or killed.tokens >= budget)
        if now - began > 1.5 * seconds + 180:
            raise Missed(f"not done in time: {killed.words()}; calm: {calm.words()}")
        time.sleep(POLL_S)
    return still[0].longest_s, still[1].longest_s


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--minutes", type=float, default=15.0)
    flags.add_argument("--pace", type=float, default=1500.0, help="tokens/s of a node [1500]")
    flags.add_argument(
        "--every", type=float, nargs=2, default=(30.0, 60.0), metavar="S", help="[30 60]"
    )
    flags.add_argument("--down", type=float, default=10.0, metavar="S", help="longest absence [10]")
    flags.add_argument("--profile", default="lan", help="timers of failure detection [lan]")
    flags.add_argument("--seed", type=int, default=1)
    return report.perform("chaos", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
