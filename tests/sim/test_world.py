"""What a world does to its machines: that only what is broken is broken, and for as long as it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from peerlm import effects as fx
from peerlm import events as ev
from peerlm.sim.faults import Fault, plan_faults
from peerlm.sim.network import Wire, read_wire
from peerlm.sim.world import SILENCE_S, WATCHING, World
from peerlm.wire.message import Ack, Ping


def met(n: int, **given: object) -> World:
    world = World(1, **given).met(n, roles=WATCHING)  # type: ignore[arg-type]
    world.run(2)
    return world


def told(world: World, number: int) -> list[ev.Event]:
    """Every event that this machine is told from now on."""
    machine, heard = world.machines[number], list[ev.Event]()
    honest = machine.post

    def spy(event: ev.Event) -> None:
        heard.append(event)
        honest(event)

    machine.post = spy  # type: ignore[method-assign]
    return heard


def linked(world: World, a: int, b: int) -> bool:
    return world.machines[b].keys.peer_id in world.machines[a].lines


def test_a_silent_death_does_not_close_the_lines_of_the_next_life() -> None:
    world = met(4)
    world.kill(1, silently=True)
    world.run(SILENCE_S - 2)
    world.restart(1)
    world.run(0.5)  # the lines of the last life end
    world.run(1.4, lambda: all(linked(world, n, 1) for n in (0, 2, 3)))
    assert all(linked(world, n, 1) for n in (0, 2, 3))
    heard = told(world, 0)
    world.run(SILENCE_S + 1)
    assert not [e for e in heard if isinstance(e, ev.LinkDown) and e.reason == "timeout"]


def test_two_silent_deaths_in_a_row_are_noticed_as_one() -> None:
    world = met(4)
    for _ in range(2):
        world.kill(1, silently=True)
        world.run(SILENCE_S - 3)
        world.restart(1)
        world.run(2)
    world.kill(1, silently=True)
    world.run(SILENCE_S + 0.1)
    assert not any(linked(world, n, 1) for n in (0, 2, 3))


def test_lines_that_only_the_other_side_still_holds_end_with_a_new_life() -> None:
    """A cut made one side give up; the other had not noticed yet when that one started anew."""
    world = met(3)
    world.cut(0, 1)
    world.run(SILENCE_S + 0.1)
    world.kill(1)
    world.heal()
    world.restart(1)
    world.run(20, lambda: linked(world, 0, 1) and linked(world, 1, 0))
    ways = [world.machines[a].lines[world.machines[b].keys.peer_id] for a, b in ((0, 1), (1, 0))]
    assert set(ways[0]) == set(ways[1])


def test_a_freeze_of_a_dead_machine_does_not_freeze_its_next_life() -> None:
    world = met(3)
    world.kill(1)
    world.freeze(1, 1.0)
    world.restart(1)
    assert not world.machines[1].is_frozen
    world.run(20, lambda: linked(world, 0, 1))
    assert linked(world, 0, 1)


def cut_pairs(world: World) -> set[tuple[int, int]]:
    return set(world.network.cuts())


def both_ways(pairs: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    return {p for a, b in pairs for p in ((a, b), (b, a))}


def test_a_split_that_ends_mends_its_own_cuts_alone() -> None:
    world = met(4)
    faults = [Fault(1, "split", (0,), 10), Fault(3, "split", (1,), 3), Fault(20, "split", (2,), 9)]
    plan_faults(world, [*faults, Fault(24, "heal")])
    first, second = both_ways([(0, 1), (0, 2), (0, 3)]), both_ways([(1, 0), (1, 2), (1, 3)])
    world.run(4)
    assert cut_pairs(world) == first | second
    world.run(3)
    assert cut_pairs(world) == first, "what both had cut is still cut"
    world.run(5)
    assert cut_pairs(world) == set()
    world.run(9)
    assert cut_pairs(world) == both_ways([(2, 0), (2, 1), (2, 3)])
    world.run(4)
    assert cut_pairs(world) == set()


def test_a_newcomer_has_the_speed_of_its_turn_and_the_lines_of_those_it_meets() -> None:
    world = World(1, speed=(8000.0, 2000.0)).swarm(3)
    mobile = read_wire("1mbit,300ms")
    plan_faults(world, [Fault(1, "link", (2,), 20, "1mbit,300ms"), Fault(2, "join")])
    world.run(3)
    assert [world.machines[n].speed for n in range(4)] == [8000, 2000, 8000, 2000]
    assert world.network.wire_of(3, 2) == world.network.wire_of(2, 3) == mobile
    assert world.network.wire_of(3, 0) == world.network.wire
    world.run(20)
    assert world.network.wire_of(3, 2) == world.network.wire


def test_only_answers_to_a_fresh_connection_go_by_it() -> None:
    world = met(2, wire=Wire(datagrams=True))
    a, b = (world.machines[n] for n in (0, 1))
    sure: list[tuple[str, bool]] = []
    honest = world.network.carry

    def spy(*args: Any, **given: Any) -> None:
        if (message := args[-1]) in (Ping(78, ()), Ping(79, ())) or isinstance(message, Ack):
            sure.append((f"{type(message).__name__} {message.seq}", given.get("sure", False)))
        honest(*args, **given)

    world.network.carry = spy  # type: ignore[method-assign]
    a._do(fx.SendFresh(b.keys.peer_id, b.host, b.port + 1, b.keys.curve_public, Ping(10**6, ())))
    world.run(0.5, lambda: (f"Ack {10**6}", True) in sure)
    assert (f"Ack {10**6}", True) in sure
    sure.clear()
    b._do(fx.Send(a.keys.peer_id, Ping(78, ())))
    a._do(fx.Send(b.keys.peer_id, Ping(79, ())))
    world.run(0.5)
    assert {name for name, _ in sure} >= {"Ping 78", "Ping 79", "Ack 78", "Ack 79"}
    assert not any(is_sure for _, is_sure in sure)
