"""Scenes of the exchange protocol: how two nodes come to mix, who says no, what crosses and comes twice."""

from __future__ import annotations

import dataclasses

import pytest
from exchange_pool import SIZES, Pool, answers, peer_id, the_request

from peerlm.effects import Effect, RunExchange, Send, ServeExchange
from peerlm.mix import exchange
from peerlm.mix.codec import encoded_size
from peerlm.mix.exchange import ASK_TIMEOUT_S, TRIES
from peerlm.types import FragmentId, Instant
from peerlm.wire.message import ExchangeAnswer, ExchangeDone, ExchangeRequest

# -------------------------------------------------------------------------------- the plain course


def test_two_nodes_mix_a_fragment() -> None:
    pool = Pool(2)
    pool.start(1)
    request = the_request(pool)
    assert request.request_bytes == encoded_size("int8", SIZES[0])
    pool.deliver()
    serve = pool.site(2).running[request.transfer]
    assert isinstance(serve, ServeExchange)
    pool.deliver()
    run = pool.site(1).running[request.transfer]
    assert isinstance(run, RunExchange)
    assert (run.key_up, run.key_down) == (serve.key_up, serve.key_down)
    assert run.weight == serve.weight == 0.5
    assert (run.codec_request, run.codec_reply) == ("int8", "int4")
    pool.complete_all()
    assert pool.site(1).machine.outcomes.totals().initiated_ok == 1
    assert pool.site(2).machine.outcomes.totals().served_ok == 1
    assert pool.site(1).machine.outcomes.distance() == pytest.approx(0.05)
    assert pool.locked() == []
    assert pool.site(1).machine.deadline() is None


def test_fragments_are_independent() -> None:
    pool = Pool(2)
    pool.start(1, 0)
    pool.start(2, 1)
    pool.start(1, 1)
    assert len(pool.mail) == 3
    pool.complete_all()
    totals = [pool.site(i).machine.outcomes.totals() for i in (1, 2)]
    assert sum(t.initiated_ok for t in totals) == sum(t.served_ok for t in totals) == 2


def test_exchanges_of_one_node_wait_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "AT_ONCE", 1)
    pool = Pool(3)
    pool.start(1, 0)
    pool.start(1, 1)
    pool.start(1, 1)
    machine = pool.site(1).machine
    assert len(pool.mail) == 1
    assert machine.is_busy(FragmentId(1))
    assert machine.deadline() == pool.now + exchange.ASK_TIMEOUT_S
    pool.complete_all()
    assert machine.deadline() < pool.now, "the next one may begin"
    pool.pass_time(0.1)
    pool.complete_all()
    assert machine.outcomes.totals().initiated_ok == 2
    assert pool.locked() == []


def test_what_waits_its_turn_is_forgotten_when_somebody_else_mixes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange, "AT_ONCE", 1)
    pool = Pool(2)
    pool.start(1, 0)
    pool.start(1, 1)
    pool.start(2, 1)
    pool.complete_all()
    pool.start(2, 1)
    pool.deliver_all()
    pool.pass_time(0.1)
    pool.complete_all()
    assert pool.site(1).machine.outcomes.totals().initiated_ok == 1
    assert pool.site(2).machine.outcomes.totals().initiated_ok == 2


def test_who_serves_enough_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "SERVED_AT_ONCE", 1)
    pool = Pool(3)
    pool.unreachable.add(peer_id(3))
    pool.start(1, 0)
    pool.deliver_all()
    first = pool.site(2)
    assert len(first.running) == 1
    other = pool.site(3).machine.start(FragmentId(1), (peer_id(2),), Instant(pool.now))
    pool.carry(peer_id(3), other)
    pool.deliver()
    assert answers(first.effects)[-1] == ("busy", "enough under way")


def test_a_busy_fragment_is_not_started_again() -> None:
    pool = Pool(3)
    pool.start(1)
    pool.start(1)
    assert len(pool.mail) == 1


