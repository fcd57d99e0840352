"""A device's copies land when they like; the daemon must hear of them in an order that it can follow."""

from __future__ import annotations

from peerlm.train.crossings import Crossings
from peerlm.train.protocol import Applied, Boundary
from peerlm.train.staging import Landed, Way
from peerlm.types import FragmentId

FIRST, SECOND = FragmentId(0), FragmentId(1)


def test_a_boundary_names_the_correction_that_was_in_it_when_it_was_read() -> None:
    crossings = Crossings()
    crossings.comes(FIRST, 7)
    assert crossings.landed(Landed(FIRST, Way.IN)) == [Applied(FIRST, 7)]
    crossings.read(FIRST, 20)
    crossings.read(SECOND, 20)
    assert crossings.landed(Landed(FIRST, Way.OUT)) == [Boundary(FIRST, 7, 20)]
    assert crossings.landed(Landed(SECOND, Way.OUT)) == [Boundary(SECOND, 0, 20)]


def test_a_correction_that_lands_before_an_older_boundary_is_told_after_it() -> None:
    crossings = Crossings()
    crossings.comes(FIRST, 3)
    crossings.read(FIRST, 5)
    assert crossings.landed(Landed(FIRST, Way.IN)) == []
    assert crossings.landed(Landed(FIRST, Way.OUT)) == [Boundary(FIRST, 0, 5), Applied(FIRST, 3)]
    crossings.read(FIRST, 10)
    assert crossings.landed(Landed(FIRST, Way.OUT)) == [Boundary(FIRST, 3, 10)]


def test_weights_that_were_reset_make_a_boundary_on_its_way_void_at_once() -> None:
    crossings = Crossings()
    crossings.read(FIRST, 5)
    crossings.comes(FIRST, 4)
    assert crossings.applied(FIRST) == Applied(FIRST, 4)
    assert crossings.landed(Landed(FIRST, Way.OUT)) == [Boundary(FIRST, 0, 5)]
