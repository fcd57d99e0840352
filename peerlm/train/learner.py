"""One node's learning: fast weights θ, their inner optimizer, and the inner step.

A step reads a batch, splits it into micro-batches when the plan accumulates, clips the gradient and
lets the optimizer move θ in place. A loss or gradient that is not finite moves nothing and is
reported: what to do about it is the daemon's decision. A CUDA device finds that out by itself: the processor asks
for the next step before this one is done, or the device would stand still while it is being asked. Nothing here is random but the initial
weights, so a seed and the batches fix the result on one machine (on CUDA up to the order in which
attention's backward pass sums).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from peerlm.config import Plan
from peerlm.errors import DeviceLost
from peerlm.model.model import LanguageModel
from peerlm.train import optimizer
from peerlm.train.device import choose_device, mixed_precision, to_device
from peerlm.train.group import Alone, Group

__all__ = ["Begun", "Learner", "StepResult", "choose_device"]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an inner step saw, before it moved the weights."""

    loss: float
    """Mean over the batch, nats a token."""
    grad_norm: float
    """Before clipping."""
    finite: bool
    """False: the weights were left as they were."""


class Begun:
    """An inner step that was asked for."""

    def __init__(self, seen: Tensor, read: torch.cuda.Event | None = None) -> None:
        """`seen`: loss and norm of the gradient, on the processor, and there once `read` has happened."""
        self._seen, self._read = seen, read

    @property
    def is_done(self) -> bool:
        return self._read is None or self._read.query()

    def result(self) -> StepResult:
        """Waits until it is done. Raises `DeviceLost`."""
        if self._read is not None:
            with device_may_fail("the CUDA device"):
                self._read.synchronize()
        loss, grad_norm = self._seen.tolist()
        return StepResult(loss, grad_norm, math.isfinite(loss) and math.isfinite(grad_norm))


class Learner:
    """The model on its device. `model` and `optimizer` are public: corrections go straight in."""

    def __init__(
        self,
        plan: Plan,
        device: torch.device,
        *,
        compiled: bool = False,
        group: Group | None = None,
    ) -> None:
        """Weights start as the plan's seed draws them; copy others in before the first step.

        `group`: of processes that each take such a step at once, on the mean of their gradients.
        """
        self._settings = plan.train
        self.device = device
        self.model = LanguageModel(plan.model, plan.data.vocab)
        self.model.initialise(plan.run.rng_seed)
        self.model.to(device)
        self._runs_ahead = device.type == "cuda" and group is None
        self.optimizer = optimizer.build(self.model, plan.train, runs_ahead=self._runs_ahead)
        loss = torch.compile(self.model.loss) if compiled else self.model.loss
        self._group = group
        self._loss = Alone(loss) if group is None else group.averaged(self.model, loss)

    def step(self, tokens_BT1: NDArray[np.int64], rate: float = 1.0) -> StepResult:
        """One inner step on (batch, context + 1) token ids, at `rate` (0 to 1) of the peak rates.

        Raises:
            DeviceLost: the accelerator failed or ran out of memory; this process cannot go on.
        """
        return self.begin(tokens_BT1, rate).result()

    def begin(self, tokens_BT1: NDArray[np.int64], rate: float = 1.0) -> Begun:
        """The same, without waiting for a CUDA device: whatever is asked of it next comes after the step.

        Raises:
            DeviceLost: as `step`, for this step or one before.
        """
        with self._device_may_fail():
            return self._begin(tokens_BT1, rate)

    def gradient_squares(self, batches: Iterable[NDArray[np.int64]]) -> list[float]:
        """|g|² of the first batch's mean gradient, then of the mean of the first two, and so on. The weights stay.

        Raises:
            DeviceLost: as `step`.
        """
        found, parameters = [], list(self.model.parameters())
        self.optimizer.zero_grad()
        with self._device_may_fail():
            for number, batch in enumerate(batches, 1):
                self._accumulate(batch)
                norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
                found.append(float(norm) ** 2 / number**2)
        self.optimizer.zero_grad()
        return found

    @contextmanager
    def _device_may_fail(self) -> Iterator[None]:
        try:
            with device_may_fail(str(self.device)):
                yield
        except torch.OutOfMemoryError:
            raise DeviceLost(
                f"{self.device} is out of memory with train.batch = {self._settings.batch} in "
                f"{self._settings.accumulate} micro-batches; raise train.accumulate"
            ) from None

    def _begin(self, tokens_BT1: NDArray[np.int64], rate: float) -> Begun:
        self.optimizer.zero_grad()
        seen = torch.stack((self._accumulate(tokens_BT1), self._clip()))
        self.optimizer.set_rate(rate)
        if self._runs_ahead:
            self.optimizer.step(seen.isfinite().all())
            told = torch.empty(2, pin_memory=True).copy_(seen, non_blocking=True)
            read = torch.cuda.Event()
            read.record()
            return Begun(told, read)
        # Both are asked for at once: each question waits until the device has nothing left to do.
        begun = Begun(seen.cpu())
        if begun.result().finite:
            self.optimizer.step()
        return begun

    def _accumulate(self, tokens_BT1: NDArray[np.int64]) -> Tensor:
        """Leave the batch's mean gradient in the parameters; return its mean loss, a scalar."""
        parts = np.array_split(tokens_BT1, self._settings.accumulate)
        total = torch.zeros((), device=self.device)
        for number, part in enumerate(parts, 1):
            with self._loss.alone(number == len(parts)):
                with mixed_precision(self.device):
                    loss = self._loss(to_device(part, self.device)) * (len(part) / len(tokens_BT1))
                loss.backward()
            total += loss.detach()
        return total if self._group is None else self._group.mean(total)

    def _clip(self) -> Tensor:
        """Return the norm that the gradient had, a scalar."""
        limit = self._settings.clip or math.inf
        return nn.utils.clip_grad_norm_(self.model.parameters(), limit)


@contextmanager
def device_may_fail(name: str) -> Iterator[None]:
    """Raises `DeviceLost` for what torch says of an accelerator that has failed."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except torch.AcceleratorError as error:
        raise DeviceLost(f"{name} failed: {str(error).splitlines()[0]}") from error
