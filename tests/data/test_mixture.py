"""Rows drawn from several texts: each has its share at any moment, and its own passes, whoever dies, comes or starts again."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerlm.config import Plan, with_changes
from peerlm.config.mixture import CORPORA_MAX, Weighted, parse
from peerlm.data import records
from peerlm.data.extents import Extents
from peerlm.data.loader import Loader
from peerlm.data.mixture import Draws, Mixture, Read, loss_of
from peerlm.data.passes import Lane
from peerlm.data.records import Record, decode, encode, parts_of
from peerlm.data.shards import Corpus
from peerlm.errors import ConfigError
from peerlm.types import PeerId

WIDTH = 9
SIZES = {"plays": 1500, "news": 900, "laws": 700}
"""Tokens; a token is its own place, above 10,000 times the text's."""
CORPORA = [
    Corpus([np.arange(n, dtype=np.uint32) + 10_000 * i], 1 << 20, 0.0)
    for i, n in enumerate(SIZES.values())
]
A = PeerId(b"a" * 16)


def plan_of(source: str, **changes: object) -> Plan:
    count = source.count("+") + 1
    return with_changes(
        Plan(),
        {
            "train.batch": 4,
            "model.context": 8,
            "data.source": f"swarm:{source}",
            "data.shards": [f"{i:064x}" for i in range(count)],
            "data.parts": [1] * count if count > 1 else [],
            "data.val_fraction": 0.0,
            **changes,
        },
        "test",
    )


THREE = plan_of("plays*5+news*2+laws*4")


def mixture_of(plan: Plan, peer: PeerId = A, rows: int = 4) -> Mixture:
    parts = parts_of(plan)
    corpora = [CORPORA[list(SIZES).index(part.name)] for part in parts]
    total = sum(part.weight for part in parts)
    loaders = [
        Loader(
            corpus,
            with_changes(plan, {"train.batch": -(-rows * part.weight // total)}, "test"),
            peer,
            1,
            text=part.text,
        )
        for part, corpus in zip(parts, corpora, strict=True)
    ]
    return Mixture(parts, loaders, rows)


def kept(mixture: Mixture) -> bytes:
    """What a node would keep of it."""
    read = mixture.told()
    lanes: dict[int, list[Lane]] = {}
    flat = iter(read.lanes)
    for text, *lane in zip(flat, flat, flat, flat, strict=True):
        lanes.setdefault(text, []).append(Lane(*lane))
    found = [
        Record(loader.passes, lanes.get(text, ())) for text, loader in enumerate(mixture._loaders)
    ]
    return encode(found, read.order)


# ---------------------------------------------------------------------------------- what is drawn


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 999_999), min_size=1, max_size=16), st.integers(1, 400))
def test_at_any_moment_each_text_is_less_than_a_window_from_its_share(
    weights: list[int], n: int
) -> None:
    draws, total = Draws(weights), sum(weights)
    for drawn in range(1, n + 1):
        draws.next()
        for weight, own in zip(weights, draws.drawn, strict=True):
            assert abs(own * total - weight * drawn) < total
    again = Draws(weights)
    assert again.go_on(draws.drawn)
    assert [again.next() for _ in range(50)] == [draws.next() for _ in range(50)]


def test_the_order_is_spread_and_begins_again_when_all_have_their_weight() -> None:
    draws = Draws([3, 1])
    assert [draws.next() for _ in range(8)] == [0, 0, 0, 1] * 2
    assert not draws.go_on([90, 1]), "no such weights come there"
    assert draws.drawn == [6, 2]


