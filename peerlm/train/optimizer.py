"""The inner optimizer: what one node does with its own gradients.

`muon` (Jordan 2024; Liu et al., arXiv 2502.16982) takes the matrices of the blocks, orthogonalising
each update; the embedding, the head, norms and biases go to AdamW, as both papers advise. `adamw`
takes everything; `sgd` is the plain rule without momentum, the one textbook decentralised descent
is written for. Muon's rates are scaled to AdamW's root-mean-square update ("match_rms_adamw"), so a
rate means the same at every width.

Weight decay is for matrices only. State belongs to one node and is never mixed; `reset` forgets it
for parameters whose values were replaced.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from peerlm.config import TrainSection
from peerlm.train.muon import Muon

MUON_MOMENTUM = 0.95
ADAMW_BETAS = (0.9, 0.95)


class InnerOptimizer:
    """One or two torch optimizers over a model's parameters, driven as one."""

    def __init__(self, parts: list[torch.optim.Optimizer], named: dict[str, nn.Parameter]) -> None:
        self.parts, self._named = parts, named
        for group in self._groups():
            group["peak_lr"] = group["lr"]

    def set_rate(self, scale: float) -> None:
        """Set every learning rate to `scale` (0 to 1) of its peak."""
        for group in self._groups():
            group["lr"] = group["peak_lr"] * scale

    def step(self, is_finite: Tensor | None = None) -> None:
        """Move the parameters; with `is_finite`, a truth on their device that the processor does not wait for, only if
        it is. That needs what `build` makes for one that `runs_ahead`."""
        found_inf = None if is_finite is None else 1.0 - is_finite.float()
        for part in self.parts:
            cast("Any", part).found_inf = found_inf  # as torch's GradScaler tells them
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def reset(self, tensors: Iterable[str]) -> None:
        """Forget momentum and moments of the named parameters, wholly."""
        for name in tensors:
            for part in self.parts:
                part.state.pop(self._named[name], None)

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]


def build(model: nn.Module, settings: TrainSection, *, runs_ahead: bool = False) -> InnerOptimizer:
    """The optimizer `settings.optimizer` names, at its peak rates. `runs_ahead`: its steps may be told on the device
    whether they are to move anything, which torch's rules can where all is in one kernel."""
    named, fused = dict(model.named_parameters()), True if runs_ahead else None
    match settings.optimizer:
        case "muon":
            inside = {n: p for n, p in named.items() if n.startswith("blocks.") and p.ndim == 2}
            beside = {n: p for n, p in named.items() if n not in inside}
            adamw = torch.optim.AdamW(
                _groups(beside, settings.weight_decay),
                lr=settings.adamw_lr,
                betas=ADAMW_BETAS,
                fused=fused,
            )
            if not inside:  # a first stage may hold the model's ends alone
                return InnerOptimizer([adamw], named)
            muon = Muon(
                inside.items(),
                lr=settings.lr,
                weight_decay=settings.weight_decay,
                momentum=MUON_MOMENTUM,
                adjust_lr_fn="match_rms_adamw",
            )
            return InnerOptimizer([muon, adamw], named)
        case "adamw":
            everything = _groups(named, settings.weight_decay)
            return InnerOptimizer(
                [torch.optim.AdamW(everything, lr=settings.lr, betas=ADAMW_BETAS, fused=fused)],
                named,
            )
        case "sgd":
            everything = _groups(named, settings.weight_decay)
            return InnerOptimizer([torch.optim.SGD(everything, lr=settings.lr, fused=fused)], named)
        case _:
            raise AssertionError(f"no optimizer {settings.optimizer!r}")


def _groups(named: dict[str, nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay; vectors (norms, biases) without."""
    matrices = [p for p in named.values() if p.ndim >= 2]
    vectors = [p for p in named.values() if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
