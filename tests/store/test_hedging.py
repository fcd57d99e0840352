"""A second pull of what a slow donor is at, on a virtual clock."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerlm.store.donor import Limits
from peerlm.store.fetch import CancelPull, Fault, Fetch, Phase, PullEffect, StartPull
from peerlm.store.pace import AGE_S, Pace
from peerlm.types import Instant, ObjectHash, PeerId, TransferId

A, B, C = (PeerId(letter * 16) for letter in (b"a", b"b", b"c"))
T0 = Instant(100.0)
MIB = 1 << 20
ONE_EACH = Limits(per_donor=1)


def offer(*keys: object) -> dict[object, ObjectHash]:
    return {key: ObjectHash(f"{key}".encode().rjust(32)) for key in keys}


def at(seconds: float) -> Instant:
    return Instant(T0 + seconds)


def starts(effects: list[PullEffect]) -> list[StartPull]:
    return [effect for effect in effects if isinstance(effect, StartPull)]


def only(effects: list[PullEffect]) -> StartPull:
    (start,) = effects
    assert isinstance(start, StartPull)
    return start


def three_seconds(keys: int = 9, limits: Limits = ONE_EACH) -> tuple[Fetch, StartPull, StartPull]:
    """A has brought little of an object, and B three others. The pull from A, and what B is asked for now."""
    fetch = Fetch(dict.fromkeys(range(keys), MIB), random.Random(3), T0, limits)
    slow = only(fetch.donor_offers(A, offer(*range(keys)), T0))
    pull = only(fetch.donor_offers(B, offer(*range(keys)), T0))
    for second in range(1, 4):
        fetch.progress(slow.transfer, second * 1000, at(second))
        pull = only(fetch.pulled(pull.transfer, at(second)))
        fetch.check()
    return fetch, slow, pull


# -------------------------------------------------------------------------------- one slow pull


def test_what_takes_three_times_as_long_as_usual_is_asked_for_elsewhere() -> None:
    _, slow, hedge = three_seconds()
    assert (hedge.key, hedge.peer) == (slow.key, B)


def test_the_faster_wins_and_the_other_is_cancelled_and_not_blamed() -> None:
    fetch, slow, hedge = three_seconds()
    fetch.progress(hedge.transfer, 5000, at(3.5))
    cancel, *begun = fetch.pulled(hedge.transfer, at(4.0))
    assert cancel == CancelPull(slow.transfer, A)
    assert {start.peer for start in begun} == {A, B}, "it does not rest"
    status = fetch.status(at(4.0))
    assert (status.hedged_bytes, status.bytes_done, status.last_fault) == (3000, 4 * MIB, "")
    assert fetch.pulled(slow.transfer, at(4.1)) == [], "late reports are ignored"
    assert fetch.failed(slow.transfer, Fault.CORRUPT, at(4.1)) == []
    fetch.check()


def test_the_slow_one_may_win_after_all() -> None:
    fetch, slow, hedge = three_seconds()
    fetch.progress(hedge.transfer, 7000, at(3.2))
    assert fetch.pulled(slow.transfer, at(3.3))[0] == CancelPull(hedge.transfer, B)
    assert fetch.status(at(3.3)).hedged_bytes == 7000
    fetch.check()


def test_whoever_was_too_slow_is_asked_last() -> None:
    fetch, _, hedge = three_seconds(keys=5)
    cancel, start = fetch.pulled(hedge.transfer, at(4.0))
    assert isinstance(cancel, CancelPull)
    assert isinstance(start, StartPull)
    assert start.peer == B, "and A not at all for the last, which B comes to soon enough"
    assert [begun.peer for begun in starts(fetch.donor_gone(B, at(4.1)))] == [A]


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.STALLED, Fault.CORRUPT, Fault.OURS])
@pytest.mark.parametrize("which", [0, 1])
def test_if_one_of_two_fails_the_other_goes_on(which: int, fault: Fault) -> None:
    fetch, *pulls = three_seconds()
    begun = starts(fetch.failed(pulls[which].transfer, fault, at(3.1)))
    fetch.check()
    assert pulls[0].key not in [start.key for start in begun], "one hedge for each object"
    effects = fetch.pulled(pulls[1 - which].transfer, at(3.5))
    assert pulls[0].key not in [start.key for start in starts(effects)]
    assert fetch.status(at(3.5)).bytes_done == 4 * MIB


def test_a_hedge_that_is_refused_is_tried_elsewhere() -> None:
    fetch, slow, hedge = three_seconds()
    assert fetch.donor_offers(C, offer(slow.key), at(3.1)) == [], "one is enough"
    begun = starts(fetch.failed(hedge.transfer, Fault.MISSING, at(3.2)))
    assert [start.peer for start in begun if start.key == slow.key] == [C]


def test_forgetting_ends_both() -> None:
    fetch, slow, hedge = three_seconds()
    cancels = fetch.forget(slow.key)
    assert set(cancels) == {CancelPull(slow.transfer, A), CancelPull(hedge.transfer, B)}
    fetch.check()


def test_none_is_begun_while_nothing_is_known_of_what_is_usual() -> None:
    fetch = Fetch({"x": MIB}, random.Random(3), T0)
    slow = only(fetch.donor_offers(A, offer("x"), T0))
    assert fetch.donor_offers(B, offer("x"), T0) == []
    fetch.progress(slow.transfer, 1, at(4.0))
    assert fetch.wake(at(8.9)) == []
    assert fetch.deadline() == at(9.0)


def test_none_is_begun_when_they_are_switched_off() -> None:
    _, slow, other = three_seconds(limits=replace(ONE_EACH, hedges=0))
    assert other.key != slow.key


def test_none_is_begun_of_what_has_come_too_far_to_come_twice() -> None:
    fetch = Fetch(dict.fromkeys(range(9), MIB), random.Random(3), T0, ONE_EACH)
    slow = only(fetch.donor_offers(A, offer(*range(9)), T0))
    pull = only(fetch.donor_offers(B, offer(*range(9)), T0))
    for second in range(1, 7):
        fetch.progress(slow.transfer, second * MIB // 8, at(second))
        pull = only(fetch.pulled(pull.transfer, at(second)))
        assert pull.key != slow.key


@pytest.mark.parametrize(
    ("received", "is_hedged"),
    [(1000, True), (MIB // 5, True), (MIB * 3 // 4, False), (MIB, False)],
)
def test_when_nothing_is_left_to_start_a_pull_is_slow_sooner(
    received: int, is_hedged: bool
) -> None:
    """But not if it is nearly here, or has too much that would come twice."""
    fetch = Fetch(dict.fromkeys(range(3), MIB), random.Random(3), T0, ONE_EACH)
    slow = only(fetch.donor_offers(A, offer(*range(3)), T0))
    pull = only(fetch.donor_offers(B, offer(*range(3)), T0))
    pull = only(fetch.pulled(pull.transfer, at(2.0)))
    fetch.progress(slow.transfer, received, at(3.9))
    begun = starts(fetch.pulled(pull.transfer, at(4.0)))
    assert [start.key for start in begun] == [slow.key] * is_hedged


def test_no_pull_is_slow_within_a_second() -> None:
    fetch = Fetch(dict.fromkeys(range(3), MIB), random.Random(3), T0, ONE_EACH)
    slow = only(fetch.donor_offers(A, offer(*range(3)), T0))
    pull = only(fetch.donor_offers(B, offer(*range(3)), T0))
    pull = only(fetch.pulled(pull.transfer, at(0.1)))
    assert fetch.pulled(pull.transfer, at(0.2)) == []
    assert fetch.deadline() == at(1.0)
    assert only(fetch.wake(at(1.0))).key == slow.key


# --------------------------------------------------------------------------------- what is usual


def test_what_is_usual_is_a_median_and_grows_with_the_size() -> None:
    pace = Pace()
    assert (pace.usual_bytes(), pace.usual_s(1)) == (0, inf)
    pace.add(MIB, 1.0, T0)
    assert pace.usual_s(MIB) == inf, "one says nothing"
    for took_s in (1.1, 90.0, 1.2, 0.001):
        pace.add(MIB, took_s, T0)
    assert pace.usual_bytes() == MIB
    assert pace.usual_s(MIB) == 1.1
    assert pace.usual_s(4 * MIB) == pytest.approx(4.4)
    assert pace.usual_s(1000) == 1.1
    pace.forget_old(at(AGE_S + 1))
    assert pace.usual_s(MIB) == inf


def test_small_objects_say_nothing_of_large_ones() -> None:
    pace = Pace()
    for _ in range(9):
        pace.add(1000, 0.2, T0)
    assert pace.usual_s(4 * MIB) == inf
    assert pace.usual_s(2000) == 0.4
    pace.add(0, 0.0, T0)


# ------------------------------------------------------------------------------- random donors


@dataclass
class Lines:
    """Donors of given rates (bytes/s), each shared by what is pulled from it."""

    rates: list[float]
    sizes: list[int]
    seed: int
    limits: Limits
    now: Instant = T0
    pulls: dict[TransferId, tuple[StartPull, float]] = field(default_factory=dict)
    done: list[object] = field(default_factory=list)
    came: dict[TransferId, int] = field(default_factory=dict)

    def carry(self, effects: list[PullEffect]) -> None:
        for effect in effects:
            if isinstance(effect, StartPull):
                others = [p.peer for p, _ in self.pulls.values() if p.key == effect.key]
                assert len(others) <= 1, "a third pull of one object"
                assert effect.peer not in others
                assert effect.key not in self.done
                self.pulls[effect.transfer] = effect, 0.0
            else:
                del self.pulls[effect.transfer]
        self.fetch.check()

    def run(self, tick_s: float = 0.1) -> float:
        """Seconds until everything is here."""
        self.fetch = Fetch(dict(enumerate(self.sizes)), random.Random(self.seed), T0, self.limits)
        for number in range(len(self.rates)):
            peer = PeerId(bytes([number]) * 16)
            self.carry(self.fetch.donor_offers(peer, offer(*range(len(self.sizes))), T0))
        while self.fetch.phase is not Phase.DONE:
            assert self.now < at(1000.0), "it does not end"
            self.now = Instant(self.now + tick_s)
            self.flow(tick_s)
            if self.fetch.deadline() <= self.now:
                self.carry(self.fetch.wake(self.now))
        assert sorted(self.done, key=int) == list(range(len(self.sizes)))  # type: ignore[call-overload]
        assert not self.pulls
        return self.now - T0

    def flow(self, tick_s: float) -> None:
        sharing = [start.peer for start, _ in self.pulls.values()]
        for transfer in list(self.pulls):
            if transfer not in self.pulls:
                continue  # what ended just now has cancelled it
            start, received = self.pulls[transfer]
            share = max(1, sharing.count(start.peer))
            received = min(start.size_bytes, received + self.rates[start.peer[0]] * tick_s / share)
            self.pulls[transfer] = start, received
            self.came[transfer] = int(received)
            if received < start.size_bytes:
                self.carry(self.fetch.progress(transfer, int(received), self.now))
            else:
                del self.pulls[transfer]
                self.done.append(start.key)
                self.carry(self.fetch.pulled(transfer, self.now))


@settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 2**32),
    st.integers(20, 60),
    st.sampled_from([10.0, 40.0, 300.0]),
    st.sampled_from([2, 4]),
)
def test_one_of_three_donors_that_crawls_makes_it_half_as_long_again_at_most(
    seed: int, objects: int, factor: float, per_donor: int
) -> None:
    rng = random.Random(seed)
    rate = objects * MIB * 0.1
    sizes = [rng.randint(MIB // 2, 2 * MIB) for _ in range(objects)]
    limits = Limits(per_donor=per_donor)
    without_s = Lines([rate, rate], sizes, seed, limits).run()
    lines = Lines([rate, rate / factor, rate], sizes, seed, limits)
    assert lines.run() <= 1.5 * without_s
    assert lines.fetch.status(lines.now).hedged_bytes <= 0.1 * sum(sizes) + 4 * MIB


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32))
def test_among_donors_of_any_rates_it_ends_and_little_comes_twice(seed: int) -> None:
    rng = random.Random(seed)
    rates = [MIB * 10 ** rng.uniform(-0.5, 1.5) for _ in range(rng.randint(1, 5))]
    sizes = [int(MIB * 10 ** rng.uniform(-3, 0)) for _ in range(rng.randint(1, 40))]
    lines = Lines(rates, sizes, seed, Limits(rng.randint(1, 4), rng.randint(1, 12)))
    lines.run()
    twice_bytes = lines.fetch.status(lines.now).hedged_bytes
    assert twice_bytes <= 0.1 * sum(lines.came.values()) + 2 * max(sizes)
    assert twice_bytes == sum(lines.came.values()) - sum(sizes)
