from __future__ import annotations

import random
from collections import Counter
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlm.errors import ConfigError
from peerlm.swarm.sampler import Matching, Uniform, sampler_named, shuffled
from peerlm.types import FragmentId, PeerId

PEERS = [PeerId(i.to_bytes(16, "big")) for i in range(64)]
F0 = FragmentId(0)


def partners(n: int, seed: int, fragment: int, round: int) -> dict[PeerId, PeerId | None]:
    peers, sampler, rng = PEERS[:n], Matching(seed), random.Random(0)
    return {
        me: sampler.choose([p for p in peers if p != me], me, FragmentId(fragment), round, rng)
        for me in peers
    }


@given(st.integers(1, 64), st.integers(0, 2**32), st.integers(0, 99), st.integers(0, 2**32))
def test_both_ends_of_a_matching_name_each_other(n: int, seed: int, f: int, round: int) -> None:
    chosen = partners(n, seed, f, round)
    assert list(chosen.values()).count(None) == n % 2
    for me, partner in chosen.items():
        assert partner is None or (partner != me and chosen[partner] == me)


def test_over_rounds_a_matching_meets_everybody_alike() -> None:
    n, rounds = 10, 1500
    met = Counter(partners(n, 7, 0, r)[PEERS[0]] for r in range(rounds))
    expected = rounds / (n - 1)
    assert len(met) == n - 1
    spread = 4.5 * sqrt(expected)
    assert all(abs(count - expected) < spread for count in met.values())


def test_fragments_and_rounds_have_matchings_of_their_own() -> None:
    assert (
        len({tuple(shuffled(PEERS, 1, FragmentId(f), r)) for f in range(4) for r in range(4)}) == 16
    )


def test_a_matching_whose_partner_is_excluded_waits() -> None:
    me, rng = PEERS[0], random.Random(0)
    partner = Matching(1).choose(PEERS[1:8], me, F0, 0, rng)
    assert partner is not None
    assert Matching(1).choose(PEERS[1:8], me, F0, 0, rng, exclude=(partner,)) is None


def test_uniform_draws_any_candidate_but_the_excluded() -> None:
    rng, candidates = random.Random(2), PEERS[1:9]
    met = Counter(
        Uniform().choose(candidates, PEERS[0], F0, 0, rng, PEERS[1:3]) for _ in range(6000)
    )
    assert sorted(p for p in met if p) == candidates[2:]
    assert all(abs(count - 1000) < 150 for count in met.values())
    assert Uniform().choose([], PEERS[0], F0, 0, rng) is None
    assert Uniform().choose(candidates, PEERS[0], F0, 0, rng, candidates) is None


def test_a_plan_names_its_sampler() -> None:
    assert isinstance(sampler_named("uniform", 1), Uniform)
    assert isinstance(sampler_named("matching", 1), Matching)
    with pytest.raises(ConfigError, match="ring"):
        sampler_named("ring", 1)
