"""A node whose text comes shard by shard: when it trains, on what, and what it says of that."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import replace

import pytest
from blake3 import blake3
from node_scene import World

from peerlm.config import Plan, with_changes
from peerlm.data.records import parts_of
from peerlm.effects import (
    Effect,
    EvaluateSlow,
    Log,
    PrepareCorpus,
    StartWorker,
    StopWorker,
    TellShards,
)
from peerlm.events import (
    CorpusMissing,
    CorpusReady,
    CorpusUnusable,
    Evaluated,
    NewPlan,
    WorkerProgressed,
)
from peerlm.node import status
from peerlm.node.acquire import Acquisition
from peerlm.node.coverage import Coverage
from peerlm.node.node import Node
from peerlm.node.reading import Reading
from peerlm.node.snapshots import Snapshots
from peerlm.node.worker import Worker
from peerlm.sim.machine import Machine
from peerlm.swarm.hosting import Hosting
from peerlm.types import Instant, ObjectHash

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


def waiting_for_all() -> tuple[World, Machine]:
    """A joiner that has all shards but one, by a plan that does not say their sizes."""
    world = world_of(**BUDGET)
    older = world.sign(with_changes(world.plan.plan, {"data.shard_tokens": ()}, "test"), 2)
    world.machines[0].post(NewPlan(older.blob))
    give_only(world, 0, range(7))
    joiner = world.add(1, 0, plan=older)
    world.within(30, lambda: len(here(world, 1)) == 7, "it has all but one")
    world.run(5)
    assert world.summary(1).phase == "ready"
    return world, joiner


def test_without_sizes_in_the_plan_all_shards_are_waited_for() -> None:
    world, joiner = waiting_for_all()
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


# ---------------------------------------------------------------- another text, while a worker reads the one of before

BUDGET = {"run.token_budget": 50_000_000}


def other_text(world: World, count: int = 4, **changes: object) -> tuple[list[ObjectHash], Plan]:
    """Shards that nobody has yet, and a plan that names them."""
    texts = [b"other text, from the store %d " % n * 40 for n in range(count)]
    other = [ObjectHash(blake3(text).digest()) for text in texts]
    named = {
        "data.source": "swarm:other",
        "data.shards": [name.hex() for name in other],
        "data.shard_tokens": [len(text) for text in texts],
    }
    return other, with_changes(world.plan.plan, {**named, **changes}, "test")


def give_other(world: World, places: Collection[int]) -> None:
    texts = [b"other text, from the store %d " % n * 40 for n in range(4)]
    given = [(ObjectHash(blake3(texts[n]).digest()), texts[n]) for n in places]
    node = core(world, 0)
    world.machines[0].disk.objects |= dict(given)
    node.work.snapshots.corpus = tuple((name, len(text)) for name, text in given)


def core(world: World, number: int) -> Node:
    node = world.machines[number].node
    assert node is not None
    return node


def tell_plan(world: World, plan: Plan, revision: int = 2, *numbers: int) -> None:
    for number in numbers or (1,):
        world.machines[number].post(NewPlan(world.sign(plan, revision).blob))


def test_text_that_a_worker_reads_or_will_read_is_held_in_the_store() -> None:
    world = world_of(**BUDGET)
    joined(world, range(SHARDS))
    other, plan = other_text(world)
    is_held = core(world, 1).storing.is_held
    assert is_held(names(world)[0])
    assert not is_held(other[0])
    tell_plan(world, plan)
    world.run(5)
    assert is_held(other[0]), "the next worker needs it"
    assert is_held(names(world)[0]), "its worker reads it"
    give_other(world, [0, 1])
    world.within(40, lambda: "2 of 4" in world.summary(1).arriving, "the new text is read")
    assert all(map(is_held, other))
    assert not is_held(names(world)[0]), "the worker has left it"


def test_a_shard_that_a_worker_died_for_is_fetched_again() -> None:
    world = world_of(**BUDGET)
    joiner = joined(world, range(SHARDS))
    del joiner.disk.objects[names(world)[2]]
    give_only(world, 0, range(SHARDS))
    joiner.labour.worker_ends("shard 2: cannot be read")
    world.within(30, lambda: here(world, 1) == list(range(SHARDS)), "it is here again")
    world.within(30, lambda: joiner.labour.worker is not None, "another worker is started")
    world.within(30, lambda: absent(joiner) == (), "and reads it")


def test_all_text_is_read_again_for_some_of_the_deaths_in_a_row_alone() -> None:
    """A worker that dies of something else does not keep the disk busy."""
    world = world_of(**BUDGET)
    joiner = joined(world, range(SHARDS))
    before = len(of_kind(joiner, PrepareCorpus))
    for _ in range(5):
        world.within(70, lambda: joiner.labour.worker is not None, "another worker is started")
        joiner.labour.worker_ends("CUDA error")
    world.run(1)
    checks = of_kind(joiner, PrepareCorpus)[before:]
    anew = [e.anew for e in checks if isinstance(e, PrepareCorpus)]
    assert anew == [False, True, False, True, False]


def test_what_a_check_of_an_earlier_plan_finds_is_void() -> None:
    world = world_of(**BUDGET)
    joiner = joined(world, range(SHARDS))
    old = tuple((name, len(world.corpus[name])) for name in names(world))
    _, plan = other_text(world)
    tell_plan(world, plan)
    world.run(5)
    checks = [e.number for e in of_kind(joiner, PrepareCorpus) if isinstance(e, PrepareCorpus)]
    assert checks == sorted(set(checks)), "each has its own number"
    line = world.summary(1).arriving
    late = checks[-2]
    for found in (
        CorpusReady(old, late),
        CorpusMissing((old[0][0],), old[1:], late),
        CorpusUnusable("no text", late),
    ):
        joiner.post(found)
        world.run(2)
        assert world.summary(1).arriving == line
        assert world.summary(1).phase == "training"
    joiner.post(CorpusUnusable("no text", checks[-1]))
    world.run(2)
    assert "no text" in world.summary(1).phase_reason


def test_text_that_was_unusable_is_checked_again_under_a_plan_that_says_otherwise() -> None:
    world = world_of(**BUDGET)
    joiner = joined(world, range(SHARDS))
    last = of_kind(joiner, PrepareCorpus)[-1]
    assert isinstance(last, PrepareCorpus)
    joiner.post(CorpusUnusable("shorter than one batch", last.number))
    world.within(10, lambda: world.summary(1).phase == "ready", "nothing can be read")
    smaller = with_changes(world.plan.plan, {"train.batch": 1}, "test")
    tell_plan(world, smaller, 2)
    world.within(20, lambda: world.summary(1).phase == "training", "a smaller batch can")


def test_the_old_text_is_trained_on_although_the_plan_changes_how_too() -> None:
    world = world_of(**BUDGET)
    joiner = joined(world, range(SHARDS))
    _, plan = other_text(world, **{"train.rewarm_steps": 7})
    tell_plan(world, plan)
    world.run(5)
    again = with_changes(plan, {"train.rewarm_steps": 9}, "test")
    tell_plan(world, again, 3)
    world.run(5)
    assert not of_kind(joiner, StopWorker)
    assert "text of before: 0 of 4" in world.summary(1).arriving
    give_other(world, [1])
    world.within(40, lambda: absent(joiner) == (0, 2, 3), "one shard of the new is here")
    assert len(of_kind(joiner, StopWorker)) == 1
    tell_plan(world, with_changes(again, {"train.rewarm_steps": 5}, "test"), 4)
    world.within(10, lambda: len(of_kind(joiner, StopWorker)) == 2, "of its own text at once")


def test_without_a_shard_to_read_the_first_is_waited_for() -> None:
    world = world_of(**BUDGET)
    joiner = joined(world, range(SHARDS))
    reading = core(world, 1).work.reading
    _, plan = other_text(world)
    tell_plan(world, plan)
    world.run(5)
    joiner.labour.worker_ends("killed by signal 9")
    world.within(
        20, lambda: joiner.labour.worker is not None and absent(joiner) == (0, 1, 2, 3), "another"
    )
    said = reading.arriving if reading.can_train else world.summary(1).phase_reason
    assert said in ("waiting for the first shard of 4", "fetching 4 corpus objects")
    reading.state = "partial"
    assert reading.arriving == "waiting for the first shard of 4"


def test_on_part_of_the_held_out_text_nothing_is_evaluated_although_the_plan_names_other() -> None:
    world = world_of(**BUDGET)
    joiner = joined(world, [0, 3])
    _, plan = other_text(world)
    tell_plan(world, plan)
    world.run(10)
    assert "text of before" in world.summary(1).arriving
    assert not of_kind(joiner, EvaluateSlow)


def test_a_loss_is_told_of_the_text_that_it_was_measured_on() -> None:
    world = world_of(**{**BUDGET, "train.val_every_s": 10_000.0})
    joiner = joined(world, range(SHARDS))
    work = core(world, 1).work
    (part,) = parts_of(work.plan)
    generation = work.worker.supervision.generation
    report = WorkerProgressed(
        generation, 10**6, 10**6, 1.0, 1.0, 0, texts=(part.text,), ranges=(1,)
    )
    world.machines[1].speed = 1e-3  # what it tells from here on is this
    world.run(3)
    joiner.post(report)
    joiner.post(Evaluated(generation, 1.5, 0, None, (1.5,)))
    world.run(1)
    assert [text.val_loss for text in world.summary(1).texts] == [1.5]
    _, plan = other_text(world)
    tell_plan(world, plan)
    world.run(2)
    assert [text.val_loss for text in world.summary(1).texts] == [None]


def test_sizes_that_come_later_let_a_node_begin_that_waits_for_all() -> None:
    world, joiner = waiting_for_all()
    tell_plan(world, world.plan.plan, 3, 0, 1)
    world.within(20, lambda: trains(world, 1), "it reads what is here")
    assert absent(joiner) == (7,)


def test_who_has_read_what_is_here_says_so() -> None:
    world = world_of(**BUDGET)
    joiner = joined(world, [0, 3])
    world.machines[1].speed = 1e-3
    world.run(3)
    worker = core(world, 1).work.worker
    report = WorkerProgressed(worker.supervision.generation, 10**6, worker.tokens, None, 0.0, 0)
    joiner.post(report)
    world.run(0.1)
    assert "training on 2 of 8" in world.summary(1).arriving
    joiner.post(replace(report, lacks_text=True))
    world.run(0.1)
    assert world.summary(1).arriving == "has read what is here; waiting for 6 shards"
    joiner.post(report)
    world.run(0.1)
    assert "training on 2 of 8" in world.summary(1).arriving


@pytest.mark.parametrize(("held", "line"), [((0, 1), "waiting for 1 shard"), ((1, 2), "")])
def test_the_worker_of_a_stage_that_waits_for_text_says_so(
    held: tuple[int, int], line: str
) -> None:
    """If it reads any: who holds no ends knows nothing of the text."""
    now, rng = Instant(0.0), random.Random(1)
    shards = {"data.shards": ["aa" * 32, "bb" * 32], "data.shard_tokens": [90_000, 900]}
    plan = with_changes(Plan(), shards, "test")
    worker = Worker(rng, now)
    reading = Reading(
        plan,
        Hosting(*held, 3),
        worker,
        Acquisition({}, lambda _: None, rng),
        Snapshots(60.0, None, now),
        Coverage(plan, b"", rng, now),
    )
    there, lacking = (ObjectHash(bytes.fromhex(text) * 32) for text in ("aa", "bb"))
    asked = reading.number(PrepareCorpus())
    reading.missing(CorpusMissing((lacking,), ((there, 180_000),), asked.number), now)
    reading.start_worker(now, fresh=False)
    report = WorkerProgressed(1, 0, 0, None, 0.0, 0)  # no step: others' stages may be missing
    assert worker.progressed(report, now)
    assert reading.arriving.startswith("training on 1 of 2 shards" if line else "")
    worker.progressed(replace(report, lacks_text=True), now)
    assert reading.arriving == (f"has read what is here; {line}" if line else "")


# ------------------------------------------------------------------------------------ text of one's own with others


def test_a_plan_that_begins_to_name_own_text_has_it_looked_at_before_a_worker_reads_it() -> None:
    world = world_of(**BUDGET)
    machine = world.machines[0]
    begun = len(machine.effects)
    named = {"data.source": "swarm:plays+local", "data.parts": [SHARDS, 0]}
    plan = with_changes(world.plan.plan, named, "test")
    tell_plan(world, plan, 2, 0)
    world.within(20, lambda: len(of_kind(machine, StartWorker)) == 2, "a worker of the new plan")
    since = [e for _, e in machine.effects[begun:]]
    order = [type(e) for e in since if isinstance(e, PrepareCorpus | StopWorker | StartWorker)]
    assert order == [PrepareCorpus, StopWorker, StartWorker]
    tell_plan(world, with_changes(plan, {"data.source": "swarm:plays+local*3"}, "test"), 3, 0)
    world.within(20, lambda: len(of_kind(machine, StartWorker)) == 3, "other weights need no look")
    assert len([e for _, e in machine.effects[begun:] if isinstance(e, PrepareCorpus)]) == 1


def test_own_text_waits_for_the_tokenizer_and_the_worker_for_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, rng = Instant(0.0), random.Random(1)
    first, second, words = (ObjectHash(bytes([n]) * 32) for n in (1, 2, 3))
    plan = with_changes(
        Plan(),
        {
            "data.source": "swarm:plays+local",
            "data.tokenizer": words.hex(),
            "data.shards": [first.hex(), second.hex()],
            "data.shard_tokens": [90_000, 90_000],
            "data.parts": [2, 0],
        },
        "test",
    )
    worker, acquisition = Worker(rng, now), Acquisition({}, lambda _: None, rng)
    came: list[tuple[ObjectHash, int]] = []
    monkeypatch.setattr(acquisition, "take_corpus", lambda: _taken(came))
    reading = Reading(
        plan,
        Hosting(0, 1, 1),
        worker,
        acquisition,
        Snapshots(60.0, None, now),
        Coverage(plan, b"", rng, now),
    )
    asked = reading.number(PrepareCorpus())
    reading.missing(CorpusMissing((first, second, words), (), asked.number), now)
    assert reading.state == "missing"
    came.append((first, 180_000))
    assert reading.look() == []
    assert not reading.can_train, "what the own text is cannot be known without the tokenizer"
    came.append((words, 900))
    assert reading.look() == [PrepareCorpus()]
    asked = reading.number(PrepareCorpus())
    here = ((first, 180_000), (words, 900))
    reading.missing(CorpusMissing((second,), here, asked.number), now)
    assert reading.state == "partial"
    came.append((second, 180_000))
    assert PrepareCorpus() not in reading.look()


def _taken(came: list[tuple[ObjectHash, int]]) -> tuple[tuple[ObjectHash, int], ...]:
    taken = tuple(came)
    came.clear()
    return taken


def test_who_reads_no_text_is_not_started_again_for_other_text() -> None:
    now, rng = Instant(0.0), random.Random(1)
    plan = with_changes(Plan(), {"data.shards": ["aa" * 32], "data.shard_tokens": [900]}, "test")
    worker = Worker(rng, now)
    reading = Reading(
        plan,
        Hosting(1, 2, 3),
        worker,
        Acquisition({}, lambda _: None, rng),
        Snapshots(60.0, None, now),
        Coverage(plan, b"", rng, now),
    )
    worker.start(b"", (), now, fresh=False)
    other = with_changes(plan, {"data.shards": ["bb" * 32], "data.source": "swarm:b"}, "test")
    assert reading.use_plan(plan, other) == [PrepareCorpus()]
    asked = reading.number(PrepareCorpus())
    assert reading.ready(CorpusReady((), asked.number)) == []
    weighed = with_changes(other, {"data.val_fraction": 0.25}, "test")
    assert reading.use_plan(other, weighed) == []
    trained = with_changes(weighed, {"train.batch": 1}, "test")
    assert reading.use_plan(weighed, trained) == [StopWorker(1)]
