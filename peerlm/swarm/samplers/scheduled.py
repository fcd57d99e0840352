"""Partners that follow from the round: everybody who sees the same swarm computes the same graph.

    Matching              a permutation drawn from (seed, fragment, round), paired off two by two
    Ring                  each node with its successor, by a third: W = (I + P + Pᵀ)/3
    OnePeerExponential    each node with the one 2ᵗ places on, t = 0, 1, … in turn: exact after
                          log2 n rounds where n is a power of two (Ying et al., arXiv 2110.13363)

Ring and OnePeerExponential let every node name one partner and be named by another, in one round. A
one-way average would move each by half towards whom it names. Here both ends of an exchange move, or
the sum would not be conserved, so they move by half as much: W = ½I + ¼(P + Pᵀ), which contracts each
mode by the square of the one-way factor.

None of this needs agreement to be safe. A node counts its own rounds and has its own view of who is
there. Where the two ends see different things, a partner is simply asked who did not expect it: an
exchange between any two nodes, by any share, keeps the sum and never widens the spread.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Sequence
from typing import Protocol

from peerlm.swarm.samplers.choice import Choice
from peerlm.types import FragmentId, PeerId

Named = tuple[int, float] | None
"""Place of the partner in the sorted list of peers, and the share; None to sit the round out."""


class Graph(Protocol):
    """Whom each of the sorted `peers` names in a round."""

    def named(self, peers: Sequence[PeerId], fragment: FragmentId, round: int) -> list[Named]:
        """One entry for each peer, in their order."""
        ...


class Scheduled:
    """A sampler that follows a graph. Excluded partners are not replaced: nobody else expects us."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def choose(
        self,
        candidates: Sequence[PeerId],
        me: PeerId,
        fragment: FragmentId,
        round: int,
        rng: random.Random,
        exclude: Collection[PeerId] = (),
    ) -> Choice | None:
        peers = sorted((*candidates, me))
        named = self.graph.named(peers, fragment, round)[peers.index(me)]
        if named is None or peers[named[0]] in exclude:
            return None
        return Choice(peers[named[0]], named[1])

    def answered(self, peer: PeerId, seconds: float) -> None:
        pass


class Matching:
    """Pairs at random, the same for all; with an odd number one sits out."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def named(self, peers: Sequence[PeerId], fragment: FragmentId, round: int) -> list[Named]:
        places = {peer: place for place, peer in enumerate(peers)}
        order = [places[peer] for peer in shuffled(peers, self._seed, fragment, round)]
        named: list[Named] = [None] * len(peers)
        for a, b in zip(order[::2], order[1::2], strict=False):
            named[a], named[b] = (b, 1.0), (a, 1.0)
        return named


class Ring:
    """The next in the order of node ids; the last names the first."""

    def named(self, peers: Sequence[PeerId], fragment: FragmentId, round: int) -> list[Named]:
        return _circle(len(peers), 1, 2 / 3)


class OnePeerExponential:
    """The one 1, 2, 4, … places on, a distance a round."""

    def named(self, peers: Sequence[PeerId], fragment: FragmentId, round: int) -> list[Named]:
        distances = max(1, (len(peers) - 1).bit_length())
        return _circle(len(peers), 1 << round % distances, 1 / 2)


def _circle(n: int, distance: int, share: float) -> list[Named]:
    """Everybody names the one `distance` on. Half-way around, two name each other: one exchange,
    and so the whole average."""
    if n < 2:
        return [None] * n
    share = 1.0 if 2 * distance == n else share
    return [((place + distance) % n, share) for place in range(n)]


def shuffled(peers: Sequence[PeerId], seed: int, fragment: FragmentId, round: int) -> list[PeerId]:
    """The peers in an order that depends on the arguments alone: sorted by a keyed hash, which no
    version of Python or of its `random` can change between two nodes."""
    key = hashlib.sha256(f"{seed}/{fragment}/{round}".encode()).digest()

    def draw(peer: PeerId) -> bytes:
        return hashlib.blake2b(peer, digest_size=16, key=key).digest()

    return sorted(peers, key=draw)
