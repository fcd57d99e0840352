"""Whose session a row advances, and who has to begin again."""

from __future__ import annotations

import pytest
from ring_scene import peer

from peerlm.serve.guests import FULL, GIVEN_UP_S, UNKNOWN, Forgotten, Guests
from peerlm.serve.lap import Row
from peerlm.types import Instant

ADA, BOB = peer("ada"), peer("bob")
WAY = (ADA, ADA, 7)


def row(start: int, length: int = 1, *, slot: int = 0, life: int = 1) -> Row:
    return Row(slot, start, length, life=life)


def seat(guests: Guests[str], *rows: Row, now: float = 0.0, way: tuple = WAY) -> list:
    return guests.seat(way, rows, Instant(now))


def test_tokens_follow_what_was_read() -> None:
    guests = Guests(2, "v1")
    assert seat(guests, row(0, 16)) == [(0, "v1")]
    guests.version = "v2"
    assert seat(guests, row(16), row(0, slot=1)) == [(0, "v1"), (1, "v2")]
    for wrong in (row(16), row(18), row(1, slot=2)):
        with pytest.raises(Forgotten, match=UNKNOWN):
            seat(guests, wrong)


def test_what_was_sent_to_an_earlier_life_of_a_slot_comes_too_late() -> None:
    guests = Guests(2, "v1")
    seat(guests, row(0, 16, life=1))
    seat(guests, row(0, 16, life=2))
    for late in (row(0, 16, life=1), row(16, life=1), row(0, 16, life=2)):
        with pytest.raises(Forgotten, match=UNKNOWN):
            seat(guests, late)
    guests.over(WAY, [row(0, 0, life=1)])
    seat(guests, row(16, life=2))
    guests.over(WAY, [row(0, 0, life=2)])
    assert not guests


def test_who_does_not_hand_a_session_over_has_no_part_in_it() -> None:
    guests = Guests(2, "v1")
    seat(guests, row(0, 16))
    seat(guests, row(0, 4, life=99), way=(BOB, ADA, 7))
    guests.over((BOB, ADA, 7), [row(0, 0)])
    assert seat(guests, row(16)) == [(0, "v1")]


def test_a_session_that_comes_by_another_way_needs_no_second_slot() -> None:
    guests = Guests(2, "v1")
    seat(guests, row(0), row(0, slot=1))
    seat(guests, row(0, life=2), way=(BOB, ADA, 7))
    with pytest.raises(Forgotten, match=UNKNOWN):
        seat(guests, row(1))
    with pytest.raises(Forgotten, match=FULL):
        seat(guests, row(0, slot=1), way=(BOB, ADA, 7))
    with pytest.raises(Forgotten, match=FULL):
        seat(guests, row(0, slot=1, life=2), way=(BOB, ADA, 8))


def test_who_is_silent_for_long_makes_room() -> None:
    guests = Guests(1, "v1")
    seat(guests, row(0))
    with pytest.raises(Forgotten, match=FULL):
        seat(guests, row(0, slot=1), now=GIVEN_UP_S)
    seat(guests, row(0, slot=1), now=GIVEN_UP_S + 1)
    with pytest.raises(Forgotten, match=UNKNOWN):
        seat(guests, row(1))


def test_an_older_version_is_not_held_on_to_for_ever() -> None:
    guests = Guests(2, "v1")
    seat(guests, row(0))
    guests.version = "v2"
    seat(guests, row(0, slot=1))
    assert guests.versions() == ["v1", "v2"]
    guests.forget_older()
    assert guests.versions() == ["v2"]
    assert len(guests) == 1
