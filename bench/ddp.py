"""Synchronous data parallel training as torch does it, to compare a swarm with: one process of a group.

`python -m bench.ddp RANK WORLD FOLDER MODEL_DIR STEPS`, once for each rank. The same model, initial
weights, optimizer, clipping, schedule by tokens, text and loader as a node's worker has; only the
gradient is the mean over all processes, in every step (torch's DistributedDataParallel, gloo). FOLDER is a
node's state folder, which holds the plan and the text. Rank 0 writes the model to MODEL_DIR, and every
rank prints one line of JSON at the end.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from peerlm.cli.plan import current_plan
from peerlm.config import Plan
from peerlm.data.loader import Loader
from peerlm.data.shards import Corpus
from peerlm.model.export import write_model
from peerlm.model.model import LanguageModel
from peerlm.model.plan import fragments
from peerlm.model.weights import copy_out
from peerlm.store.layout import Layout
from peerlm.train import optimizer, schedule
from peerlm.train.device import to_device
from peerlm.types import PeerId


class Loss(nn.Module):
    """The model's loss as a module's forward pass, which is where torch hooks in."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT1: Tensor) -> Tensor:
        return self.model.loss(tokens_BT1)


def train(plan: Plan, loader: Loader, model: LanguageModel, steps: int, world: int) -> None:
    """`steps` steps of this process; the rate falls with the tokens of all."""
    module = DistributedDataParallel(Loss(model))
    inner = optimizer.build(model, plan.train)
    device = torch.device("cpu")
    per_step = plan.train.batch * plan.model.context * world
    for step in range(steps):
        asked = schedule.rate(
            step * per_step, steps * per_step, plan.train.warmup, plan.train.final_lr
        )
        inner.zero_grad()
        module(to_device(loader.next_batch(), device)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), plan.train.clip or float("inf"))
        inner.set_rate(asked * schedule.rewarm(step, plan.train.rewarm_steps))
        inner.step()


def loader_of(plan: Plan, layout: Layout, rank: int, world: int) -> Loader:
    """What a node of a swarm of `world` would read."""
    paths = [layout.objects / shard for shard in plan.data.shards]
    corpus = Corpus.open(paths, plan.data.vocab, plan.data.val_fraction)
    peers = [PeerId(number.to_bytes(16)) for number in range(world)]
    loader = Loader(corpus, plan, peers[rank], plan.run.rng_seed)
    loader.set_members(peers)
    return loader


def write(model: LanguageModel, plan: Plan, folder: Path) -> None:
    specs = fragments(plan)
    values = [np.empty(spec.size, np.float32) for spec in specs]
    for spec, out in zip(specs, values, strict=True):
        copy_out(model, spec, out)
    write_model(folder, plan, values)


def main() -> int:
    rank, world = int(sys.argv[1]), int(sys.argv[2])
    layout, model_dir, steps = Layout(Path(sys.argv[3])), Path(sys.argv[4]), int(sys.argv[5])
    torch.set_num_threads(1)
    plan = current_plan(layout).plan
    meeting = f"file://{model_dir.with_suffix('.meeting')}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    model = LanguageModel(plan.model, plan.data.vocab)
    model.initialise(plan.run.rng_seed)
    began = time.monotonic()
    train(plan, loader_of(plan, layout, rank, world), model, steps, world)
    seconds = time.monotonic() - began
    if rank == 0:
        write(model, plan, model_dir)
    dist.destroy_process_group()
    sys.stdout.write(json.dumps({"rank": rank, "seconds": seconds}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
