"""Small machines that peers can push: whatever comes, and however often, they keep their bounds."""

from __future__ import annotations

import math
from dataclasses import replace

from effort import some
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from peerlm.membership.rumors import TELLINGS_PER_PEER, RumorQueue, rumor_bytes
from peerlm.mix.robust import (
    EXCLUSION_MAX_S,
    FAILURE_PAUSE_MAX_S,
    REQUEST_BURST,
    REQUESTS_PER_S,
    ClipTracker,
    PeerScores,
)
from peerlm.swarm.vitals import TOKENS_MAX, TOTAL_MAX, Ledger
from peerlm.types import FragmentId, Instant, PeerId
from peerlm.wire.message import PlanNews, Pulse, Rumor, Vitals

PEERS = [PeerId(bytes([n]) * 16) for n in range(6)]
peers = st.sampled_from(PEERS)


# ----------------------------------------------------------------------------------------- rumors

SUBJECTS = 5


class Rumors(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.queue = RumorQueue(SUBJECTS)
        self.number = 0
        self.newest: dict[bytes, Rumor] = {}
        self.teller: dict[Rumor, PeerId | None] = {}
        self.told: dict[tuple[Rumor, PeerId], int] = {}
        self.sends: dict[Rumor, int] = {}

    @rule(
        subject=st.integers(0, SUBJECTS + 3),
        size=st.sampled_from([0, 100, 500]),
        teller=st.none() | peers,
        sends_max=st.sampled_from([None, None, 1, 3]),
    )
    def put(self, subject: int, size: int, teller: PeerId | None, sends_max: int | None) -> None:
        self.number += 1
        rumor = Pulse(self.number.to_bytes(4, "big") + bytes(size), bytes(64))
        name = bytes([subject])
        self.queue.put(name, rumor, teller, sends_max)
        self.newest[name] = rumor
        self.teller[rumor] = teller
        self.sends[rumor] = 0
        assert name in self.queue, "the newest was dropped for something older"

    @rule(
        to=peers,
        room=st.sampled_from([0, 90, 300, 1000, 9999]),
        limit=st.integers(1, 4),
        count=st.sampled_from([1, 2, 200]),
    )
    def take(self, to: PeerId, room: int, limit: int, count: int) -> None:
        taken = self.queue.take(to, room, limit, count)
        assert len(taken) <= count
        assert sum(rumor_bytes(rumor) for rumor in taken) <= room
        for rumor in taken:
            assert rumor in self.newest.values(), "an older fact was told after a newer one"
            assert self.teller[rumor] != to, "told to who told us"
            self.told[rumor, to] = self.told.get((rumor, to), 0) + 1
            self.sends[rumor] += 1
            assert self.told[rumor, to] <= TELLINGS_PER_PEER
            assert self.sends[rumor] <= 4, "told more often than ever asked for"

    @rule(limit=st.integers(1, 4))
    def end_round(self, limit: int) -> None:
        self.queue.end_round(limit)

    @rule(subject=st.integers(0, SUBJECTS + 3))
    def drop(self, subject: int) -> None:
        self.queue.drop(bytes([subject]))
        assert bytes([subject]) not in self.queue

    @invariant()
    def it_is_bounded(self) -> None:
        assert not hasattr(self, "queue") or len(self.queue) <= SUBJECTS

    def teardown(self) -> None:
        """No rumor is told for ever, listeners or not."""
        if hasattr(self, "queue"):
            for _ in range(4):
                self.queue.end_round(4)
            assert len(self.queue) == 0


TestRumors = Rumors.TestCase
TestRumors.settings = some(40, 40)


def test_the_size_of_a_rumor_is_never_underestimated() -> None:
    from peerlm.wire.codec import encode

    for size in (0, 30, 300, 512):
        for rumor in (Pulse(bytes(size), bytes(64)), PlanNews(2**62, bytes(32))):
            assert len(encode(rumor)) <= rumor_bytes(rumor)


# ------------------------------------------------------------------------------------------ ledger


class Counting(RuleBasedStateMachine):
    """The oracle is the greatest claim for each (peer, epoch) that was taken."""

    @initialize(entries=st.integers(4, 12))
    def begin(self, entries: int) -> None:
        self.most = entries
        self.ledger = Ledger(entries, entries * 3 // 4)
        self.claims: dict[tuple[PeerId, int], int] = {}
        self.total = 0
        self.newest: dict[PeerId, tuple[int, int]] = {}

    @rule(
        peer=peers,
        epoch=st.integers(1, 4) | st.just(2**62),
        version=st.integers(0, 5) | st.just(2**62),
        tokens=st.sampled_from([0, 0, 1, 100, 5000, TOKENS_MAX, 2**62]),
    )
    def pulse(self, peer: PeerId, epoch: int, version: int, tokens: int) -> None:
        vitals = vitals_of(peer, epoch, version, tokens)
        news = self.ledger.is_news(vitals)
        assert self.ledger.merge(vitals, Pulse(bytes(4), bytes(64))) == news
        assert not self.ledger.is_news(vitals), "the same vitals are news twice"
        if news:
            self.claim(peer, epoch, tokens)
            assert self.ledger.version_of(peer) >= self.newest.get(peer, (0, 0)), "vitals fell"
            self.newest[peer] = self.ledger.version_of(peer)

    @rule(peer=peers, epoch=st.integers(1, 6), tokens=st.sampled_from([0, 7, 300, 2**62]))
    def told(self, peer: PeerId, epoch: int, tokens: int) -> None:
        """By a table that a peer sent: numbers without proof."""
        refused = self.ledger.refused
        self.ledger.restore([(peer, epoch, tokens)])
        if tokens and self.ledger.refused == refused:
            self.claim(peer, epoch, tokens)

    @rule(peer=peers)
    def forget(self, peer: PeerId) -> None:
        self.ledger.forget(peer)
        self.newest.pop(peer, None)
        assert self.ledger.latest(peer) is None
        assert self.ledger.pulses_since(peer, 0, 0) == []

    @invariant()
    def it_only_grows(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.ledger.check()
        assert self.ledger.total() >= self.total, "the count fell"
        self.total = self.ledger.total()
        assert self.total <= TOTAL_MAX
        kept = {(peer, epoch): tokens for peer, epoch, tokens in self.ledger.tallies()}
        assert kept == {key: tokens for key, tokens in self.claims.items() if tokens}
        assert len(kept) <= self.most

    def teardown(self) -> None:
        """Two ledgers that tell each other all agree, whatever each had heard."""
        if hasattr(self, "ledger"):
            other = Ledger()
            other.restore(self.ledger.tallies())
            other.restore(self.ledger.tallies())
            assert other.tallies() == self.ledger.tallies()
            assert other.total() == self.ledger.total()

    def claim(self, peer: PeerId, epoch: int, tokens: int) -> None:
        key = (peer, epoch)
        self.claims[key] = max(self.claims.get(key, 0), min(tokens, TOKENS_MAX))


TestCounting = Counting.TestCase
TestCounting.settings = some(40, 40)


def vitals_of(peer: PeerId, epoch: int, version: int, tokens: int) -> Vitals:
    return Vitals(
        peer, epoch, version, tokens, "training", True, True, False, 1, None, None, None, 0.0
    )


# ------------------------------------------------------------------------------- clipping, scores


@some(200)
@given(
    st.floats(0.5, 1000.0),
    st.lists(st.tuples(peers, st.floats(0.0, 1e19), st.floats(1e-3, 1e6)), max_size=80),
)
def test_tau_is_a_number_and_bounds_what_one_peer_moves(
    factor: float, differences: list[tuple[PeerId, float, float]]
) -> None:
    tracker = ClipTracker(factor)
    for partner, raw_norm, phi_norm in differences:
        tau = tracker.tau(phi_norm)
        assert math.isfinite(tau)
        assert tau >= 0
        tracker.update(partner, raw_norm, clipped=raw_norm > tau)
    assert len(tracker._raw_norms) <= 20


@some(100)
@given(st.lists(st.floats(1e-3, 10.0), min_size=5, max_size=20), st.integers(0, 9))
def test_one_peer_alone_never_doubles_tau(norms: list[float], extra: int) -> None:
    tracker = ClipTracker(1.5)
    for number, norm in enumerate(norms):
        tracker.update(PEERS[1 + number % 2], norm, clipped=False)
    for _ in range(extra):
        tau = tracker.tau(1.0)
        tracker.update(PEERS[0], 1e6, clipped=True)
        assert tracker._doublings == 0
        assert tau <= 1.5 * max(*norms, 1e6)


class Scores(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.now = Instant(0.0)
        self.scores = PeerScores()
        self.allowed: list[tuple[PeerId, int, float]] = []

    @rule(peer=peers, deed=st.sampled_from(["refused", "refused", "failed", "succeeded"]))
    def deed(self, peer: PeerId, deed: str) -> None:
        was_excluded = self.scores.excluded(peer, self.now)
        match deed:
            case "refused":
                until = self.scores.refused(peer, self.now)
                assert self.now + 599.0 < until <= self.now + EXCLUSION_MAX_S
                assert self.scores.excluded(peer, self.now)
            case "failed":
                self.scores.failed(peer, self.now)
                assert self.scores.avoided(peer, self.now)
                later = Instant(self.now + FAILURE_PAUSE_MAX_S)
                assert not self.scores.avoided(peer, later) or was_excluded
            case _:
                self.scores.succeeded(peer, self.now)
                assert self.scores.excluded(peer, self.now) == was_excluded, "bought itself free"

    @rule(peer=peers, fragment=st.integers(0, 1), times=st.integers(1, 60))
    def ask(self, peer: PeerId, fragment: int, times: int) -> None:
        for _ in range(times):
            if self.scores.allow_request(peer, FragmentId(fragment), self.now):
                self.allowed.append((peer, fragment, self.now))

    @rule(seconds=st.sampled_from([0.01, 1.0, 70.0, 700.0, 4000.0, 90_000.0]))
    def pass_time(self, seconds: float) -> None:
        self.now = Instant(self.now + seconds)

    @invariant()
    def they_are_bounded(self) -> None:
        if not hasattr(self, "scores"):
            return
        assert len(self.scores._records) <= len(PEERS)
        assert len(self.scores._buckets) <= 2 * len(PEERS)
        for peer in PEERS:
            assert not self.scores.excluded(peer, Instant(self.now + EXCLUSION_MAX_S))
            for fragment in (0, 1):
                recent = [t for p, f, t in self.allowed if (p, f) == (peer, fragment)]
                in_last_s = sum(self.now - t <= 1.0 for t in recent)
                assert in_last_s <= REQUEST_BURST + REQUESTS_PER_S + 1


TestScores = Scores.TestCase
TestScores.settings = some(30, 40)


def test_a_pulse_is_compared_by_all_its_fields() -> None:
    """The oracles above use rumors as keys."""
    one = Pulse(b"a", bytes(64))
    assert one == replace(one)
    assert one != replace(one, vitals=b"b")
