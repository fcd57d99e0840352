"""Text from a model, one token at a time.

The prompt is read once, then each token costs one step of every block: attention keeps the last
`context` keys and values, a recurrence its state. Sampling follows a generator of its own, so a
seed gives the same text again on the same machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from peerlm.errors import ConfigError
from peerlm.model.model import LanguageModel

COLDEST = 1e-4
"""Lower temperatures draw the likeliest token: what is left to chance is less than `float32` tells apart, and far lower
ones are 0 there."""


def generate(
    model: LanguageModel,
    prompt_ids: Sequence[int],
    tokens: int,
    temperature: float = 0.8,
    top_k: int = 0,
    rng_seed: int = 0,
) -> Iterator[int]:
    """Yield `tokens` ids that follow `prompt_ids`, of which the last `context` are read.

    `temperature` 0 takes the likeliest token each time; `top_k` > 0 samples among that many.

    Raises:
        ConfigError: the prompt is empty or holds an id outside the vocabulary.
    """
    if not prompt_ids:
        raise ConfigError("the prompt is empty: give at least one token to start from")
    outside = [i for i in prompt_ids if not 0 <= i < model.vocab]
    if outside:
        raise ConfigError(f"prompt id {outside[0]} is outside the vocabulary of {model.vocab}")
    return _sampled(model, list(prompt_ids), tokens, temperature, top_k, rng_seed)


def _sampled(
    model: LanguageModel,
    prompt_ids: list[int],
    tokens: int,
    temperature: float,
    top_k: int,
    rng_seed: int,
) -> Iterator[int]:
    device = model.embedding.weight.device
    generator = torch.Generator().manual_seed(rng_seed)
    unread, state = prompt_ids[-model.context :], None
    for _ in range(tokens):
        with torch.inference_mode():
            logits_BTV, state = model.advance(torch.tensor([unread], device=device), state)
            token = choose(logits_BTV[0, -1].float().cpu(), temperature, top_k, generator)
        unread = [token]
        yield token


def choose(
    logits_V: Tensor,
    temperature: float,
    top_k: int,
    generator: torch.Generator,
    top_p: float = 1.0,
) -> int:
    """One token id, drawn from the logits of a single position, all of them finite. Below `COLDEST` the likeliest.

    `top_p` < 1 samples among the likeliest that together have this probability (nucleus sampling, Holtzman et
    al., arXiv 1904.09751).
    """
    if temperature < COLDEST:
        return int(logits_V.argmax())
    scaled_V = (
        logits_V - logits_V.max()
    ) / temperature  # none above 0, or the chances were no numbers
    if 0 < top_k < len(scaled_V):
        weakest = torch.topk(scaled_V, top_k).values[-1]
        scaled_V = scaled_V.masked_fill(scaled_V < weakest, -torch.inf)
    chances_V = scaled_V.softmax(dim=0)
    if top_p < 1.0:
        falling_V, order_V = chances_V.sort(descending=True, stable=True)
        is_out_V = falling_V.cumsum(dim=0) - falling_V >= top_p
        is_out_V[0] = False
        chances_V[order_V[is_out_V]] = 0.0
    return int(torch.multinomial(chances_V, 1, generator=generator))
