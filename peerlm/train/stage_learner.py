"""Inner steps of a node that holds some stages of the model: passes of microbatches, and a step when enough are back.

A microbatch passes forward with θ as it is, and its pass is kept until its gradient comes back. θ may have moved by
then, by an inner step or a correction: the pass is then made anew from its input, so that a gradient is always
θ's own. Gradients add up until a batch of sequences is back; the step is then *due*, and is taken before the next
pass forward, for only then is it known how long the gradient of the whole model was, which is what clipping
goes by. Where a pass ends before the last stage held, later stages have the gradient of fewer sequences: each stage moves by the
mean over those that it had. With one host a stage all of this is, step by step, what one process does.

B sequences, T tokens, D features of the stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from peerlm.config import Plan
from peerlm.errors import DeviceLost, WireError
from peerlm.model.part import Part
from peerlm.train import optimizer
from peerlm.train.device import mixed_precision, to_device
from peerlm.types import PeerId

Key = tuple[PeerId, int, int]
"""A pass, as `routes` has it."""

Stream = NDArray[np.float32]
"""(B, T, D): the stream, or its gradient."""


@dataclass(slots=True)
class _Pass:
    """What a pass forward leaves for the way back."""

    stages: range
    given: Tensor
    """Tokens at the entrance, the stream elsewhere."""
    made: Tensor | None
    """None: to be made anew."""
    moves: int
    """θ's, when it was made."""


