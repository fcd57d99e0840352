from __future__ import annotations

import random
from collections import Counter
from dataclasses import fields
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlm.config import MixSection
from peerlm.errors import ConfigError
from peerlm.swarm.sampler import MAKERS, sampler_named
from peerlm.swarm.samplers.base2 import base2_rounds
from peerlm.swarm.samplers.choice import Choice
from peerlm.swarm.samplers.drawn import KNOWN_MAX, UNIFORM_SHARE, LatencyBiased, Uniform
from peerlm.swarm.samplers.scheduled import shuffled
from peerlm.types import FragmentId, PeerId

PEERS = [PeerId(i.to_bytes(16, "big")) for i in range(64)]
F0 = FragmentId(0)


def choices(name: str, n: int, seed: int, fragment: int, round: int) -> dict[PeerId, Choice | None]:
    """What each of n nodes chooses by itself."""
    peers, sampler, rng = PEERS[:n], sampler_named(name, seed), random.Random(0)
    return {
        me: sampler.choose([p for p in peers if p != me], me, FragmentId(fragment), round, rng)
        for me in peers
    }


def partners(
    n: int, seed: int, fragment: int, round: int, name: str = "matching"
) -> dict[PeerId, PeerId | None]:
    chosen = choices(name, n, seed, fragment, round)
    return {me: choice and choice.peer for me, choice in chosen.items()}


# ----------------------------------------------------------------------------------- schedules


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


@pytest.mark.parametrize("name", ["matching", "ring", "onepeer_exp", "base2"])
def test_a_scheduled_partner_who_is_excluded_is_not_replaced(name: str) -> None:
    me, rng, sampler = PEERS[0], random.Random(0), sampler_named(name, 1)
    choice = sampler.choose(PEERS[1:8], me, F0, 0, rng)
    assert choice is not None
    assert sampler.choose(PEERS[1:8], me, F0, 0, rng, exclude=(choice.peer,)) is None


@given(st.integers(1, 64), st.integers(0, 100))
def test_in_base2_both_ends_name_each_other_and_the_same_share(n: int, round: int) -> None:
    chosen = choices("base2", n, 1, 0, round)
    for me, choice in chosen.items():
        if choice is not None:
            assert chosen[choice.peer] == Choice(me, choice.share)
            assert 0 < choice.share <= 1, "nobody moves by more than half"


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 12, 15, 33, 64, 1000])
def test_nobody_has_two_meetings_in_a_round_of_base2(n: int) -> None:
    for met in base2_rounds(n):
        places = [place for a, b, _ in met for place in (a, b)]
        assert len(set(places)) == len(places)
        assert all(0 <= place < n for place in places)


@pytest.mark.parametrize("n", [2, 3, 7, 12, 16])
def test_on_circles_everybody_names_one_and_is_named_by_one(n: int) -> None:
    for name, rounds in [("ring", 1), ("onepeer_exp", 4)]:
        for round in range(rounds):
            chosen = partners(n, 1, 0, round, name)
            assert sorted(p for p in chosen.values() if p) == PEERS[:n]
            assert all(me != partner for me, partner in chosen.items())


def test_one_peer_exponential_doubles_its_distance() -> None:
    places = [PEERS.index(partners(12, 1, 0, r, "onepeer_exp")[PEERS[3]]) for r in range(5)]
    assert [(place - 3) % 12 for place in places] == [1, 2, 4, 8, 1]


@pytest.mark.parametrize("name", list(MAKERS))
def test_alone_there_is_nobody_to_choose(name: str) -> None:
    assert sampler_named(name, 1).choose([], PEERS[0], F0, 5, random.Random(0)) is None


@pytest.mark.parametrize("name", list(MAKERS))
@given(n=st.integers(2, 20), round=st.integers(0, 2**40), data=st.data())
def test_any_choice_is_a_candidate_by_a_share(
    name: str, n: int, round: int, data: st.DataObject
) -> None:
    exclude = data.draw(st.lists(st.sampled_from(PEERS[1:n]), unique=True))
    choice = sampler_named(name, 1).choose(
        PEERS[1:n], PEERS[0], F0, round, random.Random(0), exclude
    )
    if choice is not None:
        assert choice.peer in PEERS[1:n]
        assert choice.peer not in exclude
        assert 0 < choice.share <= 1


# --------------------------------------------------------------------------------------- draws


def met_by(sampler: Uniform | LatencyBiased, draws: int, *exclude: PeerId) -> Counter[PeerId]:
    rng, candidates = random.Random(2), PEERS[1:9]
    chosen = [sampler.choose(candidates, PEERS[0], F0, 0, rng, exclude) for _ in range(draws)]
    return Counter(choice.peer for choice in chosen if choice is not None)


def test_uniform_draws_any_candidate_but_the_excluded() -> None:
    met = met_by(Uniform(), 6000, *PEERS[1:3])
    assert sorted(met) == PEERS[3:9]
    assert all(abs(count - 1000) < 150 for count in met.values())
    assert not met_by(Uniform(), 1, *PEERS[1:9])


def test_near_peers_are_drawn_more_often_and_far_ones_still() -> None:
    sampler = LatencyBiased()
    for place, peer in enumerate(PEERS[1:9]):
        sampler.answered(peer, 0.01 if place < 4 else 0.1)
    met, draws = met_by(sampler, 8000), 8000
    near, far = 0.8 * 10 / 44 + UNIFORM_SHARE / 8, 0.8 * 1 / 44 + UNIFORM_SHARE / 8
    for place, peer in enumerate(PEERS[1:9]):
        share = near if place < 4 else far
        assert abs(met[peer] - draws * share) < 4.5 * sqrt(draws * share)


def test_who_has_never_answered_counts_as_near() -> None:
    sampler = LatencyBiased()
    for peer in PEERS[1:8]:
        sampler.answered(peer, 0.5)
    met = met_by(sampler, 8000)
    assert abs(met[PEERS[8]] - 1000) < 4.5 * sqrt(1000), "as the nearest known"
    sampler.answered(PEERS[8], 50.0)
    assert met_by(sampler, 8000)[PEERS[8]] < 8000 * (UNIFORM_SHARE / 8 + 0.01)


def test_round_trips_are_averaged_and_the_oldest_forgotten() -> None:
    sampler = LatencyBiased()
    for number in range(KNOWN_MAX + 50):
        sampler.answered(PeerId(number.to_bytes(16, "big")), 0.02)
        sampler.answered(PEERS[0], 0.02)
    assert len(sampler._seconds) == KNOWN_MAX
    assert PEERS[0] in sampler._seconds, "it was heard from all the time"
    assert PEERS[1] not in sampler._seconds
    sampler.answered(PEERS[0], 0.12)
    assert sampler._seconds[PEERS[0]] == pytest.approx(0.05)


def test_a_plan_names_its_sampler() -> None:
    allowed = {f.name: f for f in fields(MixSection)}["sampler"].metadata["allowed"]
    assert allowed == "one of " + ", ".join(MAKERS), "what a plan may say is what there is"
    with pytest.raises(ConfigError, match="torus"):
        sampler_named("torus", 1)
