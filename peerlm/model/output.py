"""From the residual stream to a score for each token id: the last module of every model.

With a tied head the embedding's table scores the tokens, and this module holds the final norm
alone; untied, the head is a matrix of its own.

B sequences, T tokens, D features of the stream, V token ids.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peerlm.config import ModelSection


class Output(nn.Module):
    def __init__(self, model: ModelSection, vocab: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(model.dim, eps=model.norm_eps)
        self.head = None if model.tied else nn.Linear(model.dim, vocab, bias=False)

    def initialise(self, generator: torch.Generator) -> None:
        nn.init.ones_(self.norm.weight)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=0.02, generator=generator)

    def forward(self, hidden_BTD: Tensor, embedding_VD: Tensor) -> Tensor:
        """Logits (B, T, V). `embedding_VD` is used only when the head is tied."""
        table_VD = embedding_VD if self.head is None else self.head.weight
        return F.linear(self.norm(hidden_BTD), table_VD)
