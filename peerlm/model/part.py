"""A part of the model: the modules of some stages, for a node that does not hold it whole.

Stages form a ring. The first holds both ends of the model: it turns tokens into the stream, and what comes
back around the ring into a loss. So text and labels never leave the node they are on, a tied head reads
the very table that embeds, and the stages between see nothing but the stream. Parameters have the names that
the whole model gives them, and the same initial values, so that whoever holds a module holds the same one.

B sequences, T tokens, D features of the stream.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peerlm.config import ModelSection
from peerlm.model.embedding import Embedding
from peerlm.model.model import BLOCKS, residual_scale
from peerlm.model.output import Output
from peerlm.model.plan import modules
from peerlm.model.rows import Rows


class Part(nn.Module):
    """`held`: names of modules, as `plan.modules` gives them; both ends or neither."""

    def __init__(self, model: ModelSection, vocab: int, held: Collection[str]) -> None:
        super().__init__()
        self._model, self.vocab = model, vocab
        names = modules(model)
        assert set(held) <= set(names), set(held) - set(names)
        assert (names[0] in held) == (names[-1] in held), "one end of the model without the other"
        self.embedding = Embedding(vocab, model.dim) if names[0] in held else None
        self.blocks = nn.ModuleList(
            nn.ModuleDict({kind: BLOCKS[kind](model)} if name in held else {})
            for name, kind in zip(names[1:-1], model.blocks, strict=True)
        )
        self.output = Output(model, vocab) if names[-1] in held else None

    @torch.no_grad()
    def initialise(self, rng_seed: int) -> None:
        """The values that `LanguageModel.initialise` gives these modules. What lies between is drawn, and dropped."""
        device = next(self.parameters()).device
        self.to("cpu")
        generator = torch.Generator().manual_seed(rng_seed)
        embedding = self.embedding or Embedding(self.vocab, self._model.dim)
        embedding.initialise(generator)
        scale = residual_scale(self._model)
        for wrapped, kind in zip(self.blocks, self._model.blocks, strict=True):
            assert isinstance(wrapped, nn.ModuleDict)
            block = wrapped[kind] if kind in wrapped else BLOCKS[kind](self._model)
            block.initialise(generator, scale)  # type: ignore[operator]
        if self.output is not None:
            self.output.initialise(generator)
        self.to(device)

    def enter(self, tokens_BT: Tensor) -> Tensor:
        """Tokens (int64, T ≤ context) to the stream (B, T, D). Of a part with the ends."""
        assert self.embedding is not None
        embedded: Tensor = self.embedding(tokens_BT)
        return embedded

    def through(self, hidden_BTD: Tensor, blocks: range) -> Tensor:
        """The stream behind these blocks, all of which are held."""
        for index in blocks:
            (block,) = self.blocks[index].values()  # type: ignore[operator]
            hidden_BTD = block(hidden_BTD)
        return hidden_BTD

    def advance_rows(
        self, hidden_BTD: Tensor, rows: Rows, blocks: range, slots: Sequence[Any]
    ) -> Tensor:
        """As `through`, for sessions that stand at different places; `slots` of these blocks, moved on in place."""
        for index, remembered in zip(blocks, slots, strict=True):
            (block,) = self.blocks[index].values()  # type: ignore[operator]
            hidden_BTD = block.advance_rows(hidden_BTD, rows, remembered)
        return hidden_BTD

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """(B, T, V), of the stream behind the last block. Of a part with the ends."""
        assert self.output is not None
        assert self.embedding is not None
        logits_BTV: Tensor = self.output(hidden_BTD, self.embedding.weight)
        return logits_BTV

    def loss(self, hidden_BTD: Tensor, next_BT: Tensor) -> Tensor:
        """Mean cross-entropy, nats a token, of the stream behind the last block. Of a part with the ends."""
        logits_BTV = self.logits(hidden_BTD)
        return F.cross_entropy(logits_BTV.float().flatten(0, 1), next_BT.flatten())
