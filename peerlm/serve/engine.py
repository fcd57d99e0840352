"""The model on this machine, whole as a route or in part for sessions that pass through, and the drawing of tokens. The
room's only file with torch.

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
from torch.nn.utils.rnn import pad_sequence

from peerlm.config import Plan
from peerlm.errors import ConfigError
from peerlm.model.generate import choose
from peerlm.model.model import LanguageModel
from peerlm.model.part import Part
from peerlm.model.plan import fragments
from peerlm.model.rows import Rows
from peerlm.model.stages import held_fragments, stages
from peerlm.model.weights import Values, copy_in_finite
from peerlm.serve.route import Logits, Turn
from peerlm.serve.session import Pick, Sampling

META = torch.device("meta")

PADDED_MAX = 1024
"""Tokens of several turns that are padded to the longest of them, where others say how long they are."""


def use_threads(count: int) -> None:
    """Of the processor, for what is computed here; 0 leaves it to torch."""
    if count:
        torch.set_num_threads(count)


def slot_bytes(plan: Plan) -> int:
    """Of one session, in all blocks of this plan's model."""
    return _bytes_of([block.slots(1, META) for block in _shells(plan)])


class Slots:
    """Room for sessions of one plan's model, or of these `blocks` of it, on one device. At most `count`, within
    `bytes_max` in all.

    Raises:
        ConfigError: not even one session fits.
    """

    def __init__(
        self,
        plan: Plan,
        count: int,
        bytes_max: int,
        device: str = "cpu",
        blocks: range | None = None,
    ) -> None:
        self.plan, self.device = plan, torch.device(device)
        self.blocks = range(len(plan.model.blocks)) if blocks is None else blocks
        shells = _shells(plan)[self.blocks.start : self.blocks.stop]
        one = _bytes_of([block.slots(1, META) for block in shells])
        self.count = min(count, bytes_max // max(one, 1))
        if self.count < 1:
            raise ConfigError(
                f"a session of this model needs {one / 1e6:.1f} MB and {bytes_max / 1e6:.1f} MB are allowed: "
                "raise --cache-mb, or free memory if it is a stage server's"
            )
        self.bytes = one * self.count
        self.parts: list[Any] = [block.slots(self.count, self.device) for block in shells]

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Also numbers that nobody looks at do harm, where they are none."""
        for tensor in _tensors(self.parts):
            tensor[slot] = 0.0


class Whole:
    """A route through all of the model, in this process."""

    faults_pass = False
    again = 0

    def __init__(self, slots: Slots, fragment_values: Sequence[Values]) -> None:
        """Raises `ConfigError` for weights that are not finite: no text could come of them."""
        self._slots = slots
        plan = slots.plan
        self.model = LanguageModel(plan.model, plan.data.vocab)
        for spec, values in zip(fragments(plan), fragment_values, strict=True):
            copy_in_finite(self.model, spec, values)
        self.model.to(slots.device).eval()
        self._begun: list[Turn] = []

    def begin(self, turns: Sequence[Turn]) -> None:
        self._begun += turns

    def ended(self) -> tuple[list[int], Logits]:
        """All that were begun, together."""
        turns, self._begun = self._begun, []
        return [turn.slot for turn in turns], self.advance(turns)

    def advance(self, turns: Sequence[Turn]) -> Logits:
        """Logits (turns, vocab)."""
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
        tokens_BT = _padded([turn.tokens for turn in turns]).to(device)
        rows = Rows([t.slot for t in turns], [t.start for t in turns], lengths, device)
        logits_BV: Tensor = self.model.advance_rows(tokens_BT, rows, tuple(self._slots.parts))
        return logits_BV.float().cpu().numpy()

    def clear(self, slot: int) -> None:
        self._slots.clear(slot)

    def release(self, slot: int) -> None:
        """Whoever has it next begins anew."""
        self._begun = [turn for turn in self._begun if turn.slot != slot]

    def version_of(self, slot: int) -> str | None:
        return None

    def why(self, slot: int) -> str:
        return "the model's numbers are not finite"

    def is_full(self, slot: int) -> bool:
        return False


class Held:
    """The modules of some stages, for sessions whose other stages are elsewhere.

    P tokens of all rows, one row after the other; R rows; D features of the stream; V token ids.
    """

    def __init__(self, slots: Slots, held: range, fragment_values: Sequence[Values]) -> None:
        """`slots`: of the blocks of the stages `held`. Raises `ConfigError` for weights that are not finite."""
        self._slots, plan = slots, slots.plan
        cut = stages(plan)
        self._blocks = {stage: cut[stage].blocks for stage in held}
        names = [name for stage in held for name in cut[stage].modules]
        self._part = Part(plan.model, plan.data.vocab, names)
        for spec, values in zip(held_fragments(plan, held), fragment_values, strict=True):
            copy_in_finite(self._part, spec, values)
        self._part.to(slots.device).eval()

    def advance(
        self, turns: Sequence[Turn], stream: Logits | None, first: int, last: int
    ) -> Logits:
        """The stream (P, D) behind the stages `first` to `last`. With `stream` (P, D) the tokens of the turns are only
        counted; without, they enter here."""
        ends = np.cumsum([len(turn.tokens) for turn in turns])
        places = [slice(end - len(turn.tokens), end) for turn, end in zip(turns, ends, strict=True)]
        out = np.empty((int(ends[-1]), self._slots.plan.model.dim), np.float32)
        for group in _groups([len(turn.tokens) for turn in turns]):
            group.sort(key=lambda i: turns[i].slot)
            given = None if stream is None else [stream[places[i]] for i in group]
            made = self._together([turns[i] for i in group], given, first, last)
            for row, i in enumerate(group):
                out[places[i]] = made[row, : len(turns[i].tokens)]
        return out

    @torch.inference_mode()
    def _together(
        self, turns: Sequence[Turn], given: list[Logits] | None, first: int, last: int
    ) -> Logits:
        device, lengths = self._slots.device, [len(turn.tokens) for turn in turns]
        rows = Rows([t.slot for t in turns], [t.start for t in turns], lengths, device)
        if given is None:
            hidden_BTD = self._part.enter(_padded([turn.tokens for turn in turns]).to(device))
        else:
            arrays = [torch.from_numpy(np.array(values)) for values in given]
            hidden_BTD = pad_sequence(arrays, batch_first=True).to(device)
        blocks = range(self._blocks[first].start, self._blocks[last].stop)
        ahead = blocks.start - self._slots.blocks.start
        slots = self._slots.parts[ahead : ahead + len(blocks)]
        hidden_BTD = self._part.advance_rows(hidden_BTD, rows, blocks, slots)
        return hidden_BTD.float().cpu().numpy()

    @torch.inference_mode()
    def logits(self, last_RD: Logits) -> Logits:
        """(R, V), of the stream behind the last block. Of a part with the ends."""
        hidden_R1D = torch.from_numpy(np.array(last_RD))[:, None].to(self._slots.device)
        return self._part.logits(hidden_R1D)[:, 0].float().cpu().numpy()


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


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Which turns of these lengths go together: those of one token, and longer ones of like length, so that the room they
    take does not depend on what others send beside a long one."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        newest = groups[-1] if groups else []
        fits = (1 + len(newest)) * lengths[i] <= PADDED_MAX or lengths[i] == 1
        if newest and fits and (lengths[newest[0]] == 1) == (lengths[i] == 1):
            newest.append(i)
        else:
            groups.append([i])
    return groups


def _padded(tokens: Sequence[Sequence[int]]) -> Tensor:
    """(B, T): to the longest."""
    longest = max(map(len, tokens))
    return torch.tensor([[*row, *(0,) * (longest - len(row))] for row in tokens])


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


def _shells(plan: Plan) -> list[Any]:
    """Its blocks, without numbers."""
    with META:
        return LanguageModel(plan.model, plan.data.vocab).sequence()


def _bytes_of(parts: Any) -> int:
    return sum(tensor.nbytes for tensor in _tensors(parts))
