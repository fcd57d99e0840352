"""What memory a node says it offers follows readings that waver, and never takes away what is held."""

from __future__ import annotations

import random

import pytest

from peerlm.swarm.offering import NOTICED, READINGS, Offering
from peerlm.types import Memory

HELD = Memory(0, 0)


def said(offering: Offering, *readings: Memory, held: Memory = HELD) -> Memory:
    for reading in readings:
        offering.read(reading, held)
    return offering.said


def host(*values: int) -> list[Memory]:
    return [Memory(None, value) for value in values]


def test_what_wavers_by_less_than_an_eighth_changes_nothing() -> None:
    draws, offering = random.Random(1), Offering(Memory(40, 1000))
    for _ in range(1000):
        part = draws.uniform(1 - NOTICED, 1 + NOTICED)
        assert not offering.read(Memory(int(40 * part), int(1000 * part)), HELD)


@pytest.mark.parametrize(
    ("readings", "then"),
    [
        ((2000, 2000), 1000),
        ((2000, 900, 2000, 2000), 1000),
        ((3000, 2000, 4000), 2000),
        ((500, 700, 600), 700),
        ((500, 700, 2000), 1000),
    ],
)
def test_readings_in_a_row_on_one_side_change_it_to_the_nearest(
    readings: tuple[int, ...], then: int
) -> None:
    assert said(Offering(Memory(None, 1000)), *host(*readings)) == Memory(None, then)


def test_what_is_held_is_never_taken_back() -> None:
    held = Memory(300, 500)
    assert said(Offering(Memory(None, 1000)), *host(1, 1, 1), held=held) == Memory(None, 800)
    less = [Memory(1, 1)] * READINGS
    assert said(Offering(Memory(900, 900)), *less, held=held) == held
    assert said(Offering(Memory(None, 700)), *host(1, 1, 1), held=held) == Memory(None, 700)


def test_a_device_that_is_not_answered_for_stays_as_it_was() -> None:
    gone = [Memory(None, 100)] * 2 * READINGS
    assert said(Offering(Memory(50, 100)), *gone) == Memory(50, 100)
    new = [Memory(50, 100)] * 2 * READINGS
    assert said(Offering(Memory(None, 100)), *new) == Memory(None, 100)
