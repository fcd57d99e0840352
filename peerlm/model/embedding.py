"""Token ids to vectors: the first module of every model.

B sequences, T tokens of a sequence, D features of the residual stream.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Embedding(nn.Module):
    """A table of one row for each token id. A tied output head reads the same table."""

    STD = 0.02
    """Spread of initial rows: small, so that a tied head starts near the uniform guess."""

    def __init__(self, vocab: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab, dim))

    def initialise(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.weight, std=self.STD, generator=generator)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return F.embedding(tokens_BT, self.weight)
