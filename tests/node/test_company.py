"""What a node says and does about others while nothing happens to it."""

from __future__ import annotations

import pytest
from node_scene import World

from peerlm.effects import Admit, Introduce, Save, Send, SendFresh
from peerlm.events import LinkDown, LinkUp, Received
from peerlm.node.asks import BURST, EVERY_S
from peerlm.node.node import Node
from peerlm.node.publishing import PUBLISH_S, QUIET_FACTOR, SAY_AGAIN
from peerlm.types import Role
from peerlm.wire.message import Gossip, Ping, PlanAsk, PlanGive, Sync

WATCHING = (Role.OBSERVE,)


def node_of(world: World, number: int) -> Node:
    node = world.machines[number].node
    assert node is not None
    return node


def told(world: World, number: int) -> int:
    """How many times it has said how it is."""
    node = node_of(world, number)
    return node.company.ledger.version_of(node.me)[1]


def test_what_a_node_has_said_three_times_it_says_ten_times_rarer() -> None:
    world = World(1).swarm(2, roles=WATCHING)
    world.run(10.0)
    before = told(world, 0)
    assert before <= 2 * SAY_AGAIN, "it sought, and found nothing to do"
    world.run(10 * QUIET_FACTOR * PUBLISH_S)
    assert 9 <= told(world, 0) - before <= 11


def test_a_newcomer_hears_at_once_how_the_quiet_ones_are() -> None:
    world = World(2).swarm(3, roles=WATCHING)
    world.run(30.0)
    world.add(3, 1, roles=WATCHING)
    node = node_of(world, 3)
    world.run(2.0)
    others = [node_of(world, number).me for number in range(3)]
    assert all(node.company.vitals_of(peer) is not None for peer in others)


def test_a_node_at_rest_keeps_its_disk_and_its_phone_alone() -> None:
    world = World(3).swarm(3, roles=WATCHING)
    world.run(20.0)
    node, effects = node_of(world, 0), []
    for _ in range(40):
        effects += node.wake(node.deadline(), world.wall)
    assert not [e for e in effects if isinstance(e, Save | Introduce)]
    node.audit()


def acquainted(world: World) -> list[Node]:
    """Three nodes that know each other and have no links yet."""
    world.swarm(3, roles=WATCHING)
    nodes = [node_of(world, number) for number in range(3)]
    swarm = {node.me: node.acquaintance(world.now) for node in nodes}
    for node in nodes:
        node.remember(swarm, world.now)
        node.audit()
    return nodes


@pytest.mark.parametrize("dialled", [True, False])
def test_the_end_of_a_connection_is_a_hint_only_if_it_brought_a_greeting(dialled: bool) -> None:
    world = World(4)
    node, other, _ = acquainted(world)
    node.handle(LinkUp(other.me, dialled), world.now, world.wall)
    effects = node.handle(LinkDown(other.me, "closed"), world.now, world.wall)
    pings = [e for e in effects if isinstance(e, SendFresh) and isinstance(e.message, Ping)]
    assert len(pings) == dialled


def test_acquaintances_have_nothing_to_tell_each_other() -> None:
    world = World(5)
    a, b, _ = acquainted(world)
    effects = a.handle(LinkUp(b.me, False), world.now, world.wall)
    [table] = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Sync)]
    answer = b.handle(Received(a.me, table), world.now, world.wall)
    assert [type(e.message) for e in answer if isinstance(e, Send)] == [Sync]
    assert a.company.vitals_of(b.me) is not None


def test_members_known_by_hearsay_alone_may_connect() -> None:
    world = World(6).swarm(2, roles=WATCHING)
    world.run(10.0)
    world.add(2, 0, roles=WATCHING)
    newcomer = node_of(world, 2)
    member = newcomer.acquaintance(world.now).member
    for key in (newcomer.company.gate.verified(newcomer.me), None):
        rumors = Gossip((member.alive,))
        effects = node_of(world, 1).handle(
            Received(node_of(world, 0).me, rumors), world.now, world.wall
        )
        admitted = [e.curve_key for e in effects if isinstance(e, Admit)]
        assert admitted == ([] if key is None else [key.curve_pk])


def test_what_is_large_is_not_given_as_often_as_asked_for() -> None:
    world = World(8).swarm(2, roles=WATCHING)
    world.run(5.0)
    node, asker = node_of(world, 0), node_of(world, 1).me

    def answers(asked: int) -> int:
        said = [
            e
            for _ in range(asked)
            for e in node.handle(Received(asker, PlanAsk()), world.now, world.wall)
        ]
        return sum(isinstance(e, Send) and isinstance(e.message, PlanGive) for e in said)

    assert 1 <= answers(1000) <= BURST
    world.run(20 * EVERY_S)
    assert answers(1000) == BURST, "who asks seldom is answered again"


def test_a_plan_of_other_bytes_and_the_same_values_is_refused_in_words() -> None:
    """Two releases may write the same plan in two ways, and two machines with the root key sign them."""
    world = World(9).swarm(2, roles=WATCHING)
    world.run(5.0)
    company, peer = node_of(world, 0).company, node_of(world, 1).me
    log, told = company._refuse_plan(peer, company.plan)
    assert "the same values" in str(log)
    assert "the same values" in str(told)
