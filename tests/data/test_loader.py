from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from peerlm.config import Plan, with_changes
from peerlm.data.loader import Loader
from peerlm.data.shards import Corpus
from peerlm.errors import ConfigError
from peerlm.types import PeerId

A, B, C = (PeerId(letter * 16) for letter in (b"a", b"b", b"c"))
WIDTH = 9  # context 8, and the token that the last one predicts


def plan_of(batch: int = 4, source: str = "shipped", val_fraction: float = 0.1) -> Plan:
    changes = {
        "train.batch": batch,
        "model.context": 8,
        "data.source": source,
        "data.val_fraction": val_fraction,
    }
    return with_changes(Plan(), changes, "test")


def corpus_of(tokens: int, val_fraction: float = 0.1) -> Corpus:
    """A corpus in which every token is its own place."""
    return Corpus([np.arange(tokens, dtype=np.uint32)], vocab=1 << 20, val_fraction=val_fraction)


def starts(loader: Loader, batches: int) -> list[int]:
    """The places of the windows in the next batches; checks that every window is whole."""
    found: list[int] = []
    for _ in range(batches):
        tokens = loader.next_batch()
        assert tokens.dtype == np.int64
        assert (tokens == tokens[:, :1] + np.arange(WIDTH)).all()
        found += tokens[:, 0].tolist()
    return found


def until_pass(loader: Loader, number: int) -> Iterator[int]:
    """Places of the windows before the first batch that reaches into pass `number`."""
    while True:
        batch = starts(loader, 1)
        if loader.position()["pass"] >= number:
            return
        yield from batch


