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
    found_inf: Tensor | None = None
    """As torch's own fused optimizers have it: 1.0 on the device if nothing is to be moved. None: it is known to be 0."""

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
        how = group["ns_coefficients"], group["ns_steps"], group["eps"]
        if parameters[0].device.type == "cpu":
            updates = [self._update(p, group) for p in parameters]
            directions = [orthogonalised(update, *how) for update in updates]
        else:
            updates_stack = self._updates(parameters, group).bfloat16()
            directions = list(orthogonalised(updates_stack, *how).float())
        lr: Tensor | float = group["lr"]
        if self.found_inf is not None:
            lr = lr * (1.0 - self.found_inf)
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_mul_(directions, lr * -0.2 * max(parameters[0].shape) ** 0.5)
        torch._foreach_add_(parameters, directions)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Its gradient, smoothed."""
        gradient, momentum = _gradient(parameter), group["momentum"]
        buffer = self._buffer(parameter)
        if self.found_inf is not None:
            gradient = torch.where(self.found_inf > 0, buffer, gradient)
        buffer.lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum) if group["nesterov"] else buffer

    def _updates(self, parameters: list[Tensor], group: dict[str, Any]) -> Tensor:
        """The same of many, as one stack: a few kernels instead of a few for each."""
        buffers, momentum = [self._buffer(p) for p in parameters], group["momentum"]
        gradients = torch.stack([_gradient(p) for p in parameters])
        smooth = torch.stack(buffers)
        if self.found_inf is not None:
            gradients = torch.where(self.found_inf > 0, smooth, gradients)
        smooth.lerp_(gradients, 1 - momentum)
        torch._foreach_copy_(buffers, list(smooth))
        return gradients.lerp(smooth, momentum) if group["nesterov"] else smooth

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


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
