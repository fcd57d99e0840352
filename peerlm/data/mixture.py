"""Batches out of several texts: which text the next row is drawn from, and the rows.

Each text has a loader of its own, which knows nothing of the others. Rows are drawn one at a time, in an order that
depends on the weights alone: the text whose next row is due first, of those that are not ahead of their share (the quota
method of Balinski and Young, 1975; in queues, WF²Q of Bennett and Zhang, 1996). So at any time each text is less than one
window away from its share, which drawing by lot would be only after a long run, and drawing from the one that is
furthest behind is not with three texts and more. Whole numbers only: the order is the same after any number of windows.

A run that reads one text reads a mixture of one.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from peerlm.config import Plan
from peerlm.config.mixture import OWN
from peerlm.data.loader import Loader
from peerlm.data.passes import RANGES_MAX, Lane
from peerlm.data.records import Part, Record, parts_of
from peerlm.data.shards import Corpus
from peerlm.types import PeerId

Batch = npt.NDArray[np.int64]

_KEY_BYTES = 32
_DRAWN_MAX = 1 << 62


class Draws:
    """The order in which texts of these weights are drawn from."""

    def __init__(self, weights: Sequence[int]) -> None:
        assert weights, "of nothing"
        assert min(weights) > 0, weights
        self.weights = tuple(weights)
        self.drawn = [0] * len(weights)
        """From each, so far."""

    def next(self) -> int:
        """The text that the next row comes from."""
        total, drawn = sum(self.weights), sum(self.drawn) + 1
        best = -1
        for text, (weight, own) in enumerate(zip(self.weights, self.drawn, strict=True)):
            if own * total >= weight * drawn:
                continue  # one more, and it were a window ahead of its share
            if best < 0 or (own + 1) * self.weights[best] < (self.drawn[best] + 1) * weight:
                best = text
        self.drawn[best] += 1
        return best

    def go_on(self, drawn: Sequence[int]) -> bool:
        """From there; False if these weights cannot have come there."""
        all_drawn, total = sum(drawn), sum(self.weights)
        off = [
            own * total - weight * all_drawn
            for own, weight in zip(drawn, self.weights, strict=True)
        ]
        if max(map(abs, off)) >= total or min(drawn) < 0 or all_drawn > _DRAWN_MAX:
            return False
        self.drawn = list(drawn)
        return True


class Read(NamedTuple):
    """What a worker tells of what it has read, flat."""

    texts: tuple[bytes, ...]
    ranges: tuple[int, ...]
    """In a pass over each."""
    finished: tuple[int, ...]
    """Text, pass, range of each that was finished since it was asked last."""
    lanes: tuple[int, ...]
    """Text, pass, range and windows read of each place of a row in its text."""
    order: bytes


class _Standing(NamedTuple):
    """How far the texts are, one after the other."""

    lanes: list[list[Lane]]
    untold: list[int]
    """Ranges that were finished and not told of by then."""
    drawn: tuple[int, ...]


class Mixture:
    """Endless training batches for one peer. Deterministic in its arguments and its calls.

    Args:
        parts: The texts, of which `loaders` reads each.
        rows: Of a batch.
    """

    def __init__(self, parts: Sequence[Part], loaders: Sequence[Loader], rows: int) -> None:
        assert len(parts) == len(loaders), (parts, loaders)
        self._parts, self._loaders, self._rows = tuple(parts), tuple(loaders), rows
        self._is_one = len(loaders) == 1 and loaders[0].has_lane_a_row
        """A batch need not be drawn row by row."""
        self._draws = Draws([part.weight for part in parts])
        total = sum(self._draws.weights)
        self.shares = tuple(weight / total for weight in self._draws.weights)
        """Of each text, 1 in all."""
        about = [(part.text, part.weight) for part in parts]
        self._key = hashlib.blake2b(repr(about).encode(), digest_size=_KEY_BYTES).digest()
        """Of the order: another mixture begins its own."""
        self._drawn: list[Batch] = []
        """Rows of the next batch, where shards are still to come."""
        self._before = self._standing()
        """The first of them."""
        self._instead: dict[tuple[bool, ...], Draws] = {}
        """Who has others' turns, by which texts have a row."""

    @classmethod
    def open(
        cls,
        paths: Sequence[Path],
        plan: Plan,
        peer: PeerId,
        rows: int,
        absent: Collection[int] = (),
    ) -> Mixture:
        """Of the shards at `paths`, all in order, as the plan cuts them into texts: those of the plan, then those of this node's
        own text, if it has any. `absent`: places of those that are still to come.

        Raises:
            ConfigError: a text cannot be used.
            ChunkCorrupt: a shard is broken.
        """
        parts = parts_of(plan, [path.name for path in paths])
        data, loaders, sizes = plan.data, [], plan.data.shard_tokens
        total = sum(part.weight for part in parts)
        for part, at_once in zip(parts, lanes_of(parts, rows), strict=True):
            own = slice(part.places.start, part.places.stop)
            gaps = part.own(absent)
            corpus = Corpus.open(paths[own], data.vocab, data.val_fraction, sizes[own], gaps)
            source = OWN if part.is_own else data.source
            of_this = replace(
                plan, train=replace(plan.train, batch=at_once), data=replace(data, source=source)
            )
            seed, share = plan.run.rng_seed, part.weight / total
            loaders.append(Loader(corpus, of_this, peer, seed, text=part.text, share=share))
        return cls(parts, loaders, rows)

    # ---------------------------------------------------------------------------- what is here

    def absent_are(self, absent: Collection[int]) -> None:
        """As `Loader.absent_are`, by the places of shards among all."""
        for part, loader in zip(self._parts, self._loaders, strict=True):
            loader.absent_are(part.own(absent))

    def has_batch(self) -> bool:
        """There is a batch now. Else only `absent_are` and `hear` can change that."""
        if self._is_one:
            return self._loaders[0].has_batch()
        if not all(loader.is_whole for loader in self._loaders):
            if not self._drawn:
                self._before = self._standing()
            while len(self._drawn) < self._rows and (row := self._draw()) is not None:
                self._drawn.append(row)
            return len(self._drawn) == self._rows
        return True

    # ---------------------------------------------------------------------------- what is read

    def set_members(self, members: Sequence[PeerId]) -> None:
        """As `Loader.set_members`."""
        for loader in self._loaders:
            loader.set_members(members)

    def hear(self, records: Sequence[Record]) -> None:
        """What others have finished is not read here; a text that is not of this mixture says nothing."""
        for record in records:
            for loader in self._loaders:
                loader.hear(record.passes)

    def go_on(self, records: Sequence[Record], order: bytes) -> None:
        """Call it once, at the start: a worker before this one had come so far. The rows of the next batch are those that it
        would have read next, if the mixture and the members are the same."""
        lanes = {record.passes.text: record.lanes for record in records}
        self.hear(records)
        for part, loader in zip(self._parts, self._loaders, strict=True):
            loader.go_on(lanes.get(part.text, ()))
        counts = f"<{len(self._parts)}Q"
        if order[:_KEY_BYTES] == self._key and len(order) == _KEY_BYTES + struct.calcsize(counts):
            self._draws.go_on(struct.unpack_from(counts, order, _KEY_BYTES))

    def told(self, most: int = RANGES_MAX) -> Read:
        """What is read. `most`: ranges that it tells of; what is more waits for the next time. Rows that are drawn for a batch
        that waits for more are not read: they die with the worker."""
        at = self._before if self._drawn else self._standing()
        finished: list[int] = []
        lanes: list[int] = []
        for text, loader in enumerate(self._loaders):
            taken = loader.take_finished(min(most, at.untold[text]))
            most -= len(taken)
            at.untold[text] -= len(taken)
            for done in taken:
                finished += (text, *done)
            for lane in at.lanes[text]:
                lanes += (text, *lane)
        return Read(
            texts=tuple(part.text for part in self._parts),
            ranges=tuple(loader.passes.ranges for loader in self._loaders),
            finished=tuple(finished),
            lanes=tuple(lanes),
            order=self._key + struct.pack(f"<{len(self._parts)}Q", *at.drawn),
        )

    def _standing(self) -> _Standing:
        loaders = self._loaders
        untold = [loader.untold for loader in loaders]
        return _Standing([loader.lanes() for loader in loaders], untold, tuple(self._draws.drawn))

    # -------------------------------------------------------------------------------- batches

    def next_batch(self) -> Batch:
        """The next batch, shape (rows, context + 1): inputs are [:, :-1], targets [:, 1:]. Call it if there is one
        (`has_batch`).

        Raises:
            ConfigError: the shards hold ids that the plan's vocabulary does not.
        """
        if self._is_one:
            return self._loaders[0].next_batch()
        drawn, self._drawn = self._drawn, []
        while len(drawn) < self._rows:
            row = self._draw()
            assert row is not None, "there is no batch now"
            drawn.append(row)
        return np.stack(drawn)

    def _draw(self) -> Batch | None:
        """The next row. The turn of a text of which nothing is here passes to the others, by their weights, and is not made
        up for."""
        ready = tuple(loader.has_window() for loader in self._loaders)
        if not any(ready):
            return None
        text = self._draws.next()
        if not ready[text]:
            here = list(compress(range(len(ready)), ready))
            weights = [self._draws.weights[n] for n in here]
            text = here[self._instead.setdefault(ready, Draws(weights)).next()]
        return self._loaders[text].next_window()

    def held_out(self, n: int, batch: int) -> list[list[Batch]]:
        """Of each text, batches of its held-out part as in `Loader.validation_batches`: `n` in all by their shares, and one
        at least of each."""
        return [
            loader.validation_batches(max(1, round(n * share)), batch)
            for loader, share in zip(self._loaders, self.shares, strict=True)
        ]

    def mixed(self, held_out: Sequence[Sequence[Batch]], batch: int) -> list[Batch]:
        """The same rows in batches as training has them, as far as the rows of each text reach."""
        if len(held_out) == 1:
            return list(held_out[0])
        left = [[row for of_text in batches for row in of_text][::-1] for batches in held_out]
        draws, found = Draws(self._draws.weights), list[Batch]()
        drawn: list[Batch] = []
        while rows := left[draws.next()]:
            drawn.append(rows.pop())
            if len(drawn) == batch:
                found.append(np.stack(drawn))
                drawn = []
        return found


def lanes_of(parts: Sequence[Part], rows: int) -> list[int]:
    """How many rows of a batch are of each text at most; it must be long enough for them."""
    total = sum(part.weight for part in parts)
    return [-(-rows * part.weight // total) for part in parts]


def loss_of(losses: Sequence[float], shares: Sequence[float]) -> float:
    """The loss of a mixture from those of its texts. A text of which nothing is known (nan) is left out; nan if all are."""
    known = [(a, b) for a, b in zip(losses, shares, strict=True) if not math.isnan(a)]
    total = sum(share for _, share in known)
    return sum(loss * share for loss, share in known) / total if known else math.nan
