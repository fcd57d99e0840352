from __future__ import annotations

import random

import pytest
from membership_harness import peer_id

from peerlm.membership.detector import RELAYS_MAX, Answer, Ask, Detector, Failed, Step, Way
from peerlm.membership.profile import LAN
from peerlm.types import Instant, PeerId
from peerlm.wire.message import Ack, Nack

B, C, D, E, STRANGER = (peer_id(i) for i in range(5))
NOW = Instant(20.0)


class Reachable:
    """Everybody live and linked, unless a test says otherwise."""

    def __init__(self, *peers: PeerId) -> None:
        self.peers = sorted(peers)
        self.unlinked: list[PeerId] = []
        self.undialable: list[PeerId] = []
        self.unaskable: list[PeerId] = []

    def live_peers(self) -> list[PeerId]:
        return list(self.peers)

    def linked_peers(self) -> list[PeerId]:
        return [peer for peer in self.peers if peer not in self.unlinked]

    def helpers(self) -> list[PeerId]:
        return self.linked_peers()

    def successor(self) -> PeerId | None:
        return next((peer for peer in self.peers if peer not in self.unaskable), None)

    def is_live(self, peer: PeerId) -> bool:
        return peer in self.peers

    def is_linked(self, peer: PeerId) -> bool:
        return peer in self.peers and peer not in self.unlinked

    def can_ask(self, peer: PeerId) -> bool:
        return peer not in self.unaskable

    def can_dial(self, peer: PeerId) -> bool:
        return peer in self.peers and peer not in self.undialable


def detector() -> Detector:
    return Detector(LAN, random.Random(1), Instant(0.0))


def ways(steps: list[Step]) -> list[Way]:
    return [step.way for step in steps if isinstance(step, Ask)]


def test_a_silent_member_is_asked_directly_then_through_others_and_over_a_fresh_connection() -> (
    None
):
    d, reach = detector(), Reachable(B, C, D, E)
    assert d.begin(B, Instant(10.0), reach) == [Ask(Way.LINK, B, B, 1)]
    steps = d.wake(Instant(10.5), reach)
    about_b = [s for s in steps if isinstance(s, Ask) and s.target == B]
    assert ways(list(about_b)) == [Way.HELPER, Way.HELPER, Way.HELPER, Way.FRESH]
    assert B not in [s.to for s in about_b if s.way is Way.HELPER]
    assert Failed(B) in d.wake(Instant(11.0), reach)
    assert not d.is_probing(B)


@pytest.mark.parametrize("answerer", [B, C])
def test_an_ack_from_itself_or_a_helper_is_a_sign_of_life(answerer: PeerId) -> None:
    d, reach = detector(), Reachable(B, C)
    d.begin(B, Instant(0.0), reach)
    d.wake(Instant(0.5), reach)
    d.on_ack(answerer, Ack(1, B, ()), NOW)
    assert not d.is_probing(B)


def test_an_ack_from_anybody_else_is_none() -> None:
    d, reach = detector(), Reachable(B, C)
    d.begin(B, Instant(0.0), reach)
    d.on_ack(STRANGER, Ack(1, B, ()), NOW)
    d.on_ack(C, Ack(1, B, ()), NOW)  # not asked yet
    d.on_ack(B, Ack(1, C, ()), NOW)  # of another
    assert d.is_probing(B)


def test_without_a_link_the_first_try_is_a_fresh_connection() -> None:
    d, reach = detector(), Reachable(B, C)
    reach.unlinked = [B]
    assert ways(d.begin(B, Instant(0.0), reach)) == [Way.FRESH]
    assert ways([s for s in d.wake(Instant(0.5), reach) if getattr(s, "target", 0) == B]) == [
        Way.HELPER
    ]


def test_who_can_neither_be_reached_nor_dialled_is_asked_through_others_at_once() -> None:
    d, reach = detector(), Reachable(B, C)
    reach.unlinked = reach.undialable = [B]
    assert ways(d.begin(B, Instant(0.0), reach)) == [Way.HELPER]


def test_who_could_not_answer_us_is_passed_over() -> None:
    reach = Reachable(B, C, D)
    reach.unlinked = reach.undialable = reach.unaskable = [D]
    assert set(asked_in(40, reach)) == {B, C}


