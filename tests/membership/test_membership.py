"""One node's membership, told things by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest
from membership_harness import peer_id, record_of, sign

from peerlm.effects import Effect, Introduce, Send, SendFresh
from peerlm.membership.address_book import read_book
from peerlm.membership.member import State, from_alive
from peerlm.membership.membership import Membership
from peerlm.membership.profile import LAN
from peerlm.types import Instant, PeerId, WallTime
from peerlm.wire.codec import decode_as
from peerlm.wire.message import (
    Ack,
    Alive,
    Dead,
    DigestEntry,
    Gossip,
    Message,
    Nack,
    NodeRecord,
    Ping,
    PingRequest,
    PlanNews,
    Suspect,
    Sync,
)

ME, B, C, D = (peer_id(i) for i in range(4))
T0 = Instant(50.0)


def alone(seed: int = 5, **settings: Any) -> Membership:
    return Membership(
        record_of(0),
        LAN,
        random.Random(seed),
        T0,
        sign=sign,
        curve_of=lambda peer: bytes(32),
        **settings,
    )


def among(*numbers: int) -> Membership:
    """With these members alive and linked, everything said that there was to say."""
    node = alone()
    for number in numbers:
        node.learn(sign(record_of(number)), peer_id(number), T0)
        node.on_link_up(peer_id(number), T0)
    node.changes()
    return node


def sent(effects: list[Effect], peer: PeerId, kind: type[Message]) -> list[Any]:
    return [
        e.message
        for e in effects
        if isinstance(e, Send) and e.peer == peer and isinstance(e.message, kind)
    ]


def state_of(node: Membership, peer: PeerId) -> State | None:
    node.check()
    member = node.member(peer)
    return None if member is None else member.state


def awareness_of(node: Membership) -> int:
    """How unwell it thinks itself; 0 is well."""
    return node._detector.awareness.score


def counter_of(alive: Alive) -> int:
    return decode_as(NodeRecord, alive.record).counter


def entry(peer: PeerId, state: State, counter: int = 0) -> DigestEntry:
    return DigestEntry(peer, 1, counter, int(state), 0, 0)


def test_a_new_node_asks_at_its_seeds_at_once() -> None:
    assert Introduce("tcp://h9:7700") in alone(seeds=("tcp://h9:7700",)).wake(T0)


def test_a_doubt_of_us_is_refuted_at_once_to_everyone_linked() -> None:
    node = among(1, 2)
    effects = node.on_message(B, Gossip((Suspect(ME, 1, 0, C),)), T0).effects
    for peer in (B, C):
        [gossip] = sent(effects, peer, Gossip)
        assert counter_of(gossip.rumors[0]) == 1
    assert node.incarnation == (1, 1)
    assert awareness_of(node) == 1


@pytest.mark.parametrize("doubt", [Suspect(ME, 1, 7, C), Dead(ME, 0, 9, C), Dead(ME, 2, 0, C)])
def test_a_doubt_of_an_incarnation_we_are_not_moves_nothing(doubt: Suspect | Dead) -> None:
    node = among(1)
    node.learn(doubt, B, T0)
    assert node.incarnation == (1, 0)


def test_who_still_doubts_an_earlier_incarnation_hears_what_we_are() -> None:
    node = among(1, 2)
    node.announce(T0)
    [answer] = sent(node.learn(Dead(ME, 1, 0, B), B, T0), B, Gossip)
    assert counter_of(answer.rumors[0]) == 1
    assert node.learn(Dead(ME, 1, 0, C), B, T0) == [], "hearsay: its accuser will learn by gossip"
    node.on_link_down(B, T0)
    [effect] = node.learn(Dead(ME, 1, 0, B), B, T0)
    assert isinstance(effect, SendFresh), "who holds us dead has closed the link"


def test_our_own_signed_past_ahead_of_us_is_outdone() -> None:
    node = among(1)
    node.learn(sign(record_of(0, epoch=4, counter=6)), B, T0)
    assert node.incarnation == (4, 7)
    node.learn(sign(record_of(0, epoch=4, counter=9, left=True)), B, T0)
    assert node.incarnation == (5, 0)
    assert not node.record.left


def test_an_accusation_without_the_signed_record_is_ignored() -> None:
    node = among(1, 2)
    node.learn(Dead(B, 1, 3, C), C, T0)
    node.learn(Suspect(B, 2, 0, C), C, T0)
    assert state_of(node, B) is State.ALIVE


def test_in_one_message_records_are_read_before_doubts_of_them() -> None:
    node = among(2)
    rumors = (Suspect(B, 1, 4, C), sign(record_of(1, counter=4)))
    node.on_message(C, Gossip(rumors), T0)
    assert state_of(node, B) is State.SUSPECT


def test_invented_accusers_do_not_shorten_a_suspicion() -> None:
    node = among(1, 2, 3, 4)
    node.learn(Suspect(B, 1, 0, C), C, T0)
    for number in range(40, 50):
        node.learn(Suspect(B, 1, 0, peer_id(number)), C, T0)
    node.wake(Instant(T0 + 6.0))
    assert state_of(node, B) is State.SUSPECT


def test_a_suspicion_runs_out_and_a_later_record_raises_the_dead() -> None:
    node = among(1)
    node.learn(Suspect(B, 1, 0, ME), B, T0)
    now = T0
    while node.deadline() < T0 + 4.7:
        now = node.deadline()
        node.wake(now)
    assert state_of(node, B) is State.DEAD
    assert node.live_peers() == ()
    node.learn(sign(record_of(1)), B, now)
    assert state_of(node, B) is State.DEAD
    node.learn(sign(record_of(1, counter=1)), B, now)
    assert state_of(node, B) is State.ALIVE
    assert [c.new for c in node.changes()] == [State.SUSPECT, State.DEAD, State.ALIVE]


def test_changes_say_who_restarted() -> None:
    node = among(1)
    node.learn(sign(record_of(1, epoch=2)), B, T0)
    [change] = node.changes()
    assert change.restarted
    assert (change.old, change.new) == (State.ALIVE, State.ALIVE)


def test_a_link_that_goes_down_is_a_hint_and_no_verdict() -> None:
    node = among(1, 2)
    effects = node.on_link_down(B, T0)
    [probe] = [e for e in effects if isinstance(e, SendFresh)]
    assert (probe.peer, probe.host, probe.control_port) == (B, "h1", 7701)
    assert state_of(node, B) is State.ALIVE
    assert isinstance(probe.message, Ping)
    node.on_message(B, Ack(probe.message.seq, B, ()), T0)
    assert state_of(node, B) is State.ALIVE


@pytest.mark.parametrize("verdict", [Suspect, Dead])
def test_who_is_doubted_hears_it_with_the_next_answer(verdict: type[Suspect] | type[Dead]) -> None:
    node = among(1, 2)
    node.learn(verdict(B, 1, 0, C), C, T0)
    [ack] = sent(node.on_message(B, Ping(9, ()), T0).effects, B, Ack)
    assert ack.seq == 9
    assert ack.rumors[0] == verdict(B, 1, 0, ME)


def test_rumors_of_other_rooms_are_handed_back_unread() -> None:
    node = among(1)
    news = PlanNews(3, bytes(32))
    heard = node.on_message(B, Gossip((news, Suspect(ME, 1, 0, B))), T0)
    assert heard.others == [news]
    assert node.incarnation == (1, 1)


def test_what_other_rooms_spread_rides_along_but_not_back_to_the_teller() -> None:
    node = among(1, 2)
    node.wake(T0)
    news = PlanNews(3, bytes(32))
    node.spread(news, b"plan", T0, teller=B)
    [to_b] = sent(node.on_message(B, Ping(1, ()), T0).effects, B, Ack)
    [to_c] = sent(node.on_message(C, Ping(1, ()), T0).effects, C, Ack)
    assert news not in to_b.rumors
    assert news in to_c.rumors


def test_we_probe_for_others_and_answer_for_ourselves() -> None:
    node = among(1, 2)
    effects = node.on_message(C, PingRequest(5, B), T0).effects
    [ping] = sent(effects, B, Ping)
    assert sent(node.on_message(B, Ack(ping.seq, B, ()), T0).effects, C, Ack)[0].target == B
    assert sent(node.on_message(C, PingRequest(6, ME), T0).effects, C, Ack)[0].seq == 6
    assert sent(node.on_message(C, PingRequest(7, D), T0).effects, C, Nack)[0].seq == 7


def test_a_new_link_compares_tables() -> None:
    node = among(1)
    [ask] = sent(node.on_link_up(C, T0), C, Sync)
    assert not ask.reply
    assert [e.peer for e in ask.entries] == sorted([ME, B])
    effects = node.on_message(C, Sync((), reply=True), T0).effects
    [gossip] = sent(effects, C, Gossip)
    assert {decode_as(NodeRecord, a.record).peer for a in gossip.rumors} == {ME, B}
    assert not sent(effects, C, Sync)


def test_a_newcomer_compares_tables_again_and_again_and_then_as_rarely_as_all() -> None:
    node = among(1)
    asked = []
    while (now := node.deadline()) < T0 + 300.0:
        effects = node.wake(now)
        asked += [now - T0 for _ in sent(effects, B, Sync)]
        for ping in sent(effects, B, Ping):
            node.on_message(B, Ack(ping.seq, B, ()), now)
    waits = [later - sooner for sooner, later in zip([0.0, *asked], asked, strict=False)]
    least = (1, 2, 4, 8, 16)
    assert all(low <= wait <= 2 * low for low, wait in zip(least, waits, strict=False)), waits
    usual = waits[len(least) :]
    assert len(usual) >= 5
    assert all(24.0 <= wait <= 36.0 for wait in usual)


def test_who_waited_alone_for_the_first_other_compares_tables_as_soon() -> None:
    node = alone()
    while (now := node.deadline()) < T0 + 600.0:
        node.wake(now)
    met = Instant(T0 + 600.0)
    node.learn(sign(record_of(1)), B, met)
    node.on_link_up(B, met)
    asked: list[Message] = []
    while (now := node.deadline()) < met + 2.1:
        asked += sent(node.wake(now), B, Sync)
    assert len(asked) == 1


def test_a_stale_table_raises_doubts_and_kills_nobody() -> None:
    node = among(1, 2)
    digest = Sync((entry(B, State.DEAD), entry(ME, State.DEAD)), reply=False)
    effects = node.on_message(C, digest, T0).effects
    assert state_of(node, B) is State.SUSPECT
    assert node.incarnation == (1, 1), "we refute what a table says of us"
    assert sent(effects, C, Sync)[0].reply


def test_leaving_is_told_to_all_at_once_and_ends_probing() -> None:
    node = among(1, 2)
    effects = node.leave(T0)
    for peer in (B, C):
        record = decode_as(NodeRecord, sent(effects, peer, Gossip)[0].rumors[0].record)
        assert record.left
    assert node.leave(T0) == []
    node.learn(Suspect(ME, 1, 1, B), B, T0)
    assert node.record.left
    now = T0
    for _ in range(40):
        if node.goodbye_spread:
            break
        now = node.deadline()
        assert not [e for e in node.wake(now) if isinstance(getattr(e, "message", None), Ping)]
    assert node.goodbye_spread
    assert now - T0 < 5.0


def test_a_goodbye_nobody_can_hear_is_spread() -> None:
    node = alone()
    assert not node.goodbye_spread
    node.leave(T0)
    assert node.goodbye_spread


def test_a_changed_address_is_a_later_record() -> None:
    node = among(1)
    [gossip] = sent(node.announce(T0, host="10.0.0.9"), B, Gossip)
    record = decode_as(NodeRecord, gossip.rumors[0].record)
    assert (record.host, record.counter, record.bulk_port) == ("10.0.0.9", 1, 7702)


def test_only_later_records_are_news() -> None:
    node = among(1)
    assert not node.is_news(sign(record_of(1)))
    assert node.is_news(sign(record_of(1, counter=1)))
    assert node.is_news(sign(record_of(2)))
    assert not node.is_news(sign(record_of(0)))
    assert not node.is_news(Alive(b"junk", bytes(64), ()))


def test_the_expelled_are_gone_and_shown_as_dead() -> None:
    node = among(1, 2)
    node.expel(B, T0)
    assert state_of(node, B) is None
    assert [c.new for c in node.changes()] == [State.DEAD]
    assert node.book.get(B) is None
    assert b"h1" not in node.book_bytes(T0, WallTime(0.0))


def test_a_frozen_node_moves_its_own_deadlines() -> None:
    node = among(1)
    node.learn(Suspect(B, 1, 0, ME), B, T0)
    late = Instant(T0 + 60.0)
    node.wake(late)
    assert state_of(node, B) is State.SUSPECT
    assert awareness_of(node) == 1
    node.lagged(60.0, late)
    assert awareness_of(node) == 1, "the same sleep does not count twice"


def test_lag_that_the_driver_saw_counts_where_our_clock_did_not_show_it() -> None:
    node = among(1)
    now = T0
    while now < T0 + 20.0:
        for effect in node.wake(now):
            if isinstance(effect, Send) and isinstance(effect.message, Ping):
                node.on_message(effect.peer, Ack(effect.message.seq, effect.peer, ()), now)
        now = node.deadline()
    node.learn(Suspect(B, 1, 0, ME), B, now)
    node.lagged(3.0, now)
    assert awareness_of(node) == 1
    accused_at = now
    while state_of(node, B) is State.SUSPECT:
        now = node.deadline()
        node.wake(now)
    assert now - accused_at == pytest.approx(7.6), "the suspicion and the 3 s we were deaf"


def test_the_book_outlives_the_table() -> None:
    node = among(1, 2)
    book, note = read_book(node.book_bytes(T0, WallTime(1e9)), Instant(0.0), WallTime(1e9))
    assert note == ""
    again = alone(book=book)
    tried = [e.address for e in again.wake(T0) if isinstance(e, Introduce)]
    assert sorted(tried) == ["tcp://h1:7700", "tcp://h2:7700"]


def test_of_a_large_swarm_some_ask_a_suspect_and_they_may_judge_early() -> None:
    swarm = {peer_id(n): from_alive(record_of(n), sign(record_of(n)), T0) for n in range(200)}
    asked = 0
    for seed in range(100):
        node = alone(seed=seed)
        node.remember(swarm, T0)
        effects = node.learn(Suspect(B, 1, 0, C), C, T0)
        pings = [e for e in effects if isinstance(e, SendFresh) and e.peer == B]
        asked += len(pings)
        for ping in pings:
            assert isinstance(ping.message, Ping)
            assert ping.message.rumors[0] == Suspect(B, 1, 0, ME), "it hears that it is doubted"
    assert 2 <= asked <= 12  # 12 of 199


def test_among_members_it_is_taken_to_have_met_a_node_has_nothing_to_tell() -> None:
    swarm = {peer_id(n): from_alive(record_of(n), sign(record_of(n)), T0) for n in range(8)}
    node, other = alone(), alone()
    for one in (node, other):
        one.remember(swarm, T0)
        one.audit()
    assert node.live_peers() == tuple(sorted(peer for peer in swarm if peer != ME))
    assert node.changes() == []
    assert node.member(B) is other.member(B)
    assert len(node.book) == 7
    [effect] = node.on_link_up(B, T0)
    assert isinstance(effect, Send)
    assert isinstance(effect.message, Sync)
    back = other.on_message(B, effect.message, T0).effects
    assert [type(e.message) for e in back if isinstance(e, Send)] == [Sync], "tables are equal"


def test_an_audit_finds_what_checks_of_changes_cannot() -> None:
    node = among(1, 2, 3)
    node.check()
    node._table.n_live -= 1
    node.check()
    with pytest.raises(AssertionError, match="live count"):
        node.audit()
