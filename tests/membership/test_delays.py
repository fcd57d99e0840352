"""How far others are, by what their answers to probes took."""

from __future__ import annotations

import random

import pytest
from membership_harness import peer_id
from test_detector import Reachable

from peerlm.membership.delays import TRIPS, Delays
from peerlm.membership.detector import Ask, Detector, Way
from peerlm.membership.profile import LAN
from peerlm.types import Instant, PeerId, after
from peerlm.wire.message import Ack

B, C = peer_id(1), peer_id(2)


def test_of_the_newest_round_trips_the_least_counts() -> None:
    delays = Delays()
    assert delays.to(B) is None
    for round_trip_s in (0.9, 0.1, 0.5):
        delays.answered(B, round_trip_s)
    assert delays.to(B) == 0.05
    for _ in range(TRIPS):
        delays.answered(B, 0.3)
    assert delays.to(B) == 0.15
    delays.forget(B)
    assert delays.to(B) is None


def test_what_is_known_does_not_follow_each_millisecond() -> None:
    draws, delays = random.Random(1), Delays()
    delays.answered(B, 0.1)
    for _ in range(200):
        delays.answered(B, 0.1 * draws.uniform(1.0, 1.2))
        assert delays.to(B) == 0.05


def test_the_middle_one_is_of_those_that_are_known() -> None:
    delays = Delays()
    assert delays.middle([B, C]) is None
    delays.answered(B, 0.2)
    assert delays.middle([B, C]) == 0.1
    delays.answered(C, 0.4)
    assert delays.middle([B, C]) == pytest.approx(0.15)
    assert delays.middle([B]) == 0.1


def probed(*, linked: bool) -> tuple[Detector, PeerId]:
    detector, reach, now = Detector(LAN, random.Random(1), Instant(0.0)), Reachable(B), Instant(1.0)
    if not linked:
        reach.unlinked = [B]
    (ask,) = detector.begin(B, now, reach)
    assert isinstance(ask, Ask)
    assert ask.way is (Way.LINK if linked else Way.FRESH)
    detector.on_ack(B, Ack(ask.seq, B, ()), after(now, 0.08))
    return detector, B


def test_an_answer_over_a_link_is_a_measurement_and_one_that_took_a_handshake_is_none() -> None:
    detector, peer = probed(linked=True)
    assert detector.delays.to(peer) == pytest.approx(0.04)
    detector, peer = probed(linked=False)
    assert detector.delays.to(peer) is None
