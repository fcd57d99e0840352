"""Whom a node dials, and how patiently."""

from __future__ import annotations

import random

from peerlm.node.contacts import BACKOFF_S_MAX, MESH_MAX, Contacts, neighbours
from peerlm.types import Instant, PeerId

ADDRESS = "tcp://10.0.0.1:7700"


def test_an_address_that_fails_for_days_is_still_tried_every_ten_seconds_or_so() -> None:
    contacts, now = Contacts(random.Random(1)), Instant(0.0)
    for _ in range(3000):
        assert contacts.may_dial(ADDRESS, now)
        contacts.dialling(ADDRESS, now)
        assert not contacts.may_dial(ADDRESS, now)
        contacts.failed(ADDRESS, "connect: refused", now)
        now = Instant(now + 1.25 * BACKOFF_S_MAX)
    assert contacts.errors()[ADDRESS].last_error == "connect: refused"


def test_addresses_nobody_lives_at_any_more_are_forgotten() -> None:
    contacts, now = Contacts(random.Random(1)), Instant(0.0)
    for number in range(100):
        contacts.failed(f"tcp://10.0.0.{number}:7700", "connect: refused", now)
    contacts.keep_only({ADDRESS})
    assert list(contacts.errors()) == [ADDRESS]


def test_a_small_swarm_is_a_mesh_and_a_large_one_is_not() -> None:
    rng = random.Random(1)
    few = tuple(sorted(PeerId(rng.randbytes(16)) for _ in range(MESH_MAX - 1)))
    many = tuple(sorted(PeerId(rng.randbytes(16)) for _ in range(500)))
    me = PeerId(rng.randbytes(16))
    assert neighbours(me, few) == few
    chosen = neighbours(me, many)
    assert 8 <= len(chosen) <= 16
    assert set(chosen) <= set(many)
    assert neighbours(me, many) == chosen