def test_further_exchanges_go_to_distinct_partners() -> None:
    pool = Pool(4)
    pool.start(1, count=3)
    pool.complete_all()
    met = [e.peer for e in pool.site(1).effects if isinstance(e, RunExchange)]
    assert sorted(met) == [peer_id(i) for i in (2, 3, 4)]
    assert pool.site(1).machine.outcomes.totals().initiated_ok == 3


def test_no_more_exchanges_than_partners() -> None:
    pool = Pool(2)
    pool.start(1, count=4)
    pool.complete_all()
    assert pool.site(1).machine.outcomes.totals().initiated_ok == 1
    assert pool.locked() == []


@pytest.mark.parametrize("count", [1, 2])
def test_a_matching_pairs_both_ends(count: int) -> None:
    pool = Pool(4, **{"mix.sampler": "matching"})
    for number in (1, 2, 3, 4):
        pool.start(number, count=count)
    asked = {sender: to for sender, to, _ in pool.mail}
    assert len(asked) == 4
    assert all(asked[to] == sender for sender, to in asked.items())
    pool.complete_all()
    assert sum(pool.site(i).machine.outcomes.totals().initiated_ok for i in (1, 2, 3, 4)) >= 2


def both_ends(pool: Pool) -> tuple[ServeExchange, RunExchange]:
    """The one exchange that has been asked for, as both drivers get it."""
    transfer = the_request(pool).transfer
    pool.deliver_all()
    found = [site.running[transfer] for site in pool.sites.values() if transfer in site.running]
    (serve,) = [e for e in found if isinstance(e, ServeExchange)]
    (run,) = [e for e in found if isinstance(e, RunExchange)]
    return serve, run


@pytest.mark.parametrize(("sampler", "weight"), [("ring", 1 / 3), ("onepeer_exp", 1 / 4)])
def test_both_ends_move_by_the_share_the_sampler_gives_the_pair(
    sampler: str, weight: float
) -> None:
    pool = Pool(3, **{"mix.sampler": sampler})
    pool.start(2)
    serve, run = both_ends(pool)
    assert serve.weight == run.weight == pytest.approx(weight)


@pytest.mark.parametrize("settling", [False, True])
def test_noloco_pulls_through_the_momentum_until_nodes_settle(settling: bool) -> None:
    pool = Pool(2, **{"mix.algorithm": "noloco", "mix.gamma": 0.8})
    for site in pool.sites.values():
        site.machine.standing.settling = settling
    pool.start(1)
    serve, run = both_ends(pool)
    assert serve.through_momentum == run.through_momentum == (not settling)
    assert serve.weight == run.weight == pytest.approx(0.5 if settling else 0.2)


def test_any_answer_tells_how_near_a_peer_is() -> None:
    pool = Pool(2, **{"mix.sampler": "latency_biased"})
    heard: list[tuple[bytes, float]] = []
    pool.site(1).machine._partners.answered = lambda peer, s: heard.append((peer, s))  # type: ignore[method-assign]
    pool.site(2).machine.standing.active = False
    pool.start(1)
    pool.deliver()
    pool.now += 0.25
    pool.deliver()
    assert heard == [(peer_id(2), 0.25)]


def test_nobody_to_mix_with_is_no_trouble() -> None:
    pool = Pool(1)
    pool.start(1)
    assert pool.mail == []
    pool = Pool(2)
    pool.unreachable.add(peer_id(2))
    pool.start(1)
    assert pool.mail == []


def test_a_plan_without_mixing_asks_nobody_and_refuses() -> None:
    pool = Pool(2, **{"mix.algorithm": "local"})
    pool.start(1)
    assert pool.mail == []


# ------------------------------------------------------------------------------ no for an answer


def test_busy_sends_us_to_the_next_partner() -> None:
    pool = Pool(3)
    pool.start(1)
    first = pool.mail[0][1]
    pool.sites[first].machine.standing.active = False
    pool.deliver()
    pool.deliver()
    assert pool.site(1).machine.outcomes.totals().busy == 1
    assert pool.site(1).machine.outcomes.totals().reasons == {"busy: joining": 1}
    assert pool.mail[0][1] not in (first, peer_id(1))
    pool.complete_all()
    assert pool.site(1).machine.outcomes.totals().initiated_ok == 1


