"""Where each shard lies in the text, known from the plan before any of them is here.

The plan says how many tokens each shard has. So the text is cut into windows and ranges, and into the part to train on and
the part held out, by whoever has a few of its shards just as by whoever has all of them. Pure; neither reads a shard nor
knows which are here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def held_out(tokens: int, val_fraction: float) -> int:
    """Of so many tokens, how many at the end are for validation."""
    return int(tokens * val_fraction)


class Extents:
    """`tokens`: of each shard, in order."""

    def __init__(self, tokens: Sequence[int], val_fraction: float) -> None:
        self._ends = tuple(accumulate(tokens))
        total = self._ends[-1] if self._ends else 0
        self._train_tokens = total - held_out(total, val_fraction)

    def __len__(self) -> int:
        return len(self._ends)

    def trains(self, shard: int) -> bool:
        """Some of its text is to train on."""
        return (self._ends[shard - 1] if shard else 0) < self._train_tokens

    def validates(self, shard: int) -> bool:
        """Some of its text is held out."""
        return self._ends[shard] > self._train_tokens
