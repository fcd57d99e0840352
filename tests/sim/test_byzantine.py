"""One liar among honest nodes: what it sends, and that it gets next to nowhere."""

from __future__ import annotations

import numpy as np
import pytest

from peerlm.config import Plan, with_changes
from peerlm.errors import ConfigError, WireError
from peerlm.mix.codec import CODECS, WEIGHT_CODECS, decode, encode
from peerlm.mix.loops import norm
from peerlm.mix.robust import MISFIT_S
from peerlm.sim.attackers import ATTACKS, Attacker, forge
from peerlm.sim.byzantine import STEP_S, Case, Outcome, Swarm
from peerlm.sim.learner import Teacher

SIZE = 300
STEPS = 200
OFTEN = with_changes(Plan(), {"mix.inner_steps": 4}, "test")
"""Mixes as often in a short run as other plans do in a long one."""


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def outcome(steps: int = STEPS, **changes: object) -> Outcome:
    case = Case(steps=steps, plan=OFTEN, **changes)  # type: ignore[arg-type]
    return Swarm(case, Teacher(case.fragments)).run()


@pytest.fixture(scope="module")
def honest() -> Outcome:
    return outcome()


# --------------------------------------------------------------------------------- what it sends


@pytest.mark.parametrize("codec", WEIGHT_CODECS)
@pytest.mark.parametrize(
    ("attack", "factor"), [("inverted", -2.0), ("opposed", -1.0), ("stale", 1.0)]
)
def test_a_claim_is_what_the_attack_says(attack: str, factor: float, codec: str) -> None:
    phi = rng().standard_normal(SIZE).astype(np.float32)
    claim = decode(Attacker(attack, 1).request(0, phi, codec, rng()), SIZE, codec)
    assert norm(claim - np.float32(factor) * phi) < 0.02 * abs(factor) * norm(phi)


def test_a_reply_is_the_way_to_the_claim() -> None:
    phi, theirs = rng(1).standard_normal((2, SIZE)).astype(np.float32)
    request = encode(theirs, "fp32", rng())
    reply = Attacker("inverted", 1).reply(0, phi, request, ("fp32", "fp32"), rng())
    way = decode(reply, SIZE, "fp32")
    assert np.allclose(theirs + way, -2 * phi, atol=1e-5)


def test_noise_has_the_norm_of_the_truth_and_another_direction_each_time() -> None:
    phi, attacker = np.full(SIZE, 0.1, np.float32), Attacker("noise", 1)
    first, second = (
        decode(attacker.request(0, phi, "fp32", rng(seed)), SIZE, "fp32") for seed in (1, 2)
    )
    assert norm(first) == pytest.approx(norm(phi), rel=1e-5)
    assert abs(float(first @ second)) < 0.3 * norm(phi) ** 2


def test_what_is_stale_is_remembered_of_each_fragment() -> None:
    attacker = Attacker("stale", 2)
    old, new = np.zeros(SIZE, np.float32), np.ones(SIZE, np.float32)
    attacker.request(0, old, "fp32", rng())
    assert not decode(attacker.request(0, new, "fp32", rng()), SIZE, "fp32").any()
    assert decode(attacker.request(1, new, "fp32", rng()), SIZE, "fp32").all()


def test_who_creeps_goes_the_same_way_every_time() -> None:
    attacker, phi = Attacker("creeping", 1), np.ones(SIZE, np.float32)
    steps = [decode(attacker.request(0, phi, "fp32", rng(s)), SIZE, "fp32") - phi for s in (1, 2)]
    assert np.array_equal(steps[0], steps[1])
    assert norm(steps[0]) == pytest.approx(0.2 * norm(phi), rel=1e-4)


@pytest.mark.parametrize("codec", CODECS)
def test_forged_bytes_are_refused_for_their_elements_alone(codec: str) -> None:
    values = np.ones(SIZE, np.float32)
    assert bytes(forge(values, codec, rng())) == bytes(encode(values, codec, rng()))
    values[200] = np.nan
    with pytest.raises(WireError, match="not finite"):
        decode(forge(values, codec, rng()), SIZE, codec)
    values[200] = 1e38
    assert decode(forge(values, codec, rng()), SIZE, codec).max() > 6e4


def test_an_attack_there_is_not_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="inverted"):
        Attacker("flattery", 1)


# --------------------------------------------------------------------------- what becomes of it


def test_the_same_seed_ends_the_same() -> None:
    first, again, other = (outcome(60, attack="noise", seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.excess != other.excess


@pytest.mark.parametrize("attack", ["nan", "huge"])
def test_who_sends_the_impossible_is_excluded_at_once(attack: str) -> None:
    found = outcome(20, attack=attack)
    assert found.excluded_at is not None
    assert found.excluded_at <= 12
    assert 7 <= found.refused <= 14, "an exchange or two with each honest node"
    assert found.wronged == 0


def test_twice_the_opposite_does_not_pass_the_gates(honest: Outcome) -> None:
    found = outcome(attack="inverted")
    assert found.refused > 50
    assert found.excess < 1.2 * honest.excess


def test_twice_the_opposite_is_excluded_once_it_has_not_fitted_for_a_minute() -> None:
    found = outcome(750, attack="inverted")
    assert found.excluded_at is not None
    assert found.excluded_at * STEP_S > MISFIT_S
    assert found.wronged == 0


def test_who_opposes_is_clipped_and_before_long_excluded(honest: Outcome) -> None:
    bare, kept = (outcome(attack="opposed", clip=clip) for clip in (False, True))
    assert bare.excess > 2 * honest.excess
    assert kept.excess < 1.5 * honest.excess
    assert kept.excluded_at is not None
    assert kept.wronged == 0


def test_who_creeps_is_held_back(honest: Outcome) -> None:
    bare, kept = (outcome(attack="creeping", clip=clip) for clip in (False, True))
    assert kept.excess < 1.5 * honest.excess < bare.excess


def test_honest_nodes_are_hardly_clipped_and_never_excluded(honest: Outcome) -> None:
    assert honest.clipped < 0.15
    assert honest.wronged == 0
    assert honest.excluded_at is None


@pytest.mark.parametrize("unlike", [{"parted": 1, "nodes": 4}, {"slow": 2}, {"slow": 7}])
def test_honest_nodes_that_were_away_or_are_slow_or_fast_are_no_strangers(
    unlike: dict[str, int],
) -> None:
    found = outcome(**unlike)
    assert found.wronged == 0


def test_every_attack_runs() -> None:
    for attack in ATTACKS:
        assert np.isfinite(outcome(20, attack=attack).excess)
