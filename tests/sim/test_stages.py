"""Nodes that hold a part of the model each: how simulated hosts work, that what they may not do is noticed, and random trouble."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peerlm import effects as fx
from peerlm.cli.main import main
from peerlm.errors import ConfigError
from peerlm.events import Leave, TextsCounted
from peerlm.model.stages import memory_of, stages
from peerlm.sim.channels import SILENT_S
from peerlm.sim.learner import Quadratic, Teacher, part_of
from peerlm.sim.machine import Machine
from peerlm.sim.ring import ENDS, Part, Ring
from peerlm.sim.stage_menus import FRAGMENTS, MODEL, StageTrouble, live, trouble_of
from peerlm.sim.world import World, plan_of
from peerlm.store.placed import Copy, Placed, read_placed
from peerlm.train.batch_round import BatchRound
from peerlm.types import FragmentId, TransferId

SAMPLE = ((13, 3), (15, 2), (20, 4))
"""Seeds and stages of every run."""


def ring_of(*held: str, plan: dict[str, Any] | None = None, **settings: Any) -> World:
    """One machine for each, of a model in three stages."""
    world = World(
        1,
        plan=plan_of(**({"model__stages": 3} | MODEL | (plan or {}))),
        learner=Quadratic((12,) * FRAGMENTS),
        speed=2000.0,
        remembers=True,
    )
    for number, stage in enumerate(held):
        world.add(number, *([0] if number else []), **{"host.stages": stage}, **settings)
    return world


def well(world: World) -> World:
    began = world.now
    world.run(60, lambda: not trouble_of(world, began))
    assert not trouble_of(world, began), world.story()
    return world


def is_stepping(machine: Machine) -> bool:
    work = machine.labour.worker and machine.labour.worker.stage
    return work is not None and work.stepped_at > 0


def steps_of(machine: Machine) -> int:
    return machine.labour.worker.steps if machine.labour.worker else 0


def room_for_one(world: World) -> int:
    cut = stages(world.plan.plan)
    return max(memory_of(cut, range(stage, stage + 1)).total() for stage in range(len(cut)))


# ------------------------------------------------------------------------------- what hosts do


def test_hosts_train_together_and_tokens_are_those_of_who_reads() -> None:
    world = well(ring_of("0", "1", "2", "1-2"))
    world.run(5)
    read = {m.number: m.tokens_trained for m in world.up()}
    assert read[0] > 10_000
    assert not any(read[number] for number in (1, 2, 3))
    assert world.spread() < 0.1
    assert {m.number: [*m.holding.held] for m in world.up()} == {0: [0], 1: [1], 2: [2], 3: [1, 2]}
    last = world.machines[3].disk.snapshots[-1]
    assert {world.stage_of[fragment] for fragment in last.fragments} == {1, 2}
    node = world.machines[0].node
    assert node is not None
    assert node.work.worker.stream_bytes[0] > 0


def test_how_busy_a_host_is_and_how_many_texts_go_through_it_others_hear() -> None:
    world = well(ring_of("0", "1", "2"))
    world.run(10)
    world.machines[1].post(TextsCounted(5))
    world.run(5)
    told = world.member(0, 1)
    assert told is not None
    assert told.busy is not None
    assert 0 <= told.busy <= 1
    assert told.texts == 8
    world.machines[1].post(TextsCounted(0))
    world.run(5)
    told = world.member(0, 1)
    assert told is not None
    assert told.texts == 0


def test_without_a_stage_nothing_is_learnt_and_its_host_that_comes_back_is_all_it_takes() -> None:
    world = well(ring_of("0", "1", "2"))
    world.kill(2)
    world.run(40)
    learnt = world.machines[0].tokens_trained
    world.run(10)
    assert world.machines[0].tokens_trained == learnt
    for number in (0, 1):
        assert "nobody trains stage 2" in world.summary(number).phase_reason
    world.restart(2)
    well(world)
    assert world.machines[2].installed_from()[-1] == "snapshot"


def test_a_node_that_decides_takes_over_the_stage_of_a_sole_host_that_died() -> None:
    world = ring_of("0", "1", "2")
    room = {"host.memory_bytes": 2 * room_for_one(world), "host.stages": "auto"}
    for number in (3, 4):
        world.add(number, 0, **room)
    well(world)
    for machine in [m for m in world.up() if 2 in m.holding.held]:
        world.run(
            60
        )  # copies are made of what one node holds, so of two that do the last is missed
        world.kill(machine.number)
    world.run(120, lambda: 2 in world.ring.hosted())
    well(world)
    holders = [m for m in world.up() if 2 in m.holding.held]
    assert [m.settings.host.stages for m in holders] == ["auto"]
    assert "fresh" not in [log for m in holders for log in m.installed_from()[1:]]


def test_who_can_take_the_stage_of_a_dead_sole_host_trains_it_within_half_a_minute() -> None:
    world = ring_of("0", "1", "2")
    world.add(3, 0, **{"host.memory_bytes": room_for_one(world), "host.stages": "auto"})
    well(world)
    world.run(60)
    spare, reads = world.machines[3], world.machines[0]
    (stage,) = {1, 2} - {*spare.holding.held} if spare.holding.held[0] else {2}
    assert spare.node is not None
    assert spare.node.placing is not None
    assert spare.node.placing.stock.has_copy(stage)
    world.kill(stage)
    world.run(60, lambda: stage in world.summary(3).lacking)
    able_at = world.now
    world.run(60, lambda: stage in spare.holding.held)
    learnt = reads.tokens_trained
    world.run(60, lambda: reads.tokens_trained > learnt + 2000)
    assert reads.tokens_trained > learnt + 2000, world.story()
    assert world.now - able_at < 30


def test_after_the_run_stages_of_a_sole_host_that_dies_and_of_one_that_leaves_are_taken_over() -> (
    None
):
    world = ring_of("0", "1", "2", plan={"run__token_budget": 100_000})
    room = {"host.memory_bytes": room_for_one(world), "host.stages": "auto"}
    for number in (3, 4):
        world.add(number, 0, **room)

    def hosts(stage: int) -> list[Machine]:
        return [m for m in world.up() if stage in m.holding.held]

    def is_over() -> bool:
        return world.all_in("done") and all(map(hosts, range(3)))

    world.run(300, is_over)
    world.run(100)
    placed = {m.number: m.holding.held for m in world.up()}
    world.run(60)
    assert is_over(), world.story()
    assert placed == {m.number: m.holding.held for m in world.up()}, "at rest nobody moves"

    (stage,) = (s for s in range(3) if len(hosts(s)) == 1)
    (alone,) = hosts(stage)
    final = {f: slow.phi.copy() for f, slow in alone.labour.slow.items()}
    world.kill(alone.number)
    took_s = world.run(60, lambda: bool(hosts(stage)) and is_over())
    assert is_over(), world.story()
    assert took_s < 30
    (taker,) = hosts(stage)
    for fragment, phi in final.items():
        np.testing.assert_array_equal(taker.labour.slow[fragment].phi, phi)
    node = taker.node
    assert node is not None
    world.run(5)
    assert node.work.snapshots.is_final, "it has the finished weights, and says so"

    (stage,) = (s for s in range(3) if [m.number for m in hosts(s)] == [s])
    leaver = world.machines[stage]
    leaver.post(Leave(hands_over=True))
    took_s = world.run(150, lambda: leaver not in world.up())
    assert took_s < 60, "it waits for who takes it over, and no longer"
    assert is_over(), world.story()


def test_stages_that_the_first_node_was_given_and_does_not_hold_go_to_those_that_join() -> None:
    world = ring_of("0", plan={"run__initial": "given"})
    first = world.machines[0]
    world.run(5)
    world.kill(0)
    given = {f: phi for f, phi in enumerate(world.learner.initial(7)) if world.stage_of[f]}
    copies = dict[FragmentId, Copy]()
    for fragment, phi in given.items():
        _, version, name, size, sketch = first.labour._offer(FragmentId(fragment), phi, 0)
        copies[FragmentId(fragment)] = Copy(version, name, size, sketch)
        first.disk.objects[name] = phi
    first.disk.placement = Placed(range(1), copies).encode()
    world.restart(0)
    world.run(20)
    assert world.summary(0).phase == "training"
    assert "nobody trains stage 1, 2" in world.summary(0).phase_reason
    world.add(1, 0, **{"host.stages": "1"})
    world.run(20)
    assert first.disk.placement == Placed(range(1), copies).encode(), "nothing is learnt yet"
    world.add(2, 0, **{"host.stages": "2"})
    well(world)
    world.run(5)
    for number in (1, 2):
        assert world.machines[number].installed_from() == ["peers"]
    assert read_placed(first.disk.placement, Path("p"), 3).copies == {}
    world.kill(2)
    world.add(3, 0, **{"host.stages": "2"})
    world.run(30)
    line = "nobody here holds stage 2 of the model: asking for a copy of its weights"
    assert world.summary(3).phase_reason == line, "what was learnt since is not begun anew"
    world.restart(2)
    well(world)
    assert world.machines[3].installed_from() == ["peers"]


@pytest.mark.parametrize(
    ("held", "stages", "within"),
    [(("0-1", "1", "2"), 3, 1), (("0-2", "1", "3"), 4, 1), (("0", "1-3", "2"), 4, 2)],
)
def test_a_host_whose_stages_others_hold_with_those_before_works_and_follows(
    held: tuple[str, ...], stages: int, within: int
) -> None:
    """With noloco an exchange moves φ by way of the next outer step, so who takes no inner steps stands still."""
    plan = {"model__stages": stages, "mix__algorithm": "noloco"}
    world = well(ring_of(*held, plan=plan))
    before, around = steps_of(world.machines[within]), steps_of(world.machines[0])
    world.run(30)
    did = steps_of(world.machines[within]) - before
    assert 0.2 * (steps_of(world.machines[0]) - around) < did
    assert world.spread() < 0.1


def test_a_channel_that_is_cut_ends_at_both_ends_by_silence_and_comes_again() -> None:
    world = well(ring_of("0", "1", "2"))
    a, b = world.machines[0], world.machines[1]
    world.split([0], [1])
    world.run(SILENT_S + 2)
    for here, there in ((a, b), (b, a)):
        assert there.keys.peer_id not in here.labour.channels.open()
    world.heal()
    well(world)


def test_a_host_that_could_not_send_on_gets_its_share_again_soon() -> None:
    world = well(ring_of("0", "1", "1", "2"))
    world.split([1], [3])
    world.run(40)
    world.heal()
    world.run(20)
    before = {m.number: steps_of(m) for m in world.up()}
    world.run(20)
    did = {m.number: steps_of(m) - before[m.number] for m in world.up()}
    assert did[1] > 0.5 * did[2]


def test_a_host_whose_weights_broke_is_set_back_at_once() -> None:
    """It is sent too little, since it loses that, for the boundaries of so many steps to come."""
    world = well(ring_of("0", "1", "1", "2"))
    machine = world.machines[1]
    machine.poisoned = True
    world.run(30, lambda: not machine.poisoned)
    world.run(5)
    worker = machine.labour.worker
    assert worker is not None
    assert worker.nonfinite_steps > 0
    assert all(np.isfinite(theta).all() for theta in worker.theta.values())


def test_a_frozen_host_costs_what_it_had_and_nothing_is_counted_twice() -> None:
    world = well(ring_of("0", "1", "2", "2"))
    world.freeze(2, 12.0)
    world.run(14)
    well(world)
    node = world.machines[0].node
    assert node is not None
    assert node.work.worker.stream_lost > 0


# ------------------------------------------------------------------------------ what is noticed

PART = Part(0, 1, 1, 1, 0)


def test_a_part_that_is_learnt_or_counted_twice_is_noticed() -> None:
    ring = Ring(ring_of("0", "1", "2"))
    ring.gradient(0, PART, (ENDS,))
    ring.gradient(1, PART, (1, 2))
    with pytest.raises(AssertionError, match="a second gradient"):
        ring.gradient(2, PART, (2,))
    with pytest.raises(AssertionError, match="only"):
        ring.counted(PART, 3)
    ring = Ring(ring_of("0", "1", "2"))
    ring.gradient(0, PART, (ENDS, 0, 1, 2))
    ring.counted(PART, 3)
    with pytest.raises(AssertionError, match="twice"):
        ring.counted(PART, 3)


def test_a_batch_that_sends_again_what_has_come_around_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(BatchRound, "came_around", lambda self, number: None)
    monkeypatch.setattr(BatchRound, "is_around", lambda self, number: True)
    world = well(ring_of("0", "1", "2", "1"))

    def one_host_dies_again_and_again() -> None:
        for _ in range(20):
            world.kill(1)
            world.run(1)
            world.restart(1)
            world.run(20, lambda: is_stepping(world.machines[1]))

    with pytest.raises(AssertionError, match="a second gradient"):
        one_host_dies_again_and_again()


def test_an_exchange_of_a_fragment_that_is_not_held_is_noticed() -> None:
    world = well(ring_of("0", "1", "2"))
    of_two = next(f for f, stage in world.stage_of.items() if stage == 2)
    serve = fx.ServeExchange(
        TransferId(bytes(16)),
        world.machines[1].keys.peer_id,
        of_two,
        *("fp32", "fp32", 48, bytes(32), bytes(32), 0.5, None, 5.0, 10.0),
    )
    with pytest.raises(AssertionError, match="not held here"):
        world.machines[0].labour.transfers.serve(serve)


def test_a_part_of_a_task_begins_where_the_whole_does() -> None:
    whole = Quadratic((4, 3, 5))
    part = part_of(whole, (FragmentId(0), FragmentId(2)))
    assert part.sizes == (4, 5)
    for values, expected in zip(part.initial(7), whole.initial(7)[::2], strict=True):
        np.testing.assert_array_equal(values, expected)
    with pytest.raises(ConfigError, match="whole"):
        part_of(Teacher(), (FragmentId(0),))


# -------------------------------------------------------------------------------- random trouble


@pytest.mark.parametrize(
    ("seed", "count", "nodes"),
    [
        *((seed, count, 6) for seed, count in SAMPLE),
        *(
            pytest.param(seed, 2 + seed % 3, 7, marks=pytest.mark.slow)
            for seed in range(4001, 4101)
        ),
    ],
)
def test_after_any_trouble_stages_are_hosted_again(seed: int, count: int, nodes: int) -> None:
    story = live(seed, nodes, count).story
    assert not story, (
        f"peerlm sim replay {seed} --nodes {nodes} --set model.stages={count}\n{story}"
    )


def test_menus_draw_every_kind_of_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "add", lambda self, number, *_, **given: hosts.append(given))
    hosts: list[dict[str, Any]] = []
    modes, menus = set(), set[str]()
    for seed in range(60):
        hosts.clear()
        trouble = StageTrouble(seed, 1, None, 3)
        modes.add(trouble.mode)
        menus |= set(trouble.menu)
    assert modes == {"fixed", "auto", "mixed"}
    assert {"stage", "flicker", "kill", "freeze", "everybody"} <= menus


def test_faults_in_stages_by_command(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sim", "faults", "--seeds", "15", "--nodes", "6", "--set", "model.stages=2"]
    assert main([*command, "--jobs", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["stages"], found["failed"]) == (2, [])
    assert main(["sim", "replay", "15", "--nodes", "6", "--set", "model.stages=2", "--digest"]) == 0
    assert len(capsys.readouterr().out.strip()) == 32


@pytest.mark.parametrize(
    ("changes", "says"),
    [("model.stages=5", "from 1 to 4"), ("mix.codec=fp16", "model.stages alone can be set")],
)
def test_what_cannot_be_set_is_one_line(
    changes: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", "faults", "--set", changes]) == 2
    assert says in capsys.readouterr().err
