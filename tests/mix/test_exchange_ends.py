"""Scenes of how exchanges end and what they teach, and a search for any order of events that breaks
the promise that each of them ends."""

from __future__ import annotations

from typing import Any

import pytest
from exchange_pool import Pool, answers, peer_id, the_request
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from peerlm.effects import CancelTransfer, Log
from peerlm.swarm.sampler import MAKERS
from peerlm.types import FragmentId, Instant
from peerlm.wire.message import ExchangeRequest

# -------------------------------------------------------------------------------- ends of all kinds


def test_a_lost_reply_is_counted_and_tried_elsewhere() -> None:
    pool = Pool(3)
    pool.start(1)
    pool.deliver_all()
    (transfer,) = pool.site(1).running
    pool.complete(transfer, reply_lost=True)
    assert pool.site(1).machine.outcomes.totals().timed_out == 1
    pool.complete_all()
    assert pool.site(1).machine.outcomes.totals().initiated_ok == 1
    assert pool.locked() == []


def test_a_reply_that_fails_a_gate_excludes_its_sender() -> None:
    pool = Pool(2)
    pool.start(1)
    pool.deliver_all()
    (transfer,) = pool.site(1).running
    pool.finish(peer_id(1), transfer, "refused", "not finite")
    pool.complete_all()
    pool.pass_time(2.0)
    pool.start(1)
    assert pool.mail == []
    pool.start(2)
    assert answers(pool.deliver()) == [("refuse", "excluded")]
    pool.mail.clear()
    pool.pass_time(700.0)
    pool.mail.clear()
    pool.start(1)
    assert pool.mail


@pytest.mark.parametrize("sampler", ["ring", "matching", "uniform"])
def test_who_is_excluded_by_its_partner_asks_another_and_not_that_one_for_a_minute(
    sampler: str,
) -> None:
    pool = Pool(4, **{"mix.sampler": sampler})
    pool.start(1)
    ((_, first, _),) = pool.mail
    pool.sites[first].machine.outcomes.scores.refused(peer_id(1), Instant(pool.now))
    assert answers(pool.deliver()) == [("refuse", "excluded")]
    pool.deliver()  # the refusal; it asks somebody else at once
    asked = [to for _, to, message in pool.mail if isinstance(message, ExchangeRequest)]
    pool.complete_all()
    for _ in range(20):
        pool.pass_time(2.0)
        pool.start(1)
        asked += [to for sender, to, _ in pool.mail if sender == peer_id(1)]
        pool.complete_all()
    assert len(asked) >= 20
    assert first not in asked
    assert pool.site(1).machine.outcomes.totals().initiated_ok >= 15


@pytest.mark.parametrize("settling", [False, True])
def test_a_stranger_is_excluded_but_not_while_settling(settling: bool) -> None:
    pool = Pool(5)
    site, stranger = pool.site(1), peer_id(5)
    for _ in range(6):
        for number in (2, 3, 4, 5):
            mix_with_first(pool, number, raw_norm=0.1)
    site.machine.standing.settling = settling
    told: list[Any] = []
    for _ in range(4):
        assert not site.machine.outcomes.scores.excluded(stranger, Instant(pool.now))
        told += mix_with_first(pool, 5, raw_norm=1.0)
        mix_with_first(pool, 2, raw_norm=0.1)
    assert site.machine.outcomes.scores.excluded(stranger, Instant(pool.now)) is not settling
    assert [e.event for e in told if isinstance(e, Log)] == ["stranger_excluded"] * (not settling)


def mix_with_first(pool: Pool, number: int, raw_norm: float) -> list[Any]:
    """Node `number` asks node 1, and both find a difference of `raw_norm`."""
    machine, partners = pool.site(number).machine, (peer_id(1),)
    pool.carry(peer_id(number), machine.start(FragmentId(0), partners, Instant(pool.now)))
    pool.deliver_all()
    (transfer,) = pool.site(1).running
    told = pool.finish(peer_id(1), transfer, "ok", raw_norm=raw_norm)
    pool.finish(peer_id(number), transfer, "ok", raw_norm=raw_norm)
    pool.deliver_all()
    pool.pass_time(1.0)
    return told


