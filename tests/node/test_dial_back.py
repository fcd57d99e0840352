"""Who can be dialled: swarms with machines behind firewalls, and what a node makes of what it is told."""

from __future__ import annotations

import random

import pytest
from node_scene import World

from peerlm import effects as fx
from peerlm import events as ev
from peerlm.membership.member import State
from peerlm.mix.exchange import AT_ONCE
from peerlm.node.dial_back import AGAIN_S, ROUND_S, Reached
from peerlm.node.node import Node
from peerlm.node.status import why
from peerlm.sim.world import WATCHING
from peerlm.types import PeerId
from peerlm.wire.message import Dialled, DialMe


def guarded(seed: int, n: int, *walled: int, **changes: object) -> World:
    """`n` nodes that train, these of them behind a firewall."""
    world = World(seed, speed=3_000.0, **changes)
    world.guarded.update(walled)
    world.swarm(n)
    world.within(60, world.all_mixing, "everybody mixes")
    return world


def node(world: World, number: int) -> Node:
    made = world.machines[number].node
    assert made is not None
    return made


def peer(world: World, number: int) -> PeerId:
    return world.machines[number].keys.peer_id


def knows(world: World, *walled: int) -> bool:
    return all(node(world, n).company.dial_back.guarded for n in walled)


def events(world: World, word: str) -> list[int]:
    """Which machines logged it."""
    return [m.number for m in world.machines.values() for _, e in m.logs() if e.event == word]


def asked_by(world: World, number: int) -> set[int]:
    """With whom it began exchanges whose tensors it sent, so far."""
    effects = world.machines[number].effects
    return {world.number_of(e.peer) for _, e in effects if isinstance(e, fx.RunExchange)}


def test_a_node_that_nobody_can_dial_learns_it_from_the_first_exchange_that_is_lost() -> None:
    world = guarded(1, 4, 3)
    world.within(60, lambda: knows(world, 3), "node 3 knows")
    world.run(5)
    assert not any(node(world, n).company.dial_back.guarded for n in (0, 1, 2))
    for viewer in (0, 1, 2):
        seen = world.member(viewer, 3)
        assert seen is not None
        assert (seen.state, seen.address, seen.participating) == ("alive", "", True)
    assert world.summary(3).address == ""
    lost = sum(world.summary(n).exchanges["timed_out"] for n in range(4))
    assert lost <= 3 * AT_ONCE  # what the others had under way, however long it goes on
    for machine in world.machines.values():
        machine.effects.clear()
    world.run(60)
    assert all(3 not in asked_by(world, n) for n in (0, 1, 2))
    assert asked_by(world, 3) == {0, 1, 2}
    assert sum(world.summary(n).exchanges["timed_out"] for n in range(4)) == lost
    assert not events(world, "member_suspected")
    assert world.spread() < 0.5
    lines = why(world.summary(3))
    assert lines[0].startswith("mixing: ")
    assert lines[1].startswith("nobody can dial this node (no answer): it mixes by dialling out")


def test_two_that_nobody_can_dial_mix_by_way_of_the_others() -> None:
    world = guarded(2, 4, 2, 3)
    world.within(60, lambda: knows(world, 2, 3), "both know")
    for machine in world.machines.values():
        machine.effects.clear()
    world.run(60)
    assert asked_by(world, 2) == asked_by(world, 3) == {0, 1}
    assert asked_by(world, 0) == {1}
    sends = [
        e.message
        for _, e in world.machines[2].effects
        if isinstance(e, fx.Send | fx.SendFresh) and e.peer == peer(world, 3)
    ]
    introductions = [e for _, e in world.machines[2].effects if isinstance(e, fx.Introduce)]
    assert not sends
    assert not introductions
    for viewer, other in ((2, 3), (3, 2)):
        seen = world.member(viewer, other)
        assert seen is not None
        assert (seen.state, seen.participating, seen.linked) == ("alive", True, False)
    assert not events(world, "member_suspected")


@pytest.mark.parametrize("sampler", ["matching", "ring", "onepeer_exp", "latency_biased"])
def test_a_schedule_that_names_whom_one_cannot_dial_asks_another(sampler: str) -> None:
    world = guarded(3, 5, 1, 3, **{"mix.sampler": sampler})
    world.within(60, lambda: knows(world, 1, 3), "both know")
    before = {n: world.summary(n).exchanges["ok"] for n in range(5)}
    world.run(60)
    assert all(world.summary(n).exchanges["ok"] > before[n] + 5 for n in range(5))
    assert world.spread() < 0.5


