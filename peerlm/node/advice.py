"""Whether a node's inner steps have as many tokens as its gradients would bear, and when to say so.

What nodes learn from batches far below their noise scale (train/noise.py) differs more than it agrees, whatever the rule of
mixing. So a node says once, as soon as a few evaluations have measured it, how the two compare, and again when
that has become otherwise: the noise scale grows as the loss falls. Pure.
"""

from __future__ import annotations

from peerlm.effects import Effect, Log

NOISY = 4.0
"""A noise scale of more than so many batches: larger ones would cost little."""

AGAIN = 0.75
"""Of that it has to fall below before it is said that the batch is fine: it wavers."""

LARGER = "a larger train.batch would learn nearly as much from each token, and nodes differ less"


def is_small(batch_tokens: int, noise_scale: float) -> bool:
    """Whether a batch of so many tokens is far below what gradients would bear."""
    return noise_scale > NOISY * batch_tokens


class Advice:
    """Of one node's life."""

    def __init__(self) -> None:
        self._said: tuple[int, bool] | None = None

    def look(self, batch_tokens: int, noise_scale: float | None) -> list[Effect]:
        """The noise scale, if it is known, is this now."""
        if noise_scale is None:
            return []
        small = is_small(batch_tokens, noise_scale)
        if self._said == (batch_tokens, True):
            small = is_small(batch_tokens, noise_scale / AGAIN)
        if self._said == (batch_tokens, small):
            return []
        self._said = (batch_tokens, small)
        fields = (("tokens", batch_tokens), ("half_noise_at", round(noise_scale)))
        return [Log("info", "batch", (*fields, ("advice", LARGER if small else "large enough")))]