def test_tensors_that_fail_a_gate_are_told_to_the_initiator_at_once() -> None:
    pool = Pool(3)
    pool.start(1)
    first = pool.mail[0][1]
    pool.deliver_all()
    (transfer,) = pool.site(1).running
    pool.finish(first, transfer, "refused", "not finite")
    effects = pool.deliver()
    assert CancelTransfer(transfer) in effects
    assert pool.site(1).machine.outcomes.totals().reasons == {"refused: not finite": 1}
    pool.complete_all()
    assert pool.site(1).machine.outcomes.totals().initiated_ok == 1


def test_a_driver_that_forgets_an_exchange_is_noticed() -> None:
    pool = Pool(2)
    pool.start(1)
    pool.deliver_all()
    for site in pool.sites.values():
        site.running.clear()
    pool.pass_time(60.0)
    pool.mail.clear()
    pool.pass_time(60.0)
    assert pool.locked() == []
    assert "served watchdog" in pool.site(2).machine.outcomes.totals().reasons


def test_a_peer_that_is_gone_frees_what_was_with_it() -> None:
    pool = Pool(3)
    pool.start(1, 0)
    gone = pool.mail[0][1]
    pool.deliver_all()
    effects = pool.site(1).machine.peer_gone(gone, Instant(pool.now))
    pool.carry(peer_id(1), effects)
    assert any(isinstance(e, CancelTransfer) for e in effects)
    assert pool.mail[-1][1] != gone, "the other one is asked instead"
    pool.sites[gone].running.clear()
    pool.carry(gone, pool.sites[gone].machine.peer_gone(peer_id(1), Instant(pool.now)))
    pool.complete_all()
    pool.pass_time(5.0)
    assert pool.locked() == []


def test_a_peer_that_is_gone_is_not_asked_again_after_the_pause() -> None:
    pool = Pool(2)
    pool.site(2).machine.standing.frozen = True
    pool.start(1)
    pool.deliver_all()
    pool.carry(peer_id(1), pool.site(1).machine.peer_gone(peer_id(2), Instant(pool.now)))
    pool.pass_time(2.0)
    assert pool.mail == []
    assert pool.locked() == []


@pytest.mark.parametrize("who", [1, 2])
def test_freezing_stops_everything_and_tells_the_other_side(who: int) -> None:
    pool = Pool(2)
    pool.start(1, 0)
    pool.deliver_all()
    pool.start(1, 1)
    pool.carry(peer_id(who), pool.site(who).machine.freeze(Instant(pool.now)))
    assert not pool.site(who).running
    pool.deliver_all()
    pool.pass_time(2.0)
    assert not pool.site(1).running
    assert not pool.site(2).running
    assert not pool.site(who).machine.is_busy(FragmentId(0))
    pool.mail.clear()
    pool.start(who)
    assert pool.mail == []
    pool.pass_time(20.0)
    pool.mail.clear()
    pool.start(3 - who)
    assert answers(pool.deliver()) == [("busy", "frozen")]


def test_nearness_asks_for_finer_codecs() -> None:
    pool = Pool(2)
    pool.site(1).machine.outcomes.fragments[0].distance = 1e-3
    pool.start(1)
    assert the_request(pool).codec_request == "fp16"


def test_who_settles_mixes_in_fp32_once_it_has_mixed_at_all() -> None:
    pool = Pool(3)
    machine = pool.site(1).machine
    machine.standing.settling = True
    state = machine.outcomes.fragments[0]
    state.distance, state.last = 0.1, {peer_id(3): 0.1}
    pool.start(1)
    assert (the_request(pool).codec_request, the_request(pool).codec_reply) == ("fp32", "fp32")