def test_three_tries_and_the_round_is_given_up() -> None:
    pool = Pool(5)
    for site in pool.sites.values():
        site.machine.standing.frozen = site.me != peer_id(1)
    pool.start(1)
    pool.deliver_all()
    asked = [e for e in pool.site(1).effects if isinstance(e, Send)]
    assert len({e.peer for e in asked}) == len(asked) == TRIES
    assert pool.locked() == []


def test_the_only_partner_is_asked_again_after_a_pause() -> None:
    pool = Pool(2)
    pool.site(2).machine.standing.frozen = True
    pool.start(1)
    pool.deliver_all()
    assert pool.mail == []
    deadline = pool.site(1).machine.deadline()
    assert deadline is not None
    assert 0.04 < deadline < 0.3
    pool.site(2).machine.standing.frozen = False
    pool.pass_time(1.0)
    pool.complete_all()
    assert pool.site(1).machine.outcomes.totals().initiated_ok == 1


def test_while_waiting_to_ask_again_the_partner_may_ask_us() -> None:
    pool = Pool(2)
    pool.site(2).machine.standing.frozen = True
    pool.start(1)
    pool.deliver_all()
    pool.site(2).machine.standing.frozen = False
    pool.start(2)
    pool.complete_all()
    assert pool.site(1).machine.outcomes.totals().served_ok == 1
    assert pool.site(1).machine.deadline() is None, "being mixed is as good"


def test_a_waiting_retry_never_takes_a_lock_from_another_exchange() -> None:
    pool = Pool(2)
    pool.site(2).machine.standing.frozen = True
    pool.start(1)
    pool.deliver_all()
    pool.site(2).machine.standing.frozen = False
    pool.start(2)
    pool.deliver()
    assert pool.site(1).running
    pool.pass_time(1.0)
    assert len(pool.site(1).running) == 1
    assert not [m for _, to, m in pool.mail if to == peer_id(2) and isinstance(m, ExchangeRequest)]


def test_silence_sends_us_to_the_next_partner_and_frees_the_silent_one() -> None:
    pool = Pool(3)
    pool.start(1)
    transfer, silent = the_request(pool).transfer, pool.mail[0][1]
    pool.deliver()  # the answer is lost
    pool.mail.clear()
    pool.pass_time(ASK_TIMEOUT_S + 0.1)
    assert pool.site(1).machine.outcomes.totals().timed_out == 1
    assert pool.sites[silent].running
    pool.deliver_all()
    assert transfer not in pool.sites[silent].running
    pool.complete_all()
    assert pool.site(1).machine.outcomes.totals().initiated_ok == 1
    assert pool.locked() == []


def test_an_acceptance_that_comes_too_late_frees_the_responder() -> None:
    pool = Pool(2)
    pool.start(1)
    pool.deliver()
    late = pool.mail.pop()
    pool.pass_time(ASK_TIMEOUT_S + 0.1)
    pool.mail = [late]
    pool.deliver_all()
    assert not pool.site(2).running
    assert not pool.site(1).running


def test_a_failing_partner_is_avoided_while_others_are_there() -> None:
    pool = Pool(3)
    pool.start(1)
    bad = pool.mail[0][1]
    pool.mail.clear()
    pool.pass_time(ASK_TIMEOUT_S + 0.1)
    pool.complete_all()
    for _ in range(6):
        pool.start(1)
        assert pool.mail[0][1] != bad
        pool.complete_all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"plan_hash": b"x" * 32}, "plan"),
        ({"fragment": 3}, "no such fragment"),
        ({"codec_request": "int4"}, "codec"),
        ({"codec_request": "zip"}, "codec"),
        ({"codec_reply": "topk"}, "codec"),
        ({"request_bytes": 5}, "size"),
        ({"codec_request": "fp32"}, "size"),
    ],
)
def test_a_wrong_request_is_refused_and_locks_nothing(
    change: dict[str, object], reason: str
) -> None:
    pool = Pool(2)
    pool.start(1)
    sender, to, request = pool.mail.pop()
    pool.mail.append((sender, to, dataclasses.replace(request, **change)))
    assert answers(pool.deliver()) == [("refuse", reason)]
    assert not pool.site(2).running
    assert not pool.site(2).machine.is_busy(FragmentId(0))


