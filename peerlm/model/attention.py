"""Causal self-attention, in today's usual form: pre-norm, rotary positions, grouped queries.

Rotary positions turn each pair of features by an angle that grows with the token's place, so a
score depends on distance alone (RoFormer, arXiv 2104.09864; features are paired half with half, as
Llama's published weights are). Several query heads share one key and value head (GQA, arXiv
2305.13245). The block adds its result to the residual stream it was given.

B sequences, T tokens, S keys seen, D features of the stream, H query heads, K key and value heads,
E features of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peerlm.config import ModelSection
from peerlm.model.rows import Rows


@dataclass(frozen=True, slots=True)
class AttentionSlots:
    """Keys (already turned) and values of N sessions. A slot is a ring of `context` places, and one more into
    which padding is written."""

    keys_NKSE: Tensor
    values_NKSE: Tensor


@dataclass(frozen=True, slots=True)
class AttentionState:
    """What decoding keeps between calls: the last `context` keys (already turned) and values."""

    keys_BKSE: Tensor
    values_BKSE: Tensor
    position: int
    """Place of the next token."""


class Attention(nn.Module):
    cosine_TE: Tensor
    sine_TE: Tensor
    rates_E: Tensor

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.heads, self.kv_heads = model.heads, model.kv_heads
        self.head_dim = model.dim // model.heads
        self.context, self.rope_base = model.context, model.rope_base
        kv_dim = self.kv_heads * self.head_dim
        self.norm = nn.RMSNorm(model.dim, eps=model.norm_eps)
        self.query = nn.Linear(model.dim, model.dim, bias=False)
        self.key = nn.Linear(model.dim, kv_dim, bias=False)
        self.value = nn.Linear(model.dim, kv_dim, bias=False)
        self.output = nn.Linear(model.dim, model.dim, bias=False)
        half = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        self.register_buffer("rates_E", (self.rope_base**-half).repeat(2), persistent=False)
        cosine_TE, sine_TE = self._turns(0, model.context)
        self.register_buffer("cosine_TE", cosine_TE, persistent=False)
        self.register_buffer("sine_TE", sine_TE, persistent=False)

    def initialise(self, generator: torch.Generator, residual_scale: float) -> None:
        nn.init.ones_(self.norm.weight)
        std = self.norm.weight.numel() ** -0.5
        for linear in (self.query, self.key, self.value):
            nn.init.normal_(linear.weight, std=std, generator=generator)
        nn.init.normal_(self.output.weight, std=std * residual_scale, generator=generator)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        T = hidden_BTD.size(1)
        cosine_TE, sine_TE = self.cosine_TE[:T], self.sine_TE[:T]
        queries_BHTE, keys_BKTE, values_BKTE = self._project(hidden_BTD, cosine_TE, sine_TE)
        mixed_BHTE = F.scaled_dot_product_attention(
            queries_BHTE,
            keys_BKTE,
            values_BKTE,
            is_causal=True,
            enable_gqa=self.heads != self.kv_heads,
        )
        return hidden_BTD + self._join(mixed_BHTE)

    def advance(
        self, hidden_BTD: Tensor, state: AttentionState | None
    ) -> tuple[Tensor, AttentionState]:
        """As `forward`, for tokens that follow those `state` remembers (none, if it is None)."""
        start = state.position if state else 0
        T = hidden_BTD.size(1)
        cosine_TE, sine_TE = self._turns(start, start + T)
        queries_BHTE, keys_BKSE, values_BKSE = self._project(hidden_BTD, cosine_TE, sine_TE)
        if state:
            keys_BKSE = torch.cat((state.keys_BKSE, keys_BKSE), dim=2)
            values_BKSE = torch.cat((state.values_BKSE, values_BKSE), dim=2)
        S = keys_BKSE.size(2)
        distance_TS = (
            torch.arange(S - T, S, device=hidden_BTD.device)[:, None]
            - torch.arange(S, device=hidden_BTD.device)[None, :]
        )
        mixed_BHTE = F.scaled_dot_product_attention(
            queries_BHTE,
            keys_BKSE,
            values_BKSE,
            attn_mask=(distance_TS >= 0) & (distance_TS < self.context),
            enable_gqa=self.heads != self.kv_heads,
        )
        remembered = AttentionState(
            keys_BKSE[:, :, -self.context :], values_BKSE[:, :, -self.context :], start + T
        )
        return hidden_BTD + self._join(mixed_BHTE), remembered

    def slots(self, count: int, device: torch.device) -> AttentionSlots:
        shape = (count, self.kv_heads, self.context + 1, self.head_dim)
        return AttentionSlots(torch.zeros(shape, device=device), torch.zeros(shape, device=device))

    def advance_rows(self, hidden_BTD: Tensor, rows: Rows, slots: AttentionSlots) -> Tensor:
        """As `advance`, each row for the session of its own slot, at its own place. Writes to `slots`.

        Query heads that share keys stand as further queries of one head, so keys are never repeated.
        """
        B, T, _ = hidden_BTD.shape
        S = min(rows.place_max + 1, self.context)
        groups = self.heads // self.kv_heads
        turns_B1TE = rows.once("turns", lambda: self._turns_at(rows.places_BT[:, None]))
        seen_B1QS = rows.once("seen", lambda: self._seen(rows, S, groups))
        queries_BHTE, keys_BKTE, values_BKTE = self._project(hidden_BTD, *turns_B1TE)
        self._keep(slots.keys_NKSE, keys_BKTE, rows)
        self._keep(slots.values_NKSE, values_BKTE, rows)
        mixed_BKQE = F.scaled_dot_product_attention(
            queries_BHTE.reshape(B, self.kv_heads, groups * T, self.head_dim),
            rows.of(slots.keys_NKSE[:, :, :S]),
            rows.of(slots.values_NKSE[:, :, :S]),
            attn_mask=seen_B1QS,
        )
        return hidden_BTD + self._join(mixed_BKQE.reshape(B, self.heads, T, self.head_dim))

    def _keep(self, kept_NKSE: Tensor, new_BKTE: Tensor, rows: Rows) -> None:
        if rows.are_even and rows.run is not None:
            kept_NKSE[rows.run, :, rows.place_max % self.context] = new_BKTE[:, :, 0]
        else:
            cells_BT = rows.once("cells", lambda: self._cells(rows))
            kept_NKSE[rows.slots_B[:, None], :, cells_BT] = new_BKTE.transpose(1, 2)

    def _cells(self, rows: Rows) -> Tensor:
        """(B, T): where in its slot each token's key goes; padding beyond the ring."""
        return torch.where(rows.is_token_BT, rows.places_BT % self.context, self.context)

    def _seen(self, rows: Rows, S: int, groups: int) -> Tensor | None:
        """(B, 1, Q, S) for Q = groups · T queries: which cells each looks at, None for all of them.

        Those with a place up to its own, no further back than `context`. A cell holds the newest place of those that
        fall on it.
        """
        if rows.are_even:
            return None
        newest_B1 = rows.newest_B[:, None]
        age_BS = (newest_B1 - torch.arange(S, device=newest_B1.device)) % self.context
        place_B1S = (newest_B1 - age_BS)[:, None]
        place_BT1 = rows.places_BT[:, :, None]
        seen_BTS = (place_B1S >= 0) & (place_B1S <= place_BT1)
        seen_BTS &= place_B1S > place_BT1 - self.context
        return seen_BTS.repeat(1, groups, 1)[:, None]

    def _project(
        self, hidden_BTD: Tensor, cosine_TE: Tensor, sine_TE: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _ = hidden_BTD.shape
        normed_BTD = self.norm(hidden_BTD)
        queries = self.query(normed_BTD).view(B, T, self.heads, self.head_dim).transpose(1, 2)
        keys = self.key(normed_BTD).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        values = self.value(normed_BTD).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        return turn(queries, cosine_TE, sine_TE), turn(keys, cosine_TE, sine_TE), values

    def _join(self, mixed_BHTE: Tensor) -> Tensor:
        projected_BTD: Tensor = self.output(mixed_BHTE.transpose(1, 2).flatten(2))
        return projected_BTD

    def _turns(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each feature's angle at places `start` to `stop`."""
        return self._turns_at(torch.arange(start, stop, device=self.rates_E.device))

    def _turns_at(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """The same at any `places`, with E as one more dimension."""
        angles = places.to(self.rates_E)[..., None] * self.rates_E
        return angles.cos(), angles.sin()


def turn(x_BHTE: Tensor, cosine_TE: Tensor, sine_TE: Tensor) -> Tensor:
    """Rotate feature i and feature i + E/2 of each head together, by their place's angle."""
    first, second = x_BHTE.chunk(2, dim=-1)
    turned = x_BHTE * cosine_TE + torch.cat((-second, first), dim=-1) * sine_TE
    return turned.to(x_BHTE.dtype)