def test_a_newcomer_is_given_less_weight() -> None:
    pool = Pool(2)
    pool.site(1).machine.standing.ramp = 1 / 3
    pool.start(1)
    pool.deliver_all()
    (run,), (serve,) = pool.site(1).running.values(), pool.site(2).running.values()
    assert run.weight == 0.5, "the newcomer is pulled with full weight"
    assert serve.weight == pytest.approx(0.5 / 3), "and pulls with little"


# ---------------------------------------------------------------------------------- who is behind


def refused_for_size(pool: Pool, initiator: int, responder: int) -> None:
    """An exchange whose responder finds the initiator's weights of another size."""
    pool.start(initiator)
    pool.deliver_all()
    (transfer,) = pool.site(responder).running
    pool.finish(peer_id(responder), transfer, "refused", "norm: |x̂| = 9 where |φ| = 1")
    pool.deliver_all()


def test_the_one_with_fewer_outer_steps_learns_that_it_is_behind() -> None:
    pool = Pool(2)
    pool.site(2).machine.outcomes.stepped(FragmentId(0), 50, 1.0)
    pool.site(1).machine.outcomes.stepped(FragmentId(0), 3, 9.0)
    refused_for_size(pool, 1, 2)
    now = Instant(pool.now)
    assert pool.site(1).machine.outcomes.is_behind((peer_id(2),), now)
    assert not pool.site(2).machine.outcomes.is_behind((peer_id(1),), now)
    pool.site(1).machine.outcomes.caught_up()
    assert not pool.site(1).machine.outcomes.is_behind((peer_id(2),), now)


def test_one_partner_of_several_cannot_make_a_node_believe_it_is_behind() -> None:
    pool = Pool(3)
    outcomes = pool.site(1).machine.outcomes
    outcomes.stepped(FragmentId(0), 3, 9.0)
    pool.site(2).machine.outcomes.stepped(FragmentId(0), 50, 1.0)
    pool.unreachable = {peer_id(3)}
    refused_for_size(pool, 1, 2)
    partners = (peer_id(2), peer_id(3))
    assert not outcomes.is_behind(partners, Instant(pool.now))
    assert outcomes.is_behind((peer_id(2),), Instant(pool.now)), "unless it is the only one"


def test_a_node_back_from_its_snapshot_has_something_to_lose() -> None:
    pool = Pool(3)
    outcomes = pool.site(1).machine.outcomes
    outcomes.installed(ours=True)
    pool.site(2).machine.outcomes.stepped(FragmentId(0), 50, 1.0)
    pool.unreachable = {peer_id(3)}
    refused_for_size(pool, 1, 2)
    assert not outcomes.is_behind((peer_id(2), peer_id(3)), Instant(pool.now))


def test_one_partner_will_do_for_a_node_that_has_nothing_to_lose() -> None:
    pool = Pool(3)
    outcomes = pool.site(1).machine.outcomes
    outcomes.stepped(FragmentId(0), 3, 9.0)
    outcomes.installed(ours=False)
    pool.site(2).machine.outcomes.stepped(FragmentId(0), 50, 1.0)
    pool.unreachable = {peer_id(3)}
    refused_for_size(pool, 1, 2)
    partners = (peer_id(2), peer_id(3))
    assert outcomes.is_behind(partners, Instant(pool.now))
    outcomes.stepped(FragmentId(0), 4, 9.0)
    assert not outcomes.is_behind(partners, Instant(pool.now))


def test_weights_of_another_size_exclude_nobody() -> None:
    pool = Pool(2)
    for _ in range(30):
        refused_for_size(pool, 1, 2)
        pool.pass_time(100.0)
        pool.mail.clear()
    assert not pool.site(2).machine.outcomes.scores.excluded(peer_id(1), Instant(pool.now))


