"""Where each shard lies in the text, known from the plan before any of them is here.

The plan says how many tokens each shard has. So the text is cut into windows and ranges, and into the part to train on and
the part held out, by whoever has a few of its shards just as by whoever has all of them. Pure; neither reads a shard nor
knows which are here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise


def held_out(tokens: int, val_fraction: float) -> int:
    """Of so many tokens, how many at the end are for validation."""
    return int(tokens * val_fraction)


class Extents:
    """`tokens`: of each shard, in order. `parts`: how many of them are each text's, of a mixture."""

    def __init__(
        self, tokens: Sequence[int], val_fraction: float, parts: Sequence[int] = ()
    ) -> None:
        self._uses: list[tuple[bool, bool]] = []
        """Of each shard: some of its text is to train on, some is held out."""
        first = 0
        for count in parts or (len(tokens),):
            ends = tuple(accumulate(tokens[first : first + count], initial=0))
            train = ends[-1] - held_out(ends[-1], val_fraction)
            self._uses += [(at < train, end > train) for at, end in pairwise(ends)]
            first += count

    def __len__(self) -> int:
        return len(self._uses)

    def trains(self, shard: int) -> bool:
        """Some of its text is to train on."""
        return self._uses[shard][0]

    def validates(self, shard: int) -> bool:
        """Some of its text is held out."""
        return self._uses[shard][1]
