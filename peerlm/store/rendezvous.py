"""In which order nodes come for a chunk: weighted rendezvous hashing, with no two replicas that fail together.

Every pair of a chunk and a node has a number u between 0 and 1, from a hash of both, and with it a *distance*
-ln(u) ÷ capacity; the nearest node comes first (Thaler and Ravishankar 1998; weights as in Mosharaf, Wang and Resch
2015, whose score is one over our distance). So a node comes first for a share of the chunks that is its share of all
capacity, whoever comes takes over only what is its own now, and whoever goes leaves only what was. Nobody is asked,
and all who know the same nodes agree.

Nodes of one *label* fail together. The nearest node of each label comes before all others of any label, and an empty
label is a label of its own; the first R nodes then have as many labels as there are, up to R. For a join or a death
this too changes at most one of them: of those who stay, a death displaces none of the first R.

The logarithm is made here, of sums, products and quotients, which IEEE 754 rounds alike everywhere. A library's may
differ in the last bit between machines, and then two nodes would not agree on who holds what.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from peerlm.types import ObjectHash, PeerId

Keys = npt.NDArray[np.uint64]
"""Chunks as hashing sees them (`keys_of`)."""

Distances = npt.NDArray[np.float64]
Places = npt.NDArray[np.int32]
"""Indexes of nodes."""

BLOCK_PAIRS = 1 << 16
"""Pairs of a chunk and a node at once: arrays of 512 KiB, which a processor's cache holds. Anything longer is slower,
and needs memory for nothing."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIXES = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST_SHIFT = np.uint64(31)

_MANTISSA_BITS = np.uint64(52)
_MANTISSA = np.uint64((1 << 52) - 1)
_EXPONENT_OF_ONE = np.uint64(1023 << 52)
_SQRT_2 = 1.4142135623730951
_LN_2 = 0.6931471805599453


class Site(NamedTuple):
    """A node as hashing sees it."""

    peer: PeerId
    weight: float
    """Above 0: its share of chunks grows with it."""
    label: str
    """What it fails together with; empty: it fails alone."""


class Field:
    """Nodes made ready for hashing. Places (`Places`) are indexes into `sites`."""

    def __init__(self, sites: Sequence[Site]) -> None:
        """Of distinct peers, in any order."""
        self.sites = tuple(sorted(sites))
        assert all(site.weight > 0 for site in self.sites), self.sites
        self.keys = _peer_keys([site.peer for site in self.sites])
        self.inverse_weights = np.array([1.0 / site.weight for site in self.sites], np.float64)
        domains: dict[str | PeerId, list[int]] = {}
        for place, site in enumerate(self.sites):
            domains.setdefault(site.label or site.peer, []).append(place)
        self.domain_count = len(domains)
        """Labels, and nodes without."""
        self.domains = np.empty(len(self.sites), np.int32)
        longest = max(map(len, domains.values()), default=0)
        self._together = np.empty((len(self.sites), longest), np.int32)
        for number, members in enumerate(domains.values()):
            self.domains[members] = number
            self._together[members] = [*members, *members[:1] * (longest - len(members))]

    def __len__(self) -> int:
        return len(self.sites)

    def order(self, key: np.uint64) -> Places:
        """All nodes as they come for one chunk."""
        by_distance = np.argsort(self._distances(np.array([key]))[0], kind="stable")
        _, firsts = np.unique(self.domains[by_distance], return_index=True)
        is_first = np.zeros(len(by_distance), bool)
        is_first[firsts] = True
        return np.concatenate([by_distance[is_first], by_distance[~is_first]]).astype(np.int32)

    def first(self, keys: Keys, count: int) -> Places:
        """The first `count` of each chunk's order, or all there are: an array (count × chunks)."""
        count = min(count, len(self))
        found = np.empty((count, len(keys)), np.int32)
        if count:
            step = max(1, BLOCK_PAIRS // len(self))
            for start in range(0, len(keys), step):
                self._first(keys[start : start + step], found[:, start : start + step])
        return found

    def _first(self, keys: Keys, out: Places) -> None:
        """A node that has come is put out of reach, with all that fail together with it while others are left."""
        distances = self._distances(keys)
        chunks = np.arange(len(keys))
        apart = min(len(out), self.domain_count)
        rest = distances.copy() if apart < len(out) else distances
        for turn in range(len(out)):
            if turn == apart:
                for place in out[:turn]:
                    rest[chunks, place] = np.inf
                distances = rest
            nearest = distances.argmin(axis=1)
            out[turn] = nearest
            if turn >= apart or self._together.shape[1] == 1:
                distances[chunks, nearest] = np.inf
            else:
                distances[chunks[:, None], self._together[nearest]] = np.inf

    def _distances(self, keys: Keys) -> Distances:
        """Of each chunk (rows) from each node."""
        return _distances_of(keys[:, None] ^ self.keys, self.inverse_weights)

    def distances(self, keys: Keys, places: Places) -> Distances:
        """Of each chunk from one node, which is another for each."""
        found = np.empty(len(keys), np.float64)
        for start in range(0, len(keys), BLOCK_PAIRS):
            part = slice(start, start + BLOCK_PAIRS)
            pairs = keys[part] ^ self.keys[places[part]]
            found[part] = _distances_of(pairs, self.inverse_weights[places[part]])
        return found


def owners(
    hashes: Sequence[ObjectHash], nodes: Sequence[Site], replicas: int
) -> list[list[PeerId]]:
    """For every chunk the nodes that should hold it, `replicas` of them or as many as there are, in order."""
    field = Field(nodes)
    found = field.first(keys_of(hashes), replicas)
    return [[field.sites[place].peer for place in places] for places in found.T.tolist()]


def keys_of(hashes: Sequence[ObjectHash]) -> Keys:
    """The first eight bytes of each hash: a hash looks like chance already."""
    return np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 4)[:, 0].astype(np.uint64)