class StageLearner:
    """The held part on its device. `model` and `optimizer` are public: corrections go straight in.

    Args:
        held: names of the modules. stages: the blocks of each stage of the model, in order.
    """

    def __init__(
        self, plan: Plan, device: torch.device, held: Sequence[str], stages: Sequence[range]
    ) -> None:
        self.device = device
        self.model = Part(plan.model, plan.data.vocab, held)
        self.model.initialise(plan.run.rng_seed)
        self.model.to(device)
        self.optimizer = optimizer.build(self.model, plan.train)
        self._parameters = list(self.model.parameters())
        self._stages = tuple(stages)
        self._of_stage: dict[int, list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            self._of_stage.setdefault(self._stage_of(name), []).append(parameter)
        self._batch, self._clip = plan.train.batch, plan.train.clip or math.inf
        self._passes: dict[Key, _Pass] = {}
        self._sequences = dict.fromkeys(self._of_stage, 0.0)
        """Of each stage: whose gradients have come back since the last step."""

    # ------------------------------------------------------------------------------------ passes

    def enter(self, key: Key, tokens_BT: NDArray[np.int64], last: int) -> Stream:
        """Tokens through the entrance and the stages 0 to `last`."""
        return self._forward(key, to_device(tokens_BT, self.device), range(last + 1))

    def forward(self, key: Key, hidden_BTD: Stream, first: int, last: int) -> Stream:
        """The stream through the stages `first` to `last`."""
        return self._forward(key, self._tensor(hidden_BTD), range(first, last + 1))

    def loss(
        self, hidden_BTD: Stream, next_BT: NDArray[np.int64], share: float
    ) -> tuple[float, Stream]:
        """What came around the ring: its loss, nats a token, and the gradient to be sent back. `share` of the
        batch that these sequences are. A loss that is not finite leaves no gradient, and a stream of nan."""
        with self._device_may_fail():
            hidden = self._tensor(hidden_BTD).requires_grad_()
            with mixed_precision(self.device):
                loss = self.model.loss(hidden, to_device(next_BT, self.device))
            value = float(loss.detach())
            if not math.isfinite(value):
                return value, np.full_like(hidden_BTD, math.nan)
            (loss * share).backward()
            assert hidden.grad is not None
            return value, _array(hidden.grad)

    def backward(self, key: Key, gradient_BTD: Stream) -> Stream | None:
        """The gradient of what a pass made → that of what it was given; None at the entrance.

        Raises:
            KeyError: no such pass.
            WireError: the gradient is of another shape than what was made. The pass is forgotten.
        """
        kept = self._passes.pop(key)
        if gradient_BTD.shape[:2] != kept.given.shape[:2]:
            raise WireError(f"hop: a gradient of the shape {gradient_BTD.shape} for another stream")
        with self._device_may_fail():
            if kept.made is None or kept.moves != self._moves():
                kept.made = self._make(kept.given, self._blocks(kept.stages[0], kept.stages[-1]))
            kept.made.backward(self._tensor(gradient_BTD))
        for stage in kept.stages:
            if stage in self._sequences:  # what has no weights has nothing to move
                self._sequences[stage] += len(gradient_BTD)
        return None if kept.given.grad is None else _array(kept.given.grad)

    def pass_by(self, hidden_BTD: Stream | NDArray[np.int64], first: int, last: int) -> Stream:
        """The stream, or at the entrance the tokens, through the stages `first` to `last`; nothing is kept of it."""
        with self._device_may_fail(), torch.no_grad():
            given = torch.from_numpy(np.ascontiguousarray(hidden_BTD)).to(self.device)
            return _array(self._make(given, self._blocks(first, last)))

    def loss_by(self, hidden_BTD: Stream, next_BT: NDArray[np.int64]) -> float:
        """Of what came around, nats a token; no gradient."""
        with self._device_may_fail(), torch.no_grad(), mixed_precision(self.device):
            return float(self.model.loss(self._tensor(hidden_BTD), to_device(next_BT, self.device)))

    def forget(self, key: Key) -> None:
        """Its gradient will not come back."""
        self._passes.pop(key, None)

    def passes(self) -> list[Key]:
        """What is under way, oldest first."""
        return list(self._passes)

    def is_finite(self) -> bool:
        """Of θ."""
        return all(bool(p.isfinite().all()) for p in self._parameters)

    # -------------------------------------------------------------------------------------- steps

    @property
    def is_due(self) -> bool:
        return self.sequences >= self._batch

    @property
    def sequences(self) -> float:
        """Whose gradients have come back since the last step, of the stage that has most."""
        return max(self._sequences.values(), default=0.0)

    def squared_norms(self, held: Iterable[int]) -> dict[int, float]:
        """Of the gradient of each stage held, as the next step takes it: the mean over a batch of sequences."""
        norms = dict.fromkeys(held, 0.0)
        for stage, parameters in self._of_stage.items():
            found = [p.grad for p in parameters if p.grad is not None]
            if found:
                norms[stage] = float(nn.utils.get_total_norm(found)) ** 2 * self._mean(stage) ** 2
        return norms

    def step(self, rate: float, norm: float) -> bool:
        """Move θ at `rate` (0 to 1) of the peak rates, clipped as a gradient of length `norm` is, the whole
        model's. False: it is not finite, and θ stays. Gradients are gone afterwards."""
        finite = math.isfinite(norm)
        if finite and self.sequences:
            clipped = min(1.0, self._clip / (norm + 1e-6))
            for stage, parameters in self._of_stage.items():
                scale = self._mean(stage) * clipped
                if not scale:  # of a stage that nothing has come home to, a head may have a gradient all the same
                    for parameter in parameters:
                        parameter.grad = None
                gradients = [p.grad for p in parameters if p.grad is not None]
                if scale != 1.0 and gradients:
                    torch._foreach_mul_(gradients, scale)
            self.optimizer.set_rate(rate)
            self.optimizer.step()
        self.optimizer.zero_grad()
        self._sequences = dict.fromkeys(self._sequences, 0.0)
        return finite

    # ------------------------------------------------------------------------------------- inside

    def _blocks(self, first: int, last: int) -> range:
        return range(self._stages[first].start, self._stages[last].stop)

    def _mean(self, stage: int) -> float:
        """What makes of the sum of a stage's gradients, each a share of a batch, the mean over those that came back."""
        sequences = self._sequences[stage]
        return self._batch / sequences if sequences else 0.0

    def _forward(self, key: Key, given: Tensor, stages: range) -> Stream:
        with self._device_may_fail():
            if given.is_floating_point():
                given.requires_grad_()
            made = self._make(given, self._blocks(stages[0], stages[-1]))
        self._passes[key] = _Pass(stages, given, made, self._moves())
        return _array(made)

    def _make(self, given: Tensor, blocks: range) -> Tensor:
        with mixed_precision(self.device):
            hidden = given if given.is_floating_point() else self.model.enter(given)
            return self.model.through(hidden, blocks)

    def _moves(self) -> int:
        """Grows whenever θ is written to, by whomever."""
        return sum(p._version for p in self._parameters)

    def _stage_of(self, parameter: str) -> int:
        first, index, *_ = parameter.split(".")
        if first != "blocks":
            return 0  # the ends
        return next(number for number, blocks in enumerate(self._stages) if int(index) in blocks)

    def _tensor(self, values: Stream) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    @contextmanager
    def _device_may_fail(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise DeviceLost(
                f"{self.device} is out of memory with {len(self._passes)} microbatches under way; "
                "raise train.accumulate"
            ) from None
        except torch.AcceleratorError as error:
            raise DeviceLost(f"{self.device} failed: {str(error).splitlines()[0]}") from error


def _array(tensor: Tensor) -> Stream:
    values: Stream = tensor.detach().float().cpu().numpy()
    return values
