from __future__ import annotations

import pytest
from membership_harness import peer_id

from peerlm.errors import ConfigError
from peerlm.membership.profile import LAN, TEST, WAN, profile_named, without_early_verdicts
from peerlm.membership.suspicion import (
    begin_suspicion,
    confirmations_wanted,
    duration_s,
    shortest_s,
)
from peerlm.types import Instant

MEMBERLIST = without_early_verdicts(LAN)


@pytest.mark.parametrize(
    ("mult", "n", "interval", "expected"),
    [
        (4, 1, 1.0, 4.0),
        (4, 10, 1.0, 4.0),
        (4, 64, 1.0, 7.225),
        (4, 1000, 1.0, 12.0),
        (6, 100, 5.0, 60.0),
    ],
)
def test_the_floor_grows_with_log_n(mult: int, n: int, interval: float, expected: float) -> None:
    assert shortest_s(mult, n, interval) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("n", "wanted"), [(2, 0), (3, 0), (4, 2), (64, 2)])
def test_few_nodes_cannot_confirm(n: int, wanted: int) -> None:
    assert confirmations_wanted(4, n) == wanted


@pytest.mark.parametrize(
    ("confirmations", "wanted", "expected"),
    # memberlist's own table: floor 2 s, longest 30 s, three confirmations wanted
    [(0, 3, 30.0), (1, 3, 16.0), (2, 3, 7.81), (3, 3, 2.0), (4, 3, 2.0), (0, 0, 2.0)],
)
def test_each_confirmation_shortens(confirmations: int, wanted: int, expected: float) -> None:
    assert duration_s(confirmations, wanted, 2.0, 30.0) == pytest.approx(expected, abs=0.01)


def test_only_new_accusers_confirm_and_only_as_many_as_wanted() -> None:
    suspicion = begin_suspicion(MEMBERLIST, 10, Instant(100.0))
    assert suspicion.accuse(peer_id(1))
    assert suspicion.deadline() == pytest.approx(124.0)
    assert not suspicion.accuse(peer_id(1))
    assert suspicion.accuse(peer_id(2))
    assert 104.0 < suspicion.deadline() < 124.0
    assert suspicion.accuse(peer_id(3))
    assert suspicion.deadline() == pytest.approx(104.0)
    assert not suspicion.accuse(peer_id(4))


def among(n: int, accusers: int, *, ours: bool) -> float:
    """How long a suspicion with so many accusers lasts in a swarm of `n`."""
    suspicion = begin_suspicion(LAN, n, Instant(0.0))
    for number in range(accusers):
        suspicion.accuse(peer_id(number), is_us=ours and number == accusers - 1)
    return suspicion.deadline()


@pytest.mark.parametrize("n", [7, 64, 1000])
def test_one_of_six_accusers_ends_a_suspicion_early_whatever_n(n: int) -> None:
    assert among(n, 6, ours=True) == LAN.verdict_min_s
    assert among(n, 7, ours=True) == LAN.verdict_min_s
    assert among(n, 5, ours=True) == pytest.approx(max(4.6, shortest_s(4, n, 1.0)))


def test_who_did_not_ask_the_suspect_itself_keeps_to_the_floor() -> None:
    assert among(1000, 9, ours=False) == 12.0
    assert among(1000, 4, ours=True) == 12.0
    assert among(1000, 1, ours=True) == 72.0


@pytest.mark.parametrize("n", [2, 3, 4, 6, 12])
def test_no_suspicion_ends_before_a_freeze_of_five_seconds_does(n: int) -> None:
    assert among(n, n - 1, ours=True) == LAN.verdict_min_s


def test_time_we_slept_through_is_given_back() -> None:
    suspicion = begin_suspicion(MEMBERLIST, 2, Instant(0.0))
    suspicion.accuse(peer_id(1))
    suspicion.push(7.0)
    assert suspicion.deadline() == pytest.approx(11.0)


def test_the_test_profile_is_lan_five_times_as_fast() -> None:
    assert TEST.probe_interval_s == pytest.approx(0.2)
    assert TEST.sync_interval_s == pytest.approx(6.0)
    assert TEST.dead_retention_s == LAN.dead_retention_s
    assert TEST.suspicion_mult == LAN.suspicion_mult
    assert profile_named("wan") is WAN
    with pytest.raises(ConfigError, match="lan, wan, test"):
        profile_named("moon")
    for profile in (LAN, WAN, TEST):
        assert profile.probe_timeout_s + profile.nack_after_s < profile.probe_interval_s
