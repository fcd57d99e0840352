"""Exchanges on a network that loses, delays, doubles and reorders, with drivers that fail, and a peer
that makes up requests, answers and goodbyes of its own, in whatever it can see of the ids in use."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from effort import some
from exchange_pool import PLAN_HASH, SIZES, Pool, peer_id
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from peerlm.effects import RunExchange, Send, ServeExchange
from peerlm.mix.codec import encoded_size
from peerlm.mix.exchange import REPLY_MEMORY
from peerlm.mix.outcomes import REASONS_MAX
from peerlm.types import FragmentId, Instant, PeerId
from peerlm.wire.codec import decode, encode
from peerlm.wire.message import ExchangeAnswer, ExchangeDone, ExchangeRequest, Message

ENEMY = peer_id(9)
sites, picks, fragments = st.integers(1, 3), st.integers(0, 200), st.integers(0, 1)
words = st.sampled_from(["accept", "accept", "busy", "refuse", "", "acc"])
reasons = st.sampled_from(
    ["", "frozen", "norm: you are behind", "norm: x", "malformed: y", "z" * 400]
)


class Marketplace(RuleBasedStateMachine):
    @initialize(
        n=st.integers(2, 3),
        seed=st.integers(0, 1000),
        sampler=st.sampled_from(["uniform", "matching"]),
        mixes=st.sampled_from(["outer_mix", "outer_mix", "dgd"]),
    )
    def begin(self, n: int, seed: int, sampler: str, mixes: str) -> None:
        changes = {"mix.sampler": sampler, "mix.algorithm": mixes}
        self.pool, self.n = Pool(n, seed, **changes), n
        self.pool.peers = (*self.pool.peers, ENEMY)  # whom the others ask too
        self.ids: list[bytes] = [bytes(16)]

    # ---------------------------------------------------------------------------- honest business

    @rule(number=sites, fragment=fragments, count=st.integers(1, 3))
    def start(self, number: int, fragment: int, count: int) -> None:
        self.pool.start(self.at(number), fragment, count)
        self.post()

    @precondition(lambda self: self.pool.mail)
    @rule(pick=picks, twice=st.booleans())
    def deliver(self, pick: int, twice: bool) -> None:
        self.pool.deliver(pick % len(self.pool.mail), keep=twice)
        self.post()

    @precondition(lambda self: self.pool.mail)
    @rule(pick=picks)
    def lose(self, pick: int) -> None:
        self.pool.mail.pop(pick % len(self.pool.mail))

    @precondition(lambda self: self.running())
    @rule(
        pick=picks,
        outcome=st.sampled_from(["ok", "ok", "lost", "refused", "cancelled", "forgotten"]),
        reason=reasons,
    )
    def driver(self, pick: int, outcome: str, reason: str) -> None:
        running = self.running()
        me, transfer = running[pick % len(running)]
        if outcome == "forgotten":
            del self.pool.sites[me].running[transfer]
        else:
            self.pool.finish(me, transfer, outcome, reason)
        self.post()

    @rule(seconds=st.sampled_from([0.01, 0.2, 1.0, 4.0, 40.0]))
    def pass_time(self, seconds: float) -> None:
        self.pool.pass_time(seconds)
        self.post()

    @rule(number=sites, other=st.integers(1, 9))
    def peer_gone(self, number: int, other: int) -> None:
        me, peer = peer_id(self.at(number)), peer_id(other)
        if me != peer:
            machine = self.pool.sites[me].machine
            self.pool.carry(me, machine.peer_gone(peer, Instant(self.pool.now)))
            self.post()

    @rule(number=sites, thaw=st.booleans(), settling=st.booleans())
    def freeze(self, number: int, thaw: bool, settling: bool) -> None:
        me = peer_id(self.at(number))
        machine = self.pool.sites[me].machine
        self.pool.carry(me, machine.freeze(Instant(self.pool.now)))
        machine.standing.frozen, machine.standing.settling = not thaw, settling
        self.post()

    @rule(number=sites, other=sites)
    def unreachable(self, number: int, other: int) -> None:
        self.pool.unreachable ^= {peer_id(self.at(other))}

    # ------------------------------------------------------------------------------- made-up words

    @rule(
        number=sites,
        sender=st.integers(1, 9),
        pick=picks,
        fragment=st.integers(0, 3),
        codecs=st.sampled_from([("int8", "int4"), ("fp32", "fp32"), ("int4", "int4"), ("x", "")]),
        wrong=st.booleans(),
        version=st.sampled_from([0, 1, 2**62]),
        ramp=st.sampled_from([0.0, 0.5, 1.0]),
    )
    def made_up_request(
        self,
        number: int,
        sender: int,
        pick: int,
        fragment: int,
        codecs: tuple[str, str],
        wrong: bool,
        version: int,
        ramp: float,
    ) -> None:
        fits = codecs[0] != "x" and fragment < len(SIZES) and not wrong
        request = ExchangeRequest(
            transfer=self.some_id(pick),
            plan_hash=PLAN_HASH if version else bytes(32),
            fragment=fragment,
            version=version,
            codec_request=codecs[0],
            codec_reply=codecs[1],
            request_bytes=encoded_size(codecs[0], SIZES[fragment]) if fits else pick,
            ramp=ramp,
            key_up=bytes(32),
            key_down=bytes(32),
        )
        self.hand(number, sender, request)

    @rule(number=sites, sender=st.integers(1, 9), pick=picks, verdict=words, reason=reasons)
    def made_up_answer(
        self, number: int, sender: int, pick: int, verdict: str, reason: str
    ) -> None:
        self.hand(number, sender, ExchangeAnswer(self.some_id(pick), verdict, reason, 0.5))

    @rule(number=sites, sender=st.integers(1, 9), pick=picks, applied=st.booleans())
    def made_up_done(self, number: int, sender: int, pick: int, applied: bool) -> None:
        self.hand(number, sender, ExchangeDone(self.some_id(pick), applied))

    @rule(number=sites, fragment=fragments)
    def flood(self, number: int, fragment: int) -> None:
        """More requests than anybody honest makes, each with an id of its own."""
        for count in range(60):
            transfer = count.to_bytes(8, "big") + len(self.ids).to_bytes(8, "big")
            size = encoded_size("int8", SIZES[fragment])
            request = ExchangeRequest(
                transfer, PLAN_HASH, fragment, 1, "int8", "int4", size, 1.0, bytes(32), bytes(32)
            )
            self.hand(number, 9, request)

    # --------------------------------------------------------------------------------- promises

    @invariant()
    def promises_hold(self) -> None:
        for site in self.pool.sites.values() if hasattr(self, "pool") else ():
            machine = site.machine
            machine.check()
            at_work = [e.fragment for e in site.running.values()]
            assert len(at_work) == len(set(at_work)), "two exchanges on one fragment"
            for kind in (RunExchange, ServeExchange):
                seen = Counter(e.transfer for e in site.effects if isinstance(e, kind))
                assert not [t for t, times in seen.items() if times > 1], "one id, two effects"
            assert len(machine._initiated) + len(machine._served) <= 2 * len(SIZES)
            assert len(machine._answered) <= REPLY_MEMORY
            assert len(machine.outcomes.totals().reasons) <= REASONS_MAX + 1
            assert machine.outcomes.distance() is None or machine.outcomes.distance() >= 0

    def teardown(self) -> None:
        """Nobody says a word any more, every driver has forgotten everything: in the end each lock
        is free, by deadlines alone."""
        if not hasattr(self, "pool"):
            return
        for _ in range(40):
            self.pool.mail.clear()
            for site in self.pool.sites.values():
                site.running.clear()
            self.pool.pass_time(10.0)
        assert self.pool.locked() == []
        assert not any(site.machine.deadline() for site in self.pool.sites.values())

    # ---------------------------------------------------------------------------------- private

    def at(self, number: int) -> int:
        return 1 + number % self.n

    def running(self) -> list[tuple[PeerId, Any]]:
        return [(s.me, t) for s in self.pool.sites.values() for t in s.running]

    def some_id(self, pick: int) -> bytes:
        return self.ids[-1 - pick % len(self.ids)]

    def hand(self, number: int, sender: int, message: Message) -> None:
        me = peer_id(self.at(number))
        if peer_id(sender) == me:
            return
        message = decode(encode(message))
        machine, now = self.pool.sites[me].machine, Instant(self.pool.now)
        match message:
            case ExchangeRequest():
                effects = machine.on_request(peer_id(sender), message, now)
            case ExchangeAnswer():
                effects = machine.on_answer(peer_id(sender), message, now)
            case ExchangeDone():
                effects = machine.on_done(peer_id(sender), message, now)
            case _:
                raise AssertionError(message)
        assert len(effects) <= 4, "one message, many effects"
        self.pool.carry(me, effects)
        self.post()

    def post(self) -> None:
        """Whatever is sent can be read; what goes to the enemy tells it the ids in use."""
        kept = []
        for sender, to, message in self.pool.mail:
            assert decode(encode(message)) == message, "a message that a peer would not read"
            transfer = message.transfer  # type: ignore[attr-defined]
            if transfer not in self.ids[-30:]:
                self.ids.append(transfer)
            if to in self.pool.sites:
                kept.append((sender, to, message))
        self.pool.mail = kept[-60:]
        for site in self.pool.sites.values():
            due = site.machine.deadline()
            if due is not None and due <= self.pool.now:
                self.pool.carry(site.me, site.machine.wake(Instant(self.pool.now)))
                again = site.machine.deadline()
                assert again is None or again > self.pool.now, "woken again at once, for ever"


TestMarketplace = Marketplace.TestCase
TestMarketplace.settings = some(60, 40)


def test_a_repeated_request_never_has_a_second_effect() -> None:
    """Also after its exchange has ended well, was cancelled, or has been forgotten by time."""
    for ending in ("ok", "lost", "done", "wait"):
        pool = Pool(2)
        pool.start(1)
        [(sender, to, request)] = pool.mail
        pool.deliver()
        site = pool.sites[to]
        [transfer] = site.running
        now = Instant(pool.now)
        if ending == "done":
            pool.carry(to, site.machine.on_done(sender, ExchangeDone(transfer, False), now))
        elif ending == "wait":
            site.running.clear()
            pool.pass_time(60.0)
        else:
            pool.finish(to, transfer, ending)
        before = [e for e in site.effects if isinstance(e, ServeExchange)]
        for later in (0.0, 20.0, 45.0):
            pool.now += later
            again = site.machine.on_request(sender, request, Instant(pool.now))  # type: ignore[arg-type]
            assert [type(e) for e in again] == [Send]
        assert [e for e in site.effects if isinstance(e, ServeExchange)] == before


def test_nothing_in_a_request_is_believed_unseen() -> None:
    pool = Pool(2)
    pool.start(1)
    [(sender, to, request)] = pool.mail
    machine = pool.sites[to].machine
    for change in ({"fragment": 999_999}, {"codec_request": "int4"}, {"request_bytes": 2**28}):
        bad = dataclasses.replace(request, transfer=bytes(16), **change)  # type: ignore[type-var]
        [effect] = machine.on_request(sender, bad, Instant(0.0))  # type: ignore[arg-type]
        assert isinstance(effect, Send)
        assert isinstance(effect.message, ExchangeAnswer)
        assert effect.message.verdict == "refuse"
        assert not machine.is_busy(FragmentId(0))
