"""Checks that can fail: each promise is broken on purpose, and the simulator says so."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from peerlm import effects as fx
from peerlm.config import Plan
from peerlm.identity import canonical, chain, gate
from peerlm.membership import beliefs
from peerlm.mix import flow
from peerlm.mix.exchange import Exchanges
from peerlm.node.node import Node
from peerlm.sim import checks, menus
from peerlm.sim.checks import Safety, is_well
from peerlm.sim.impostors import KINDS, knock
from peerlm.sim.menus import Trouble, live_through
from peerlm.sim.world import World, plan_of
from peerlm.types import PeerId, TransferId


def mixing(n: int = 3, plan: Plan | None = None) -> World:
    world = World(1, plan=plan).swarm(n)
    world.run(20, lambda: is_well(world))
    assert is_well(world)
    return world


def test_an_exchange_that_gives_one_side_more_than_it_takes_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, honest = mixing(), flow.absorb

    def greedy(fragment, reply, **given):  # type: ignore[no-untyped-def]
        fragment.phi += np.float32(0.1)
        return honest(fragment, reply, **given)

    monkeypatch.setattr(flow, "absorb", greedy)
    with pytest.raises(AssertionError, match="of nothing"):
        world.run(10)


def test_a_momentum_that_gains_more_than_the_other_loses_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, honest = mixing(plan=plan_of(mix__algorithm="noloco")), flow.absorb

    def greedy(fragment, reply, **given):  # type: ignore[no-untyped-def]
        fragment.momentum += np.float32(0.1)
        return honest(fragment, reply, **given)

    monkeypatch.setattr(flow, "absorb", greedy)
    with pytest.raises(AssertionError, match="of nothing"):
        world.run(10)


@pytest.mark.parametrize("factor", [0.3, 1 / 3, 0.5, 2.0])
def test_a_side_that_weighs_what_it_was_not_told_to_is_noticed(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, honest = mixing(), Exchanges._move

    def lighter(self, exchange, ramp, now):  # type: ignore[no-untyped-def]
        return honest(self, exchange, factor * ramp, now)

    monkeypatch.setattr(Exchanges, "_move", lighter)
    with pytest.raises(AssertionError, match="whose ramps are"):
        world.run(10)


def test_a_key_of_somebody_revoked_is_noticed() -> None:
    world = mixing()
    a, b = world.machines[0], world.machines[1]
    assert a.node is not None
    a.node.company.gate.revocations.add(world.revocation_of(1))
    with pytest.raises(AssertionError, match="revoked"):
        a._perform([fx.Admit(b.keys.peer_id, b.keys.curve_public)])


@pytest.mark.parametrize("kind", KINDS)
def test_an_impostor_is_refused(kind: str) -> None:
    world = mixing()
    knock(world, 0, kind, random.Random(1).randbytes)
    node = world.machines[0].node
    assert node is not None
    assert sum(node.company.gate.refusals.values()) == 1
    assert set(world.machines[0].admitted) == {world.machines[n].keys.peer_id for n in (1, 2)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_gate_that_opens_to_an_impostor_is_noticed(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = mixing()

    def trusting(blob, of, run_id, issuer, where, **_):  # type: ignore[no-untyped-def]
        return chain._parse(canonical.decode(canonical.decode(blob, 4096, where)[0], 4096, where))

    monkeypatch.setattr(chain, "_read_link", trusting)
    monkeypatch.setattr(gate, "check_now", lambda *_, **__: None)
    with pytest.raises(AssertionError, match=r"not its own|nobody made"):
        knock(world, 0, kind, random.Random(1).randbytes)


def test_whatever_breaks_in_a_run_is_its_story(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Trouble) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(Trouble, "run", broken)
    assert "KeyError: 'a bug' (test_checks.py:" in live_through(1, 5).story
    monkeypatch.setattr(World, "story", broken)
    assert "KeyError: 'a bug' (test_checks.py:" in live_through(1, 5).story


def test_tokens_that_nobody_trained_are_noticed() -> None:
    world = mixing()
    safety = Safety(world)
    safety.look()
    node = world.machines[0].node
    assert node is not None
    node.company.ledger.count_own(node.me, 77, 10**12)
    with pytest.raises(AssertionError, match="were trained"):
        safety.look()


def test_a_token_count_that_falls_is_noticed() -> None:
    world = mixing()
    world.machines[0]._tokens_seen = 10**15
    with pytest.raises(AssertionError, match="backwards"):
        world.run(5)


def test_a_key_that_is_not_the_peers_own_is_noticed() -> None:
    world = mixing()
    a, b = world.machines[0], world.machines[1]
    with pytest.raises(AssertionError, match="another key than the certified"):
        a._perform([fx.Admit(b.keys.peer_id, bytes(32))])


def test_two_exchanges_of_one_fragment_are_noticed() -> None:
    world = mixing()
    machine = world.machines[0]
    started: list[fx.RunExchange] = []
    honest = machine.labour.transfers.run

    def spy(effect):  # type: ignore[no-untyped-def]
        if isinstance(effect, fx.RunExchange):
            started.append(effect)
        honest(effect)

    machine.labour.transfers.run = spy  # type: ignore[method-assign]
    world.run(10, lambda: bool(started))
    again = dataclasses.replace(started[0], transfer=bytes(16))
    machine.labour.transfers.cancel(started[0].transfer)
    machine.labour.transfers._begin(started[0])
    with pytest.raises(AssertionError, match="two exchanges"):
        machine.labour.transfers._begin(again)


def test_a_swarm_that_never_heals_is_a_failed_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "heal", lambda self: None)
    monkeypatch.setattr(menus, "RECOVERY_S", 30.0)
    monkeypatch.setattr(menus, "TROUBLE_S", 20.0)
    assert any("not well" in live_through(seed, 4).story for seed in range(60, 80))


def test_a_node_that_believes_its_own_death_is_a_failed_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(beliefs.Beliefs, "_refute", lambda self, rumor, teller, now: None)
    monkeypatch.setattr(menus, "TROUBLE_S", 30.0)
    monkeypatch.setattr(menus, "RECOVERY_S", 20.0)
    assert any(live_through(seed, 4).story for seed in range(20))


def test_a_disk_that_lied_once_is_no_excuse_for_ever() -> None:
    world = mixing()
    safety, machine = Safety(world), world.machines[1]
    safety.look()
    world.power_cut(1)
    machine.disk.epoch, machine.disk_lied = machine.disk.epoch - 1, True
    world.restart(1)
    safety.look()
    assert machine.disk_lied, "the same epoch again, and no refutation yet"
    world.kill(1)
    world.restart(1)
    safety.look()
    world.kill(1)
    machine.disk.epoch -= 2
    world.restart(1)
    with pytest.raises(AssertionError, match="fell from incarnation"):
        safety.look()


def test_what_was_remembered_may_not_fall_either() -> None:
    world = World(1).met(3)
    node = world.machines[0].node
    assert node is not None
    table = node.company.membership._beliefs.table
    peer, member = next(iter(table.all().items()))
    record = dataclasses.replace(member.record, epoch=member.record.epoch - 1)
    table._members[peer] = dataclasses.replace(member, record=record)
    table._touch(peer)
    with pytest.raises(AssertionError, match="an incarnation decreased"):
        node.check()


def test_a_large_swarm_is_looked_at_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    world, audited = mixing(5), list[int]()
    monkeypatch.setattr(checks, "CLOSELY", 2)
    monkeypatch.setattr(Node, "audit", lambda self: audited.append(world.number_of(self.me)))
    safety = Safety(world)
    for _ in range(4):
        safety.look()
    assert audited == [0, 1, 2, 3, 4, 0, 1]


def test_exchanges_are_counted_over_all_lives() -> None:
    world = mixing()
    before = world.machines[1].all_exchanges()
    assert before["ok"] > 0
    world.kill(1)
    assert world.machines[1].all_exchanges() == before
    world.restart(1)
    world.run(20, lambda: is_well(world))
    world.run(5)
    after = world.machines[1].all_exchanges()
    assert after["ok"] > before["ok"]
    assert set(after) == {"ok", "busy", "refused", "timed_out"}


def test_a_node_that_remembers_more_than_there_is_is_noticed() -> None:
    world = mixing()
    safety, node = Safety(world), world.machines[0].node
    assert node is not None
    safety.look()
    for number in range(4):
        node.company.contacts.failed(f"tcp://x{number}:1", "no answer", world.now)
    with pytest.raises(AssertionError, match="dials 4 addresses of 3"):
        safety.look()
    node.company.contacts.keep_only([])
    for number in range(20):
        node.work.exchanges.outcomes.scores.failed(PeerId(bytes(15) + bytes([number])), world.now)
    with pytest.raises(AssertionError, match="scores"):
        safety.look()


def test_queues_that_grow_beyond_their_bounds_are_noticed() -> None:
    world = mixing()
    node = world.machines[0].node
    assert node is not None
    reasons = node.work.exchanges.outcomes._reasons
    reasons.update({f"reason {n}": 1 for n in range(100)})
    with pytest.raises(AssertionError, match="too many reasons"):
        node.check()
    reasons.clear()
    peer = world.machines[1].keys.peer_id
    answered = node.work.exchanges._answered
    answered.update({TransferId(n.to_bytes(16, "big")): (peer, world.now) for n in range(1025)})
    with pytest.raises(AssertionError, match="more answers"):
        node.check()
    answered.clear()
    relays, rumors = (
        node.company.membership._detector._relays,
        node.company.membership._rumors._entries,
    )
    relays.update(dict.fromkeys(range(257)))  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="too many probes"):
        node.audit()
    relays.clear()
    rumors.update({n.to_bytes(8, "big"): None for n in range(4097)})  # type: ignore[misc]
    with pytest.raises(AssertionError, match="too many rumors"):
        node.audit()
