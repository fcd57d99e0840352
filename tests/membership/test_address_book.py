from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from membership_harness import peer_id, record_of, sign

from peerlm.membership.address_book import ENTRIES_MAX, AddressBook, address_of, read_book
from peerlm.types import Instant, WallTime

WALL = WallTime(1_800_000_000.0)


def book_of(n: int) -> AddressBook:
    book = AddressBook(("tcp://seed:7700",))
    for number in range(n):
        record = record_of(number, epoch=number + 1)
        book.note(record, sign(record), Instant(100.0 + number))
    return book


def test_a_book_comes_back_as_it_was_on_another_clock() -> None:
    book = book_of(3)
    data = book.to_bytes(Instant(200.0), WALL)
    again, note = read_book(data, Instant(5.0), WallTime(WALL + 60.0))
    assert note == ""
    assert again.seeds == ("tcp://seed:7700",)
    assert len(again) == 3
    for before, after in zip(book.contacts(), again.contacts(), strict=True):
        assert abs(again.seen(after.peer) - (book.seen(before.peer) - 200.0 - 60.0 + 5.0)) < 1e-2
        assert (after.peer, after.address, after.epoch, after.chain) == (
            before.peer,
            before.address,
            before.epoch,
            before.chain,
        )


def test_a_damaged_line_costs_one_address() -> None:
    lines = book_of(3).to_bytes(Instant(200.0), WALL).split(b"\n")
    lines[2] = lines[2][:-9]
    book, note = read_book(b"\n".join(lines), Instant(0.0), WALL)
    assert len(book) == 2
    assert "1 damaged" in note


def test_what_is_no_book_gives_an_empty_one_and_a_note() -> None:
    for data in (b"\0\1\2", b"[]", b'{"format": "other"}', b"{", b"[" * 100_000):
        book, note = read_book(data, Instant(0.0), WALL)
        assert len(book) == 0
        assert "starting an empty one" in note
    assert read_book(b"", Instant(0.0), WALL)[1] == ""


@given(st.data())
def test_no_damage_makes_it_crash(data: st.DataObject) -> None:
    raw = bytearray(book_of(2).to_bytes(Instant(200.0), WALL))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    book, _ = read_book(bytes(raw[:cut]), Instant(0.0), WALL)
    assert len(book) <= 2
    read_book(book.to_bytes(Instant(0.0), WALL), Instant(0.0), WALL)


def test_a_full_book_loses_whom_it_saw_longest_ago() -> None:
    book = book_of(ENTRIES_MAX + 1)
    assert len(book) == ENTRIES_MAX
    assert book.get(peer_id(0)) is None
    assert book.get(peer_id(1)) is not None


def test_the_version_grows_with_addresses_and_not_with_sightings() -> None:
    book = book_of(1)
    version = book.version
    record = record_of(0, epoch=1)
    book.note(record, sign(record), Instant(500.0))
    book.saw(peer_id(0), Instant(600.0))
    assert book.version == version
    record = record_of(0, epoch=2)
    book.note(record, sign(record), Instant(700.0))
    assert book.version > version


def test_addresses_read_as_people_write_them() -> None:
    assert address_of("10.0.0.1", 7700) == "tcp://10.0.0.1:7700"
    assert address_of("fd00::1", 7700) == "tcp://[fd00::1]:7700"
    assert address_of("", 7700) == address_of("h", 0) == ""
