"""Rendezvous hashing: the same everywhere, in proportion, apart from what fails together, and moving no more than it must."""

from __future__ import annotations

import math
import tracemalloc
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerlm.store.rendezvous import Field, Keys, Site, _ln, keys_of, owners
from peerlm.types import ObjectHash, PeerId

GB = 10**9


def peer(number: int) -> PeerId:
    return PeerId(Random(f"peer {number}").randbytes(16))


def hashes(count: int, seed: int = 0) -> list[ObjectHash]:
    rng = Random(f"chunks {seed}")
    return [ObjectHash(rng.randbytes(32)) for _ in range(count)]


def keys(count: int, seed: int = 0) -> Keys:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


def swarm(count: int, seed: int = 0, rack: int = 0) -> list[Site]:
    """Capacities of 100 to 400 GB; the first third in racks of so many, if there are racks."""
    rng = Random(f"swarm {seed}")
    return [
        Site(
            peer(number),
            rng.uniform(100 * GB, 400 * GB),
            f"rack {number // rack}" if rack and number < count // 3 else "",
        )
        for number in range(count)
    ]


def test_the_order_is_the_same_on_every_machine_and_in_every_version() -> None:
    sites = [Site(peer(n), float(GB * (n + 1)), "ab"[n % 2] if n < 4 else "") for n in range(8)]
    found = owners(hashes(6), sites, 3)
    names = [[[site.peer for site in sites].index(p) for p in places] for places in found]
    assert names == [[5, 4, 7], [7, 3, 5], [2, 7, 6], [4, 5, 7], [7, 6, 0], [6, 0, 1]]
    assert found == owners(hashes(6), sites[::-1], 3)


def test_logarithms_are_logarithms() -> None:
    numbers = [0.5, 1.0, 1.5, 3.0, 2**30 + 0.5, 2**51 + 0.5, 2**52 - 0.5]
    found = _ln(np.array(numbers))
    assert found == pytest.approx([math.log(n) for n in numbers], abs=1e-12)


def test_shares_are_in_proportion_to_capacity() -> None:
    for rack in (0, 6):
        field = Field(swarm(200, rack=rack))
        found = field.first(keys(60_000), 3)
        weights = np.array([site.weight for site in field.sites])
        shares = np.bincount(found.ravel(), minlength=200) / found.size
        deviation = np.abs(shares / (weights / weights.sum()) - 1)
        assert deviation.max() < 0.15, rack


@pytest.mark.parametrize("rack", [0, 6])
def test_who_goes_leaves_only_what_was_its_own_and_who_comes_takes_only_what_is(rack: int) -> None:
    sites, chunks = swarm(60, rack=rack), keys(2000)
    for gone in (3, 40):
        rest = [site for site in sites if site.peer != peer(gone)]
        fields = Field(sites), Field(rest)
        before, after = (
            [[field.sites[place].peer for place in places] for places in found]
            for field, found in ((f, f.first(chunks, 3).T.tolist()) for f in fields)
        )
        for had, has in zip(before, after, strict=True):
            stayed = [p for p in had if p != peer(gone)]
            assert set(stayed) <= set(has)
        moved = sum(len(set(has) - set(had)) for had, has in zip(before, after, strict=True))
        assert moved == sum(peer(gone) in had for had in before)


@settings(max_examples=40)
@given(
    labels=st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=12),
    replicas=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_replicas_are_apart_while_there_are_labels_enough(
    labels: list[str], replicas: int, seed: int
) -> None:
    rng = Random(seed)
    sites = [Site(peer(n), rng.uniform(1, 5), label) for n, label in enumerate(labels)]
    field, chunks = Field(sites), keys(20, seed)
    found = field.first(chunks, replicas)
    assert found.shape == (min(replicas, len(sites)), 20)
    for chunk, places in zip(chunks, found.T.tolist(), strict=True):
        assert len(set(places)) == len(places)
        assert len({field.domains[p] for p in places}) == min(len(places), field.domain_count)
        order = field.order(chunk).tolist()
        assert order[: len(places)] == places
        assert sorted(order) == list(range(len(sites)))


def test_where_labels_run_out_the_nearest_of_the_rest_come() -> None:
    field = Field([Site(peer(n), 1.0, "rack") for n in range(10)])
    plain = Field([Site(peer(n), 1.0, "") for n in range(10)])
    assert (field.first(keys(200), 3) == plain.first(keys(200), 3)).all()


def test_distances_one_by_one_are_those_in_blocks() -> None:
    field, chunks = Field(swarm(30)), keys(3000)
    nearest, second = field.first(chunks, 2)
    assert (field.distances(chunks, nearest) < field.distances(chunks, second)).all()


def test_nobody_and_nothing() -> None:
    assert owners(hashes(3), [], 3) == [[], [], []]
    assert owners([], swarm(3), 3) == []
    assert owners(hashes(1), [Site(peer(1), 1.0, "")], 3) == [[peer(1)]]
    assert len(Field([]).order(keys_of(hashes(1))[0])) == 0


def test_many_chunks_take_blocks_and_not_memory() -> None:
    field, chunks = Field(swarm(200)), keys(20_000)
    tracemalloc.start()
    field.first(chunks, 3)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 6 * 2**20  # all distances at once are 32 MB
