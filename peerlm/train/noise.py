"""How large a batch the gradients would bear: their noise scale.

Of a batch of B tokens the gradient is the true one plus noise whose square falls with B, so E|g|² = |G|² + S/B. Two
batch sizes tell the two apart, and S ÷ |G|² is the *noise scale*, in tokens: a batch far below it spends most
of its step on noise, and what nodes learn from such batches differs more than it agrees; one far above it learns little more
from each token than it would have from fewer. After McCandlish et al., arXiv 1812.06162, appendix A.

Single estimates are wild, so both parts are averaged before they are divided.
"""

from __future__ import annotations

import math

KEPT = 0.8
"""Of the averages, at each new estimate."""

ESTIMATES_MIN = 4

OFTEN = 8
SELDOM = 4
"""The first so many evaluations are used, then one in so many: it costs two inner steps' gradients."""


class NoiseScale:
    """Of one worker's gradients. `batch_tokens`: of the batches that are measured."""

    def __init__(self, batch_tokens: int) -> None:
        self._batch_tokens = batch_tokens
        self._evaluations = self._estimates = 0
        self._signal = self._noise = 0.0

    def is_due(self) -> bool:
        """Call once for each evaluation; whether this one is to be used."""
        self._evaluations += 1
        return self._evaluations <= OFTEN or self._evaluations % SELDOM == 0

    def add(self, of_one: float, of_two: float) -> None:
        """|g|² of one batch, and of the mean of two. What is not finite says nothing."""
        if not (math.isfinite(of_one) and math.isfinite(of_two)):
            return
        self._estimates += 1
        new = 1 / self._estimates if self._estimates * (1 - KEPT) < 1 else 1 - KEPT
        self._signal += new * (2 * of_two - of_one - self._signal)
        self._noise += new * (2 * self._batch_tokens * (of_one - of_two) - self._noise)

    def tokens(self) -> float | None:
        """The noise scale; None: too few estimates, or nothing but noise in them."""
        if self._estimates < ESTIMATES_MIN or self._signal <= 0 or self._noise < 0:
            return None
        return self._noise / self._signal
