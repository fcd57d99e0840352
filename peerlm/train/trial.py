"""What held-out text costs a model in stages: pieces of it go around the ring, one at a time, and no gradient comes back.

Hosts answer with θ as each has it just then, so this is the loss of the weights in training, not of the slow ones. A
piece that does not come around in time is left out. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from peerlm.types import Instant

Tokens = NDArray[np.int64]


class Piece(NamedTuple):
    text: int
    """Which of the run's texts it is of."""
    tokens: Tokens
    """(B, T + 1)."""


class Trial:
    """Of `pieces` of so many `texts`."""

    def __init__(self, pieces: Sequence[Piece], texts: int = 1) -> None:
        self._left = list(pieces)
        self._under_way: tuple[int, Piece, Instant] | None = None
        self._losses: list[list[float]] = [[] for _ in range(texts)]

    @property
    def may_send(self) -> bool:
        return self._under_way is None and bool(self._left)

    @property
    def is_over(self) -> bool:
        return self._under_way is None and not self._left

    def send(self, number: int, now: Instant) -> Tokens:
        """The next piece, which goes as `number`."""
        piece = self._left.pop()
        self._under_way = (number, piece, now)
        return piece.tokens

    def piece(self, number: int) -> Tokens | None:
        """What is under way as `number`."""
        known = self._under_way
        return known[1].tokens if known is not None and known[0] == number else None

    def came_around(self, loss: float) -> None:
        """What is under way did, with this loss."""
        assert self._under_way is not None, "nothing was sent"
        self._losses[self._under_way[1].text].append(loss)
        self._under_way = None

    def look(self, now: Instant, patience_s: float) -> None:
        """Leave out what is late."""
        if self._under_way is not None and now - self._under_way[2] > patience_s:
            self._under_way = None

    def losses(self) -> list[float]:
        """Of each text, the mean over what came around; nan if nothing did."""
        return [float(np.mean(losses)) if losses else float("nan") for losses in self._losses]
