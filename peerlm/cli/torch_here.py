"""A model in this process: for text, and for checking what was written.

Importing this brings torch in, which takes a second or two, so commands do it late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from peerlm.cli.weights_here import Weights, prompt_ids
from peerlm.model.generate import generate
from peerlm.model.model import LanguageModel
from peerlm.model.plan import fragments
from peerlm.model.weights import copy_in_finite
from peerlm.train.device import device_of, to_device


def build(weights: Weights) -> LanguageModel:
    """The model on the CPU, ready to evaluate. Raises `ConfigError` for weights that are not finite."""
    model = LanguageModel(weights.plan.model, weights.plan.data.vocab)
    for spec, values in zip(fragments(weights.plan), weights.values, strict=True):
        copy_in_finite(model, spec, values)
    return model.eval()


def text_after(
    weights: Weights,
    prompt: str,
    tokens: int,
    temperature: float,
    rng_seed: int,
    note: Callable[[str], None],
) -> Iterator[str]:
    """The model's continuation of the prompt, piece by piece.

    It ends after so many tokens, or where the model ends it. A piece is given out when it is sure not to change: characters
    may take several tokens. `note` takes a line where the prompt is not read whole.
    Raises `ConfigError` for a prompt that cannot be used, or weights that are not finite.
    """
    codec, model = weights.codec(), build(weights)
    read = prompt_ids(codec, prompt, weights.plan.model.context, note)
    ids: list[int] = []
    shown = ""
    for token in generate(model, read, tokens, temperature, rng_seed=rng_seed):
        if token in codec.ends:
            break
        ids.append(token)
        text = codec.decode(ids)
        if not text.endswith("\ufffd") and text.startswith(shown):
            yield text[len(shown) :]
            shown = text
    rest = codec.decode(ids)
    yield rest[len(shown) :] if rest.startswith(shown) else ""


def logits_are_equal(a: LanguageModel, b: LanguageModel) -> bool:
    """Whether two models say the same of the same tokens, to the last bit."""
    ids = np.arange(min(a.context, 64), dtype=np.int64)[None, :] * 7 % a.vocab
    tokens_BT = to_device(ids, device_of(a))
    return bool(a(tokens_BT).equal(b(tokens_BT)))
