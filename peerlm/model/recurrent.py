"""The recurrent block: a gated recurrence (torch's GRU or LSTM) under pre-norm, added to the stream.

Where attention looks back over the context, a recurrence carries a state from token to token, so
decoding costs the same at every length. The linear map after the cell lets it start small, as the
other blocks do.

B sequences, T tokens, D features of the stream.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from peerlm.config import ModelSection
from peerlm.model.rows import Rows

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

    def slots(self, count: int, device: torch.device) -> tuple[Tensor, ...]:
        """h, and c of an LSTM, of every session: (N, D) each."""
        parts = 2 if isinstance(self.cell, nn.LSTM) else 1
        shape = (count, self.output.in_features)
        return tuple(torch.zeros(shape, device=device) for _ in range(parts))

    def advance_rows(self, hidden_BTD: Tensor, rows: Rows, slots: tuple[Tensor, ...]) -> Tensor:
        """As `advance`, each row for the session of its own slot. Writes to `slots`."""
        before = tuple(rows.of(kept_ND)[None] for kept_ND in slots)
        if rows.begins:
            begins_B1 = (rows.starts_B == 0)[:, None]
            before = tuple(state_1BD.masked_fill(begins_B1, 0.0) for state_1BD in before)
        normed = self.norm(hidden_BTD)
        if rows.is_padded:
            normed = pack_padded_sequence(
                normed, rows.lengths, batch_first=True, enforce_sorted=False
            )
        carried, after = self.cell(normed, before if len(before) > 1 else before[0])
        if rows.is_padded:
            carried, _ = pad_packed_sequence(carried, batch_first=True)
        for kept_ND, new_1BD in zip(slots, after if len(slots) > 1 else (after,), strict=True):
            rows.keep(kept_ND, new_1BD[0])
        return hidden_BTD + self.output(carried)
