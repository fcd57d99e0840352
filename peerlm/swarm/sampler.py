"""Whom to mix a fragment with.

`uniform` draws any candidate; it needs no agreement and is the default. `matching` derives from
(seed, fragment, round) a permutation of all live peers and pairs neighbours in it, so that everyone
mixes at most once per round and both ends name each other, as long as their views and round numbers
agree. Where they do not it is as good as a random choice. (Gossip by random pairs and by matchings:
Boyd, Ghosh, Prabhakar, Shah 2006.)
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Sequence
from typing import Protocol

from peerlm.errors import ConfigError
from peerlm.types import FragmentId, PeerId


class Sampler(Protocol):
    """Chooses a partner from `candidates` (sorted, without this node), or None."""

    def choose(
        self,
        candidates: Sequence[PeerId],
        me: PeerId,
        fragment: FragmentId,
        round: int,
        rng: random.Random,
        exclude: Collection[PeerId] = (),
    ) -> PeerId | None:
        """`exclude`: candidates not to be taken this time (busy, tried, distrusted). A matching
        wants them there and not left out of `candidates`, or the two ends pair differently."""
        ...


class Uniform:
    """Any candidate with equal probability."""

    def choose(
        self,
        candidates: Sequence[PeerId],
        me: PeerId,
        fragment: FragmentId,
        round: int,
        rng: random.Random,
        exclude: Collection[PeerId] = (),
    ) -> PeerId | None:
        able = [peer for peer in candidates if peer not in exclude]
        return rng.choice(able) if able else None


class Matching:
    """The partner that the seeded matching of this round gives; None for the odd one out, and
    where the partner is excluded (nobody else expects us)."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def choose(
        self,
        candidates: Sequence[PeerId],
        me: PeerId,
        fragment: FragmentId,
        round: int,
        rng: random.Random,
        exclude: Collection[PeerId] = (),
    ) -> PeerId | None:
        order = shuffled((*candidates, me), self._seed, fragment, round)
        place = order.index(me) ^ 1
        partner = order[place] if place < len(order) else None
        return None if partner in exclude else partner


def shuffled(peers: Sequence[PeerId], seed: int, fragment: FragmentId, round: int) -> list[PeerId]:
    """The peers in an order that depends on the arguments alone: sorted by a keyed hash, which no
    version of Python or of its `random` can change between two nodes."""
    key = f"{seed}/{fragment}/{round}".encode()

    def draw(peer: PeerId) -> bytes:
        return hashlib.blake2b(peer, digest_size=16, key=hashlib.sha256(key).digest()).digest()

    return sorted(peers, key=draw)


def sampler_named(name: str, seed: int) -> Sampler:
    """The sampler a plan asks for. Raises `ConfigError` for one there is not."""
    match name:
        case "uniform":
            return Uniform()
        case "matching":
            return Matching(seed)
        case _:
            raise ConfigError(f"mix.sampler = {name!r}: must be uniform or matching")
