"""What a node would make others read again if it died now: no more than one shard, however long the text and large the batch.

The worker is at its fastest that the promise is made for, a quarter of a shard in the second between two of its reports.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerlm.config import Plan, with_changes
from peerlm.data import assign
from peerlm.data.loader import Loader
from peerlm.data.mixture import Mixture
from peerlm.data.records import parts_of
from peerlm.data.shards import Corpus
from peerlm.effects import Send
from peerlm.events import WorkerProgressed
from peerlm.node.coverage import Coverage
from peerlm.types import Instant, PeerId
from peerlm.wire.message import RangesDone

SHARD, WIDTH = 2700, 9
PER_SHARD = SHARD // WIDTH
"""Windows in one."""
STEP_S = 0.25
RANGES_IN_SHARD = 9
"""As many as there are at least: a plan has 7,000 shards at most, and 65,536 ranges."""

REPORT = WorkerProgressed(1, 1, 1, None, 1.0, 0)

A, B = PeerId(b"a" * 16), PeerId(b"b" * 16)


def plan_of(shards: list[int], batch: int, weights: tuple[int, ...] = (1,)) -> Plan:
    """Of texts of so many shards."""
    count = sum(shards)
    said = {
        "train.batch": batch,
        "model.context": WIDTH - 1,
        "data.val_fraction": 0.0,
        "data.source": "swarm:" + "+".join(f"t{n}*{weight}" for n, weight in enumerate(weights)),
        "data.shards": [f"{n:064x}" for n in range(count)],
        "data.shard_tokens": [SHARD] * count,
        "data.parts": shards if len(shards) > 1 else [],
    }
    return with_changes(Plan(), said, "test")


class Scene:
    """A worker, its node, and another that hears what the node tells; so many ranges in a pass."""

    def __init__(self, plan: Plan, shards: list[int], absent: tuple[int, ...] = ()) -> None:
        self.plan, self.now, self.owed = plan, 0.0, 0
        parts, rows = parts_of(plan), plan.train.batch
        total = sum(part.weight for part in parts)
        loaders = []
        for part, count in zip(parts, shards, strict=True):
            ids = [np.zeros(SHARD, np.uint32)] * count
            gone = part.own(absent)
            corpus = Corpus.arriving(ids.__getitem__, [SHARD] * count, 256, 0.0, gone)
            of_this = with_changes(plan, {"train.batch": -(-rows * part.weight // total)}, "test")
            share = part.weight / total
            loaders.append(Loader(corpus, of_this, A, 1, text=part.text, share=share))
        self.loaders = loaders
        self.mixture = Mixture(parts, loaders, rows)
        self.mixture.set_members([A, B])
        self.node, self.other = (Coverage(plan, b"", random.Random(1), Instant(0.0)) for _ in "ab")
        self.untold: set[tuple[bytes, int, int]] = set()
        """Ranges that were read and that the other does not know of."""
        self.reported = 0.0

    def step(self, windows: int) -> None:
        """A quarter of a second, in which about so many are read."""
        self.owed += windows
        while self.owed >= self.plan.train.batch:
            self.owed -= self.plan.train.batch
            self.mixture.next_batch()
        self.now += STEP_S
        if self.now - self.reported >= 1.0:
            self.reported, read = self.now, self.mixture.told()
            self.untold |= {(read.texts[t], n, i) for t, n, i in triples(read.finished)}
            self.node.read(replace(REPORT, **read._asdict()))
        for effect in self.node.wake([B], Instant(self.now)):
            if isinstance(effect, Send) and isinstance(effect.message, RangesDone):
                self.other.heard(effect.message)
        self.untold -= {
            (text, number, index)
            for text, number, index in self.untold
            if self.other._known[text].passes.is_finished(number, index)
        }

    @property
    def lost(self) -> int:
        """Windows that would be read again."""
        begun = sum(lane.read for loader in self.loaders for lane in loader.lanes())
        finished = 0
        for loader in self.loaders:
            own = [key for key in self.untold if key[0] == loader.passes.text]
            new = [(loader.passes.text, *place) for place in loader._finished]
            finished += sum(loader._cut.range_at(index)[1] for _, _, index in (*own, *new))
        return begun + finished


def triples(flat: tuple[int, ...]) -> list[tuple[int, int, int]]:
    return list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))


@settings(max_examples=12)
@given(st.integers(2, 12), st.integers(1, 64), st.integers(0, 9))
def test_a_death_costs_at_most_one_shard(shards: int, batch: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assign, "RANGES_MAX", RANGES_IN_SHARD * shards)
        scene = Scene(plan_of([shards], batch), [shards])
        rng, worst = random.Random(seed), 0
        for _ in range(40):
            scene.step(rng.randint(0, PER_SHARD // 4 // 4))  # a quarter of a shard in a second
            worst = max(worst, scene.lost)
    assert 0 < worst <= PER_SHARD


@settings(max_examples=6)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.integers(4, 64))
def test_of_a_mixture_too(shards: list[int], batch: int) -> None:
    weights = tuple(range(1, len(shards) + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assign, "RANGES_MAX", RANGES_IN_SHARD * sum(shards))
        scene = Scene(plan_of(shards, batch, weights), shards)
        for _ in range(30):
            scene.step(PER_SHARD // 4 // 4)
            assert scene.lost <= PER_SHARD


def test_without_the_bound_a_large_batch_would_begin_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above can fail."""
    monkeypatch.setattr(assign, "RANGES_MAX", RANGES_IN_SHARD * 8)
    monkeypatch.setattr(assign, "lanes", lambda cut, rows, shard: rows)
    scene = Scene(plan_of([8], 64), [8])
    worst = 0
    for _ in range(60):
        scene.step(PER_SHARD // 4 // 4 + 64)
        worst = max(worst, scene.lost)
    assert worst > PER_SHARD


def test_with_fewer_lanes_than_rows_batches_are_whole_while_shards_are_to_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(assign, "RANGES_MAX", RANGES_IN_SHARD * 4)
    scene = Scene(plan_of([4], 32), [4], absent=(1, 2, 3))
    (loader,) = scene.loaders
    assert not loader.has_lane_a_row
    drawn = 0
    while scene.mixture.has_batch():
        assert scene.mixture.next_batch().shape == (32, WIDTH)
        drawn += 32
    read, ahead = scene.mixture.told(), 4
    assert 0 < drawn <= PER_SHARD * ahead
    assert len(read.finished) > 0
    scene.mixture.absent_are([])
    assert scene.mixture.has_batch()
    assert scene.mixture.next_batch().shape == (32, WIDTH)


@pytest.mark.parametrize(
    ("range_windows", "rows", "expected"), [(1, 64, 64), (2, 64, 64), (34, 64, 4), (34, 3, 3), (150, 8, 1)]
)  # fmt: skip
def test_how_many_ranges_are_begun(range_windows: int, rows: int, expected: int) -> None:
    cut = assign.Cut(WIDTH, 10_000, range_windows)
    assert assign.lanes(cut, rows, SHARD) == expected


def test_news_of_a_part_of_a_shard_is_told_at_once_and_no_more_often_than_it_may() -> None:
    plan = plan_of([8], 1)
    (part,) = parts_of(plan)
    node, told = Coverage(plan, b"", random.Random(1), Instant(0.0)), []
    for step in range(1, 9):
        done = tuple(n for i in range(step * 4 - 4, step * 4) for n in (0, 0, i))
        node.read(replace(REPORT, texts=(part.text,), ranges=(72,), finished=done))
        sent = node.wake([B], Instant(step * STEP_S))
        told += [step for effect in sent if isinstance(effect, Send)]
    assert told == [1, 3, 5, 7]
