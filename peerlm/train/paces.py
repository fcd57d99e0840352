"""How fast this device is at each kind of module, tried once when a worker begins: forward and back, without the rest.

A node that is to say what it would do with stages that it does not hold cannot measure them in training. So one block of
each kind that the plan has is made, and passes a few tokens twice, the second time by the clock. The two ends of a large
vocabulary are tried with a part of it, and reckoned up. That takes a fraction of a second, and memory for one block.

B sequences, T tokens, D features of the stream.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from peerlm.config import Plan
from peerlm.model.embedding import Embedding
from peerlm.model.model import BLOCKS, residual_scale
from peerlm.model.output import Output
from peerlm.model.stages import BACKWARD, KINDS, kind_flops, microbatch_tokens
from peerlm.train.device import mixed_precision
from peerlm.train.occupancy import synchronise

FLOPS_MAX = {"cuda": 1e12}
FLOPS_MAX_ELSEWHERE = 1e10
"""Of one pass forward and back: as many tokens pass as take about so many, a microbatch at most."""

TOKENS_MIN = 16

VOCAB_MAX = 4096
"""Rows of the tables that are tried."""


def tried(plan: Plan, device: torch.device) -> tuple[float, ...]:
    """Tokens a second of one module of each of `KINDS`, forward and back; 0 for a kind that the plan has not. Empty where the
    device has no room for the trial."""
    try:
        return tuple(_tried(plan, device, kind) for kind in KINDS)
    except (
        RuntimeError,
        MemoryError,
    ):  # torch's word for no memory; whoever begins to train will say what is wrong
        return ()


def _tried(plan: Plan, device: torch.device, kind: str) -> float:
    model, flops = plan.model, dict(zip(KINDS, kind_flops(plan), strict=True))[kind]
    if kind in BLOCKS and kind not in model.blocks:
        return 0.0
    most = FLOPS_MAX.get(device.type, FLOPS_MAX_ELSEWHERE) / (max(1, flops) * (1 + BACKWARD))
    tokens = int(min(microbatch_tokens(plan), max(TOKENS_MIN, most)))
    length = min(model.context, tokens)
    shape = (max(1, tokens // length), length)
    work, share = _work(plan, device, kind, shape)
    work()
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return shape[0] * shape[1] / max(time.perf_counter() - began, 1e-9) * share


def _work(
    plan: Plan, device: torch.device, kind: str, shape: tuple[int, int]
) -> tuple[Callable[[], None], float]:
    """A pass forward and back of so many tokens; and what part of the module's work it is."""
    model, draws = plan.model, torch.Generator().manual_seed(0)
    vocab = min(plan.data.vocab, VOCAB_MAX)
    share = vocab / plan.data.vocab
    tokens_BT = torch.randint(vocab, shape, generator=draws).to(device)
    hidden_BTD = torch.randn(*shape, model.dim, generator=draws).to(device).requires_grad_()
    if kind == "embedding":
        table = Embedding(vocab, model.dim).to(device)
        table.weight.data.zero_()
        return lambda: _pass(device, lambda: table(tokens_BT)), 1.0
    if kind == "output":
        head = Output(model, vocab)
        head.initialise(draws)
        head.to(device)
        table_VD = torch.zeros(vocab, model.dim, device=device, requires_grad=True)

        def loss() -> Tensor:
            return F.cross_entropy(
                head(hidden_BTD, table_VD).float().flatten(0, 1), tokens_BT.flatten()
            )

        return lambda: _pass(device, loss), share
    block = BLOCKS[kind](model)
    block.initialise(draws, residual_scale(model))
    block.to(device)
    return lambda: _pass(device, lambda: block(hidden_BTD)), 1.0


def _pass(device: torch.device, forward: Callable[[], Tensor]) -> None:
    with mixed_precision(device):
        made = forward()
    made.float().sum().backward()