def asked_in(periods: int, reach: Reachable) -> list[PeerId]:
    """Whom a detector asks, where all answer."""
    d, asked = detector(), []
    for period in range(1, periods + 1):
        for step in d.wake(Instant(float(period)), reach):
            assert isinstance(step, Ask)
            asked.append(step.target)
            d.on_ack(step.to, Ack(step.seq, step.target, ()), NOW)
    return asked


def test_every_other_turn_is_the_successors_and_the_rest_is_dealt_in_rounds() -> None:
    reach = Reachable(B, C, D, E)
    asked = asked_in(64, reach)
    own = asked.index(reach.successor())
    ring, rest = asked[own::2], asked[1 - own :: 2]
    assert set(ring) == {reach.successor()}
    for peer in reach.peers:
        assert 6 <= rest.count(peer) <= 10  # 8 each, were it one round after the other


def test_members_without_a_link_are_asked_now_and_then() -> None:
    reach = Reachable(B, C, D, E)
    reach.unlinked = [reach.peers[2], reach.peers[3]]
    asked = asked_in(160, reach)
    strangers = [peer for peer in asked if peer in reach.unlinked]
    assert 8 <= len(strangers) <= 12  # half of every eighth turn
    assert set(strangers) == set(reach.unlinked)


def test_silent_helpers_make_us_doubt_ourselves_and_nacks_do_not() -> None:
    for nacking, score in ((True, 0), (False, 3)):
        d, reach = detector(), Reachable(B, C, D, E)
        d.begin(B, Instant(0.0), reach)
        steps = d.wake(Instant(0.5), reach)
        if nacking:
            for step in steps:
                if isinstance(step, Ask) and step.way is Way.HELPER:
                    d.on_nack(step.to, Nack(step.seq, B))
        d.wake(Instant(1.0), reach)
        assert d.awareness.score == score


def test_doubt_of_oneself_stretches_patience_and_good_probes_heal_it() -> None:
    d, reach = detector(), Reachable(B)
    d.awareness.add(3)
    d.begin(B, Instant(0.0), reach)
    d.wake(Instant(0.5), reach)
    assert Failed(B) not in d.wake(Instant(3.9), reach)
    assert Failed(B) in d.wake(Instant(4.0), reach)
    d.awareness.add(99)
    assert d.awareness.score == 7
    [step] = d.begin(B, Instant(5.0), reach)
    assert isinstance(step, Ask)
    d.on_ack(B, Ack(step.seq, B, ()), NOW)
    assert d.awareness.score == 6


def test_time_slept_through_is_not_held_against_others() -> None:
    d, reach = detector(), Reachable(B)
    d.begin(B, Instant(0.0), reach)
    d.push(60.0)
    assert Failed(B) not in d.wake(Instant(60.4), reach)


def test_a_helper_passes_the_ack_on_and_says_nack_in_time() -> None:
    d, reach = detector(), Reachable(B, C)
    [ask] = d.on_request(C, 77, B, Instant(0.0), reach)
    assert isinstance(ask, Ask)
    assert Answer(C, Nack(77, B)) in d.wake(Instant(0.4), reach)
    assert d.on_ack(B, Ack(ask.seq, B, ()), NOW) == [Answer(C, Ack(77, B, ()))]
    assert d.on_ack(B, Ack(ask.seq, B, ()), NOW) == []


def test_a_helper_says_nack_at_once_of_whom_it_does_not_know_or_has_no_room_for() -> None:
    d, reach = detector(), Reachable(B, C)
    assert d.on_request(C, 1, STRANGER, Instant(0.0), reach) == [Answer(C, Nack(1, STRANGER))]
    for seq in range(RELAYS_MAX):
        d.on_request(C, seq, B, Instant(0.0), reach)
    assert d.on_request(C, 999, B, Instant(0.0), reach) == [Answer(C, Nack(999, B))]


def test_a_later_incarnation_ends_the_probe_of_the_earlier() -> None:
    d, reach = detector(), Reachable(B)
    d.begin(B, Instant(0.0), reach)
    d.forget(B)
    assert Failed(B) not in d.wake(Instant(5.0), reach)
