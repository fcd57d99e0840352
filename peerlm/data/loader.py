"""Batches for the worker: this peer's ranges of the corpus, pass after pass.

Rows of a batch come from different ranges: each row is a lane that reads one range to its end and
then opens the next of this peer's. Neighbouring windows therefore meet in consecutive batches, not in
one, and a batch stays a fair sample even where ranges are long. Of a very long text there are fewer lanes than rows, and
some rows are neighbours: what is begun is read again when this peer dies, and that must not be more than half a shard.

What comes next is a range that is this peer's by the present view, is not finished by anybody (`passes`) and not begun
here, of the lowest pass that has one: whose own ranges are all opened goes on with the next pass, and nobody waits for the
others. Who is as far ahead as one may be reads what is left of the lowest pass in others' stead.

While some shards are still to come, ranges that do not lie wholly in those that are here wait, and the others are read in
the same order. So who has a few shards reads its own of them in as many passes as may be read at a time, and then helps; when
nothing is left that could be read, there is no batch until a shard comes, or word that the lowest pass is over.

The loader never touches the network and holds no text: windows are copied out of the mapped shards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import numpy.typing as npt

from peerlm.config import Plan
from peerlm.config.mixture import OWN
from peerlm.data import assign
from peerlm.data.passes import NO_RANGE, RANGES_MAX, TEXT_BYTES, Lane, Passes, to_bytes
from peerlm.data.shards import Corpus, require_one_batch
from peerlm.types import PeerId


@dataclass(slots=True)
class _Lane:
    """Where one row of the batch reads."""

    number: int = 0
    index: int = -1
    """Of the range; -1: none."""
    at: int = 0
    read: int = 0
    windows: int = 0
    """Left of it."""


class Loader:
    """Endless training batches for one peer. Deterministic in its arguments and its calls.

    Args:
        corpus: The run's, or this node's own if the plan says `data.source = local`.
        plan: For `train.batch`, `model.context` and `data.source`.
        peer: This node.
        rng_seed: The plan's `run.rng_seed`.
        first_pass: All passes before it count as read.
        text: What the corpus is called in a record (`passes.text_of`).
        share: Of all windows that are drawn, where there are other texts: its part of what may be begun.

    Raises:
        ConfigError: the corpus is shorter than one batch.
    """

    def __init__(
        self,
        corpus: Corpus,
        plan: Plan,
        peer: PeerId,
        rng_seed: int,
        first_pass: int = 0,
        text: bytes = bytes(TEXT_BYTES),
        share: float = 1.0,
    ) -> None:
        batch, context = plan.train.batch, plan.model.context
        require_one_batch(corpus.tokens, plan.data.val_fraction, batch, context, plan.data.source)
        self._corpus, self._peer, self._seed = corpus, peer, rng_seed
        self._alone = plan.data.source == OWN
        self._members: tuple[PeerId, ...] = (peer,)
        self._cut = assign.cut(corpus.train_tokens, context + 1)
        beside = assign.lanes(self._cut, batch, int(corpus.shard_tokens_most * share))
        self._rows, self._lanes = batch, [_Lane() for _ in range(beside)]
        self._turn = 0
        """The lane that the next window comes from."""
        self._begun: set[tuple[int, int]] = set()
        """What lanes are in the midst of."""
        self._passes = Passes(text, self._cut.ranges, first_pass)
        self._pass, self._opened = first_pass, 0
        """Of the range that was opened last, and how many this peer opened in it."""
        self._finished: list[tuple[int, int]] = []
        self._ahead: dict[int, deque[int]] = {}
        """Of this peer in each pass, as far as that was worked out under the present view and can be read now."""
        self._waiting: dict[int, int] = {}
        """How many more of them wait for a shard."""
        self._spare: tuple[int, deque[int]] = (-1, deque())
        """Pass, and what of it is others'."""

    def set_members(self, members: Sequence[PeerId]) -> None:
        """The peers that train now (this one is added if missing); call it whenever the view changes.

        Ranges begun here are read to their end. With a local corpus nothing changes: this node
        reads all of it.
        """
        if not self._alone:
            self._members = tuple(members)
            self._look_again()

    def absent_are(self, absent: Collection[int]) -> None:
        """These shards of the corpus are not here now, and all others are. Ranges begun here that cannot be read on are left.

        Raises: as `Corpus`.
        """
        if self._corpus.absent == set(absent):
            return
        self._corpus.absent_are(absent)
        self._look_again()
        for lane in self._lanes:
            if lane.windows and not self._is_here(lane.at, lane.windows):
                self._leave(lane)

    @property
    def has_lane_a_row(self) -> bool:
        """Else a batch is to be drawn row by row, while shards are still to come."""
        return len(self._lanes) == self._rows

    def has_batch(self) -> bool:
        """There is a batch now. Else only `absent_are` and `hear` can change that."""
        assert self._corpus.is_whole or self.has_lane_a_row
        if self._corpus.is_whole:
            return True
        return all(lane.windows or self._open_range(lane) for lane in self._lanes)

    def _look_again(self) -> None:
        self._ahead, self._waiting, self._spare = {}, {}, (-1, deque())

    def hear(self, told: Passes) -> bool:
        """What others have finished is not read here. A record of another text says nothing: then False."""
        if told.text != self._passes.text or told.ranges not in (0, self._cut.ranges):
            return False
        self._passes.merge(told)
        for lane in self._lanes:
            if lane.windows and self._passes.is_finished(lane.number, lane.index):
                self._leave(lane)
        return True

    def go_on(self, lanes: Sequence[Lane]) -> None:
        """Call it once, at the start and after `hear`: a worker before this one was in the midst of these ranges. With as
        many lanes as it had, the windows that it would have read come next, in its order."""
        if len(lanes) > len(self._lanes):
            lanes = [lane for lane in lanes if lane.place != NO_RANGE]
        for lane, (number, index, read) in zip(self._lanes, lanes, strict=False):
            is_ours = number in self._passes.window() and index < self._cut.ranges
            if not is_ours or (number, index) in self._begun:
                continue
            if self._passes.is_finished(number, index):
                continue
            if read < self._cut.range_at(index)[1] and self._can_read([index], number)[0]:
                self._enter(lane, number, index, read)

    def next_batch(self) -> npt.NDArray[np.int64]:
        """The next batch, shape (batch, context + 1): inputs are [:, :-1], targets [:, 1:]. Call it if there is one
        (`has_batch`).

        Raises:
            ConfigError: the shards hold ids that the plan's vocabulary does not.
        """
        return np.stack([self.next_window() for _ in range(self._rows)])

    def has_window(self) -> bool:
        """There is a row now, if not for each lane."""
        return self._corpus.is_whole or self._lane_due() is not None

    def next_window(self) -> npt.NDArray[np.int64]:
        """The next row of a batch, shape (context + 1,): of each lane in turn, but that a lane for which no shard is here
        is passed over. Call it if there is one (`has_window`). Raises as `next_batch`."""
        due = self._lane_due()
        assert due is not None, "there is no window now"
        lane = self._lanes[due]
        self._turn = (due + 1) % len(self._lanes)
        window = self._corpus.window(lane.at, self._cut.window)
        lane.at, lane.windows = lane.at + self._cut.window, lane.windows - 1
        lane.read += 1
        if lane.windows == 0:
            self._passes.finish(lane.number, lane.index)
            self._finished.append((lane.number, lane.index))
            self._leave(lane)
        return window

    def _lane_due(self) -> int | None:
        """The first lane, from the one whose turn it is, that has a window or can have one; it is open then."""
        for step in range(len(self._lanes)):
            place = (self._turn + step) % len(self._lanes)
            lane = self._lanes[place]
            if lane.windows or self._open_range(lane):
                return place
        return None

    @property
    def is_whole(self) -> bool:
        """All shards are here."""
        return self._corpus.is_whole

    @property
    def passes(self) -> Passes:
        """What is finished, as far as is known here. Not to be changed."""
        return self._passes

    def lanes(self) -> list[Lane]:
        """What this worker is in the midst of, for `go_on`: the lanes from the one whose turn it is."""
        turned = (*self._lanes[self._turn :], *self._lanes[: self._turn])
        found = [
            Lane(lane.number, lane.index, lane.read) if lane.windows else Lane(0, NO_RANGE, 0)
            for lane in turned
        ]
        while found and found[-1].place == NO_RANGE:
            found.pop()
        return found

    @property
    def untold(self) -> int:
        """How many `take_finished` would give, if it gave all."""
        return len(self._finished)

    def take_finished(self, most: int = RANGES_MAX) -> list[tuple[int, int]]:
        """(pass, range) of what was finished here and not taken yet, the first first."""
        taken, self._finished = self._finished[:most], self._finished[most:]
        return taken

    def position(self) -> dict[str, int]:
        """Where this peer is: `pass`, `ranges_done` (opened in this pass) and `ranges_total` of its own."""
        total = self._opened + len(self._ahead_in(self._pass)) + self._waiting[self._pass]
        return {"pass": self._pass, "ranges_done": self._opened, "ranges_total": total}

    def validation_batches(self, n: int, batch: int) -> list[npt.NDArray[np.int64]]:
        """At most `n` batches (batch, context + 1), spread evenly over the held-out part.

        The same on every node of the same corpus. Fewer or smaller batches where the held-out part
        is too short for windows that do not overlap; none where nothing is held out, or not all of that is here yet.
        """
        if not self._corpus.has_held_out:
            return []
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

    # ---------------------------------------------------------------------------- range by range

    def _open_range(self, lane: _Lane) -> bool:
        """Read the next range in this lane; False: there is none that could be read now."""
        if (following := self._next()) is None:
            return False
        number, index = following
        if number != self._pass:
            self._pass, self._opened = number, 0
        self._opened += 1
        self._enter(lane, number, index, 0)
        return True

    def _next(self) -> tuple[int, int] | None:
        for number in self._passes.window():
            index = self._pop(self._ahead_in(number), number)
            if index is not None:
                return number, index
        lowest = self._passes.lowest
        if self._spare[0] != lowest:
            order = assign.spare(self._seed, lowest, self._peer, self._readers(), self._cut.ranges)
            self._spare = (lowest, deque(self._readable(order, lowest)))
        index = self._pop(self._spare[1], lowest)
        if index is not None:
            return lowest, index
        if not self._corpus.is_whole:
            return None
        # What is left of the lowest pass is all being read here, in more lanes than there are ranges: two read the same.
        return next((o.number, o.index) for o in self._lanes if o.windows and o.number == lowest)

    def _pop(self, order: deque[int], number: int) -> int | None:
        """The first that is neither finished nor begun."""
        while order:
            index = order.popleft()
            if not self._is_taken(number, index):
                return index
        return None

    def _is_taken(self, number: int, index: int) -> bool:
        return (number, index) in self._begun or self._passes.is_finished(number, index)

    def _readers(self) -> tuple[PeerId, ...]:
        return (self._peer,) if self._alone else self._members

    def _ahead_in(self, number: int) -> deque[int]:
        """What lies ahead of this peer in a pass, under the members of now; worked out once, since it takes a while."""
        if number not in self._ahead:
            window = self._passes.window()
            self._ahead = {n: a for n, a in self._ahead.items() if n in window}
            self._waiting = {n: w for n, w in self._waiting.items() if n in window}
            ranges = self._cut.ranges
            raw = to_bytes(self._passes.bits(number)).ljust(-(-ranges // 8), b"\0")
            is_read = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little").tolist()
            mine = assign.assigned(self._seed, number, self._peer, self._readers(), ranges)
            left = [index for index in mine if not is_read[index]]
            self._ahead[number] = deque(self._readable(left, number))
            self._waiting[number] = len(left) - len(self._ahead[number])
        return self._ahead[number]

    def _readable(self, indices: Sequence[int], number: int) -> Iterable[int]:
        """Those of these ranges of a pass that lie wholly in shards that are here, in the same order."""
        if self._corpus.is_whole:
            return indices
        return compress(indices, self._can_read(indices, number))

    def _can_read(self, indices: Sequence[int], number: int) -> list[bool]:
        first = np.array(indices, np.int64) * self._cut.range_windows
        last = np.minimum(first + self._cut.range_windows, self._cut.windows)
        window, shift = self._cut.window, assign.offset(self._seed, number, self._cut.window)
        here = self._corpus.are_here(first * window + shift, last * window + shift)
        return list(map(bool, here))

    def _is_here(self, at: int, windows: int) -> bool:
        return self._corpus.is_here(at, at + windows * self._cut.window)

    def _enter(self, lane: _Lane, number: int, index: int, read: int) -> None:
        at, windows = self._cut.range_at(index)
        shift = assign.offset(self._seed, number, self._cut.window)
        lane.number, lane.index, lane.read = number, index, read
        lane.at = at + shift + read * self._cut.window
        lane.windows = windows - read
        self._begun.add((number, index))

    def _leave(self, lane: _Lane) -> None:
        self._begun.discard((lane.number, lane.index))
        lane.windows, lane.index = 0, -1
