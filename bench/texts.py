"""Texts through three nodes with a stage each, beside one process that has the whole model.

Real nodes are founded and joined, their training is paused, and a gateway writes through them what a plain service in
this process writes with the same weights: one session alone, then eight together, in turns, so that whatever
else the machine does hits both alike. The texts must be the same to the token. All of it shares this machine's cores, so a swarm can
at best be as fast as the process. With `--link` the nodes are on machines of their own with such lines between
them, and a token's time is held against what it takes without a line and the delays of its hops.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from bench import report
from bench.report import Row, say
from peerlm.bench.founding import Place, Values
from peerlm.bench.lines import place_of
from peerlm.bench.nodes import Swarm, running
from peerlm.cli.demo_nodes import DemoNode
from peerlm.cli.plan import current_plan
from peerlm.cli.swarm_here import open_swarm
from peerlm.config import Plan
from peerlm.daemon.control import ask
from peerlm.data.tokenizer import ByteTokenizer
from peerlm.model.plan import fragments
from peerlm.model.stages import held_fragments
from peerlm.serve.engine import Slots, TorchSampler, Whole, use_threads
from peerlm.serve.route import Route, Version
from peerlm.serve.scheduler import Scheduler
from peerlm.serve.service import Job, Service
from peerlm.serve.session import Sampling
from peerlm.serve.stage_weights import held_values
from peerlm.sim.network import read_wire

STAGES = 3
SESSIONS = 8
CHUNK = 256
PROMPT = 16
GREEDY = Sampling(temperature=0.0)

ONE_MIN, TOGETHER_MIN, DELAY_MOST = 0.7, 0.85, 1.15

PLAN: Values = {
    "model.stages": STAGES,
    "run.token_budget": 1_000_000_000,
    "model.context": 128,
    "train.batch": 1,
    "train.accumulate": 1,
    "train.val_batches": 1,
}


class Line(Swarm):
    """Node n holds stage n − 1."""

    def _local_of(self, node: DemoNode) -> Values:
        return {**super()._local_of(node), "host.stages": str(node.number - 1)}

    def rest(self) -> None:
        """Nobody trains any more, and what each has is on disk."""
        for node in self.nodes:
            ask(node.layout, "pause")
        self.wait("nobody trains", lambda: all(s["state"] == "ready" for s in self.statuses()))
        for node in self.nodes:
            ask(node.layout, "snapshot", timeout_s=60.0)


class Writer:
    """Writes the same texts again and again. `ids`: of the last time."""

    def __init__(self, plan: Plan, route: Route) -> None:
        scheduler = Scheduler(SESSIONS, SESSIONS, CHUNK)
        version = Version("bench", None, route)
        self._service = Service(scheduler, TorchSampler(), ByteTokenizer(), version)
        rng = random.Random(1)
        vocab = min(plan.data.vocab, 256)
        self._prompts = [
            tuple(rng.randrange(vocab) for _ in range(PROMPT)) for _ in range(SESSIONS)
        ]
        self.ids: list[list[int]] = []

    def rate(self, sessions: int, tokens: int) -> float:
        """Tokens a second of so many texts together, from their second token on."""
        jobs = [Job((prompt,), (0,), GREEDY, tokens) for prompt in self._prompts[:sessions]]
        for job in jobs:
            self._service.submit(job)
        ids: dict[Job, list[int]] = {job: [] for job in jobs}
        drawn, began, counted = 0, time.monotonic(), 0
        while not self._service.is_idle:
            for told in self._service.step():
                if told.error:
                    raise report.Missed(told.error)
                drawn += told.drawn
                assert told.piece is not None
                ids[told.job] += [pick.token for pick in told.piece.picks]
            if not counted and drawn >= sessions:
                began, counted = time.monotonic(), drawn
        self.ids = list(ids.values())
        return (drawn - counted) / (time.monotonic() - began)


def whole_of(plan: Plan, swarm: Line) -> Whole:
    """The weights of all nodes, put together."""
    found: dict[int, np.ndarray] = {}
    for stage, node in enumerate(swarm.nodes):
        held = range(stage, stage + 1)
        values, *_ = held_values(node.layout, plan, held)
        found.update(
            (spec.id, v) for spec, v in zip(held_fragments(plan, held), values, strict=True)
        )
    return Whole(Slots(plan, SESSIONS, 1 << 32), [found[spec.id] for spec in fragments(plan)])


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    use_threads(args.threads)
    with place_of("", STAGES) as place:
        rows, one_s = beside(args, folder / "near", place)
    if args.link:
        with place_of(args.link, STAGES) as place:
            rows += far(args, folder / "far", place, one_s)
    return rows


def swarm_of(args: argparse.Namespace, folder: Path, place: Place) -> Line:
    local = {"limits.threads": args.threads, "train.pace_tokens_s": 500}
    return Line(folder, STAGES, PLAN, local, args.preset, place)


def beside(args: argparse.Namespace, folder: Path, place: Place) -> tuple[list[Row], float]:
    """Rows, and seconds of a token of one session."""
    with running(swarm_of(args, folder, place)) as swarm:
        swarm.start()
        swarm.rest()
        plan = current_plan(swarm.nodes[0].layout).plan
        route = open_swarm(swarm.nodes[0].layout)[2]
        through, plain = Writer(plan, route), Writer(plan, whole_of(plan, swarm))
        say("all memory is touched")
        for writer in (through, plain):
            writer.rate(SESSIONS, 4)
        rates: dict[tuple[str, int], list[float]] = {}
        same = 0
        for number in range(args.pairs):
            for sessions in (1, SESSIONS):
                for name, writer in (("swarm", through), ("process", plain)):
                    rates.setdefault((name, sessions), []).append(
                        writer.rate(sessions, args.tokens)
                    )
                same += through.ids == plain.ids
            say(f"pair {number + 1} of {args.pairs}")
        tracebacks = swarm.tracebacks()
    found = {key: median(values) for key, values in rates.items()}
    hop = 4 * plan.model.dim
    rows = [
        Row("one session, whole process", found["process", 1], "tokens/s"),
        Row("one session, three stages", found["swarm", 1], "tokens/s"),
        Row("one session: ratio", found["swarm", 1] / found["process", 1], at_least=ONE_MIN),
        Row("eight sessions, whole process", found["process", SESSIONS], "tokens/s"),
        Row("eight sessions, three stages", found["swarm", SESSIONS], "tokens/s"),
        Row(
            "eight sessions: ratio",
            found["swarm", SESSIONS] / found["process", SESSIONS],
            at_least=TOGETHER_MIN,
        ),
        Row("rounds with the same tokens", same / (2 * args.pairs), at_least=1.0),
        Row("stream of a token, each hop", hop, "B"),
        Row("sessions read again", route.again, at_most=0),
        Row("tracebacks in all logs", tracebacks, at_most=0),
    ]
    return rows, 1.0 / found["swarm", 1]


def far(args: argparse.Namespace, folder: Path, place: Place, near_s: float) -> list[Row]:
    """A token's time where each hop has a delay."""
    delay_s = sum(read_wire(args.link).delay_s) / 2
    with running(swarm_of(args, folder, place)) as swarm:
        swarm.start()
        swarm.rest()
        plan = current_plan(swarm.nodes[0].layout).plan
        writer = Writer(plan, open_swarm(swarm.nodes[0].layout)[2])
        writer.rate(1, 4)
        took_s = 1.0 / median(writer.rate(1, args.tokens) for _ in range(args.pairs))
        tracebacks = swarm.tracebacks()
    least_s = near_s + STAGES * delay_s
    return [
        Row(f"one session on {args.link}: a token", 1000 * took_s, "ms"),
        Row("the same without delay", 1000 * near_s, "ms"),
        Row("÷ (without delay + hops × delay)", took_s / least_s, at_most=DELAY_MOST),
        Row("tracebacks in all logs, on lines", tracebacks, at_most=0),
    ]


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--preset", default="tiny", help="whose model [tiny]")
    flags.add_argument("--tokens", type=int, default=48, help="of a text [48]")
    flags.add_argument("--pairs", type=int, default=5, help="of measurements [5]")
    flags.add_argument("--threads", type=int, default=1, help="of each process [1]")
    flags.add_argument("--link", default="", help="RATE,DELAY between machines; needs root")
    return report.perform("texts", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
