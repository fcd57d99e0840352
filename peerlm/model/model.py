"""The language model: embedding, residual blocks in the plan's order, output.

Any order of attention, recurrent and feed-forward blocks is a model; the plan's names of modules
and parameters are exactly this object's. Training calls `loss`; decoding calls `advance`, which
carries each block's state (keys and values, or a recurrence's) from token to token.

B sequences, T tokens, D features of the stream, V token ids.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peerlm.config import ModelSection
from peerlm.model.attention import Attention
from peerlm.model.embedding import Embedding
from peerlm.model.feedforward import Feedforward
from peerlm.model.output import Output
from peerlm.model.recurrent import Recurrent
from peerlm.model.rows import Rows

BLOCKS: dict[str, type[Attention | Feedforward | Recurrent]] = {
    "attention": Attention,
    "feedforward": Feedforward,
    "recurrent": Recurrent,
}

State = tuple[Any, ...]
"""What each block remembers of the tokens before, in the order of the blocks."""


def residual_scale(model: ModelSection) -> float:
    """Projections back into the stream start small (GPT-2's rule), so that a deep model starts close to its embedding."""
    return float((2 * len(model.blocks)) ** -0.5)


class LanguageModel(nn.Module):
    """`model` and `vocab` fix every shape; weights are unset until `initialise` or a load."""

    def __init__(self, model: ModelSection, vocab: int) -> None:
        super().__init__()
        self.vocab, self.context = vocab, model.context
        self._residual_scale = residual_scale(model)
        self.embedding = Embedding(vocab, model.dim)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({kind: BLOCKS[kind](model)}) for kind in model.blocks
        )
        self.output = Output(model, vocab)

    def sequence(self) -> list[Any]:
        """The residual blocks themselves, in order."""
        return [block for wrapped in self.blocks for block in wrapped.values()]  # type: ignore[operator]

    @torch.no_grad()
    def initialise(self, rng_seed: int) -> None:
        """Draw all weights: the same on every machine with the same torch, whatever the device.

        The same values come from `part.Part.initialise`: whoever changes one changes both.
        """
        device = self.embedding.weight.device
        self.to("cpu")
        generator = torch.Generator().manual_seed(rng_seed)
        blocks = self.sequence()
        self.embedding.initialise(generator)
        for block in blocks:
            block.initialise(generator, self._residual_scale)
        self.output.initialise(generator)
        self.to(device)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, T, V) for the token after each of `tokens_BT` (int64, T ≤ context)."""
        hidden_BTD = self.embedding(tokens_BT)
        for block in self.sequence():
            hidden_BTD = block(hidden_BTD)
        logits_BTV: Tensor = self.output(hidden_BTD, self.embedding.weight)
        return logits_BTV

    def loss(self, tokens_BT1: Tensor) -> Tensor:
        """Mean cross-entropy, in nats a token, of predicting each next token of (B, T + 1) ids."""
        logits_BTV = self(tokens_BT1[:, :-1])
        return F.cross_entropy(logits_BTV.float().flatten(0, 1), tokens_BT1[:, 1:].flatten())

    def advance(self, tokens_BT: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Logits as `forward`, for tokens that follow those `state` remembers.

        Start with None; attention looks back over the last `context` tokens.
        """
        blocks = self.sequence()
        hidden_BTD = self.embedding(tokens_BT)
        remembered = []
        for block, before in zip(blocks, state or (None,) * len(blocks), strict=True):
            hidden_BTD, after = block.advance(hidden_BTD, before)
            remembered.append(after)
        return self.output(hidden_BTD, self.embedding.weight), tuple(remembered)

    def slots(self, count: int) -> tuple[Any, ...]:
        """Room for what the blocks remember of `count` sessions, on the model's device: see `Rows`."""
        device = self.embedding.weight.device
        return tuple(block.slots(count, device) for block in self.sequence())

    def advance_rows(self, tokens_BT: Tensor, rows: Rows, slots: tuple[Any, ...]) -> Tensor:
        """As `advance`, for sessions that stand at different places: logits (B, V) after the last token of each row.

        What lies in `slots` is moved on in place. A row of several tokens must end within the first
        `context` places; one token at a time may go on for ever.
        """
        hidden_BTD = self.embedding(tokens_BT)
        for block, remembered in zip(self.sequence(), slots, strict=True):
            hidden_BTD = block.advance_rows(hidden_BTD, rows, remembered)
        logits_B1V: Tensor = self.output(rows.last(hidden_BTD), self.embedding.weight)
        return logits_B1V[:, 0]
