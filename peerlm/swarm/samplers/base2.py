"""The Base-2 graph: the exact average of any number of nodes, one partner at a time.

After Takezawa et al., *Beyond Exponential Graph* (arXiv 2305.11420), built here so that nobody ever
moves by more than half of a difference. A power of two averages itself in log2 n rounds: in round t
everybody meets who differs from it in bit t (a hypercube). Any other number is cut into powers of two,
n = 2^p₁ + 2^p₂ + …, largest first:

    1. each part averages itself
    2. the first part meets all later ones: each of their nodes meets one of its own, with the weight
       that leaves the first part with the average of everybody as *its* average. Those it has met are
       smaller in number and now alike, part by part, and their average is everybody's too
    3. the first part averages itself again and is done; meanwhile the second meets those after it, …

In step 2 the newcomer has to move by 2^p₁/n > ½. The two trade places instead: the rest of the
difference is less than half. Before all this, factors of two are taken out of n, for hypercubes across
equal groups come free of step 2. In all at most 2·log2 n + 1 rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from peerlm.swarm.samplers.scheduled import Named
from peerlm.types import FragmentId, PeerId

Meeting = tuple[int, int, float]
"""Places of two nodes, and the share of `mix.weight` with which they are mixed."""

Round = list[Meeting]


class Base2:
    """Walks through the rounds of the graph and begins anew."""

    def named(self, peers: Sequence[PeerId], fragment: FragmentId, round: int) -> list[Named]:
        named: list[Named] = [None] * len(peers)
        rounds = base2_rounds(len(peers))
        for a, b, share in rounds[round % len(rounds)] if rounds else ():
            named[a], named[b] = (b, share), (a, share)
        return named


@lru_cache(maxsize=8)
def base2_rounds(n: int) -> tuple[Round, ...]:
    """The rounds after which `n` nodes hold their average, each in at most one meeting a round."""
    groups = n & -n
    size = n // groups
    rounds = [
        [(a + g * size, b + g * size, share) for g in range(groups) for a, b, share in met]
        for met in _rounds_of_odd(size)
    ]
    across = _hypercube(list(range(groups)))
    rounds += [
        [(a * size + k, b * size + k, 1.0) for a, b, _ in met for k in range(size)]
        for met in across
    ]
    return tuple(rounds)


def _rounds_of_odd(n: int) -> list[Round]:
    parts = _parts(n)
    first = len(parts[0]).bit_length() - 1
    rounds: list[Round] = []
    for part in parts:
        _overlay(rounds, 0, _hypercube(part))
    for number, part in enumerate(parts[:-1]):
        later = parts[number + 1 :]
        in_all = len(part) + sum(map(len, later))
        _overlay(rounds, first + number, [_meet_and_trade(part, later, in_all)])
        _overlay(rounds, first + number + 1, _hypercube(part))
    return rounds


def _parts(n: int) -> list[list[int]]:
    """0 … n − 1 in runs whose lengths are the powers of two in n, largest first."""
    parts, start = [], 0
    for bit in reversed(range(n.bit_length())):
        if n >> bit & 1:
            parts.append(list(range(start, start + (1 << bit))))
            start += 1 << bit
    return parts


def _hypercube(part: list[int]) -> list[Round]:
    bits = len(part).bit_length() - 1
    return [
        [(a, part[k ^ 1 << t], 1.0) for k, a in enumerate(part) if not k >> t & 1]
        for t in range(bits)
    ]


def _meet_and_trade(part: list[int], later: list[list[int]], in_all: int) -> Round:
    """Pair the nodes of `later` with some of `part`, and let the two change places."""
    share = 2 * (1 - len(part) / in_all)
    met: Round = []
    for other in later:
        for k, theirs in enumerate(other):
            ours = part[len(met)]
            part[len(met)], other[k] = theirs, ours
            met.append((ours, theirs, share))
    return met


def _overlay(rounds: list[Round], start: int, more: list[Round]) -> None:
    """Let `more` happen beside what there is, from round `start` on."""
    rounds.extend([] for _ in range(start + len(more) - len(rounds)))
    for number, met in enumerate(more, start):
        rounds[number].extend(met)
