"""A node whose text comes shard by shard: when it trains, on what, and what it says of that."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from blake3 import blake3
from node_scene import World

from peerlm.config import with_changes
from peerlm.effects import Effect, EvaluateSlow, Log, StartWorker, TellShards
from peerlm.events import NewPlan
from peerlm.node import status
from peerlm.sim.machine import Machine
from peerlm.types import ObjectHash

SHARDS = 8


def world_of(**changes: object) -> World:
    """A founder that trains, and has all shards."""
    world = World(1, shards=SHARDS, **{"train.val_every_s": 1.0, **changes})
    world.add(0)
    world.within(20, lambda: world.summary(0).phase == "training", "the founder trains")
    return world


def names(world: World) -> tuple[ObjectHash, ...]:
    """Of the shards, in order."""
    return tuple(world.corpus)


def give_only(world: World, number: int, places: Collection[int]) -> None:
    """From now on the machine gives no shards but these."""
    node = world.machines[number].node
    assert node is not None
    given = [(name, len(world.corpus[name])) for name in names(world)]
    node.work.snapshots.corpus = tuple(given[place] for place in places)


def of_kind(machine: Machine, kind: type[Effect]) -> list[Effect]:
    return [effect for _, effect in machine.effects if isinstance(effect, kind)]


def absent(machine: Machine) -> tuple[int, ...]:
    """What its worker takes for absent."""
    assert machine.labour.worker is not None
    return machine.labour.worker.absent


def here(world: World, number: int) -> list[int]:
    disk = world.machines[number].disk.objects
    return [place for place, name in enumerate(names(world)) if name in disk]


def trains(world: World, number: int) -> bool:
    summary = world.summary(number)
    return summary.phase == "training" and summary.tokens > 0


def joined(world: World, given: Collection[int]) -> Machine:
    """A newcomer that trains on these shards alone, because the founder gives no others."""
    give_only(world, 0, given)
    joiner = world.add(1, 0)
    world.within(30, lambda: trains(world, 1), "it trains on what is here")
    world.within(10, lambda: here(world, 1) == sorted(given), "which is this")
    world.within(5, lambda: set(absent(joiner)) == set(range(SHARDS)) - set(given), "and knows it")
    return joiner


def test_a_joiner_trains_on_the_first_shards_and_is_told_of_the_rest_as_they_come() -> None:
    world = world_of()
    joiner = joined(world, [0, 3])
    found = world.summary(1)
    line = "training on 2 of 8 shards, the rest is being fetched; validation waits for its text"
    assert line in status.why(found)
    assert line in status.headline(found)
    data = status.as_json(found)["data"]
    assert (data["shards_here"], data["shards"]) == (2, 8)
    world.run(10)
    assert not of_kind(joiner, EvaluateSlow), "there is nothing to evaluate on"
    assert world.all_mixing(), "what it learns counts meanwhile"

    give_only(world, 0, range(SHARDS))
    world.within(40, lambda: absent(joiner) == (), "its worker has all of it")
    world.within(10, lambda: bool(of_kind(joiner, EvaluateSlow)), "it evaluates")
    assert len(of_kind(joiner, StartWorker)) == 1, "by the worker that it began with"
    told = [len(e.absent) for e in of_kind(joiner, TellShards) if isinstance(e, TellShards)]
    assert told == sorted(told, reverse=True)
    assert not any("shards" in line for line in status.why(world.summary(1)))
    assert world.summary(1).shards == (8, 8)


def test_who_has_all_shards_is_told_of_none() -> None:
    world = world_of()
    world.run(5)
    founder = world.machines[0]
    assert [e.absent for e in of_kind(founder, StartWorker) if isinstance(e, StartWorker)] == [()]
    assert not of_kind(founder, TellShards)


def test_held_out_text_alone_is_nothing_to_train_on() -> None:
    world = world_of(**{"data.val_fraction": 0.25})
    give_only(world, 0, [6, 7])
    joiner = world.add(1, 0)
    world.within(30, lambda: here(world, 1) == [6, 7], "it has text to evaluate on")
    world.within(30, lambda: world.summary(1).phase == "ready", "and weights")
    world.run(5)
    assert not of_kind(joiner, StartWorker)
    assert "fetching 8 corpus objects" in world.summary(1).phase_reason
    give_only(world, 0, [2, 6, 7])
    world.within(30, lambda: trains(world, 1), "one shard is enough")
    assert set(absent(joiner)) == {0, 1, 3, 4, 5}
    assert "validation" not in world.summary(1).arriving


def test_held_out_text_comes_last() -> None:
    world = world_of(**{"data.val_fraction": 0.25})
    joiner = world.add(1, 0)
    world.within(30, lambda: len(here(world, 1)) == SHARDS, "it has all of it")
    asked = [
        names(world).index(name)
        for _, effect in joiner.effects
        if (name := getattr(effect, "object_hash", None)) in names(world)
    ]
    assert set(asked[-2:]) == {6, 7}


def test_killed_in_the_middle_it_goes_on_at_once_with_the_shards_that_are_here() -> None:
    world = world_of()
    joiner = joined(world, [1, 4, 5])
    world.kill(1)
    give_only(world, 0, [])
    world.run(3)
    before = len(joiner.effects)
    world.restart(1)
    world.within(40, lambda: trains(world, 1), "it trains again, though nobody gives anything")
    (start,) = [e for _, e in joiner.effects[before:] if isinstance(e, StartWorker)]
    assert set(start.absent) == {0, 2, 3, 6, 7}
    give_only(world, 0, range(SHARDS))
    world.within(40, lambda: absent(joiner) == (), "the rest comes")


def test_joiners_give_each_other_what_they_have() -> None:
    world = world_of()
    joined(world, range(4))
    give_only(world, 0, range(2, SHARDS))
    world.add(2, 0, 1)
    for number in (1, 2):
        world.within(
            60, lambda n=number: len(here(world, n)) == SHARDS, "all, though nobody gave all of it"
        )


def test_a_shard_that_turns_out_damaged_is_fetched_again() -> None:
    world = world_of()
    joiner = joined(world, range(7))
    del joiner.disk.objects[names(world)[2]]  # found when all is checked once the last is here
    give_only(world, 0, [7])
    world.within(30, lambda: absent(joiner) == (2,), "its worker reads it no more")
    assert world.summary(1).phase == "training"
    assert world.summary(1).shards == (7, 8)
    give_only(world, 0, range(SHARDS))
    world.within(30, lambda: absent(joiner) == (), "it is here again")
    assert len(of_kind(joiner, StartWorker)) == 1


def test_without_sizes_in_the_plan_all_shards_are_waited_for() -> None:
    world = world_of(**{"run.token_budget": 50_000_000})
    older = world.sign(with_changes(world.plan.plan, {"data.shard_tokens": ()}, "test"), 2)
    world.machines[0].post(NewPlan(older.blob))
    give_only(world, 0, range(7))
    joiner = world.add(1, 0, plan=older)
    world.within(30, lambda: len(here(world, 1)) == 7, "it has all but one")
    world.run(5)
    assert world.summary(1).phase == "ready"
    assert not of_kind(joiner, StartWorker)
    give_only(world, 0, range(SHARDS))
    world.within(30, lambda: trains(world, 1), "that one was missing")


@pytest.mark.parametrize("dies", [False, True])
def test_other_text_is_read_from_its_first_shard_on(dies: bool) -> None:
    world = world_of(**{"run.token_budget": 50_000_000})
    joiner = joined(world, range(SHARDS))
    texts = [b"other text, from the store %d " % n * 40 for n in range(4)]
    other = [ObjectHash(blake3(text).digest()) for text in texts]
    changes = {
        "data.source": "swarm:other",
        "data.shards": [name.hex() for name in other],
        "data.shard_tokens": [len(text) for text in texts],
    }
    plan = with_changes(world.plan.plan, changes, "test")
    begun = len(joiner.effects)
    world.machines[1].post(NewPlan(world.sign(plan, 2).blob))
    world.run(5)
    assert "text of before: 0 of 4" in world.summary(1).arriving
    if dies:  # there is no going back to the old text
        joiner.labour.worker_ends("killed by signal 9")
        world.within(20, lambda: joiner.labour.worker is not None, "another worker")
        assert absent(joiner) == (0, 1, 2, 3)
    node = world.machines[0].node
    assert node is not None
    world.machines[0].disk.objects[other[1]] = texts[1]
    node.work.snapshots.corpus = ((other[1], len(texts[1])),)
    world.within(
        40, lambda: joiner.labour.worker is not None and absent(joiner) == (0, 2, 3), "one"
    )
    world.machines[0].disk.objects |= dict(zip(other, texts, strict=True))
    node.work.snapshots.corpus = tuple((n, len(t)) for n, t in zip(other, texts, strict=True))
    world.within(40, lambda: absent(joiner) == (), "and then all of it")
    since = [e for _, e in joiner.effects[begun:]]
    assert sum(isinstance(e, StartWorker) for e in since) == 1
    assert dies or not [e for e in since if isinstance(e, Log) and ("is", "ready") in e.fields]
