"""A middle host killed in mid-text, again and again: how long the text stands still, and whether it is the same.

Four real nodes hold a model in three stages, two of them the middle one, and nobody trains, so that both have the same
weights. A gateway in this process writes a text through them in peace, then again, and at a moment drawn by lot the middle host
that it goes through gets SIGKILL. The pause is the longest time between two of its tokens. The host is started again, and the next
text begins when both middle hosts have served since.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import report
from bench.report import Quantiles, Row, say
from peerlm.bench.founding import Values
from peerlm.bench.nodes import Swarm, running
from peerlm.cli.demo_nodes import DemoNode
from peerlm.cli.swarm_here import open_swarm
from peerlm.data.tokenizer import ByteTokenizer
from peerlm.serve.engine import TorchSampler, use_threads
from peerlm.serve.route import Version
from peerlm.serve.scheduler import Scheduler
from peerlm.serve.service import Job, Service
from peerlm.serve.session import Sampling
from peerlm.serve.swarm import Swarm as Route

HELD = ("0", "1", "2", "1")
"""The stage of each node."""

MIDDLE = 1
SAMPLING = Sampling(temperature=1.5)
PROMPT = tuple(b"ROMEO: what light")
MID_LAP_S = 0.05
"""A kill is up to so much later than the token by which it is timed."""

PAUSE_S_MAX = 3.0

PLAN: Values = {"model.stages": 3, "model.context": 128, "run.token_budget": 1_000_000_000}


class Diamond(Swarm):
    """Two ways through the middle, and nobody who trains."""

    def _local_of(self, node: DemoNode) -> Values:
        held = {"host.stages": HELD[node.number - 1]}
        idle = {} if node.number == 1 else {"train.enabled": "false"}
        return {**super()._local_of(node), **held, **idle}

    def start(self) -> None:
        self.found()
        self.nodes[0].start("up")
        self.wait("the first node answers", lambda: self.nodes[0].status is not None)
        for node in self.nodes[1:]:
            self.join(node)
        self.wait("every node has weights on its disk and sees the others", self.all_serve)

    def all_serve(self) -> bool:
        ids = {s["node_id"] for s in self.statuses()}
        return len(ids) == len(self.nodes) and all(
            s["snapshot"]["number"] and {m["id"] for m in s["members"] if m["linked"]} >= ids
            for s in self.statuses()
        )

    def laps(self, node: DemoNode) -> int:
        """That have come to it since it was started."""
        return 0 if node.status is None else int(node.status["daemon"]["counters"]["texts_laps"])

    def node_of(self, peer: bytes) -> DemoNode:
        return next(n for n in self.nodes if n.status and n.status["node_id"] == peer.hex())


class Gateway:
    """Writes one text at a time. `pause_s`: the longest time between two tokens of the last one."""

    def __init__(self, route: Route) -> None:
        self.route = route
        version = Version("bench", None, route)
        self._service = Service(Scheduler(1, 1, 256), TorchSampler(), ByteTokenizer(), version)
        self.pause_s = 0.0

    def write(self, rng_seed: int, tokens: int, see: Callable[[int], None]) -> list[int]:
        """Its token ids. `see` is told how many there are, at each."""
        self._service.submit(Job((PROMPT,), (rng_seed,), SAMPLING, tokens, past_end=True))
        ids: list[int] = []
        self.pause_s, before = 0.0, None
        while not self._service.is_idle:
            for told in self._service.step():
                if told.error:
                    raise report.Missed(told.error)
                now, drawn = time.monotonic(), len(ids)
                assert told.piece is not None
                ids += [pick.token for pick in told.piece.picks]
                if before is not None:
                    self.pause_s = max(self.pause_s, now - before)
                before = now
                if len(ids) > drawn:
                    see(len(ids))
        return ids


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    use_threads(1)
    with running(Diamond(folder, len(HELD), PLAN, preset=args.preset)) as swarm:
        swarm.start()
        gateway = Gateway(open_swarm(swarm.nodes[0].layout)[2])
        rng = random.Random(args.seed)
        calm, hit, same = [], [], 0
        for number in range(args.kills):
            ready(swarm, gateway)
            text = gateway.write(number, args.tokens, lambda _: None)
            calm.append(gateway.pause_s)
            again = killed(swarm, gateway, number, args.tokens, rng)
            hit.append(gateway.pause_s)
            same += again == text
            say(f"kill {number + 1} of {args.kills}: a pause of {gateway.pause_s:.2f} s")
        tracebacks = swarm.tracebacks()
    return [
        Row("kills of a middle host in mid-text", args.kills),
        Row("tokens of a text", args.tokens),
        Row("pause in peace, median / 90 % / longest", Quantiles.of(calm), "s"),
        Row("pause with a kill, median / 90 % / longest", Quantiles.of(hit), "s"),
        Row("longest pause between two tokens", max(hit), "s", at_most=PAUSE_S_MAX),
        Row("texts that were the same", same / args.kills, at_least=1.0),
        Row("texts read again", gateway.route.again, at_least=args.kills),
        Row("tracebacks in all logs", tracebacks, at_most=0),
    ]


def ready(swarm: Diamond, gateway: Gateway) -> None:
    """Both middle hosts have advanced texts since they were started."""
    swarm.wait("every node serves", swarm.all_serve)
    middle = [node for node, held in zip(swarm.nodes, HELD, strict=True) if held == str(MIDDLE)]

    def both_have_served() -> bool:
        gateway.write(0, 4, lambda _: None)
        return all(map(swarm.laps, middle))

    swarm.wait("both middle hosts have advanced a text", both_have_served)


def killed(
    swarm: Diamond, gateway: Gateway, rng_seed: int, tokens: int, rng: random.Random
) -> list[int]:
    """A text in the middle of which its middle host is killed; that is started again."""
    at, late_s = rng.randint(tokens // 4, tokens // 2), rng.uniform(0.0, MID_LAP_S)
    kills: list[tuple[DemoNode, threading.Timer]] = []

    def see(drawn: int) -> None:
        if drawn >= at and not kills:
            victim = swarm.node_of(gateway.route.hosts_of(0)[MIDDLE])
            timer = threading.Timer(late_s, victim.kill)
            kills.append((victim, timer))
            timer.start()

    ids = gateway.write(rng_seed, tokens, see)
    if not kills:
        raise report.Missed("a text ended before its middle host was killed")
    ((victim, timer),) = kills
    timer.join()
    swarm.start_again(victim)
    return ids


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--preset", default="tiny", help="whose model [tiny]")
    flags.add_argument("--kills", type=int, default=10, help="of a middle host [10]")
    flags.add_argument("--tokens", type=int, default=200, help="of a text [200]")
    flags.add_argument("--seed", type=int, default=1, help="of the moments of the kills [1]")
    return report.perform("texts_killed", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
