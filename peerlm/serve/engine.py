"""The whole model on this machine as a route, and the drawing of tokens. The room's only file with torch.

All slots are made once, for every version of the weights together: a slot is a place in tensors, whoever's
weights fill it. Turns of one token go through the model as one batch, longer ones (prompts) as another, padded
to the longest of them.

The numbers are those of `model.generate` but for rounding: a matrix product of eight rows adds up in another
order than one of a single row. Draws follow a generator of the session's own, so what else is in the batch
has no part in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peerlm.config import Plan
from peerlm.errors import ConfigError
from peerlm.model.generate import choose
from peerlm.model.model import LanguageModel
from peerlm.model.plan import fragments
from peerlm.model.rows import Rows
from peerlm.model.weights import Values, copy_in
from peerlm.serve.route import Logits, Turn
from peerlm.serve.session import Pick, Sampling


def use_threads(count: int) -> None:
    """Of the processor, for what is computed here; 0 leaves it to torch."""
    if count:
        torch.set_num_threads(count)


class Slots:
    """Room for sessions of one plan's model on one device. At most `count`, within `bytes_max` in all.

    Raises:
        ConfigError: not even one session fits.
    """

    def __init__(self, plan: Plan, count: int, bytes_max: int, device: str = "cpu") -> None:
        self.plan, self.device = plan, torch.device(device)
        meta = torch.device("meta")
        with meta:
            shell = LanguageModel(plan.model, plan.data.vocab)
        one = _bytes_of([block.slots(1, meta) for block in shell.sequence()])
        self.count = min(count, bytes_max // max(one, 1))
        if self.count < 1:
            raise ConfigError(
                f"a session of this model needs {one / 1e6:.1f} MB and {bytes_max / 1e6:.1f} MB are allowed: "
                "raise --cache-mb"
            )
        self.bytes = one * self.count
        self.parts: list[Any] = [block.slots(self.count, self.device) for block in shell.sequence()]


class Whole:
    """A route through all of the model, in this process."""

    def __init__(self, slots: Slots, fragment_values: Sequence[Values]) -> None:
        """Raises `ConfigError` for weights that are not finite: no text could come of them."""
        self._slots = slots
        plan = slots.plan
        self.model = LanguageModel(plan.model, plan.data.vocab)
        for spec, values in zip(fragments(plan), fragment_values, strict=True):
            if not np.isfinite(values).all():
                raise ConfigError(f"weights of {spec.name} are not finite")
            copy_in(self.model, spec, values)
        self.model.to(slots.device).eval()

    def advance(self, turns: Sequence[Turn]) -> Logits:
        singles = [i for i, turn in enumerate(turns) if len(turn.tokens) == 1]
        longer = [i for i, turn in enumerate(turns) if len(turn.tokens) > 1]
        logits = np.empty((len(turns), self.model.vocab), np.float32)
        for group in (singles, longer):
            group.sort(key=lambda i: turns[i].slot)  # slots that follow each other need no copy
            if group:
                logits[group] = self._together([turns[i] for i in group])
        return logits

    @torch.inference_mode()
    def _together(self, turns: Sequence[Turn]) -> Logits:
        device = self._slots.device
        lengths = [len(turn.tokens) for turn in turns]
        longest = max(lengths)
        tokens_BT = torch.tensor(
            [[*turn.tokens, *(0,) * (longest - len(turn.tokens))] for turn in turns], device=device
        )
        rows = Rows([t.slot for t in turns], [t.start for t in turns], lengths, device)
        logits_BV: Tensor = self.model.advance_rows(tokens_BT, rows, tuple(self._slots.parts))
        return logits_BV.float().cpu().numpy()

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        for tensor in _tensors(self._slots.parts):
            tensor[slot] = 0.0


class TorchSampler:
    """Draws as `model.generate` does, and the likelier tokens beside where they were asked for."""

    def generator(self, rng_seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(rng_seed)

    @torch.inference_mode()
    def draw(
        self, logits: Logits, asked: Sequence[tuple[Sampling, torch.Generator]]
    ) -> list[Pick | None]:
        logits_BV = torch.from_numpy(logits)
        likeliest = logits_BV.argmax(dim=1).tolist()
        finite = np.isfinite(logits.sum(axis=1)).tolist()
        return [
            _pick(logits_BV[row], likeliest[row], sampling, generator) if finite[row] else None
            for row, (sampling, generator) in enumerate(asked)
        ]


def _pick(logits_V: Tensor, likeliest: int, sampling: Sampling, generator: torch.Generator) -> Pick:
    token = likeliest
    if sampling.temperature > 0.0:
        token = choose(
            logits_V, sampling.temperature, sampling.top_k, generator, top_p=sampling.top_p
        )
    if sampling.logprobs is None:
        return Pick(token)
    logprobs_V = logits_V.log_softmax(dim=0)
    top = logprobs_V.topk(min(sampling.logprobs, len(logprobs_V)))
    return Pick(
        token,
        float(logprobs_V[token]),
        tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)),
    )


def _tensors(parts: Any) -> list[Tensor]:
    """All tensors in what blocks keep for their slots."""
    match parts:
        case Tensor():
            return [parts]
        case None:
            return []
        case list() | tuple():
            return [tensor for part in parts for tensor in _tensors(part)]
        case _:
            return [parts.keys_NKSE, parts.values_NKSE]


def _bytes_of(parts: Any) -> int:
    return sum(tensor.nbytes for tensor in _tensors(parts))