def test_a_pass_reads_every_window_of_the_training_part_once() -> None:
    corpus = corpus_of(10_000)
    loader = Loader(corpus, plan_of(batch=1), A, rng_seed=1)
    total = loader.position()["ranges_total"]
    seen = starts(loader, total)
    assert loader.position() == {"pass": 0, "ranges_done": total, "ranges_total": total}
    assert total == 9000 // WIDTH - 1
    assert len({at // WIDTH for at in seen}) == len(seen) == total
    assert len({at % WIDTH for at in seen}) == 1
    assert max(seen) + WIDTH <= corpus.train_tokens


def test_the_next_pass_has_other_windows_in_another_order() -> None:
    loader = Loader(corpus_of(10_000), plan_of(batch=1), A, rng_seed=1)
    total = loader.position()["ranges_total"]
    passes = [starts(loader, total) for _ in range(6)]
    assert loader.position()["pass"] == 5
    assert len({reading[0] % WIDTH for reading in passes}) > 2
    assert len({reading[0] // WIDTH for reading in passes}) == 6


def test_a_batch_has_the_plans_shape() -> None:
    assert Loader(corpus_of(5000), plan_of(batch=7), A, 1).next_batch().shape == (7, WIDTH)


def test_peers_of_one_view_read_different_text_and_together_all_of_it() -> None:
    seen: Counter[int] = Counter()
    for peer in (A, B, C):
        loader = Loader(corpus_of(10_000), plan_of(batch=1), peer, rng_seed=1)
        loader.set_members([A, B, C])
        seen.update(starts(loader, loader.position()["ranges_total"]))
    assert len(seen) == 9000 // WIDTH - 1
    assert set(seen.values()) == {1}


def test_the_same_seed_gives_the_same_batches_and_another_seed_does_not() -> None:
    def first(seed: int) -> list[int]:
        return starts(Loader(corpus_of(10_000), plan_of(), A, seed), 20)

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_a_change_of_view_never_repeats_a_range_in_a_pass() -> None:
    loader = Loader(corpus_of(10_000), plan_of(), A, rng_seed=1)
    loader.set_members([A, B])
    seen = starts(loader, 30)
    loader.set_members([A])
    seen += starts(loader, 30)
    loader.set_members([A, B, C])
    seen += until_pass(loader, 1)
    assert len(seen) == len(set(seen))


def test_who_is_left_alone_reads_the_rest_too() -> None:
    loader = Loader(corpus_of(10_000), plan_of(), A, rng_seed=1)
    loader.set_members([A, B])
    shared = loader.position()["ranges_total"]
    starts(loader, 10)
    loader.set_members([A])
    assert loader.position() == {"pass": 0, "ranges_done": 40, "ranges_total": 9000 // WIDTH - 1}
    assert shared < 600


def test_members_without_this_peer_do_not_stop_it() -> None:
    loader = Loader(corpus_of(10_000), plan_of(), A, rng_seed=1)
    loader.set_members([B, C])
    assert loader.position()["ranges_total"] > 200
    starts(loader, 5)


def test_local_text_is_all_its_owners() -> None:
    loader = Loader(corpus_of(10_000), plan_of(source="local"), A, rng_seed=1)
    loader.set_members([A, B, C])
    assert loader.position()["ranges_total"] == 9000 // WIDTH - 1


def test_starting_again_in_another_pass_reads_other_text_first() -> None:
    first, again = (Loader(corpus_of(10_000), plan_of(), A, 1, first_pass=n) for n in (0, 1000))
    assert again.position()["pass"] == 1000
    assert {at // WIDTH for at in starts(first, 5)} != {at // WIDTH for at in starts(again, 5)}


def test_rows_of_a_batch_come_from_different_ranges_of_a_large_corpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("peerlm.data.assign.RANGES_MAX", 50)
    loader = Loader(corpus_of(10_000), plan_of(batch=4), A, rng_seed=1)
    first, second = loader.next_batch()[:, 0], loader.next_batch()[:, 0]
    assert (second - first == WIDTH).all()  # each row reads on
    assert np.diff(np.sort(first)).min() >= 20 * WIDTH  # 20 windows make a range
    loader = Loader(corpus_of(10_000), plan_of(batch=1), A, rng_seed=1)
    assert len(set(until_pass(loader, 1))) == 9000 // WIDTH - 1


def test_the_shortest_corpus_that_is_allowed_trains_in_a_swarm_larger_than_it() -> None:
    corpus = corpus_of(5 * WIDTH, val_fraction=0.0)
    loader = Loader(corpus, plan_of(batch=4, val_fraction=0.0), A, rng_seed=1)
    loader.set_members([PeerId(bytes([i]) * 16) for i in range(20)])
    assert all(0 <= at <= 4 * WIDTH for at in starts(loader, 10))
    with pytest.raises(ConfigError, match="shorter than one batch: 44 tokens"):
        Loader(corpus_of(44, val_fraction=0.0), plan_of(batch=4, val_fraction=0.0), A, rng_seed=1)


def test_validation_is_the_same_everywhere_and_only_of_the_held_out_part() -> None:
    corpus = corpus_of(10_000)
    ours = Loader(corpus, plan_of(), A, rng_seed=1).validation_batches(5, 6)
    other = Loader(corpus, plan_of(), B, rng_seed=1)
    other.next_batch()
    other.set_members([A, B])
    assert [b.tolist() for b in ours] == [b.tolist() for b in other.validation_batches(5, 6)]
    assert [b.shape for b in ours] == [(6, WIDTH)] * 5
    places = np.concatenate(ours)[:, 0]
    assert places[0] == corpus.train_tokens
    assert places[-1] > corpus.tokens - 5 * WIDTH
    assert (np.diff(places) >= WIDTH).all()


@pytest.mark.parametrize(
    ("tokens", "shapes"),
    [
        (10 * WIDTH * 17, [(4, WIDTH)] * 4),
        (10 * WIDTH * 7, [(4, WIDTH)]),
        (10 * WIDTH * 2, [(2, WIDTH)]),
    ],
)
def test_short_validation_gives_fewer_batches_rather_than_the_same_text_twice(
    tokens: int, shapes: list[tuple[int, int]]
) -> None:
    loader = Loader(corpus_of(tokens), plan_of(batch=1), A, rng_seed=1)
    batches = loader.validation_batches(8, 4)
    assert [b.shape for b in batches] == shapes
    places = np.concatenate(batches)[:, 0]
    assert len(set(places)) == len(places)


def test_nothing_held_out_gives_no_validation() -> None:
    loader = Loader(corpus_of(10_000, 0.0), plan_of(val_fraction=0.0), A, rng_seed=1)
    assert loader.validation_batches(8, 4) == []
