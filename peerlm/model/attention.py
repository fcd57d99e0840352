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
        cosine_TE, sine_TE = (t.to(hidden_BTD.device) for t in self._turns(start, start + T))
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
        half = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        places = torch.arange(start, stop, dtype=torch.float32)
        angles_TE = torch.outer(places, self.rope_base**-half).repeat(1, 2)
        return angles_TE.cos(), angles_TE.sin()


def turn(x_BHTE: Tensor, cosine_TE: Tensor, sine_TE: Tensor) -> Tensor:
    """Rotate feature i and feature i + E/2 of each head together, by their place's angle."""
    first, second = x_BHTE.chunk(2, dim=-1)
    turned = x_BHTE * cosine_TE + torch.cat((-second, first), dim=-1) * sine_TE
    return turned.to(x_BHTE.dtype)
