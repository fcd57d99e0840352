"""Names: whatever the order in which records are heard, all end with the same ones."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerlm.store.names import FLOOR_NAME, NAMES_MAX, Names, is_covered
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


# ----------------------------------------------------------------------------- tombstones that end


def merged(names: Names, one: NameRecord) -> bool:
    return names.merge(one, proof_of(one))


def test_tombstones_from_before_end_and_the_floor_does_not() -> None:
    stay = [record(wall=1.0), record("young", b"", wall=5.0), floor(7)]
    names = register([*stay, record("gone", b"", 2, wall=4.0)])
    version = names.version
    names.end(5.0)
    names.check()
    assert {r.name for r in held(names)} == {r.name for r in stay}
    assert names.version > version
    assert not merged(names, record("gone", b"", 9, wall=4.0))
    assert merged(names, record("gone", lamport=1, wall=6.0)), "it counts from one again"


def test_a_tombstone_that_has_ended_removes_only_what_is_older() -> None:
    names = register([record("anew", wall=6.0), record("old", wall=2.0)])
    names.end(5.0)
    assert not merged(names, record("anew", b"", 9, wall=4.0))
    assert merged(names, record("old", b"", 9, wall=4.0))


def test_what_one_that_is_current_has_not_or_has_anew_is_dropped_where_it_is_old() -> None:
    current = register([record("both"), record("anew", lamport=1, wall=9.0)])
    stay = [record("both"), record("young", wall=8.0), record("revoked"), floor(7)]
    went = [record("gone"), record("anew", lamport=5), record("tombstone", b"", 2)]
    names = register([*stay, *went])
    for low, high, digests in current.digests():
        names.prune(low, high, digests, 5.0, lambda entry: entry.record.name != "revoked")
    names.check()
    assert {r.name for r in held(names)} == {r.name for r in stay}


def test_what_a_page_does_not_cover_stays() -> None:
    names = register([record(f"name-{number}") for number in range(50)])
    (digests,) = [page for _, _, page in names.digests()]
    names.prune(digests[10].name, digests[19].name, digests[12:14], 5.0, lambda entry: True)
    (left,) = [page for _, _, page in names.digests()]
    assert left == (*digests[:10], *digests[12:14], *digests[20:])


# ------------------------------------------------------------------------------------- the floor


def checkpoint(number: int, **options: object) -> NameRecord:
    name = f"checkpoint-{number:012}"
    return record(name, kind="checkpoint", **options)  # type: ignore[arg-type]


def floor(number: int) -> NameRecord:
    return record(FLOOR_NAME, b"", number, kind="checkpoint")


def test_the_floor_removes_checkpoints_below_it_that_were_written_once_and_their_tombstones() -> (
    None
):
    gone = [checkpoint(1), checkpoint(2, manifest=b"", lamport=2)]
    stay = [
        checkpoint(3, lamport=2),
        checkpoint(4, is_pinned=True),
        checkpoint(5, manifest=b"", lamport=3),
        checkpoint(10),
        record("checkpoint-000000000006"),
        record("before-the-merger", kind="checkpoint"),
    ]
    names = register([*gone, *stay, floor(10)])
    assert {r.name for r in held(names)} == {r.name for r in (*stay, floor(10))}
    assert not any(names.is_news(one) for one in gone)


series = st.builds(
    checkpoint,
    st.integers(1, 6),
    manifest=st.sampled_from([b"a" * 32, b"b" * 32]),
    writer=st.sampled_from([b"v" * 16, b"w" * 16]),
    is_pinned=st.booleans(),
)


@settings(max_examples=80)
@given(st.lists(series | st.builds(floor, st.integers(1, 7)), max_size=8), st.data())
def test_with_floors_too_any_order_gives_the_same(
    told: list[NameRecord], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(told))
    one, other = register(told), register(shuffled)
    compare(one, other)
    assert held(one) == held(other)
    lowest = one.floor
    assert not any(is_covered(record, lowest) for record in held(one))


def test_who_comes_back_after_long_brings_nothing_back() -> None:
    swarm = register([checkpoint(number) for number in range(1, 5)])
    away = register(held(swarm))
    for number in (5, 6, 7):
        swarm.merge(checkpoint(number), proof_of(checkpoint(number)))
    swarm.merge(floor(5), proof_of(floor(5)))
    compare(away, swarm)
    expected = {checkpoint(number).name for number in (5, 6, 7)} | {FLOOR_NAME}
    assert {r.name for r in held(swarm)} == {r.name for r in held(away)} == expected


def test_a_register_that_tombstones_have_filled_is_emptied_by_a_floor() -> None:
    names = Names()
    for number in range(NAMES_MAX):
        one = checkpoint(number, manifest=b"", lamport=2)
        names.merge(one, proof_of(one))
    new = checkpoint(NAMES_MAX)
    assert not names.merge(new, proof_of(new))
    assert names.merge(floor(NAMES_MAX), proof_of(floor(NAMES_MAX)))
    assert len(names) == 1
    assert names.merge(new, proof_of(new))


def test_a_name_below_the_floor_can_be_written_and_removed_as_any_other() -> None:
    names = register([floor(100)])
    anew = checkpoint(50, lamport=names.next_lamport("checkpoint-000000000050"))
    assert names.merge(anew, proof_of(anew))
    removed = checkpoint(50, manifest=b"", lamport=names.next_lamport(anew.name))
    assert names.merge(removed, proof_of(removed))
    assert names.get(anew.name) is not None, "its tombstone stays"
