"""The only host of a stage killed for good, beside a spare node that decides by itself what it holds: how soon training goes on.

Three nodes hold a stage of the model each, as their owners have said; a fourth has room for one, of those but the first. It becomes the second host
of one and keeps copies of the two that have one host. Then the host of one of these gets SIGKILL and stays dead. The others
notice, hold, the spare drops what another holds, too, begins with its copy, and tokens are counted again.

A node *can take* the stage from when it has both: weights of it, here a copy on its own disk, and word that nobody trains it any more, which
a broken connection is, before the failure detector has its verdict. Promised is what follows from then on, that verdict included. Tokens count as
rising when they are 1,024 above what they were when the spare came to hold the stage: what was under way at the kill is not among them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import report
from bench.report import Row, say
from bench.stages import BACK_S_MAX, PLAN, STAGES
from peerlm.bench.founding import Values
from peerlm.bench.nodes import Swarm, running
from peerlm.cli.demo_nodes import DemoNode
from peerlm.config import preset, with_changes
from peerlm.model.stages import memory_of, stages
from peerlm.observe.placement import placement_of

RISEN = 1024
"""Tokens, of some microbatches."""

COPIED_S_MAX = 240.0


@dataclass(frozen=True, slots=True)
class Taken:
    """One kill. Seconds from it: until the spare sees nobody who trains the stage, holds it, and tokens rise."""

    stage: int
    heard_s: float
    held_s: float
    rising_s: float

    @property
    def able_s(self) -> float:
        """From when a node can take the stage."""
        return self.rising_s - self.heard_s


class Line(Swarm):
    """Node n holds stage n − 1; the spare comes once they train."""

    def __init__(self, folder: Path, pace: float) -> None:
        plan = {**PLAN, "run.token_budget": 1_000_000_000}
        super().__init__(folder, STAGES, plan, {"train.pace_of_all_tokens_s": pace})
        self.spare = DemoNode(STAGES + 1, folder)

    def _local_of(self, node: DemoNode) -> Values:
        held: Values = {"host.stages": str(node.number - 1)}
        if node is self.spare:
            held = {"host.stages": "auto", "host.memory_bytes": room()}
        return {**super()._local_of(node), **held}

    def bring_spare(self) -> int:
        """Have it join, and wait for its copies. Returns the stage whose host is to be killed."""
        self.nodes.append(self.spare)
        self.join(self.spare)
        self.wait("the spare keeps copies of what has one host", self._is_ready, COPIED_S_MAX)
        return max(self._single())

    def _single(self) -> list[int]:
        """Stages with one host, by the spare's word."""
        status = self.spare.status
        return placement_of(status)["single"] if status is not None else []

    def _is_ready(self) -> bool:
        status = self.spare.status
        if status is None or status["worker"]["state"] != "running" or self._lacking():
            return False
        single = self._single()
        return bool(single) and set(single) <= set(status["placement"]["copies"])

    def host_killed(self, stage: int) -> Taken:
        """Raises `Missed`."""
        spare, victim = self.spare, self.nodes[stage]
        began = time.monotonic()
        victim.kill()

        def since(what: str, is_so: Callable[[], bool]) -> float:
            self.wait(what, is_so, poll_s=0.1)
            return time.monotonic() - began

        heard_s = since("the spare sees it", lambda: stage in self._lacking())
        held_s = since("the spare holds the stage", lambda: self._held() == range(stage, stage + 1))
        tokens = self.tokens
        rising_s = since("training goes on", lambda: self.tokens >= tokens + RISEN)
        say(
            f"stage {stage}: {spare.name} saw it after {heard_s:.1f} s, tokens rose after {rising_s:.1f} s"
        )
        return Taken(stage, heard_s, held_s, rising_s)

    def _lacking(self) -> Sequence[int]:
        status = self.spare.status
        return status["stages"]["lacking"] if status is not None else ()

    def _held(self) -> range:
        status = self.spare.status
        return (
            range(status["stages"]["first"], status["stages"]["last"] + 1) if status else range(0)
        )


def room() -> int:
    """Bytes that any one stage takes but the first, which has both ends of the model: too few for that, or for two."""
    cut = stages(with_changes(preset("tiny"), PLAN, "bench.takeover"))
    return max(memory_of(cut, range(s, s + 1)).total() for s in range(1, len(cut)))


def rows(kills: Sequence[Taken], tracebacks: int) -> list[Row]:
    """Of several kills, the worst."""
    return [
        Row("kills", len(kills)),
        Row("stages they hit", ", ".join(str(kill.stage) for kill in kills)),
        Row("killed → the spare sees it, worst", max(k.heard_s for k in kills), "s"),
        Row("killed → it holds the stage, worst", max(k.held_s for k in kills), "s"),
        Row("killed → tokens rise again, worst", max(k.rising_s for k in kills), "s"),
        Row(
            "the spare can take it → tokens rise again, worst",
            max(kill.able_s for kill in kills),
            "s",
            at_most=BACK_S_MAX,
        ),
        Row("tracebacks in all logs", tracebacks, at_most=0),
    ]


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    kills, tracebacks = list[Taken](), 0
    for number in range(args.kills):
        with running(Line(folder / f"line-{number}", args.pace)) as line:
            line.start()
            kills.append(line.host_killed(line.bring_spare()))
            tracebacks += line.tracebacks()
    return rows(kills, tracebacks)


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--kills", type=int, default=3, help="each in a swarm of its own [3]")
    flags.add_argument("--pace", type=float, default=800.0, help="of the swarm, tokens/s [800]")
    return report.perform("takeover", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
