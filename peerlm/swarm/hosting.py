"""Which stages of the model a node holds, as it matters to whoever mixes or learns with it.

Pure, and the same for a node that holds everything: it holds the stages 0 to last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from peerlm.types import FragmentId, PeerId

Run = tuple[int, int]
"""First and last stage that a node holds."""


@dataclass(frozen=True, slots=True)
class Hosting:
    """What this node holds. `stage_of`: of each fragment that it holds."""

    first: int = 0
    last: int = 0
    count: int = 1
    stage_of: Mapping[FragmentId, int] = field(default_factory=dict)

    @property
    def is_none(self) -> bool:
        """It has not decided yet: the first is above the last."""
        return self.first > self.last

    @property
    def is_whole(self) -> bool:
        return self.first == 0 and self.last == self.count - 1

    @property
    def has_ends(self) -> bool:
        """It reads text, and sees the loss."""
        return self.first == 0

    def neighbours(self, runs: Mapping[PeerId, Run]) -> tuple[PeerId, ...]:
        """Peers that the stream can come from or go to: one of them holds the stage behind the other's last."""
        if self.is_whole:
            return ()
        mine = (self.first, self.last)
        return tuple(
            sorted(
                peer
                for peer, theirs in runs.items()
                if theirs != (0, self.count - 1)
                and (follows(mine, theirs, self.count) or follows(theirs, mine, self.count))
            )
        )


def follows(run: Run, after: Run, count: int) -> bool:
    """Whether `run` holds the stage behind the last one of `after`. Behind the last comes the first."""
    wanted = (after[1] + 1) % count
    return run[0] <= wanted <= run[1]


def holders(stage: int, runs: Mapping[PeerId, Run], among: Sequence[PeerId]) -> tuple[PeerId, ...]:
    """Those of `among` that hold `stage`."""
    return tuple(peer for peer in among if runs[peer][0] <= stage <= runs[peer][1])
