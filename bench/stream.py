"""What is lost by sending the stream between stages in few bits: the same model learns from the same text with each codec.

A ring of three stages in one process, one host each, takes the same batches in the same order; only the bytes between
the stages differ, packed and unpacked as on the line. Equal initial weights, rates and steps; each model is then put
together and evaluated on the held-out text.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bench import report
from bench.report import Row, say
from peerlm.bench.founding import found
from peerlm.cli.demo_nodes import DemoNode
from peerlm.cli.plan import current_plan
from peerlm.config import Plan
from peerlm.data.loader import Loader
from peerlm.data.shards import Corpus
from peerlm.model.model import LanguageModel
from peerlm.model.stages import stages
from peerlm.train import hop, schedule
from peerlm.train.evaluate import evaluate
from peerlm.train.stage_learner import StageLearner, Stream
from peerlm.types import PeerId

STAGES = 3
CODECS = (("fp32", "fp32"), ("fp16", "fp16"), ("int8", "fp16"), ("int8", "int8"))
"""Forward, back. The third is the plan's default."""

APART_MAX = 1.01
ME = PeerId(bytes(16))


class Ring:
    def __init__(self, plan: Plan, forward: str, back: str) -> None:
        cut = stages(plan)
        blocks = [stage.blocks for stage in cut]
        device = torch.device("cpu")
        self._plan, self._forward, self._back = plan, forward, back
        self._hosts = [StageLearner(plan, device, stage.modules, blocks) for stage in cut]
        self.sent = 0

    def _over_the_line(self, stream: Stream, codec: str) -> Stream:
        body = hop.encode(stream, codec)
        self.sent += len(body)
        return hop.decode(body, stream.shape, codec)

    def step(self, batch_BT1: np.ndarray, rate: float) -> None:
        for number, part in enumerate(np.array_split(batch_BT1, self._plan.train.accumulate)):
            key = (ME, number, 0)
            stream = self._hosts[0].enter(key, part[:, :-1], 0)
            for stage, host in enumerate(self._hosts[1:], 1):
                arrived = self._over_the_line(stream, self._forward)
                stream = host.forward(key, arrived, stage, stage)
            arrived = self._over_the_line(stream, self._forward)
            share = len(part) / len(batch_BT1)
            _, gradient = self._hosts[0].loss(arrived, part[:, 1:], share)
            for host in reversed(self._hosts):
                back = host.backward(key, self._over_the_line(gradient, self._back))
                if back is not None:
                    gradient = back
        squares = [sum(host.squared_norms(()).values()) for host in self._hosts]
        for host in self._hosts:
            host.step(rate, sum(squares) ** 0.5)

    def model(self) -> LanguageModel:
        whole = LanguageModel(self._plan.model, self._plan.data.vocab)
        parts = {n: p for host in self._hosts for n, p in host.model.named_parameters()}
        whole.load_state_dict(parts, strict=False)
        return whole


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    torch.set_num_threads(args.threads)
    node = DemoNode(1, folder)
    found(node, {"model.stages": STAGES, "train.accumulate": 2}, {})
    plan = current_plan(node.layout).plan
    shards = [node.layout.objects / name for name in plan.data.shards]
    losses: dict[tuple[str, str], float] = {}
    sent: dict[tuple[str, str], float] = {}
    for codecs in CODECS:
        corpus = Corpus.open(shards, plan.data.vocab, plan.data.val_fraction)
        loader = Loader(corpus, plan, ME, plan.run.rng_seed)
        ring = Ring(plan, *codecs)
        for step in range(args.steps):
            rate = schedule.rate(step, args.steps, plan.train.warmup, plan.train.final_lr)
            ring.step(loader.next_batch(), rate)
        held_out = loader.validation_batches(plan.train.val_batches, plan.train.batch)
        losses[codecs] = evaluate(ring.model(), held_out)
        tokens = args.steps * plan.train.batch * plan.model.context
        sent[codecs] = ring.sent / tokens / STAGES
        say(f"{codecs[0]} forward, {codecs[1]} back: {losses[codecs]:.4f}")
    plain = losses[CODECS[0]]
    rows = []
    for codecs in CODECS:
        name = f"{codecs[0]} forward, {codecs[1]} back"
        bound = APART_MAX if codecs == ("int8", "fp16") else None
        rows += [
            Row(f"{name}: loss after {args.steps} steps", losses[codecs], "nats"),
            Row(f"{name}: ÷ fp32", losses[codecs] / plain, at_most=bound),
            Row(f"{name}: a token, each hop, both ways", sent[codecs], "B"),
        ]
    return rows


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--steps", type=int, default=500, help="of each run [500]")
    flags.add_argument("--threads", type=int, default=1, help="of the processor [1]")
    return report.perform("stream", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
