"""torch's Muon with its iteration where it is fast: in fp32 on processors, for many matrices at once elsewhere.

torch orthogonalises each update in bf16, one matrix after another. CPUs without bf16 arithmetic emulate it:
for the preset `tiny` that made the optimizer 3 times (AVX-512) to 20 times (AVX2) as slow as fp32,
more than twice the cost of the gradient itself. fp32 costs the same everywhere and nothing where bf16
is native. An accelerator has the opposite trouble: one matrix is too little work for it, so there all of
one shape go together, in bf16. The rule is torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient."""
        assert closure is None, "the learner computes its own gradients"
        for group in self.param_groups:
            assert group["adjust_lr_fn"] == "match_rms_adamw"
            moving = [p for p in group["params"] if p.grad is not None]
            for together in _together(moving):
                self._move(together, group)
        return None

    def _move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """torch's rule for matrices of one shape, decay and scale included (match_rms_adamw)."""
        lr, updates = group["lr"], [self._update(p, group) for p in parameters]
        how = group["ns_coefficients"], group["ns_steps"], group["eps"]
        if updates[0].device.type == "cpu":
            directions = [orthogonalised(update, *how) for update in updates]
        else:
            stack = torch.stack([update.bfloat16() for update in updates])
            directions = list(orthogonalised(stack, *how))
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.add_(direction, alpha=-lr * 0.2 * max(parameter.shape) ** 0.5)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Its gradient, smoothed."""
        gradient, momentum = parameter.grad, group["momentum"]
        assert gradient is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer: Tensor = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum) if group["nesterov"] else buffer


def orthogonalised(
    x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """The matrix, or each of a stack of them, with singular values brought near 1 (quintic Newton-Schulz),
    in its own dtype."""
    a, b, c = coefficients
    add_product = torch.addmm if x.ndim == 2 else torch.baddbmm
    is_tall = x.size(-2) > x.size(-1)
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = add_product(x, add_product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def _together(parameters: list[Tensor]) -> list[list[Tensor]]:
    """On an accelerator, those of one shape; on a processor, which would only need the memory, each alone."""
    alike: dict[tuple[Any, ...], list[Tensor]] = {}
    for number, parameter in enumerate(parameters):
        alone = number if parameter.device.type == "cpu" else -1
        alike.setdefault((alone, parameter.shape), []).append(parameter)
    return list(alike.values())