def test_a_run_with_guarded_nodes_ends_with_one_model() -> None:
    budget = {"run.token_budget": 1_000_000}
    world = guarded(4, 4, 2, 3, **budget)
    world.within(300, lambda: world.all_in("done"), "everybody is done")
    assert world.spread() < 0.02


def test_the_death_of_a_guarded_node_is_found_as_soon_as_anybodys_and_it_comes_back() -> None:
    world = guarded(5, 4, 2, 3)
    world.within(60, lambda: knows(world, 2, 3), "both know")
    world.kill(3, silently=True)

    def is_dead() -> bool:
        seen = [world.member(viewer, 3) for viewer in range(3)]
        return all(m is not None and m.state == "dead" for m in seen)

    assert world.within(30, is_dead, "node 3 is found dead") < 15
    world.restart(3)
    world.within(60, world.all_mixing, "it is back")
    world.within(60, lambda: knows(world, 3), "and knows again")
    blamed = [e for m in world.machines.values() for _, e in m.logs() if e.event == "refuted"]
    assert not blamed


def test_when_those_that_it_has_dialled_die_it_goes_on_with_the_others() -> None:
    world = guarded(6, 4, 3)
    world.within(60, lambda: knows(world, 3), "node 3 knows")
    world.kill(0)
    world.kill(1, silently=True)
    world.run(30)
    before = world.summary(3).exchanges["ok"]
    world.within(60, lambda: world.summary(3).exchanges["ok"] > before + 5, "it mixes with node 2")
    assert world.all_mixing()


def test_a_firewall_that_opens_is_noticed() -> None:
    world = guarded(7, 3, 2, **{"mix.inner_steps": 100, "mix.inner_steps_min": 100})
    world.within(60, lambda: knows(world, 2), "node 2 knows")
    world.guarded.clear()
    world.within(AGAIN_S + ROUND_S + 10, lambda: not knows(world, 2), "node 2 knows better")
    world.run(30)
    seen = world.member(0, 2)
    assert seen is not None
    assert seen.address == world.machines[2].address
    assert world.summary(2).reached.not_by == 0


def test_in_a_large_swarm_nobody_is_accused_for_being_behind_a_firewall() -> None:
    world = World(8, speed=500.0)
    walled = (5, 20, 33, 50)
    world.met(70, roles=WATCHING)
    world.guarded.update(walled)
    for number in walled:
        announced = node(world, number).company.membership.announce(world.now, host="")
        world.machines[number]._perform(announced)
    world.run(40)
    assert not events(world, "member_suspected")

    def states(number: int) -> set[State]:
        viewers = [m for m in world.up() if m.number != number]
        tables = [node(world, m.number).company.membership for m in viewers]
        return {table.members()[peer(world, number)].state for table in tables}

    world.kill(33, silently=True)
    for _ in range(30):
        world.run(1)
        if states(33) == {State.DEAD}:
            break
    assert states(33) == {State.DEAD}
    assert all(states(number) == {State.ALIVE} for number in (5, 20, 50))


# -------------------------------------------------------------- what a node makes of what it hears


def quiet(n: int = 3) -> World:
    world = World(9, speed=1_000.0)
    world.met(n)
    world.run(2)
    for machine in world.machines.values():
        machine.effects.clear()
    return world


def sent(world: World, number: int, kind: type) -> list[object]:
    effects = world.machines[number].effects
    return [e.message for _, e in effects if isinstance(e, fx.Send) and isinstance(e.message, kind)]


def say(world: World, number: int, teller: int, answer: Dialled | DialMe) -> None:
    world.machines[number].post(ev.Received(peer(world, teller), answer))


def test_one_member_that_cannot_dial_it_does_not_make_a_node_guarded() -> None:
    world = quiet()
    say(world, 0, 1, Dialled("h0", False, "no answer"))
    world.run(5)
    assert len(sent(world, 0, DialMe)) == 2  # both are asked, and both can
    back = node(world, 0).company.dial_back
    assert not back.guarded
    assert back.reached == Reached(by=2)


