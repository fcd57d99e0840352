"""Batches for the worker: this peer's ranges of the corpus, pass after pass.

Rows of a batch come from different ranges: each row is a lane that reads one range to its end and
then opens the next of this peer's. Neighbouring windows therefore meet in consecutive batches, not in
one, and a batch stays a fair sample even where ranges are long. A pass is over when this peer's own
ranges are all opened; peers are at different passes, and that is fine.

The loader never touches the network and holds no text: windows are copied out of the mapped shards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from peerlm.config import Plan
from peerlm.data import assign
from peerlm.data.shards import Corpus, require_one_batch
from peerlm.types import PeerId

LOCAL = "local"


@dataclass(slots=True)
class _Lane:
    """Where one row of the batch reads."""

    at: int = 0
    windows: int = 0


class Loader:
    """Endless training batches for one peer. Deterministic in its arguments and its calls.

    Args:
        corpus: The run's, or this node's own if the plan says `data.source = local`.
        plan: For `train.batch`, `model.context` and `data.source`.
        peer: This node.
        rng_seed: The plan's `run.rng_seed`.
        first_pass: The pass to begin with. A worker that starts again should give a number far from those
            before (say its boot epoch × 1000), or it reads the beginning of the same pass once more.

    Raises:
        ConfigError: the corpus is shorter than one batch.
    """

    def __init__(
        self, corpus: Corpus, plan: Plan, peer: PeerId, rng_seed: int, first_pass: int = 0
    ) -> None:
        batch, context = plan.train.batch, plan.model.context
        require_one_batch(corpus.tokens, plan.data.val_fraction, batch, context, plan.data.source)
        self._corpus, self._peer, self._seed = corpus, peer, rng_seed
        self._alone = plan.data.source == LOCAL
        self._members: tuple[PeerId, ...] = (peer,)
        self._cut = assign.cut(corpus.train_tokens, context + 1)
        self._lanes = [_Lane() for _ in range(batch)]
        self._begin_pass(first_pass)

    def set_members(self, members: Sequence[PeerId]) -> None:
        """The peers that train now (this one is added if missing); call it whenever the view changes.

        Ranges begun in this pass are not read again. With a local corpus nothing changes: this node
        reads all of it.
        """
        if not self._alone:
            self._members = tuple(members)
            self._share_out()

    def next_batch(self) -> npt.NDArray[np.int64]:
        """The next batch, shape (batch, context + 1): inputs are [:, :-1], targets [:, 1:].

        Raises:
            ConfigError: the shards hold ids that the plan's vocabulary does not.
        """
        tokens_BW = np.empty((len(self._lanes), self._cut.window), np.int64)
        for row, lane in enumerate(self._lanes):
            if lane.windows == 0:
                lane.at, lane.windows = self._open_range()
            tokens_BW[row] = self._corpus.window(lane.at, self._cut.window)
            lane.at, lane.windows = lane.at + self._cut.window, lane.windows - 1
        return tokens_BW

    def position(self) -> dict[str, int]:
        """Where this peer is: `pass`, `ranges_done` (begun in this pass) and `ranges_total` of its own."""
        done = len(self._begun)
        return {"pass": self._pass, "ranges_done": done, "ranges_total": done + len(self._ahead)}

    def validation_batches(self, n: int, batch: int) -> list[npt.NDArray[np.int64]]:
        """At most `n` batches (batch, context + 1), spread evenly over the held-out part.

        The same on every node of the same corpus. Fewer or smaller batches where the held-out part
        is too short for windows that do not overlap; none where nothing is held out.
        """
        width = self._cut.window
        windows = self._corpus.val_tokens // width
        rows = min(batch, windows)
        batches = min(n, windows // rows) if rows else 0
        starts = [
            self._corpus.train_tokens + (i * windows // (batches * rows)) * width
            for i in range(batches * rows)
        ]
        return [
            np.stack([self._corpus.window(at, width) for at in starts[b * rows : (b + 1) * rows]])
            for b in range(batches)
        ]

    def _open_range(self) -> tuple[int, int]:
        """First token and windows of the next range; begins the next pass if this one is read."""
        if not self._ahead:
            self._begin_pass(self._pass + 1)
        index = self._ahead.popleft()
        self._begun.add(index)
        at, windows = self._cut.range_at(index)
        return at + self._offset, windows

    def _begin_pass(self, number: int) -> None:
        self._pass = number
        self._offset = assign.offset(self._seed, number, self._cut.window)
        self._begun: set[int] = set()
        self._share_out()

    def _share_out(self) -> None:
        """What lies ahead of this peer in this pass, under the members of now."""
        mine = assign.assigned(self._seed, self._pass, self._peer, self._members, self._cut.ranges)
        self._ahead = deque(index for index in mine if index not in self._begun)
