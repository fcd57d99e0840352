"""Names: whatever the order in which records are heard, all end with the same ones."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerlm.store.names import Names
from peerlm.wire.codec import encode
from peerlm.wire.message import Named, NameDigest, NameRecord


def proof_of(record: NameRecord) -> Named:
    return Named(encode(record), b"s" * 64, ())


def record(
    name: str = "plays",
    manifest: bytes = b"m" * 32,
    lamport: int = 1,
    writer: bytes = b"w" * 16,
    wall: float = 1.0,
    kind: str = "files",
    is_pinned: bool = False,
) -> NameRecord:
    size = 10 if manifest else 0
    return NameRecord(name, kind, manifest, size, lamport, writer, wall, 3, is_pinned, "")


def register(records: Iterable[NameRecord]) -> Names:
    names = Names()
    for one in records:
        names.merge(one, proof_of(one))
        names.check()
    return names


def held(names: Names) -> list[NameRecord]:
    return [entry.record for entry in names]


def compare(one: Names, other: Names, *, is_older: bool = False) -> None:
    """As two nodes do, until neither has anything for the other; `is_older`: neither tells ties apart."""
    for _ in range(3):
        for asker, answerer in ((one, other), (other, one)):
            for low, high, digests in asker.digests():
                known = digests
                if is_older:
                    known = tuple(NameDigest(d.name, d.lamport, d.writer) for d in digests)
                for proof in answerer.newer_than(low, high, known):
                    found = next(e.record for e in answerer if e.proof == proof)
                    asker.merge(found, proof)


records = st.builds(
    record,
    name=st.sampled_from(["plays", "poems"]),
    manifest=st.sampled_from([b"", b"a" * 32, b"b" * 32]),
    lamport=st.integers(1, 2),
    writer=st.sampled_from([b"v" * 16, b"w" * 16]),
    wall=st.sampled_from([1.0, 2.0]),
)


@settings(max_examples=80)
@given(st.lists(records, max_size=8), st.data())
def test_any_order_gives_the_same_register(told: list[NameRecord], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(told))
    assert held(register(told)) == held(register(shuffled)) == held(register(told + shuffled))


@settings(max_examples=80)
@given(st.lists(records, max_size=6), st.lists(records, max_size=6))
def test_two_that_compare_know_the_same(mine: list[NameRecord], theirs: list[NameRecord]) -> None:
    one, other = register(mine), register(theirs)
    compare(one, other)
    assert held(one) == held(other) == held(register(mine + theirs))
    for low, high, digests in one.digests():
        assert other.newer_than(low, high, digests) == []
        assert not other.is_behind(digests)


def test_of_one_writer_and_number_a_removal_holds() -> None:
    for manifest in (b"a" * 32, b"b" * 32, b"c" * 32):
        both = [record(manifest=manifest), record(manifest=b"")]
        assert held(register(both)) == held(register(both[::-1])) == [both[1]]


@pytest.mark.parametrize("lamports", [(1, 2), (1, 1)])
def test_an_older_release_which_tells_no_ties_is_not_given_the_same_again_and_again(
    lamports: tuple[int, int],
) -> None:
    one = register([record(manifest=b"a" * 32, lamport=lamports[0])])
    other = register([record(manifest=b"b" * 32, lamport=lamports[1])])
    compare(one, other, is_older=True)
    assert (held(one) == held(other)) == (lamports == (1, 2))
    for low, high, digests in one.digests():
        told = tuple(NameDigest(d.name, d.lamport, d.writer) for d in digests)
        assert other.newer_than(low, high, told) == []
        assert not other.is_behind(told)