def _peer_keys(peers: Sequence[PeerId]) -> Keys:
    """One number out of the two of a peer's id; they count differently."""
    words = np.frombuffer(b"".join(peers), "<u8").reshape(-1, 2).astype(np.uint64)
    return _mixed(words[:, 1] ^ _mixed(words[:, 0].copy()))


def _mixed(x: Keys) -> Keys:
    """One step of SplitMix64 from each number, in place: a bijection that looks like chance (Steele et al. 2014)."""
    shifted = np.empty_like(x)
    x += _GOLDEN
    for shift, factor in _MIXES:
        np.right_shift(x, shift, out=shifted)
        x ^= shifted
        x *= factor
    np.right_shift(x, _LAST_SHIFT, out=shifted)
    x ^= shifted
    return x


def _distances_of(pairs: Keys, inverse_weights: Distances) -> Distances:
    """-ln(u) ÷ weight, for u = (52 bits of the pair's hash + 1/2) ÷ 2^52. `pairs` is used up."""
    bits = _mixed(pairs)
    bits >>= np.uint64(12)
    u = bits.astype(np.float64)
    u += 0.5
    distances = _ln(u)
    distances -= 52 * _LN_2
    np.negative(distances, out=distances)
    distances *= inverse_weights
    return distances


def _ln(x: Distances) -> Distances:
    """Natural logarithms of numbers from 1/2 on, to some 1e-13. `x` is used up.

    With x = m · 2^e and m from 1 to 2: ln x = (e + 1/2) ln 2 + 2 artanh((m - √2) / (m + √2)), whose argument is at most
    0.172, so that eight terms do.
    """
    bits = x.view(np.uint64)
    exponents = (bits >> _MANTISSA_BITS).astype(np.float64)
    bits &= _MANTISSA
    bits |= _EXPONENT_OF_ONE
    below = x + _SQRT_2
    x -= _SQRT_2
    x /= below
    squares = np.multiply(x, x, out=below)
    sums = np.full_like(x, 2 / 15)
    for odd in (13, 11, 9, 7, 5, 3, 1):
        sums *= squares
        sums += 2 / odd
    sums *= x
    exponents -= 1022.5
    exponents *= _LN_2
    sums += exponents
    return sums
