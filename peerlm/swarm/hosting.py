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
    def held(self) -> range:
        return range(self.first, self.last + 1)

    @property
    def is_whole(self) -> bool:
        return self.first == 0 and self.last == self.count - 1

    @property
    def has_ends(self) -> bool:
        """It reads text, and sees the loss."""
        return self.first == 0

    def neighbours(self, runs: Mapping[PeerId, Run]) -> tuple[PeerId, ...]:
        """Peers that the stream can come from or go to: one of them holds the stage behind the other's last, or begins within
        the other's run."""
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

    def is_held_by(self, peers: Sequence[PeerId], runs: Mapping[PeerId, Run]) -> bool:
        """Whether `peers` hold, together, all that this node holds."""
        if self.count == 1:
            return bool(peers)
        return all(holders(stage, runs, peers) for stage in range(self.first, self.last + 1))

    def overlapping(self, runs: Mapping[PeerId, Run], among: Sequence[PeerId]) -> list[PeerId]:
        """Those of `among` that hold something that this node holds too."""
        return [p for p in among if runs[p][0] <= self.last and self.first <= runs[p][1]]

    def holders_of(
        self, fragment: FragmentId, runs: Mapping[PeerId, Run], among: Sequence[PeerId]
    ) -> Sequence[PeerId]:
        """Those of `among` that hold this fragment, which this node holds."""
        if self.count == 1:
            return among
        return holders(self.stage_of[fragment], runs, among)

    def untrained(self, runs: Mapping[PeerId, Run], trainers: Sequence[PeerId]) -> list[int]:
        """Stages that this node needs and none of `trainers` trains for others, as who holds everything does not."""
        if self.is_whole:
            return []
        parts = [peer for peer in trainers if runs[peer] != (0, self.count - 1)]
        elsewhere = [s for s in range(self.count) if not self.first <= s <= self.last]
        return [stage for stage in elsewhere if not holders(stage, runs, parts)]


def follows(run: Run, after: Run, count: int) -> bool:
    """Whether `run` holds the stage behind the last one of `after`, or begins within it: it can be sent to from there. Behind
    the last stage comes the first."""
    wanted = (after[1] + 1) % count
    return run[0] <= wanted <= run[1] or after[0] < run[0] <= after[1]


def holders(stage: int, runs: Mapping[PeerId, Run], among: Sequence[PeerId]) -> tuple[PeerId, ...]:
    """Those of `among` that hold `stage`."""
    return tuple(peer for peer in among if runs[peer][0] <= stage <= runs[peer][1])
