"""Fetching from several donors that may die, stall, lie or be busy, on a virtual clock."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerlm.store.donor import Limits
from peerlm.store.fetch import CancelPull, Fault, Fetch, Phase, PullEffect, StartPull
from peerlm.types import Instant, ObjectHash, PeerId, TransferId

A, B, C = (PeerId(letter * 16) for letter in (b"a", b"b", b"c"))
T0 = Instant(100.0)


def hash_of(key: object, peer: PeerId = A) -> ObjectHash:
    return ObjectHash(peer + f"{key}".encode().rjust(16))


def offer(*keys: object, peer: PeerId = A) -> dict[object, ObjectHash]:
    return {key: hash_of(key, peer) for key in keys}


def fetch_of(*keys: object, size: int = 1000, limits: Limits | None = None) -> Fetch:
    return Fetch(dict.fromkeys(keys, size), random.Random(3), T0, limits or Limits())


def starts(effects: list[PullEffect]) -> list[StartPull]:
    assert all(isinstance(effect, StartPull) for effect in effects), effects
    return [effect for effect in effects if isinstance(effect, StartPull)]


def only(effects: list[PullEffect]) -> StartPull:
    (start,) = starts(effects)
    return start


def test_an_offer_starts_pulls_and_the_last_one_ends_the_fetch() -> None:
    fetch = fetch_of("x", "y")
    assert fetch.phase is Phase.STUCK
    first, second = starts(fetch.donor_offers(A, offer("x", "y", "unwanted"), T0))
    assert {first.key, second.key} == {"x", "y"}
    assert first.object_hash == hash_of(first.key)
    assert first.size_bytes == 1000
    assert fetch.pulled(first.transfer, Instant(101.0)) == []
    assert fetch.phase is Phase.FETCHING
    assert fetch.pulled(second.transfer, Instant(102.0)) == []
    assert fetch.phase is Phase.DONE
    assert fetch.deadline() == inf


def test_few_at_once_from_one_donor_and_few_in_all() -> None:
    fetch = fetch_of(*range(40), limits=Limits(per_donor=2, total=5))
    assert len(starts(fetch.donor_offers(A, offer(*range(40)), T0))) == 2
    assert len(starts(fetch.donor_offers(B, offer(*range(40)), T0))) == 2
    assert len(starts(fetch.donor_offers(C, offer(*range(40)), T0))) == 1
    fetch.check()


def test_what_few_donors_have_goes_first() -> None:
    fetch = fetch_of(*"abcdefgh", limits=Limits(per_donor=1, total=1))
    held = only(fetch.donor_offers(A, offer(*"abcdefgh"), T0))
    common = set("abcdefgh") - {held.key, "h" if held.key != "h" else "g"}
    (rare,) = set("abcdefgh") - {held.key} - common
    fetch.donor_offers(B, offer(*common, peer=B), T0)
    assert only(fetch.pulled(held.transfer, T0)).key == rare


def test_every_donor_serves_its_own_object_for_a_want() -> None:
    fetch = fetch_of("fragment 1", limits=Limits(per_donor=1, total=1))
    first = only(fetch.donor_offers(A, offer("fragment 1", peer=A), T0))
    fetch.donor_offers(B, offer("fragment 1", peer=B), T0)
    second = only(fetch.failed(first.transfer, Fault.LOST, T0))
    assert (first.peer, first.object_hash) == (A, hash_of("fragment 1", A))
    assert (second.peer, second.object_hash) == (B, hash_of("fragment 1", B))


def test_a_pull_without_a_byte_is_given_up_and_tried_elsewhere() -> None:
    fetch = fetch_of("x", size=1_000_000)
    first = only(fetch.donor_offers(A, offer("x"), T0))
    fetch.donor_offers(B, offer("x", peer=B), T0)
    fetch.progress(first.transfer, 10, Instant(103.0))
    fetch.progress(first.transfer, 10, Instant(106.0))  # not one byte more
    assert fetch.deadline() == 108.0
    assert fetch.wake(Instant(107.9)) == []
    cancel, start = fetch.wake(Instant(108.0))
    assert cancel == CancelPull(first.transfer, A)
    assert isinstance(start, StartPull)
    assert start.peer == B
    assert fetch.pulled(first.transfer, Instant(108.1)) == [], "late reports are ignored"
    assert fetch.phase is Phase.FETCHING


def test_a_pull_that_crawls_is_given_up_however_steady() -> None:
    fetch = fetch_of("x", size=10_000, limits=Limits(floor_bytes_s=1000.0))
    start = only(fetch.donor_offers(A, offer("x"), T0))
    for second in range(1, 15):
        assert fetch.progress(start.transfer, second, Instant(T0 + second)) == []
    assert fetch.deadline() == T0 + 15.0
    assert fetch.wake(Instant(T0 + 15.0)) == [CancelPull(start.transfer, A)]


def test_a_failing_donor_rests_twice_as_long_each_time_until_it_serves() -> None:
    fetch = fetch_of("x", "y", limits=Limits(per_donor=1, rest_s=1.0, rest_s_max=6.0))
    now, start = T0, only(fetch.donor_offers(A, offer("x", "y"), T0))
    for expected_s in (1.0, 2.0, 4.0, 6.0, 6.0):
        assert fetch.failed(start.transfer, Fault.BUSY, now) == []
        assert 0.75 * expected_s <= fetch.deadline() - now <= 1.25 * expected_s
        now = fetch.deadline()
        start = only(fetch.wake(now))
    assert "busy" in fetch.status(now).last_fault
    start = only(fetch.pulled(start.transfer, now))
    fetch.failed(start.transfer, Fault.LOST, now)
    assert fetch.deadline() - now <= 1.25


def test_a_rest_that_is_over_is_not_a_deadline_again() -> None:
    fetch = fetch_of("x", "y", limits=Limits(per_donor=1, total=1))
    first = only(fetch.donor_offers(A, offer("x", "y"), T0))
    fetch.donor_offers(B, offer("x", "y", peer=B), T0)
    only(fetch.failed(first.transfer, Fault.LOST, T0))
    rested = fetch.deadline()
    assert fetch.wake(rested) == [], "the one pull allowed is under way"
    assert fetch.deadline() == T0 + 5.0


def test_wrong_bytes_exclude_a_donor_for_a_time_that_grows() -> None:
    fetch = fetch_of(*"abcdefgh")
    now = T0
    for excluded_s in (60.0, 600.0, 3600.0, 3600.0):
        first = starts(fetch.donor_offers(A, offer(*"abcdefgh"), now))[0]
        fetch.failed(first.transfer, Fault.CORRUPT, now)
        assert fetch.donor_offers(A, offer("x"), now) == []
        almost = Instant(now + excluded_s - 1)
        fetch.wake(almost)
        assert fetch.donor_offers(A, offer(*"abcdefgh"), almost) == []
        fetch.offer(A, "a", offer("a")["a"])
        assert not fetch.is_offered("a")
        now = Instant(now + excluded_s)
        fetch.wake(now)


def test_wrong_bytes_exclude_a_donor() -> None:
    fetch = fetch_of("x", "y", "z")
    first, second = starts(fetch.donor_offers(A, offer("x", "y", "z"), T0))
    assert fetch.failed(first.transfer, Fault.CORRUPT, T0) == [CancelPull(second.transfer, A)]
    assert fetch.donor_offers(A, offer("x", "y", "z"), T0) == []
    assert fetch.phase is Phase.STUCK
    assert fetch.status(T0).unoffered == ("x", "y", "z")
    assert len(starts(fetch.donor_offers(B, offer("x", "y", "z", peer=B), T0))) == 2


def test_an_object_the_donor_dropped_is_not_asked_for_until_offered_again() -> None:
    fetch = fetch_of("x", "y", limits=Limits(per_donor=1))
    first = only(fetch.donor_offers(A, offer("x", "y"), T0))
    second = only(fetch.failed(first.transfer, Fault.MISSING, T0))
    assert second.key != first.key
    fetch.pulled(second.transfer, T0)
    assert fetch.phase is Phase.STUCK
    assert only(fetch.donor_offers(A, offer(first.key), T0)).key == first.key


def test_a_dead_donors_objects_go_back_to_the_queue() -> None:
    fetch = fetch_of("x", "y")
    lost = starts(fetch.donor_offers(A, offer("x", "y"), T0))
    assert fetch.donor_gone(A, T0) == [CancelPull(start.transfer, A) for start in lost]
    assert fetch.phase is Phase.STUCK
    assert fetch.deadline() == inf
    assert {start.key for start in starts(fetch.donor_offers(A, offer("x", "y"), T0))} == {"x", "y"}


def test_our_own_disk_is_nobodys_fault_and_rests_all_pulls() -> None:
    fetch = fetch_of("x", "y", limits=Limits(per_donor=1))
    start = only(fetch.donor_offers(A, offer("x", "y"), T0))
    assert fetch.failed(start.transfer, Fault.OURS, T0) == []
    assert fetch.donor_offers(B, offer("x", "y", peer=B), T0) == []
    assert len(starts(fetch.wake(fetch.deadline()))) == 2


def test_an_unknown_size_is_the_donors_word_for_one_pull_only() -> None:
    fetch = fetch_of("x", size=0, limits=Limits(object_bytes_max=10_000))
    liar = only(fetch.donor_offers(A, offer("x"), T0))
    assert fetch.deadline() == T0 + 5.0
    assert fetch.sized(liar.transfer, 9000, Instant(101.0)) == []
    assert fetch.status(T0).bytes_total == 9000
    honest = only(fetch.donor_offers(B, offer("x", peer=B), T0) + fetch.failed(
        liar.transfer, Fault.CORRUPT, Instant(102.0)))  # fmt: skip
    assert honest.size_bytes == 0
    assert fetch.sized(honest.transfer, 500, Instant(102.0)) == []
    fetch.pulled(honest.transfer, Instant(103.0))
    assert fetch.status(Instant(103.0)).bytes_total == 500


@pytest.mark.parametrize(("known", "claimed"), [(1000, 999), (1000, 0), (0, 0), (0, 10_001)])
def test_a_size_that_cannot_be_is_a_lie(known: int, claimed: int) -> None:
    fetch = fetch_of("x", size=known, limits=Limits(object_bytes_max=10_000))
    start = only(fetch.donor_offers(A, offer("x"), T0))
    assert fetch.sized(start.transfer, claimed, T0) == [CancelPull(start.transfer, A)]
    assert fetch.phase is Phase.STUCK


def test_status_tells_bytes_rate_and_time_left() -> None:
    fetch = fetch_of("x", "y", size=10_000)
    first, second = starts(fetch.donor_offers(A, offer("x", "y"), T0))
    assert fetch.status(T0).eta_s == inf
    for tenth in range(1, 101):
        fetch.progress(first.transfer, tenth * 100, Instant(T0 + tenth / 10))
    status = fetch.status(Instant(110.0))
    assert (status.bytes_done, status.bytes_total) == (10_000, 20_000)
    assert status.eta_s == pytest.approx(10.0, rel=0.02)
    fetch.pulled(first.transfer, Instant(110.0))
    fetch.pulled(second.transfer, Instant(110.0))
    status = fetch.status(Instant(110.0))
    assert (status.bytes_done, status.eta_s) == (20_000, 0.0)


def test_bytes_that_come_before_the_size_is_known_leave_the_time_left_a_time() -> None:
    fetch = fetch_of("x", size=0)
    pull = only(fetch.donor_offers(A, offer("x"), T0))
    fetch.progress(pull.transfer, 100, Instant(T0 + 1.0))
    status = fetch.status(Instant(T0 + 1.0))
    assert (status.bytes_done, status.bytes_total, status.eta_s) == (100, 100, 0.0)


# ------------------------------------------------------------------------------ a world of faults


@dataclass
class Donor:
    """How a toy donor behaves. A reliable one lives and serves what it offers, in the end."""

    peer: PeerId
    keys: list[int]
    reliable: bool
    dies_at: float = inf
    noticed_s: float = 0.0
    corrupt: bool = False
    fault_rate: float = 0.3
    speed_bytes_s: float = 50_000.0


@dataclass
class World:
    """Donors, a heap of what will be reported when, and the rules a fetch must keep."""

    fetch: Fetch
    donors: dict[PeerId, Donor]
    limits: Limits
    rng: random.Random
    now: Instant = T0
    heap: list[tuple[float, int, str, bytes, int]] = field(default_factory=list)
    pulls: dict[TransferId, StartPull] = field(default_factory=dict)
    done: list[object] = field(default_factory=list)
    convicted: set[PeerId] = field(default_factory=set)
    came: dict[TransferId, int] = field(default_factory=dict)
    count: int = 0

    def later(self, delay_s: float, what: str, who: bytes, number: int = 0) -> None:
        self.count += 1
        heapq.heappush(self.heap, (self.now + delay_s, self.count, what, who, number))

    def carry_out(self, effects: list[PullEffect]) -> None:
        for effect in effects:
            if isinstance(effect, CancelPull):
                assert self.pulls.pop(effect.transfer).peer == effect.peer
            else:
                self.begin(effect)
        self.fetch.check()

    def begin(self, start: StartPull) -> None:
        assert start.key not in self.done
        others = [pull.peer for pull in self.pulls.values() if pull.key == start.key]
        assert len(others) <= 1, "a third pull of one object"
        assert start.peer not in [*others, *self.convicted]
        self.pulls[start.transfer] = start
        keys = {pull.key for pull in self.pulls.values()}
        assert len(keys) <= self.limits.total
        assert len(self.pulls) - len(keys) <= self.limits.hedges
        mine = [pull for pull in self.pulls.values() if pull.peer == start.peer]
        assert len(mine) <= self.limits.per_donor
        donor = self.donors[start.peer]
        if self.now >= donor.dies_at:
            return  # not a byte ever comes
        if self.rng.random() < donor.fault_rate:
            fault = self.rng.choice(
                ["busy", "lost", "silence"] + ["missing"] * (not donor.reliable)
            )
            if fault != "silence":
                self.later(self.rng.uniform(0, 2), fault, start.transfer)
            return
        for part in range(1, 5):
            at_s = part / 4 * start.size_bytes / donor.speed_bytes_s
            if self.now + at_s < donor.dies_at:
                ending = "corrupt" if donor.corrupt else "pulled"
                self.later(at_s, "bytes", start.transfer, part * start.size_bytes // 4)
                if part == 4:
                    self.later(at_s, ending, start.transfer)

    def report(self, what: str, who: bytes, number: int) -> None:
        if what == "offers":
            donor = self.donors[PeerId(who)]
            if self.now >= donor.dies_at:
                return
            offers = {key: hash_of(key, donor.peer) for key in donor.keys}
            self.carry_out(self.fetch.donor_offers(donor.peer, offers, self.now))
        elif what == "gone":
            self.carry_out(self.fetch.donor_gone(PeerId(who), self.now))
        elif (transfer := TransferId(who)) not in self.pulls:
            return
        elif what == "bytes":
            self.came[transfer] = number
            self.carry_out(self.fetch.progress(transfer, number, self.now))
        else:
            pull = self.pulls.pop(transfer)
            if what == "pulled":
                self.done.append(pull.key)
                self.carry_out(self.fetch.pulled(transfer, self.now))
            else:
                if what == "corrupt":
                    self.convicted.add(pull.peer)
                self.carry_out(self.fetch.failed(transfer, Fault(what), self.now))

    def run(self, events_max: int = 20_000) -> None:
        for donor in self.donors.values():
            self.later(self.rng.uniform(0, 3), "offers", donor.peer)
            if donor.dies_at < inf:
                self.later(donor.dies_at - self.now + donor.noticed_s, "gone", donor.peer)
        for _ in range(events_max):
            wake_at = self.fetch.deadline()
            if self.heap and self.heap[0][0] <= wake_at:
                at, _, what, who, number = heapq.heappop(self.heap)
                self.now = Instant(max(self.now, at))
                self.report(what, who, number)
            elif wake_at < inf:
                assert wake_at >= self.now, "a deadline in the past would spin"
                self.now = wake_at
                self.carry_out(self.fetch.wake(self.now))
            else:
                return
        raise AssertionError("the fetch does not come to an end")


def world_of(seed: int, orphans: bool) -> World:
    """Up to 8 donors; one reliable donor for each object, except (with `orphans`) for some."""
    rng = random.Random(seed)
    keys = list(range(rng.randint(1, 30)))
    limits = Limits(per_donor=rng.randint(1, 3), total=rng.randint(1, 8))
    donors = {}
    for index in range(rng.randint(1, 8)):
        peer = PeerId(bytes([index]) * 16)
        doomed = rng.random() < 0.5
        donors[peer] = Donor(
            peer,
            rng.sample(keys, rng.randint(1, len(keys))),
            reliable=False,
            dies_at=T0 + rng.uniform(0, 10) if doomed else inf,
            noticed_s=rng.uniform(0, 20),
            corrupt=rng.random() < 0.3,
            speed_bytes_s=rng.choice([20_000.0, 50_000.0, 1e6]),
        )
    survivor = PeerId(b"\xff" * 16)
    kept = [key for key in keys if not orphans or rng.random() < 0.5]
    donors[survivor] = Donor(survivor, kept, reliable=True)
    sizes = {key: rng.randint(1, 100_000) for key in keys}
    return World(Fetch(sizes, random.Random(seed), T0, limits), donors, limits, rng)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32))
def test_it_always_finishes_while_each_object_has_one_reliable_donor(seed: int) -> None:
    world = world_of(seed, orphans=False)
    world.run()
    assert world.fetch.phase is Phase.DONE
    assert len(world.done) == len(set(world.done)) == world.fetch.status(world.now).objects_total
    assert not world.pulls
    few = world.limits.hedges * 100_000
    twice_bytes = world.fetch.status(world.now).hedged_bytes
    assert twice_bytes <= world.limits.hedged_share * sum(world.came.values()) + few


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32))
def test_else_it_ends_and_names_what_nobody_offers(seed: int) -> None:
    world = world_of(seed, orphans=True)
    for donor in world.donors.values():
        if donor.peer != b"\xff" * 16:  # all others die in the end
            donor.dies_at = min(donor.dies_at, T0 + 20.0)
    world.run()
    status = world.fetch.status(world.now)
    left = set(range(status.objects_total)) - set(world.done)
    assert set(status.unoffered) == left
    assert status.phase is (Phase.STUCK if left else Phase.DONE)
    assert left.isdisjoint(world.donors[PeerId(b"\xff" * 16)].keys)


def test_the_same_seed_gives_the_same_story() -> None:
    stories = []
    for _ in range(2):
        world = world_of(77, orphans=False)
        world.run()
        stories.append((world.now, world.done))
    assert stories[0] == stories[1]
