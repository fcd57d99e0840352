"""One node's membership among certified peers that say whatever they like.

What the caller checks stays checked: a record is signed by its owner. All else is garbage in any order:
verdicts on anybody by anybody, answers to questions nobody asked, digests that lie, links that come and
go. The node must keep its promises, and every message it sends must be one that a peer would read.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

from effort import some
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from membership_harness import peer_id, record_of, sign

from peerlm.effects import Effect, Introduce, Log, Send, SendFresh
from peerlm.membership.detector import RELAYS_MAX
from peerlm.membership.member import Member, State, precedence, rank_of
from peerlm.membership.membership import Membership
from peerlm.membership.profile import LAN, TEST, WAN
from peerlm.membership.rumors import COUNT_MAX, SUBJECTS_MAX
from peerlm.membership.sync import BATCHES_MAX
from peerlm.types import Instant, PeerId
from peerlm.wire.codec import decode, encode
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
    Pulse,
    Suspect,
    Sync,
)

PEERS = 7
ME = peer_id(0)
MOST = 2**62

tellers = st.integers(1, PEERS)
anybody = st.integers(0, PEERS + 2)
numbers = st.one_of(st.integers(0, 3), st.integers(0, 3), st.just(MOST), st.just(MOST - 1))
seqs = st.one_of(st.integers(0, 40), st.just(MOST))
epochs = st.one_of(st.integers(1, 3), st.integers(1, 3), st.just(MOST))


def record(number: int, epoch: int, counter: int, left: bool, host: str, port: int) -> NodeRecord:
    return NodeRecord(peer_id(number), epoch, counter, host, port, port, port, left)


hosts = st.sampled_from(["h1", "h2", "", "x" * 255, "::1", "a b\n"])
records = st.builds(
    record,
    tellers,
    epochs,
    numbers,
    st.sampled_from([False, False, True]),
    hosts,
    st.integers(0, 2),
)
verdicts = st.one_of(
    st.builds(
        lambda p, e, c, a: Suspect(peer_id(p), e, c, peer_id(a)), anybody, epochs, numbers, anybody
    ),
    st.builds(
        lambda p, e, c, a: Dead(peer_id(p), e, c, peer_id(a)), anybody, epochs, numbers, anybody
    ),
)
others = st.one_of(
    st.builds(lambda b: Pulse(b, bytes(64)), st.binary(max_size=40)),
    st.builds(lambda n: PlanNews(n, bytes(32)), numbers),
)
rumors = st.lists(st.one_of(records.map(sign), verdicts, verdicts, others), max_size=5).map(tuple)
entries = st.lists(
    st.builds(
        lambda p, e, c, s: DigestEntry(peer_id(p), e, c, s, e, c),
        anybody,
        epochs,
        numbers,
        st.integers(0, 3),
    ),
    max_size=6,
).map(tuple)


class AmongEnemies(RuleBasedStateMachine):
    @initialize(
        profile=st.sampled_from([LAN, WAN, TEST, replace(LAN, members_max=3)]),
        seed=st.integers(0, 99),
        host=st.sampled_from(["h0", ""]),
    )
    def begin(self, profile: Any, seed: int, host: str) -> None:
        self.now = Instant(100.0)
        self.last_own = (0, False, 0)
        self.before: dict[PeerId, Member] = {}
        self.ends: dict[PeerId, tuple[Any, float]] = {}
        self.slept = False
        self.forgot = profile.members_max < PEERS
        self.curves = {peer_id(n): bytes(32) for n in range(1, PEERS, 2)}
        self.node = Membership(
            replace(record_of(0), host=host),
            profile,
            random.Random(seed),
            self.now,
            sign=sign,
            curve_of=self.curves.get,
            seeds=("tcp://h1:7700", "nonsense"),
        )

    # ------------------------------------------------------------------------------ what they say

    @rule(teller=tellers, rumors=rumors, seq=seqs)
    def ping(self, teller: int, rumors: Any, seq: int) -> None:
        effects = self.say(teller, Ping(seq, rumors))
        acks = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Ack)]
        assert any(ack.seq == seq and ack.target == ME for ack in acks), "a ping without an answer"

    @rule(teller=tellers, rumors=rumors, seq=seqs, about=anybody)
    def ack(self, teller: int, rumors: Any, seq: int, about: int) -> None:
        self.say(teller, Ack(seq, peer_id(about), rumors))

    @rule(teller=tellers, rumors=rumors)
    def gossip(self, teller: int, rumors: Any) -> None:
        self.say(teller, Gossip(rumors))

    @rule(teller=tellers, seq=seqs, about=anybody)
    def ask(self, teller: int, seq: int, about: int) -> None:
        self.say(teller, PingRequest(seq, peer_id(about)))

    @rule(teller=tellers, about=anybody)
    def ask_without_end(self, teller: int, about: int) -> None:
        for seq in range(RELAYS_MAX + 20):
            self.say(teller, PingRequest(seq, peer_id(about)))

    @rule(teller=tellers, seq=seqs, about=anybody)
    def nack(self, teller: int, seq: int, about: int) -> None:
        self.say(teller, Nack(seq, peer_id(about)))

    @rule(teller=tellers, entries=entries, reply=st.booleans())
    def sync(self, teller: int, entries: Any, reply: bool) -> None:
        effects = self.say(teller, Sync(entries, reply))
        to_it = [e for e in effects if isinstance(e, Send) and e.peer == peer_id(teller)]
        assert len(to_it) <= BATCHES_MAX + 3, "a digest that draws an endless reply"

    @rule(teller=tellers, kind=st.sampled_from([Suspect, Dead]), accuser=anybody)
    def doubt_us(self, teller: int, kind: Any, accuser: int) -> None:
        """Of exactly what we are: refuted at once, unless we have left."""
        ours = self.node.us
        self.say(teller, Gossip((kind(ME, *ours.incarnation, peer_id(accuser)),)))
        if ours.state is State.ALIVE:
            assert self.node.incarnation > ours.incarnation, "a doubt of us was left standing"

    @rule(teller=tellers, epoch=st.integers(1, 3), counter=st.integers(0, 3), left=st.booleans())
    def our_past_is_ahead(self, teller: int, epoch: int, counter: int, left: bool) -> None:
        """A record that we signed before our disk was rolled back."""
        past = sign(replace(record_of(0, epoch, counter), left=left))
        self.carry(self.node.learn(past, peer_id(teller), self.now))
        rank = (epoch, left, counter)
        if self.node.us.state is State.ALIVE:
            assert rank_of(self.node.record) > rank or rank_of(self.node.record) == rank

    # ------------------------------------------------------------------------- what happens to us

    @rule(number=tellers)
    def link_up(self, number: int) -> None:
        self.carry(self.node.on_link_up(peer_id(number), self.now))

    @rule(number=tellers)
    def link_down(self, number: int) -> None:
        self.carry(self.node.on_link_down(peer_id(number), self.now))

    @rule(number=tellers)
    def expel(self, number: int) -> None:
        self.before.pop(peer_id(number), None)
        self.carry(self.node.expel(peer_id(number), self.now))

    @rule(number=anybody, address=st.sampled_from(["tcp://h1:7700", "tcp://h9:1", "nonsense"]))
    def introduced(self, number: int, address: str) -> None:
        self.node.introduced(address, peer_id(number))

    @rule(host=st.sampled_from([None, "h0", "elsewhere"]))
    def announce(self, host: str | None) -> None:
        self.carry(self.node.announce(self.now, host=host))

    @rule(subject=st.binary(max_size=3), rumor=others, sends=st.sampled_from([None, 1, 3]))
    def spread(self, subject: bytes, rumor: Any, sends: int | None) -> None:
        self.carry(self.node.spread(rumor, subject, self.now, sends_max=sends))

    @rule(seconds=st.sampled_from([0.1, 1.0, 30.0]))
    def lagged(self, seconds: float) -> None:
        self.carry(self.node.lagged(seconds, self.now))

    @precondition(lambda self: len(self.before) > 1)
    @rule()
    def leave(self) -> None:
        self.carry(self.node.leave(self.now))

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.3, 1.0, 7.0, 60.0]))
    def wake_after(self, seconds: float) -> None:
        self.now = Instant(self.now + seconds)
        self.wake()

    @rule(times=st.integers(1, 30))
    def wake_when_due(self, times: int) -> None:
        for _ in range(times):
            if math.isinf(self.node.deadline()):
                return
            self.now = Instant(max(self.now, self.node.deadline()))
            self.wake()

    # --------------------------------------------------------------------------------- promises

    @invariant()
    def it_is_sound(self) -> None:
        if hasattr(self, "node"):
            self.node.check()
            self.bounds_hold()
            self.we_never_fall()
            self.nobody_else_falls()
            self.suspicions_only_shorten()

    def we_never_fall(self) -> None:
        us = self.node.us
        assert us.state in (State.ALIVE, State.LEFT), "we believed a verdict on ourselves"
        assert rank_of(us.record) >= self.last_own, "our incarnation fell"
        assert us.alive == sign(us.record), "a record of ours that we did not sign"
        assert self.node.member(ME) is None, "we list ourselves"
        self.last_own = rank_of(us.record)

    def nobody_else_falls(self) -> None:
        members = self.node.members()
        for peer, member in members.items():
            old = self.before.get(peer)
            if old is not None and not self.forgot:
                assert precedence(member) >= precedence(old), "a member moved down"
            assert (member.state is State.LEFT) == member.record.left
        self.before = members

    def suspicions_only_shorten(self) -> None:
        """But for the time that we ourselves have slept."""
        ends = {p: (s, s.deadline()) for p, s in self.node._beliefs._suspicions.items()}
        for peer, (suspicion, end) in ends.items():
            before, ended = self.ends.get(peer, (None, math.inf))
            if before is suspicion and not self.slept:
                assert end <= ended, "an accuser made a suspicion longer"
        self.ends, self.slept = ends, False

    def bounds_hold(self) -> None:
        node, live = self.node, self.node.live_peers()
        detector, beliefs = node._detector, node._beliefs
        assert len(node._rumors) <= min(SUBJECTS_MAX, 2 * PEERS + 1 + 300)
        assert len(detector._relays) <= RELAYS_MAX
        assert len(set(detector.targets())) == len(detector.targets()) <= len(live)
        assert len(set(detector._round)) == len(detector._round) <= PEERS
        assert 0 <= detector.awareness.score < node.profile.awareness_max
        assert len(node._links) <= PEERS
        assert len(node._comparing._synced) <= PEERS
        for suspicion in beliefs._suspicions.values():
            assert 1 <= len(suspicion.accusers) <= PEERS + 1, "invented accusers count"
        assert len(node.book) <= PEERS

    # ---------------------------------------------------------------------------------- private

    def say(self, teller: int, message: Any) -> list[Effect]:
        message = decode(encode(message))  # only what can come over the wire
        heard = self.node.on_message(peer_id(teller), message, self.now)
        assert not any(isinstance(r, Alive | Suspect | Dead) for r in heard.others)
        return self.carry(heard.effects)

    def wake(self) -> None:
        self.carry(self.node.wake(self.now))
        assert self.node.deadline() > self.now, "it wants to be woken again at once, for ever"

    def carry(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            match effect:
                case Send(peer=peer, message=message):
                    assert peer != ME, "a message to ourselves"
                    self.is_readable(message)
                case SendFresh(peer=peer, host=host, control_port=port, message=message):
                    assert peer in self.curves, "a fresh connection without a key"
                    assert host
                    assert port
                    self.is_readable(message)
                case Introduce(address=address):
                    assert address
                case Log(event=event, fields=fields):
                    self.slept |= event == "overslept"
                    assert all(len(str(value)) < 200 for _, value in fields)
                case _:
                    raise AssertionError(f"membership asks for {effect}")
        assert len(effects) <= 2 * PEERS + BATCHES_MAX + 20
        return effects

    def is_readable(self, message: Message) -> None:
        data = encode(message)
        assert len(data) < 64 * 1024, f"a message of {len(data)} bytes"
        assert decode(data) == message, "a message that a peer would not read"
        if isinstance(message, Gossip | Ping | Ack):
            assert len(message.rumors) <= COUNT_MAX + 1


TestAmongEnemies = AmongEnemies.TestCase
TestAmongEnemies.settings = some(60, 50)