def test_a_flood_of_requests_is_refused_at_some_point() -> None:
    pool = Pool(2)
    pool.start(1)
    sender, to, request = pool.mail.pop()
    said = []
    for number in range(100):
        flood = dataclasses.replace(request, transfer=bytes([number]) * 16)
        pool.mail = [(sender, to, flood)]
        said += answers(pool.deliver())
    assert said[0] == ("accept", "")
    assert said[1] == ("busy", "in exchange")
    assert said[-1] == ("refuse", "rate")
    pool.mail.clear()
    pool.pass_time(30.0)
    assert pool.locked() == []


# --------------------------------------------------------------------------- crossing and replays


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("answers_first", [True, False])
def test_of_crossing_requests_exactly_one_survives(
    order: tuple[int, int], answers_first: bool
) -> None:
    pool = Pool(2)
    pool.start(1)
    pool.start(2)
    if order == (1, 0):
        pool.mail.reverse()
    if answers_first:
        pool.deliver()
        pool.deliver(1)
        pool.deliver_all()
    else:
        pool.deliver_all()
    (run,) = pool.site(1).running.values()
    (serve,) = pool.site(2).running.values()
    assert isinstance(run, RunExchange), "the lower id's request wins"
    assert isinstance(serve, ServeExchange)
    assert run.transfer == serve.transfer
    pool.complete_all()
    assert pool.locked() == []
    assert pool.site(2).machine.deadline() is None, "being mixed is as good"


def test_a_request_asked_twice_gets_the_ramp_it_got_at_first() -> None:
    pool = Pool(2)
    standing = pool.site(2).machine.standing
    standing.ramp = 2 / 3
    pool.start(1)
    request = pool.mail[0]
    told = [ramp_of(pool.deliver(keep=True))]
    standing.ramp = 1.0  # it has taken its first outer steps meanwhile
    told.append(ramp_of(pool.deliver()))
    pool.complete_all()
    pool.mail = [request]
    told.append(ramp_of(pool.deliver()))
    assert told == [2 / 3] * 3


def ramp_of(effects: list[Effect]) -> float:
    (answer,) = [e.message for e in effects if isinstance(e, Send)]
    assert isinstance(answer, ExchangeAnswer)
    return answer.ramp


def test_a_replayed_request_is_answered_without_a_second_effect() -> None:
    pool = Pool(2)
    pool.start(1)
    pool.deliver(keep=True)
    request = pool.mail[0]
    effects = pool.deliver(keep=True)
    assert answers(effects) == [("accept", "seen before")]
    assert not any(isinstance(e, ServeExchange) for e in effects)
    pool.mail = [m for m in pool.mail if m != request]
    pool.complete_all()
    pool.mail = [request]
    effects = pool.deliver()
    assert answers(effects) == [("accept", "seen before")]
    pool.complete_all()
    assert pool.site(2).machine.outcomes.totals().served_ok == 1
    assert pool.site(2).machine.outcomes.totals().replayed == 2
    assert pool.locked() == []


def test_a_request_that_was_given_up_has_no_effect_when_it_comes_again() -> None:
    pool = Pool(2)
    pool.start(1)
    request = pool.mail[0]
    pool.deliver()
    pool.mail.clear()
    pool.pass_time(ASK_TIMEOUT_S + 0.1)
    pool.deliver_all()
    pool.mail = [request]
    assert not any(isinstance(e, ServeExchange) for e in pool.deliver())


def test_nobody_can_answer_or_end_for_another() -> None:
    pool = Pool(3)
    pool.start(1)
    request, asked = the_request(pool), pool.mail[0][1]
    other = next(p for p in (peer_id(2), peer_id(3)) if p != asked)
    pool.mail.insert(0, (other, peer_id(1), ExchangeAnswer(request.transfer, "accept", "", 1.0)))
    pool.deliver()
    assert not pool.site(1).running
    pool.deliver()
    pool.mail.insert(0, (other, asked, ExchangeDone(request.transfer, applied=False)))
    pool.deliver()
    assert pool.sites[asked].running