def test_what_a_gate_refuses_is_told_once_a_minute() -> None:
    outcomes = Pool(2).site(1).machine.outcomes
    norm, malformed = "norm: |x̂| = 9 where |φ| = 1", "length: 3 bytes"

    def told(peer: int, reason: str, at: float) -> list[str]:
        return [log.level for log in outcomes.log_of(peer_id(peer), reason, Instant(at))]

    assert told(2, norm, 1.0) == ["info"]
    assert told(2, norm, 60.0) == []
    assert told(2, malformed, 60.0) == ["warning"], "this one is another matter"
    assert told(3, norm, 60.0) == ["info"]
    assert told(2, norm, 62.0) == ["info"]


# ------------------------------------------------------------------------------ any order of things


class AnyOrder(RuleBasedStateMachine):
    """Some nodes, a pool of messages that arrive in any order, twice or never, drivers that fail."""

    @initialize(
        n=st.integers(2, 4), sampler=st.sampled_from(list(MAKERS)), seed=st.integers(0, 1000)
    )
    def begin(self, n: int, sampler: str, seed: int) -> None:
        self.pool = Pool(n, seed, **{"mix.sampler": sampler})
        self.n = n

    @rule(number=st.integers(1, 4), fragment=st.integers(0, 2), count=st.integers(1, 3))
    def start(self, number: int, fragment: int, count: int) -> None:
        self.pool.start(1 + number % self.n, fragment, count)

    @precondition(lambda self: self.pool.mail)
    @rule(index=st.integers(0, 100), keep=st.booleans())
    def deliver(self, index: int, keep: bool) -> None:
        self.pool.deliver(index % len(self.pool.mail), keep=keep)

    @precondition(lambda self: self.pool.mail)
    @rule(index=st.integers(0, 100))
    def lose(self, index: int) -> None:
        self.pool.mail.pop(index % len(self.pool.mail))

    @precondition(lambda self: any(s.running for s in self.pool.sites.values()))
    @rule(
        pick=st.integers(0, 100), outcome=st.sampled_from(["ok", "ok", "lost", "refused", "gone"])
    )
    def driver(self, pick: int, outcome: str) -> None:
        running = [(s.me, t) for s in self.pool.sites.values() for t in s.running]
        me, transfer = running[pick % len(running)]
        if outcome == "gone":
            del self.pool.sites[me].running[transfer]
        else:
            self.pool.finish(me, transfer, outcome, "why")

    @rule(seconds=st.sampled_from([0.01, 0.2, 1.0, 4.0, 40.0]))
    def pass_time(self, seconds: float) -> None:
        self.pool.pass_time(seconds)

    @rule(number=st.integers(1, 4), other=st.integers(1, 4))
    def peer_gone(self, number: int, other: int) -> None:
        me, peer = peer_id(1 + number % self.n), peer_id(1 + other % self.n)
        if me != peer:
            machine = self.pool.sites[me].machine
            self.pool.carry(me, machine.peer_gone(peer, Instant(self.pool.now)))

    @rule(number=st.integers(1, 4), thaw=st.booleans())
    def freeze(self, number: int, thaw: bool) -> None:
        me = peer_id(1 + number % self.n)
        machine = self.pool.sites[me].machine
        self.pool.carry(me, machine.freeze(Instant(self.pool.now)))
        machine.standing.frozen = not thaw

    @invariant()
    def promises_hold(self) -> None:
        for site in getattr(self, "pool", Pool(0)).sites.values():
            site.machine.check()
            fragments = [e.fragment for e in site.running.values()]
            assert len(fragments) == len(set(fragments)), "two exchanges on one fragment"

    def teardown(self) -> None:
        """The network is well again and time passes: everything ends unlocked."""
        if not hasattr(self, "pool"):
            return
        for _ in range(12):
            self.pool.complete_all()
            self.pool.pass_time(10.0)
        assert self.pool.locked() == []
        assert not any(site.machine.deadline() for site in self.pool.sites.values())


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
