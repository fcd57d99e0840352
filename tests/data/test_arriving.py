"""Shards that come while text is read: each pass still reads each range once, and nothing is left out."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerlm.config import Plan, with_changes
from peerlm.data.extents import Extents
from peerlm.data.loader import Loader
from peerlm.data.passes import NO_RANGE, decode
from peerlm.data.shards import Corpus, prepare
from peerlm.data.tokenizer import ByteTokenizer
from peerlm.errors import ConfigError
from peerlm.types import PeerId

WIDTH = 9
SIZES = (130, 17, 310, 8, 95, 240)
"""Of shards, in tokens; one is shorter than a window."""
TOKENS = sum(SIZES)
WINDOWS = TOKENS // WIDTH - 1
ALL = range(len(SIZES))


def plan_of(batch: int = 1, val_fraction: float = 0.0) -> Plan:
    changes = {"train.batch": batch, "model.context": 8, "data.val_fraction": val_fraction}
    return with_changes(Plan(), changes, "test")


def corpus_of(absent: Collection[int], val_fraction: float = 0.0) -> Corpus:
    """Every token is its own place in the text."""
    text = np.arange(TOKENS, dtype=np.uint32)
    shards = np.split(text, np.cumsum(SIZES)[:-1])
    return Corpus.arriving(shards.__getitem__, SIZES, 1 << 20, val_fraction, absent)


def loader_of(
    absent: Collection[int], batch: int = 1, peer: int = 1, val_fraction: float = 0.0
) -> Loader:
    plan, name = plan_of(batch, val_fraction), PeerId(bytes([peer]) * 16)
    return Loader(corpus_of(absent, val_fraction), plan, name, 1)


def places(loader: Loader) -> list[int]:
    """Of all windows that can be read now."""
    found: list[int] = []
    while loader.has_batch():
        found += loader.next_batch()[:, 0].tolist()
    return found


class Swarm:
    """Loaders with some shards each; all hear at once what one has finished."""

    def __init__(self, rng: random.Random, batch: int) -> None:
        self.rng, self.batch = rng, batch
        self.read = Counter[tuple[int, int]]()
        self.alive: dict[PeerId, Loader] = {}
        self.absent: dict[PeerId, set[int]] = {}
        self.kept: dict[PeerId, bytes] = {}

    def join(self, peer: PeerId, absent: Collection[int]) -> None:
        """New, or with what it had when it died."""
        self.absent.setdefault(peer, set(absent))
        corpus = corpus_of(self.absent[peer])
        loader = Loader(corpus, plan_of(self.batch), peer, 1)
        for other in self.alive.values():
            loader.hear(other.passes)
        if peer in self.kept:
            known, lanes = decode(self.kept[peer])
            loader.hear(known)
            loader.go_on(lanes)
        self.alive[peer] = loader
        self.view()

    def die(self, peer: PeerId) -> None:
        loader = self.alive.pop(peer)
        self.kept[peer] = loader.passes.encode(loader.lanes())
        self.view()

    def view(self) -> None:
        for loader in self.alive.values():
            loader.set_members(list(self.alive))

    def receive(self, peer: PeerId, shard: int) -> None:
        self.absent[peer].discard(shard)
        self.alive[peer].absent_are(self.absent[peer])

    def lose(self, peer: PeerId, shard: int) -> None:
        """It was found damaged."""
        self.absent[peer].add(shard)
        self.alive[peer].absent_are(self.absent[peer])

    def step(self, peer: PeerId) -> None:
        loader = self.alive[peer]
        if not loader.has_batch():
            assert self.absent[peer], "who has all shards never waits"
            return
        batch = loader.next_batch()
        assert (batch == batch[:, :1] + np.arange(WIDTH)).all()
        self.read.update(loader.take_finished())
        for other in self.alive.values():
            other.hear(loader.passes)

    def lowest(self) -> int:
        return min(loader.passes.lowest for loader in self.alive.values())

    def turn(self) -> None:
        """Something happens to somebody."""
        rng = self.rng
        peer = rng.choice(list(self.alive))
        chance = rng.random()
        if chance < 0.02 and self.absent[peer]:
            self.receive(peer, rng.choice(sorted(self.absent[peer])))
        elif chance < 0.023:
            self.lose(peer, rng.choice(ALL))
        elif chance < 0.03 and len(self.alive) > 1:
            self.die(peer)
        elif chance < 0.04 and (dead := [p for p in self.absent if p not in self.alive]):
            self.join(rng.choice(dead), ())
        else:
            self.step(peer)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.integers(0, 9999), st.sampled_from([13, 40, 1 << 16]))
def test_each_pass_reads_each_range_once_however_shards_come_and_whoever_dies(
    n: int, seed: int, ranges_max: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peerlm.data.assign.RANGES_MAX", ranges_max)
        rng = random.Random(seed)
        swarm = Swarm(rng, batch=1)
        for number in range(n):
            absent = rng.sample(ALL, rng.randrange(len(ALL) + 1))
            swarm.join(PeerId(bytes([number + 1]) * 16), absent)
        while swarm.lowest() < 2:
            swarm.turn()
        ranges = next(iter(swarm.alive.values())).passes.ranges
        for number in range(2):
            read = {i: times for (p, i), times in swarm.read.items() if p == number}
            assert read == dict.fromkeys(range(ranges), 1)


@settings(max_examples=10, deadline=None)
@given(st.permutations(ALL), st.integers(1, 4))
def test_alone_it_reads_what_is_here_and_then_all_of_it(order: list[int], batch: int) -> None:
    loader, absent = loader_of(ALL, batch), set(ALL)
    assert not loader.has_batch()
    seen: list[int] = []
    for shard in order:
        seen += [at for at in places(loader) if loader.passes.lowest == 0]
        absent.discard(shard)
        loader.absent_are(absent)
    assert loader.has_batch()
    while loader.passes.lowest == 0:
        seen += loader.next_batch()[:, 0].tolist()
    first = [at // WIDTH for at in seen]
    assert set(first) == set(range(WINDOWS)), "nothing is left out of the first pass"


@pytest.mark.parametrize("present", [[0], [2], [2, 3], [0, 5], [1, 2, 4]])
def test_what_can_be_read_is_read_in_the_usual_order_and_no_token_of_the_rest_is_touched(
    present: list[int],
) -> None:
    usual, some = loader_of(()), loader_of(set(ALL) - set(present))
    here = np.repeat([shard in present for shard in ALL], SIZES)
    ranges = usual.position()["ranges_total"]
    assert some.position()["ranges_total"] == ranges, "cut as if all of it were here"
    order = [int(usual.next_batch()[0, 0]) for _ in range(ranges)]
    readable = [at for at in order if here[at : at + WIDTH].all()]
    assert readable
    assert places(some)[: len(readable)] == readable
    assert some.passes.lowest == 0


def test_who_has_read_its_own_of_the_shards_here_goes_on_with_further_passes_and_then_helps() -> (
    None
):
    a, b = (PeerId(bytes([n]) * 16) for n in (1, 2))
    loader = loader_of({0, 1, 5})
    loader.set_members([a, b])
    passes: list[int] = []
    while loader.has_batch():
        loader.next_batch()
        passes += [number for number, _ in loader.take_finished()]
    assert sorted(set(passes)) == [0, 1, 2, 3]
    helped = len(passes) - next(at for at, (p, q) in enumerate(pairwise(passes)) if q < p) - 1
    assert helped > 0
    assert passes[-helped:] == [0] * helped, "what the other has not read of the lowest pass"
    other = loader_of((), peer=2)
    other.set_members([a, b])
    other.hear(loader.passes)
    while other.passes.lowest == 0:
        other.next_batch()
    assert loader.hear(other.passes)
    assert loader.has_batch(), "the pass is over, and the next but three may be read"


def test_a_batch_waits_until_all_its_rows_can_be_read_and_loses_none_meanwhile() -> None:
    loader = loader_of(set(ALL) - {1}, batch=6)  # of each pass one window lies in shard 1, or none
    assert not loader.has_batch()
    assert not loader.has_batch()
    begun = {(lane.number, lane.place) for lane in loader.lanes()}
    assert 0 < len(begun) < 6, "some rows have what they need"
    loader.absent_are(())
    assert loader.has_batch()
    loader.next_batch()
    assert begun <= set(loader.take_finished()), "what had been opened is read first"


def test_a_range_whose_shard_is_gone_is_left_and_read_when_it_is_back() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peerlm.data.assign.RANGES_MAX", 10)
        loader = loader_of((), batch=2)
        loader.next_batch()
        assert len(loader.lanes()) == 2
        loader.absent_are(ALL)
        assert loader.lanes() == []
        assert not loader.has_batch()
        loader.absent_are(())
        finished: list[tuple[int, int]] = []
        while loader.passes.lowest == 0:
            loader.next_batch()
            finished += loader.take_finished()
        assert {place for number, place in finished if number == 0} == set(range(10))


def test_lanes_of_the_worker_before_are_gone_on_with_where_their_shards_are_here() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peerlm.data.assign.RANGES_MAX", 10)
        before = loader_of((), batch=3)
        before.next_batch()
        lanes = before.lanes()
        after = loader_of({0, 1, 2}, batch=3)
        after.go_on(lanes)
        kept = [lane for lane in after.lanes() if lane.place != NO_RANGE]
        assert set(kept) < set(lanes)
        same = loader_of((), batch=3)
        same.go_on(lanes)
        assert same.lanes() == lanes


def test_held_out_text_is_waited_for() -> None:
    loader = loader_of({5}, val_fraction=0.1)
    assert loader.validation_batches(4, 2) == []
    loader.absent_are({0})
    there = loader.validation_batches(4, 2)
    whole = loader_of((), val_fraction=0.1).validation_batches(4, 2)
    assert [b.tolist() for b in there] == [b.tolist() for b in whole]
    assert there


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.sampled_from([0.0, 0.05, 0.5]))
def test_extents_say_of_each_shard_what_the_corpus_makes_of_it(
    sizes: list[int], val_fraction: float
) -> None:
    corpus = Corpus([np.zeros(size, np.uint16) for size in sizes], 256, val_fraction)
    extents, start = Extents(sizes, val_fraction), 0
    for shard, size in enumerate(sizes):
        assert extents.trains(shard) == (start < corpus.train_tokens)
        assert extents.validates(shard) == (start + size > corpus.train_tokens)
        start += size


def shards_in(folder: Path) -> Sequence[Path]:
    (folder / "text.txt").write_text("".join(f"{n:04} " for n in range(400)))
    return [s.path for s in prepare(str(folder / "text.txt"), ByteTokenizer(), folder, 700)]


def test_a_shard_is_mapped_when_it_comes(tmp_path: Path) -> None:
    paths = shards_in(tmp_path)
    data = paths[1].read_bytes()
    paths[1].unlink()
    corpus = Corpus.open(paths, 256, tokens=(700, 700, 600), absent=[1])
    assert (corpus.tokens, corpus.is_whole) == (2000, False)
    assert bytes(corpus.window(0, 10).tolist()) == b"0000 0001 "
    assert not corpus.is_here(690, 701)
    paths[1].write_bytes(data)
    corpus.absent_are(())
    assert corpus.is_whole
    assert bytes(corpus.window(695, 10).tolist()) == b"0139 0140 "


def test_a_shard_of_another_size_than_the_plan_says_is_refused(tmp_path: Path) -> None:
    paths = shards_in(tmp_path)
    with pytest.raises(ConfigError, match=r"shard 2 of the corpus has 600 tokens, .* says 700"):
        Corpus.open(paths, 256, tokens=(700, 700, 700))