def test_batches_have_the_shares_of_their_texts() -> None:
    mixture = mixture_of(THREE)
    seen: Counter[int] = Counter()
    for batches in range(1, 40):
        batch = mixture.next_batch()
        assert batch.shape == (4, WIDTH)
        seen.update((batch[:, 0] // 10_000).tolist())
        for text, share in enumerate(mixture.shares):
            assert abs(seen[text] - 4 * batches * share) < 1


def test_one_text_is_read_as_its_loader_reads_it() -> None:
    plan = plan_of("plays")
    loader = Loader(CORPORA[0], plan, A, 1)
    mixture = mixture_of(plan)
    for _ in range(30):
        assert (mixture.next_batch() == loader.next_batch()).all()


# ----------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("ranges", [29, 1 << 16])
def test_killed_at_any_batch_it_goes_on_with_the_same_windows_in_the_same_order(
    ranges: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerlm.data.assign.RANGES_MAX", ranges)
    rng = random.Random(3)
    through, killed = mixture_of(THREE, rows=5), mixture_of(THREE, rows=5)
    for _ in range(140):
        assert (through.next_batch() == killed.next_batch()).all()
        if rng.random() < 0.2:
            killed, before = mixture_of(THREE, rows=5), kept(killed)
            killed.go_on(*decode(before))
            assert kept(killed) == before
    assert min(loader.passes.lowest for loader in through._loaders) >= 1


class Swarm:
    """Mixtures, and what each has told the others."""

    def __init__(self, n: int) -> None:
        self.alive: dict[PeerId, Mixture] = {}
        self.read = Counter[tuple[int, int, int]]()
        for number in range(n):
            self.join(PeerId(bytes([number + 1]) * 16))

    def join(self, peer: PeerId, before: bytes = b"") -> None:
        mixture = mixture_of(THREE, peer, rows=2)
        if before:
            mixture.go_on(*decode(before))
        self.alive[peer] = mixture
        for other in list(self.alive):
            self.tell(other)
        self.view()

    def die(self, peer: PeerId) -> bytes:
        before = kept(self.alive.pop(peer))
        self.view()
        return before

    def view(self) -> None:
        for mixture in self.alive.values():
            mixture.set_members(list(self.alive))

    def step(self, peer: PeerId) -> None:
        mixture = self.alive[peer]
        mixture.next_batch()
        read: Read = mixture.told()
        flat = iter(read.finished)
        self.read.update(zip(flat, flat, flat, strict=True))
        self.tell(peer)

    def tell(self, peer: PeerId) -> None:
        known = [Record(loader.passes) for loader in self.alive[peer]._loaders]
        for other in self.alive.values():
            other.hear(known)

    def lowest(self) -> list[int]:
        each = [[loader.passes.lowest for loader in m._loaders] for m in self.alive.values()]
        return [min(of_text) for of_text in zip(*each, strict=True)]


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 5), st.integers(0, 99))
def test_each_text_is_read_exactly_once_in_each_of_its_passes(n: int, seed: int) -> None:
    swarm, rng = Swarm(n), random.Random(seed)
    while min(swarm.lowest()) < 1:
        swarm.step(rng.choice(list(swarm.alive)))
        if rng.random() < 0.02 and len(swarm.alive) > 1:
            gone = rng.choice(list(swarm.alive))
            before = swarm.die(gone)
            if rng.random() < 0.5:
                swarm.join(gone, before)
        elif rng.random() < 0.01 and len(swarm.alive) < 6:
            swarm.join(PeerId(rng.randbytes(16)))
    lowest = swarm.lowest()
    for text, corpus in enumerate(CORPORA):
        windows = corpus.train_tokens // WIDTH - 1
        for number in range(lowest[text]):
            assert [swarm.read[text, number, i] for i in range(windows)] == [1] * windows
    assert max(lowest) > min(lowest), "each at its own pace"


def test_a_text_that_stays_keeps_its_record_and_a_new_one_begins() -> None:
    alone = mixture_of(plan_of("plays"))
    for _ in range(20):
        alone.next_batch()
    finished = alone._loaders[0].passes.bits(0)
    assert finished
    both = mixture_of(plan_of("plays*1+news*2"))
    both.go_on(*decode(kept(alone)))
    assert [loader.passes.bits(0) for loader in both._loaders] == [finished, 0]
    for _ in range(5):
        both.next_batch()
    other = mixture_of(plan_of("plays*3+news*2"))
    other.go_on(*decode(kept(both)))
    assert other._draws.drawn == [0, 0], "other weights have an order of their own"
    assert other._loaders[1].passes.bits(0) == both._loaders[1].passes.bits(0) > 0


def test_records_of_one_text_are_as_they_were_and_what_is_cut_off_is_refused() -> None:
    one = mixture_of(plan_of("plays"))
    one.next_batch()
    assert kept(one) == one._loaders[0].passes.encode(one._loaders[0].lanes())
    three = mixture_of(THREE)
    three.next_batch()
    data = kept(three)
    assert encode(*decode(data)) == data
    for cut in range(len(data)):
        with pytest.raises(ValueError, match="record"):
            decode(data[:cut])
    with pytest.raises(ValueError, match="more or fewer"):
        decode(data + b"x")
    with pytest.raises(ValueError, match="cannot have"):
        decode(records._HEAD.pack(records._MARK, CORPORA_MAX + 1, 0))
    one.go_on(*decode(data))  # texts that are not its own, and an order that is not either


# ---------------------------------------------------------------------------------- what is still to come


def test_while_nothing_of_a_text_is_here_the_others_have_its_turns() -> None:
    sizes = {"plays": [400, 400], "news": [500], "laws": [300, 300, 300]}
    plan = plan_of("plays*2+news+laws", **{"data.shards": ["ab" * 32] * 6, "data.parts": [2, 1, 3]})
    parts = parts_of(plan)
    corpora = [
        Corpus.arriving(lambda n, c=counts: np.full(c[n], n), counts, 256, 0.0, range(len(counts)))
        for counts in sizes.values()
    ]
    loaders = [
        Loader(corpus, plan, A, 1, text=p.text) for corpus, p in zip(corpora, parts, strict=True)
    ]
    mixture = Mixture(parts, loaders, 4)
    assert not mixture.has_batch()
    mixture.absent_are([0, 2, 3, 4, 5])
    for _ in range(5):
        assert mixture.has_batch()
        mixture.next_batch()
    assert [bool(loader.passes.bits(0)) for loader in loaders] == [True, False, False]
    mixture.absent_are([0, 3, 4])
    read = Counter[tuple[int, int, int]]()
    for _ in range(3):
        assert mixture.has_batch()
        mixture.next_batch()
    mixture.absent_are([])
    done = [loader.passes.bits(0).bit_count() + 1000 * loader.passes.lowest for loader in loaders]
    for _ in range(5):
        assert mixture.has_batch()
        mixture.next_batch()
    now = [loader.passes.bits(0).bit_count() + 1000 * loader.passes.lowest for loader in loaders]
    assert [b - a for a, b in zip(done, now, strict=True)] == [10, 5, 5], "nothing is made up for"
    flat = iter(mixture.told().finished)
    read.update(zip(flat, flat, flat, strict=True))
    assert max(read.values()) == 1


def arriving(plan: Plan, *sizes: list[int], rows: int) -> Mixture:
    """Of texts of which nothing is here."""
    parts = parts_of(plan)
    corpora = [
        Corpus.arriving(lambda n, c=counts: np.full(c[n], n), counts, 256, 0.0, range(len(counts)))
        for counts in sizes
    ]
    loaders = [
        Loader(corpus, plan, A, 1, text=p.text) for corpus, p in zip(corpora, parts, strict=True)
    ]
    return Mixture(parts, loaders, rows)


def test_rows_of_a_batch_that_waits_for_a_shard_are_not_told_as_read() -> None:
    plan = plan_of("plays+news", **{"data.shards": ["ab" * 32] * 4, "data.parts": [2, 2]})
    mixture = arriving(plan, [150, 600], [150, 600], rows=7)
    windows = 0

    def told(most: int = 100) -> int:
        """How many windows it has told of so far, and that nothing but whole batches is told of."""
        nonlocal windows
        read = mixture.told(most)
        flat = iter(read.finished)
        for text, _, index in zip(flat, flat, flat, strict=True):
            windows += mixture._loaders[text]._cut.range_at(index)[1]
        return windows + sum(read.lanes[3::4])

    mixture.absent_are([1, 3])
    batches = 0
    while mixture.has_batch():
        mixture.next_batch()
        batches += 1
        if batches % 2:
            assert told() == 7 * batches
    assert batches
    assert 0 < len(mixture._drawn) < 7
    told(1)
    assert told() == told() == 7 * batches
    mixture.absent_are([])
    assert mixture.has_batch()
    assert told() == 7 * batches
    mixture.next_batch()
    assert told() == 7 * (batches + 1)


def test_what_is_to_come_of_one_text_is_no_news_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_of("plays+news", **{"data.shards": ["ab" * 32] * 4, "data.parts": [2, 2]})
    mixture = arriving(plan, [150, 600], [150, 600], rows=4)
    looked = []
    for text, loader in enumerate(mixture._loaders):
        monkeypatch.setattr(loader, "_look_again", lambda n=text: looked.append(n))
    mixture.absent_are([1, 2, 3])
    mixture.absent_are([1, 2, 3])
    assert looked == [0]


def test_of_each_text_the_end_is_held_out() -> None:
    extents = Extents([400, 400, 500, 300, 300, 300], 0.25, [2, 1, 3])
    assert [extents.trains(n) for n in range(6)] == [True, True, True, True, True, True]
    assert [extents.validates(n) for n in range(6)] == [False, True, True, False, False, True]
    alone = Extents([400, 400, 200], 0.25)
    assert [(alone.trains(n), alone.validates(n)) for n in (1, 2)] == [(True, True), (False, True)]


# ---------------------------------------------------------------------------------- what is held out


def test_held_out_text_is_of_each_and_its_loss_by_shares() -> None:
    held = [Corpus([np.arange(n) + 10_000 * i], 1 << 20, 0.2) for i, n in enumerate((3000, 2000))]
    plan = plan_of("plays*3+news*1", **{"data.val_fraction": 0.2})
    loaders = [Loader(corpus, plan, A, 1) for corpus in held]
    mixture = Mixture(parts_of(plan), loaders, 4)
    plays, news = mixture.held_out(8, 4)
    assert (len(plays), len(news)) == (6, 2)
    mixed = mixture.mixed([plays, news], 4)
    assert len(mixed) == 8
    assert all(sorted(batch[:, 0] // 10_000) == [0, 0, 0, 1] for batch in mixed)
    assert loss_of([2.0, 4.0], mixture.shares) == 2.5
    assert loss_of([2.0, float("nan")], mixture.shares) == 2.0
    assert np.isnan(loss_of([float("nan")] * 2, mixture.shares))


# ------------------------------------------------------------------------------------- what is meant


@pytest.mark.parametrize(
    ("source", "weights"),
    [
        ("plays", [1]),
        ("plays*7", [1]),
        ("plays+news", [1, 1]),
        ("plays*3+news*1", [3, 1]),
        ("plays*0.7+news*0.3", [7, 3]),
        ("plays*0.5+news*1.5+laws", [1, 3, 2]),
        ("a.b-c_d*999999.999999+x*0.000001", [999999999999, 1]),
    ],
)
def test_weights_count_by_how_they_relate(source: str, weights: list[int]) -> None:
    parsed = parse(f"swarm:{source}", "here")
    assert [corpus.weight for corpus in parsed] == weights
    names = [part.partition("*")[0] for part in source.split("+")]
    assert [corpus.name for corpus in parsed] == names


def test_parts_are_cut_from_the_shards_in_order() -> None:
    plan = plan_of("plays+news", **{"data.parts": [2, 3], "data.shards": ["ab" * 32] * 5})
    first, second = parts_of(plan, list("abcde"))
    assert (first.places, second.places) == (range(2), range(2, 5))
    assert second.own((0, 2, 4)) == [0, 2]
    local = with_changes(Plan(), {"data.source": "local"}, "test")
    assert parts_of(local, ["x"])[0][:3] == ("local", 1, range(1))


@pytest.mark.parametrize("parts", [[], [1], [2, 1], [1, 1, 1], [3]])
def test_a_plan_that_does_not_cut_its_shards_is_refused(parts: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"data\.parts = .* does not cut 2 shards"):
        plan_of("plays*3+news", **{"data.parts": parts})


def test_parse_takes_as_many_as_there_may_be() -> None:
    names = [f"c{i}" for i in range(CORPORA_MAX)]
    assert parse("swarm:" + "+".join(names), "here") == tuple(Weighted(n, 1) for n in names)
