"""When all of a name was read is remembered by what it stands for, and no memory that is damaged is believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlm.store.verified import Reading, Verified
from peerlm.types import ObjectHash, WallTime

A, B, C = (ObjectHash(bytes([n]) * 32) for n in range(3))


def test_it_is_remembered_by_the_manifest_and_as_long_as_a_name_stands_for_it() -> None:
    verified = Verified()
    assert verified.of(A) is None
    verified.note(A, 0, {A, B}, WallTime(5.0))
    verified.note(B, 2, {A, B}, WallTime(6.0))
    again = Verified(verified.encode())
    assert (again.of(A), again.of(B), again.of(C)) == (Reading(5.0, 0), Reading(6.0, 2), None)
    again.note(B, 0, {B, C}, WallTime(7.0))
    assert (again.of(A), again.of(B)) == (None, Reading(7.0, 0))
    assert len(again.encode()) < 100


@pytest.mark.parametrize(
    "memory",
    [
        *(b"{", b"[]", b"7", b"null", b'{"a": 1}', b'{"zz": [1, 2]}', b'{"00": [1]}', b"\xff"),
        *(b'{"00": [1e999, 0]}', b"[" * 100_000, b'{"00": [1, 1e999]}'),
    ],
)
def test_what_is_damaged_counts_as_none(memory: bytes) -> None:
    assert Verified(memory).encode() == b"{}"


@given(st.binary(max_size=60))
def test_whatever_is_there_is_read_or_not(memory: bytes) -> None:
    Verified(memory).note(A, 1, (), WallTime(1.0))
