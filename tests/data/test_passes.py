"""Every pass reads each range once, whoever comes, goes, and starts again."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerlm.config import Plan, with_changes
from peerlm.data.loader import Loader
from peerlm.data.passes import (
    PASSES_AHEAD,
    RANGES_MAX,
    Lane,
    Passes,
    decode,
    from_bytes,
    indices,
    text_of,
    to_bytes,
)
from peerlm.data.shards import Corpus
from peerlm.types import PeerId

WIDTH = 9
CORPUS = Corpus([np.arange(2000, dtype=np.uint32)], vocab=1 << 20, val_fraction=0.0)
WINDOWS = 2000 // WIDTH - 1


def plan_of(batch: int = 1) -> Plan:
    changes = {"train.batch": batch, "model.context": 8, "data.val_fraction": 0.0}
    return with_changes(Plan(), changes, "test")


class Swarm:
    """Loaders, and what each knows of the others."""

    def __init__(self, n: int, batch: int = 1) -> None:
        self.plan, self.read = plan_of(batch), Counter[tuple[int, int]]()
        self.alive: dict[PeerId, Loader] = {}
        self.kept: dict[PeerId, bytes] = {}
        for number in range(n):
            self.join(PeerId(bytes([number + 1]) * 16))

    def join(self, peer: PeerId) -> None:
        loader = Loader(CORPUS, self.plan, peer, 1)
        for other in self.alive.values():
            loader.hear(other.passes)
        if peer in self.kept:
            kept, lanes = decode(self.kept[peer])
            loader.hear(kept)
            loader.go_on(lanes)
        self.alive[peer] = loader
        self.view()

    def die(self, peer: PeerId) -> None:
        del self.alive[peer]
        self.view()

    def view(self) -> None:
        for loader in self.alive.values():
            loader.set_members(list(self.alive))

    def step(self, peer: PeerId) -> list[tuple[int, int]]:
        """A batch; what of it was finished."""
        loader = self.alive[peer]
        loader.next_batch()
        found = loader.take_finished()
        self.read.update(found)
        return found

    def tell(self, peer: PeerId) -> None:
        """To all, what it knows; and it keeps that on its disk."""
        loader = self.alive[peer]
        self.kept[peer] = loader.passes.encode(loader.lanes())
        for other in self.alive.values():
            other.hear(loader.passes)

    def of_pass(self, number: int) -> Counter[int]:
        return Counter({i: n for (p, i), n in self.read.items() if p == number})

    def lowest(self) -> int:
        return min(loader.passes.lowest for loader in self.alive.values())


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 8), st.integers(0, 99))
def test_without_trouble_every_range_is_read_exactly_once_in_each_pass(n: int, seed: int) -> None:
    swarm, rng = Swarm(n), random.Random(seed)
    while swarm.lowest() < 2:
        peer = rng.choice(list(swarm.alive))
        swarm.step(peer)
        swarm.tell(peer)
    for number in range(2):
        assert swarm.of_pass(number) == dict.fromkeys(range(WINDOWS), 1)


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 8), st.integers(0, 99))
def test_what_is_told_late_costs_nothing_while_nobody_is_far_ahead(n: int, seed: int) -> None:
    swarm, rng, untold = Swarm(n), random.Random(seed), 0
    while swarm.lowest() < 2:
        untold += 1
        for peer in swarm.alive:
            swarm.step(peer)
        # A share of a pass is 28 ranges with 8 peers: in 40 turns none reads all that is its own in `PASSES_AHEAD` passes.
        if rng.random() < 0.05 or untold == 40:
            untold = 0
            for peer in swarm.alive:
                swarm.tell(peer)
    for number in range(2):
        assert swarm.of_pass(number) == dict.fromkeys(range(WINDOWS), 1)


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 6), st.integers(0, 999))
def test_after_deaths_and_arrivals_only_what_nobody_had_heard_of_is_read_again(
    n: int, seed: int
) -> None:
    swarm, rng, untold = Swarm(n), random.Random(seed), Counter[PeerId]()
    lost, fresh = 0, n + 1
    while swarm.lowest() < 2:
        peer = rng.choice(list(swarm.alive))
        untold[peer] += len(swarm.step(peer))
        if rng.random() < 0.3:
            swarm.tell(peer)
            untold[peer] = 0
        if rng.random() < 0.01 and len(swarm.alive) > 1:
            swarm.die(peer)
            lost += untold.pop(peer, 0)
        elif rng.random() < 0.01 and len(swarm.alive) < 8:
            # What the others read since their last word may be the newcomer's now.
            lost += sum(untold.values())
            swarm.join(PeerId(bytes([fresh]) * 16))
            fresh += 1
    again = 0
    for number in range(2):
        read = swarm.of_pass(number)
        assert set(read) == set(range(WINDOWS)), "nothing is left out"
        again += sum(n - 1 for n in read.values())
    assert again <= lost


def test_who_is_far_ahead_helps_those_behind_and_reads_little_twice() -> None:
    swarm = Swarm(3)
    slow, *fast = swarm.alive
    turns = 0
    while swarm.lowest() < 6:
        turns += 1
        for peer in fast:
            swarm.step(peer)
        if turns % 40 == 0:
            swarm.step(slow)
        if turns % 5 == 0:
            for peer in swarm.alive:
                swarm.tell(peer)
    read = [swarm.of_pass(number) for number in range(6)]
    assert all(set(r) == set(range(WINDOWS)) for r in read)
    assert sum(sum(r.values()) for r in read) <= 6 * (WINDOWS + 15), "some words late, in each pass"
    ahead = max(loader.position()["pass"] for loader in swarm.alive.values())
    assert ahead < swarm.lowest() + PASSES_AHEAD


@pytest.mark.parametrize("ranges", [37, WINDOWS])
def test_killed_at_any_batch_and_started_again_it_reads_the_same_windows(
    ranges: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerlm.data.assign.RANGES_MAX", ranges)
    rng, a = random.Random(7), PeerId(b"a" * 16)

    def start(kept: bytes) -> Loader:
        loader = Loader(CORPUS, plan_of(4), a, 1)
        if kept:
            passes, lanes = decode(kept)
            loader.hear(passes)
            loader.go_on(lanes)
        return loader

    through, seen = start(b""), Counter[int]()
    killed, again = start(b""), Counter[int]()
    while through.passes.lowest < 1 or through.position()["pass"] < 2:
        seen.update(through.next_batch()[:, 0].tolist())
        again.update(killed.next_batch()[:, 0].tolist())
        if rng.random() < 0.2:
            killed = start(killed.passes.encode(killed.lanes()))
        assert killed.passes.encode() == through.passes.encode()
        assert set(killed.lanes()) == set(through.lanes())
    assert seen == again


def test_a_whole_swarm_that_was_killed_goes_on_where_it_was() -> None:
    swarm = Swarm(3, batch=2)
    for _ in range(40):
        for peer in swarm.alive:
            swarm.step(peer)
            swarm.tell(peer)
    peers = list(swarm.alive)
    swarm.alive.clear()
    for peer in peers:
        swarm.join(peer)
    while swarm.lowest() < 1:
        for peer in peers:
            swarm.step(peer)
            swarm.tell(peer)
    assert swarm.of_pass(0) == dict.fromkeys(range(WINDOWS), 1)


# ------------------------------------------------------------------------------------ the record


def test_a_pass_is_over_when_all_its_ranges_are_and_no_sooner() -> None:
    record = Passes(ranges=3)
    assert record.add(0, 0b101) == 0b101
    assert record.add(0, 0b1101) == 0, "there is no fourth"
    assert record.position == pytest.approx(2 / 3)
    record.finish(1, 0)
    record.finish(0, 1)
    assert (record.lowest, record.bits(0), record.bits(1)) == (1, 0b111, 0b001)
    assert record.add(0, 0b111) == 0
    assert record.add(1 + PASSES_AHEAD, 0b111) == 0, "too far ahead"
    assert record.is_finished(0, 2)
    assert not record.is_finished(1, 2)


def test_passes_that_were_over_before_the_one_below_are_over_at_once_with_it() -> None:
    record = Passes(ranges=2)
    record.add(1, 0b11)
    record.add(2, 0b01)
    record.add(0, 0b11)
    assert (record.lowest, record.numbers()) == (2, [2])


def test_how_many_ranges_there_are_may_become_known_later() -> None:
    record = Passes()
    record.add(0, 0b10111)
    record.cut_into(3)
    assert record.lowest == 1
    assert record.bits(1) == 0


WORDS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 5), st.integers(0, 31)),
        st.tuples(st.integers(0, 5), st.just(-1)),
    ),
    max_size=12,
)


@settings(max_examples=60)
@given(WORDS, WORDS)
def test_two_records_joined_are_the_same_whoever_joins_whom(
    one: list[tuple[int, int]], two: list[tuple[int, int]]
) -> None:
    def made(words: list[tuple[int, int]]) -> Passes:
        record = Passes(ranges=5)
        for number, bits in words:
            if bits < 0:
                record.reach(number)
            else:
                record.add(number, bits)
        return record

    ab, ba = made(one), made(two)
    ab.merge(made(two))
    ba.merge(made(one))
    ab.merge(made(one))
    assert ab.lowest == ba.lowest
    low = ab.lowest
    assert ab.bits(low) == ba.bits(low) | ab.bits(low)
    assert ab.bits(low) | made(one).bits(low) | made(two).bits(low) == ab.bits(low)


@given(st.integers(0, (1 << 70) - 1))
def test_bits_survive_being_bytes(bits: int) -> None:
    assert from_bytes(to_bytes(bits)) == bits
    assert sum(1 << i for i in indices(bits)) == bits


def test_a_record_survives_being_bytes() -> None:
    record, lanes = Passes(b"t" * 32, 50, 7), [Lane(7, 3, 2), Lane(8, 49, 0)]
    record.add(7, 0b1011)
    record.add(9, 1 << 49)
    back, found = decode(record.encode(lanes))
    assert found == lanes
    assert back.encode() == record.encode()


@settings(max_examples=80)
@given(st.integers(0, 400), st.integers(0, 255))
def test_a_broken_record_is_refused_or_harmless(at: int, byte: int) -> None:
    record = Passes(b"t" * 32, 1000, 7)
    record.add(7, 1 << 999)
    whole = record.encode([Lane(7, 3, 2)])
    at %= len(whole)
    with pytest.raises(ValueError, match="a record of what is read"):
        decode(whole[:at])
    try:
        found, lanes = decode(whole[:at] + bytes([byte]) + whole[at + 1 :])
    except ValueError:
        return
    assert found.ranges <= RANGES_MAX
    loader = Loader(CORPUS, plan_of(2), PeerId(b"a" * 16), 1, text=found.text)
    loader.hear(found)
    loader.go_on(lanes)
    loader.next_batch()


def test_other_text_or_another_cut_has_another_name() -> None:
    plan = plan_of()
    names = {
        text_of(["a", "b"], plan),
        text_of(["b", "a"], plan),
        text_of(["a", "b"], with_changes(plan, {"model.context": 16}, "test")),
    }
    assert len(names) == 3
    assert text_of(["a"], plan_of(1)) == text_of(["a"], plan_of(5)), "the batch is nothing to it"
