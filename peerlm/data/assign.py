"""Which part of the corpus a peer reads: a pure function of (seed, pass, peer, view).

Nobody hands text out. The training part is cut into windows, and equal runs of windows into ranges.
In every pass a range belongs to the live peer whose hash with it is highest (rendezvous hashing;
Thaler and Ravishankar 1998), so peers of one view read different text without a word between them,
and a change of view moves only the ranges of those who came or went. Each pass also has its own
order of ranges, and shifts all windows by its own few tokens, so that no two passes cut the text at
the same places.

The cut depends on the corpus alone, never on the view, or else every arrival would move every range.
It is as fine as it can be up to `RANGES_MAX`, so that ranges are many per peer and shares are even.
Where text is so short that no range falls to some peer, that peer shares the range where its own
hash comes highest: nobody starves, at the price of two reading the same few windows.

What is finished already is another file's business (`passes`). Views may differ between peers for a moment; then two
peers may read the same text, which costs a little sample efficiency and nothing else. Who has read all that is its own, in
as many passes as may be read at a time, helps those that are behind (`spare`), each range being that helper's whose hash
comes next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from peerlm.data.passes import RANGES_MAX
from peerlm.types import PeerId

_MASK = (1 << 64) - 1
_GOLDEN = (
    0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads consecutive numbers (Steele et al. 2014)
)
_OFFSET = (
    0x6F6666736574  # "offset": keeps the draw of a pass's shift apart from its draws for ranges
)

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Cut:
    """A training part as ranges of windows. A window is the `window` tokens of one training sequence."""

    window: int
    """Tokens in a window: the model's context + 1, since each but the last predicts the next."""
    windows: int
    """Windows in one pass."""
    range_windows: int
    """Windows in a range (the last range may hold fewer)."""

    @property
    def ranges(self) -> int:
        return -(-self.windows // self.range_windows)

    def range_at(self, index: int) -> tuple[int, int]:
        """First token, before the pass's offset, and number of windows of range `index`."""
        first = index * self.range_windows
        return first * self.window, min(self.range_windows, self.windows - first)


def cut(train_tokens: int, window: int) -> Cut:
    """Cut the training part. One window is left over, as room for the offset of a pass."""
    windows = train_tokens // window - 1
    assert windows > 0, (train_tokens, window)
    return Cut(window, windows, range_windows=-(-windows // RANGES_MAX))


def lanes(cut: Cut, rows: int, shard_tokens: int) -> int:
    """Ranges that one worker reads beside each other: one for each of the `rows` of a batch, unless what is read of so many
    that are not finished could come to more than half a shard. That is what others read again after its death; the other
    half is for what it has finished and not told (`node.coverage`)."""
    begun = (cut.range_windows - 1) * cut.window
    return max(1, min(rows, shard_tokens // 2 // begun)) if begun else rows


@lru_cache(maxsize=16)
def offset(seed: int, pass_number: int, window: int) -> int:
    """Tokens by which all windows of a pass are shifted: from 0 to `window` - 1, the same for every peer."""
    return _key(seed, pass_number, _OFFSET) % window


def assigned(
    seed: int, pass_number: int, peer: PeerId, members: Sequence[PeerId], ranges: int
) -> tuple[int, ...]:
    """The ranges that `peer` reads in this pass, in the order in which it reads them. Never empty.

    Args:
        seed: The plan's `run.rng_seed`.
        members: The peers that train, in any order; `peer` counts as one of them in any case.
        ranges: Number of ranges, at least 1.
    """
    assert ranges > 0, ranges
    base = _scrambled(np.arange(ranges, dtype=np.uint64) + np.uint64(_key(seed, pass_number)))
    mine = np.arange(ranges)
    scores = _scores(base, peer)
    for other in sorted(
        set(members) - {peer}
    ):  # what is lost to one peer need not be compared with the next
        theirs = _scores(base[mine], other)
        mine = mine[(scores[mine] > theirs) | ((scores[mine] == theirs) & (peer > other))]
    if len(mine) == 0:
        mine = np.array([np.argmax(scores)])
    return tuple(mine[np.argsort(base[mine], kind="stable")].tolist())


def spare(
    seed: int, pass_number: int, peer: PeerId, members: Sequence[PeerId], ranges: int
) -> tuple[int, ...]:
    """The ranges that are others', in the order in which `peer` may take them off their hands: first those for which its
    own hash comes second, and so on; of these the ones first that their readers would read last.

    Args: as for `assigned`, at the same cost.
    """
    base = _scrambled(np.arange(ranges, dtype=np.uint64) + np.uint64(_key(seed, pass_number)))
    scores, place = _scores(base, peer), np.zeros(ranges, np.int64)
    for other in sorted(set(members) - {peer}):
        theirs = _scores(base, other)
        place += (theirs > scores) | ((theirs == scores) & (other > peer))
    order = np.lexsort((~base, place))
    return tuple(order[place[order] > 0].tolist())


def _scores(base: Hashes, peer: PeerId) -> Hashes:
    """The hash of each range with one peer."""
    return _scrambled(base ^ np.uint64(_key(*_words(peer))))


def _words(peer: PeerId) -> tuple[int, ...]:
    return tuple(int.from_bytes(peer[at : at + 8], "little") for at in range(0, len(peer), 8))


def _key(*numbers: int) -> int:
    """One 64-bit number out of several; order counts."""
    state = 0
    for number in numbers:
        state = _scrambled_int(state ^ _scrambled_int(number & _MASK))
    return state


def _scrambled_int(number: int) -> int:
    return int(_scrambled(np.array([number], dtype=np.uint64))[0])


def _scrambled(numbers: Hashes) -> Hashes:
    """One step of SplitMix64 from each number, modulo 2^64: a bijection that looks like chance."""
    x = numbers + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
