from __future__ import annotations

import random
from dataclasses import replace

import pytest
from membership_harness import peer_id, record_of, sign

from peerlm.membership.member import Member, State, from_alive
from peerlm.membership.profile import LAN
from peerlm.membership.sync import NoVitals, digest, in_batches, interval_s, newer_than
from peerlm.types import Instant, PeerId
from peerlm.wire.codec import decode, encode
from peerlm.wire.message import Alive, Pulse, Suspect, Sync

ME = peer_id(0)


def held(number: int, state: State = State.ALIVE, epoch: int = 1, counter: int = 0) -> Member:
    record = record_of(number, epoch, counter, left=state is State.LEFT)
    return replace(from_alive(record, sign(record), Instant(0.0)), state=state)


class Shelf(NoVitals):
    def version_of(self, peer: PeerId) -> tuple[int, int]:
        return (3, 5)

    def pulses_since(self, peer: PeerId, epoch: int, version: int) -> list[Pulse]:
        return [Pulse(peer + bytes([epoch, version]), bytes(64))]


def reply_to(theirs: list[Member], ours: list[Member]) -> list[object]:
    entries = {PeerId(e.peer): e for e in digest(theirs, NoVitals())}
    return list(newer_than(entries, ours, NoVitals(), ME))


def test_what_they_lack_or_hold_older_goes_with_its_proof() -> None:
    same, newer, unknown = held(1), held(2, counter=4), held(3)
    reply = reply_to([same, held(2)], [same, newer, unknown])
    assert sorted(reply, key=repr) == sorted([newer.alive, unknown.alive], key=repr)


def test_a_death_is_told_as_a_doubt_and_not_to_those_who_never_knew_the_dead() -> None:
    dead = held(1, State.DEAD, counter=2)
    assert reply_to([], [dead]) == []
    assert reply_to([held(1)], [dead]) == [dead.alive, Suspect(peer_id(1), 1, 2, ME)]


def test_a_goodbye_is_told_to_who_still_counts_on_the_node() -> None:
    left = held(1, State.LEFT, counter=1)
    assert reply_to([held(1)], [left]) == [left.alive]
    assert reply_to([left], [left]) == []


def test_newer_vitals_travel_with_it() -> None:
    entries = {
        PeerId(e.peer): replace(e, vitals_epoch=3, vitals_version=4)
        for e in digest([held(1)], NoVitals())
    }
    assert newer_than(entries, [held(1)], Shelf(), ME) == [Pulse(peer_id(1) + b"\3\4", bytes(64))]
    entries = {p: replace(e, vitals_version=5) for p, e in entries.items()}
    assert newer_than(entries, [held(1)], Shelf(), ME) == []


def test_a_table_of_4096_fits_one_digest_and_replies_come_in_bounded_messages() -> None:
    members = [held(i) for i in range(4096)]
    message = Sync(digest(members, Shelf()), reply=True)
    assert decode(encode(message)) == message
    chain = (bytes(700),) * 3
    batches = in_batches([Alive(m.alive.record, m.alive.signature, chain) for m in members[:400]])
    assert max(len(encode(batch)) for batch in batches) <= 65_536
    assert sum(len(batch.rumors) for batch in batches) == 400


@pytest.mark.parametrize(("n", "stretch"), [(3, 1), (32, 1), (33, 2), (64, 2), (1000, 6)])
def test_large_swarms_compare_tables_less_often(n: int, stretch: int) -> None:
    times = [interval_s(LAN, n, random.Random(i)) for i in range(200)]
    assert min(times) >= 24.0 * stretch
    assert max(times) <= 36.0 * stretch
    assert max(times) - min(times) > 9.0 * stretch
