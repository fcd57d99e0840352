"""The feed-forward block: SwiGLU (Shazeer, arXiv 2002.05202) under pre-norm, added to the stream.

B sequences, T tokens, D features of the stream, F features inside.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peerlm.config import ModelSection
from peerlm.model.rows import Rows


class Feedforward(nn.Module):
    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(model.dim, eps=model.norm_eps)
        self.gate = nn.Linear(model.dim, model.hidden, bias=False)
        self.up = nn.Linear(model.dim, model.hidden, bias=False)
        self.down = nn.Linear(model.hidden, model.dim, bias=False)

    def initialise(self, generator: torch.Generator, residual_scale: float) -> None:
        nn.init.ones_(self.norm.weight)
        for linear in (self.gate, self.up):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5, generator=generator)
        std = self.down.in_features**-0.5 * residual_scale
        nn.init.normal_(self.down.weight, std=std, generator=generator)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        normed_BTD = self.norm(hidden_BTD)
        inside_BTF = F.silu(self.gate(normed_BTD)) * self.up(normed_BTD)
        added_BTD: Tensor = hidden_BTD + self.down(inside_BTF)
        return added_BTD

    def advance(self, hidden_BTD: Tensor, state: None) -> tuple[Tensor, None]:
        """As `forward`: this block remembers nothing between tokens."""
        return self(hidden_BTD), None

    def slots(self, count: int, device: torch.device) -> None:
        return None

    def advance_rows(self, hidden_BTD: Tensor, rows: Rows, slots: None) -> Tensor:
        return self(hidden_BTD)