def test_what_is_said_of_another_address_or_again_and_again_starts_nothing() -> None:
    world = quiet()
    say(world, 0, 1, Dialled("elsewhere", False, "no answer"))
    assert not sent(world, 0, DialMe)
    for _ in range(50):
        say(world, 0, 1, Dialled("h0", False, "no answer"))
        world.run(0.5)
    assert len(sent(world, 0, DialMe)) == 2


def test_who_asks_often_is_tried_once() -> None:
    world = quiet()
    for _ in range(20):
        say(world, 0, 1, DialMe("h1", 7700, 7701, 7702))
        world.run(0.1)
    tries = [e for _, e in world.machines[0].effects if isinstance(e, fx.TryDial)]
    assert len(tries) == 1
    assert all(isinstance(a, Dialled) and a.ok for a in sent(world, 0, Dialled))


def test_somebody_else_at_its_address_is_not_the_peer() -> None:
    world = quiet()
    back = node(world, 0).company.dial_back
    asked = DialMe("h1", 7700, 7701, 7702)
    back.asked(peer(world, 1), asked, world.now)
    hello = node(world, 2).company.introductions.hello(world.now)
    welcome = node(world, 2).company.introductions.hello_came(ev.HelloCame(b"", hello, "h0"))[-1]
    assert isinstance(welcome, fx.AnswerIntroduction)
    effects = back.tried(ev.DialTried(peer(world, 1), answer=welcome.answer), world.now)
    answers = [e.message for e in effects if isinstance(e, fx.Send)]
    assert answers == [Dialled("h1", False, "somebody else answers there")]
    assert not back.can_dial(peer(world, 1))
    assert node(world, 0).company.endpoint(peer(world, 1)) is None


def test_a_member_that_sees_it_at_another_address_makes_it_ask() -> None:
    world = quiet()
    back = node(world, 0).company.dial_back
    back.seen_as("h0", world.now)
    assert back.deadline() is None
    back.seen_as("203.0.113.9", world.now)
    world.run(8)
    assert len(sent(world, 0, DialMe)) == 2
    assert not back.guarded


def test_a_person_has_the_others_asked_at_once_and_not_twice_at_a_time() -> None:
    world = quiet()
    back = node(world, 0).company.dial_back
    for _ in range(3):
        world.machines[0].post(ev.ReachWanted())
    world.run(0.01)
    assert back.is_asking
    world.within(5, lambda: not back.is_asking, "both answer")
    assert len(sent(world, 0, DialMe)) == 2
    assert back.answers == {peer(world, 1): "", peer(world, 2): ""}
    assert not back.guarded


def test_alone_there_is_nobody_to_ask() -> None:
    world = World(9)
    world.add(0)
    world.run(2)
    world.machines[0].post(ev.ReachWanted())
    world.run(1)
    assert not node(world, 0).company.dial_back.is_asking


def test_without_an_answer_nothing_is_concluded() -> None:
    world = quiet(2)
    back = node(world, 0).company.dial_back
    world.machines[1].effects.clear()
    world.cut(1, 0)
    back.seen_as("203.0.113.9", world.now)
    world.run(ROUND_S + 5)
    assert not back.guarded


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_said_in_whatever_order_its_promises_hold(seed: int) -> None:
    world, rng = quiet(4), random.Random(seed)
    back = node(world, 0).company.dial_back
    now = world.now
    for _ in range(2000):
        now = type(now)(now + rng.choice((0.0, 0.1, 5.0, 70.0)))
        who = peer(world, rng.randrange(1, 4))
        host = rng.choice(("h0", "h1", "x"))
        match rng.randrange(8):
            case 0:
                back.told(who, Dialled(host, rng.random() < 0.5, "no answer"), now)
            case 1:
                back.asked(who, DialMe(host, 1, 2, 3), now)
            case 2:
                back.tried(ev.DialTried(who, rng.choice(("", "no answer"))), now)
            case 3:
                back.lost(who, rng.choice(("connect: no answer", "no byte")), now)
                back.heard(who, type(now)(now + rng.random() * 3))
            case 4:
                back.seen_as(host, now)
            case 5:
                rng.choice((back.gone, back.forget))(who)
            case 6:
                back.wake(now)
            case 7:
                back.ask(now)
        back.check()
        due = back.deadline()
        if due is not None and due <= now:
            back.wake(now)
            later = back.deadline()
            assert later is None or later > now
