"""The recurrent block: a gated recurrence (torch's GRU or LSTM) under pre-norm, added to the stream.

Where attention looks back over the context, a recurrence carries a state from token to token, so
decoding costs the same at every length. The linear map after the cell lets it start small, as the
other blocks do.

B sequences, T tokens, D features of the stream.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peerlm.config import ModelSection

RecurrentState = Tensor | tuple[Tensor, Tensor]
"""The cell's own state: h of a GRU, (h, c) of an LSTM."""


class Recurrent(nn.Module):
    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        cell = nn.GRU if model.cell == "gru" else nn.LSTM
        self.norm = nn.RMSNorm(model.dim, eps=model.norm_eps)
        self.cell = cell(model.dim, model.dim, batch_first=True)
        self.output = nn.Linear(model.dim, model.dim, bias=False)

    def initialise(self, generator: torch.Generator, residual_scale: float) -> None:
        nn.init.ones_(self.norm.weight)
        std = self.output.in_features**-0.5
        for name, parameter in self.cell.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=std / 2, generator=generator)
        nn.init.normal_(self.output.weight, std=std * residual_scale, generator=generator)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return self.advance(hidden_BTD, None)[0]

    def advance(
        self, hidden_BTD: Tensor, state: RecurrentState | None
    ) -> tuple[Tensor, RecurrentState]:
        """As `forward`, for tokens that follow those `state` remembers (none, if it is None)."""
        carried_BTD, remembered = self.cell(self.norm(hidden_BTD), state)
        return hidden_BTD + self.output(carried_BTD), remembered
