from __future__ import annotations

import random
from dataclasses import replace

from membership_harness import peer_id, record_of, sign

from peerlm.membership.address_book import AddressBook
from peerlm.membership.heal import Healer
from peerlm.membership.member import Member, State, from_alive
from peerlm.membership.profile import LAN
from peerlm.types import Instant, PeerId

OWN = "tcp://h0:7700"
START = Instant(1_000_000.0)


def healer() -> Healer:
    return Healer(LAN, random.Random(3), START)


def scene(*states: State) -> tuple[dict[PeerId, Member], AddressBook]:
    """Members 1, 2, … in these states, all in the book."""
    book, members = AddressBook(), {}
    for number, state in enumerate(states, 1):
        record = record_of(number, left=state is State.LEFT)
        member = replace(from_alive(record, sign(record), START), state=state)
        book.note(record, member.alive, START)
        members[member.peer] = member
    return members, book


def attempts(
    h: Healer, members: dict[PeerId, Member], book: AddressBook, seconds: int
) -> list[str]:
    tried: list[str] = []
    for second in range(seconds):
        tried += h.wake(Instant(START + second), members, book, OWN)
    return tried


def test_only_the_dead_and_the_unknown_are_tried() -> None:
    members, book = scene(State.ALIVE, State.DEAD, State.LEFT, State.SUSPECT)
    stranger = record_of(9)
    book.note(stranger, sign(stranger), START)
    book.seeds = ("tcp://h1:7700", "tcp://h8:7700", OWN)
    tried = attempts(healer(), members, book, 600)
    assert sorted(set(tried)) == ["tcp://h2:7700", "tcp://h8:7700", "tcp://h9:7700"]


def test_the_whole_swarm_makes_about_three_attempts_an_interval() -> None:
    members, book = scene(State.DEAD, *[State.ALIVE] * 19)
    tried = attempts(healer(), members, book, 20_000)
    assert 0.10 < len(tried) / 2000 < 0.20  # 3 / 20 each, per interval of 10 s


def test_a_seed_name_is_not_tried_while_who_answers_there_is_alive() -> None:
    members, book = scene(State.ALIVE)
    book.seeds = ("tcp://seed.example:7700",)
    h = healer()
    assert attempts(h, members, book, 200)
    h.answered("tcp://seed.example:7700", peer_id(1))
    assert not attempts(h, members, book, 200)


def test_who_is_alone_tries_every_address_at_once_and_then_ever_more_slowly() -> None:
    members, book = scene(*[State.DEAD] * 5, State.LEFT)
    book.seeds = ("tcp://seed:7700", OWN)
    h = healer()
    tried = attempts(h, members, book, 4)
    assert tried[0] == "tcp://seed:7700"
    assert len(set(tried)) == len(tried) == 7
    per_hour = len(attempts(h, members, book, 3600)) / 7
    assert 35 < per_hour < 60  # a pass of three tries at most 30 s apart


def test_addresses_dead_for_a_day_are_left_to_the_lonely() -> None:
    members, book = scene(State.ALIVE)
    ancient = record_of(7)
    book.note(ancient, sign(ancient), Instant(START - LAN.dead_retention_s - 60.0))
    assert not attempts(healer(), members, book, 600)
    assert "tcp://h7:7700" in attempts(healer(), {}, book, 5)


def test_losing_the_last_member_does_not_wait_for_the_next_interval() -> None:
    members, book = scene(State.ALIVE)
    h = healer()
    h.wake(START, members, book, OWN)
    h.lonely(Instant(START + 2.0))
    assert h.deadline() <= START + 2.0 + LAN.isolated_retry_s
