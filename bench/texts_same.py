"""Texts through stages on several real nodes are those of one process, token for token.

Three nodes with a stage each learn for a while, then rest. Twenty pieces of the shipped text, of one token to as many as the
model looks back on, so that most are read in chunks, are gone on with greedily, and with a seed, temperature and top_p: all forty texts at once
through the nodes, and one after another by a process that has the same weights. A fourth node joins as a second host of the middle stage. All is
written twice more, and in mid-text the host that most texts go through is killed, or is told to stop: they go on at the other.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from bench import report
from bench.report import Missed, Row, say
from bench.texts import PLAN, STAGES, Line, whole_of
from peerlm.bench.founding import Values
from peerlm.bench.nodes import running
from peerlm.cli.demo_nodes import DemoNode
from peerlm.cli.plan import current_plan
from peerlm.cli.swarm_here import open_swarm
from peerlm.config import Plan
from peerlm.daemon.control import ask
from peerlm.data.tokenizer import Tokenizer
from peerlm.serve.engine import TorchSampler, use_threads
from peerlm.serve.route import Route, Version
from peerlm.serve.scheduler import Scheduler
from peerlm.serve.service import Job, Service
from peerlm.serve.session import Sampling
from peerlm.serve.stage_weights import held_values
from peerlm.serve.swarm import Swarm as Swarmed

PROMPTS = 20
CHUNK = 64
"""Tokens of prompts in a step."""

GREEDY, DRAWN = Sampling(temperature=0.0), Sampling(temperature=0.9, top_p=0.95)

HELD = ("0", "1", "2", "1")
MIDDLE = 1
STOP_S = 30.0

TEXT = report.ROOT / "peerlm" / "data" / "shipped" / "shakespeare.txt"
TEXT_CHARACTERS = 200_000

Texts = list[list[int]]
"""Token ids of each."""


class Spared(Line):
    """A fourth node may join, which holds what the second does."""

    def _local_of(self, node: DemoNode) -> Values:
        held = {"host.stages": HELD[node.number - 1], "host.sessions": 3 * PROMPTS}
        return {**super()._local_of(node), **held}

    def join_spare(self, plan: Plan) -> None:
        """Raises `Missed` when it has other weights than the second."""
        self.nodes.append(DemoNode(len(self.nodes) + 1, self.folder))
        self.join(self.nodes[-1])
        self.hold(self.nodes[-1])
        self.wait("the fourth node has weights", self._all_ready)
        ask(self.nodes[-1].layout, "snapshot", timeout_s=60.0)
        held = range(MIDDLE, MIDDLE + 1)
        two, four = (held_values(self.nodes[at].layout, plan, held)[0] for at in (1, 3))
        if not all(map(np.array_equal, two, four)):
            raise Missed("the two hosts of the middle stage have other weights")

    def both_serve(self, route: Swarmed, jobs: Sequence[Job], codec: Tokenizer) -> None:
        """Write until both hosts of the middle stage have had part since they were started."""

        def both_did() -> bool:
            written(route, jobs, codec)
            self.look()
            return all(self.laps(self.nodes[at]) for at in (1, 3))

        self.wait("both middle hosts advance texts", both_did)

    def laps(self, node: DemoNode) -> int:
        return 0 if node.status is None else int(node.status["daemon"]["counters"]["texts_laps"])


# ------------------------------------------------------------------------------------- the texts


def prompts(codec: Tokenizer, longest: int) -> list[tuple[int, ...]]:
    """Pieces of the shipped text, from one token to `longest`."""
    ids = codec.encode(TEXT.read_text()[:TEXT_CHARACTERS]).tolist()
    rng, found = random.Random(1), []
    for number in range(PROMPTS):
        length = 1 + number * (longest - 1) // (PROMPTS - 1)
        start = rng.randrange(len(ids) - length)
        found.append(tuple(ids[start : start + length]))
    return found


def jobs_of(asked: Sequence[tuple[int, ...]], tokens: int, *ways: Sampling) -> list[Job]:
    """Each prompt in each of the ways."""
    return [
        Job((prompt,), (seed,), sampling, tokens, past_end=True)
        for seed, prompt in enumerate(asked)
        for sampling in ways
    ]


def written(
    route: Route,
    jobs: Sequence[Job],
    codec: Tokenizer,
    at_once: int | None = None,
    see: Callable[[int], None] = lambda _: None,
) -> Texts:
    """What is written for each job; so many at once, or all. `see` is told after each step how many tokens there are."""
    again = [Job(j.prompts, j.rng_seeds, j.sampling, j.tokens_max, past_end=True) for j in jobs]
    scheduler = Scheduler(at_once or len(jobs), len(jobs), CHUNK)
    service = Service(scheduler, TorchSampler(), codec, Version("bench", None, route))
    ids: dict[Job, list[int]] = {job: [] for job in again}
    for job in again:
        service.submit(job)
    drawn = 0
    while not service.is_idle:
        for told in service.step():
            if told.error:
                raise Missed(told.error)
            assert told.piece is not None
            ids[told.job] += [pick.token for pick in told.piece.picks]
            drawn += told.drawn
        see(drawn)
    return list(ids.values())


def differing(some: Texts, others: Texts) -> int:
    """Of how many texts the tokens are not the same."""
    return sum(a != b for a, b in zip(some, others, strict=True))


def moved(
    swarm: Spared,
    route: Swarmed,
    jobs: Sequence[Job],
    codec: Tokenizer,
    strike: Callable[[DemoNode], object],
) -> Texts:
    """The texts, half-way through which the middle host that most of them go through is struck; it is started again."""
    struck: list[DemoNode] = []
    half = sum(job.tokens_max for job in jobs) // 2

    def see(drawn: int) -> None:
        if drawn < half or struck:
            return
        ways = [way for slot in range(len(jobs)) if (way := route.hosts_of(slot))]
        ((most, _),) = Counter(way[MIDDLE] for way in ways).most_common(1)
        struck.append(
            next(n for n in swarm.nodes if n.status and n.status["node_id"] == most.hex())
        )
        strike(struck[0])

    swarm.look()
    found = written(route, jobs, codec, see=see)
    (victim,) = struck
    victim.end(STOP_S)
    swarm.start_again(victim)
    swarm.hold(victim)
    return found


# ---------------------------------------------------------------------------------------- figure


def measure(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    use_threads(1)
    plan_values = {**PLAN, "model.context": args.context}
    with running(Spared(folder, STAGES, plan_values, preset=args.preset)) as swarm:
        swarm.start()
        swarm.wait("it has learnt", lambda: swarm.tokens >= args.learnt, limit_s=600.0)
        swarm.rest()
        plan = current_plan(swarm.nodes[0].layout).plan
        _, codec, route = open_swarm(swarm.nodes[0].layout)
        asked = prompts(codec, plan.model.context)
        jobs = jobs_of(asked, args.tokens, GREEDY, DRAWN)
        yield Row("texts at once: greedy", PROMPTS)
        yield Row("texts at once: drawn at 0.9, top_p 0.95", PROMPTS)
        yield Row("tokens of each", args.tokens)
        yield Row("tokens of the prompts", f"1 to {max(map(len, asked))}")
        yield Row("tokens of prompts in a step", CHUNK)
        say("one process, a text after another")
        alone = written(whole_of(plan, swarm), jobs, codec, at_once=1)
        say("three nodes, all at once")
        through = written(route, jobs, codec)
        yield Row("greedy texts that differ", differing(through[::2], alone[::2]), at_most=0)
        yield Row("drawn texts that differ", differing(through[1::2], alone[1::2]), at_most=0)
        swarm.join_spare(plan)
        for name, strike in (("killed", DemoNode.kill), ("told to stop", DemoNode.ask_to_stop)):
            swarm.both_serve(route, jobs_of(asked[:4], 4, GREEDY), codec)
            say(f"the middle host is {name} in mid-text")
            before = route.again
            found = moved(swarm, route, jobs, codec, strike)
            yield Row(f"a host {name}: texts that differ", differing(found, alone), at_most=0)
            yield Row(f"a host {name}: texts that moved", route.again - before, at_least=1)
        yield Row("tracebacks in all logs", swarm.tracebacks(), at_most=0)


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--preset", default="tiny", help="whose model [tiny]")
    flags.add_argument("--context", type=int, default=256, help="tokens the model looks back [256]")
    flags.add_argument("--tokens", type=int, default=64, help="of a text [64]")
    flags.add_argument("--learnt", type=int, default=20_000, help="tokens before that [20 000]")
    return report.perform("texts_same", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
