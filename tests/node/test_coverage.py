"""What nodes know of what is read: told, lost on the way, kept and heard again, with loaders that read by it."""

from __future__ import annotations

import dataclasses
import random
import struct
from collections import Counter

import numpy as np
import pytest
from node_scene import World

from peerlm.config import Plan, with_changes
from peerlm.data import passes
from peerlm.data.loader import Loader
from peerlm.data.passes import PASSES_AHEAD, Passes, decode
from peerlm.data.records import decode as decode_all
from peerlm.data.records import parts_of
from peerlm.data.shards import Corpus
from peerlm.effects import Effect, Save, Send, StartWorker, SteerWorker
from peerlm.events import WorkerProgressed
from peerlm.node.coverage import SAVE_S, TELL_S, WHOLE_S, Coverage
from peerlm.types import Instant, PeerId
from peerlm.wire import codec
from peerlm.wire.message import RangesDone

WIDTH = 9
CORPUS = Corpus([np.arange(3000, dtype=np.uint32)], vocab=1 << 20, val_fraction=0.0)
RANGES = 3000 // WIDTH - 1
SHARDS = ("ab" * 32, "cd" * 32)
STEPS_S = 2
"""Batches of a node in a second."""


def plan_of(**changes: object) -> Plan:
    settings = {
        "train.batch": 1,
        "model.context": 8,
        "data.val_fraction": 0.0,
        "data.shards": list(SHARDS),
        **changes,
    }
    return with_changes(Plan(), settings, "test")


PLAN = plan_of()
TEXT = passes.text_of(SHARDS, PLAN)


def peer_of(number: int) -> PeerId:
    return PeerId(bytes([number + 1]) * 16)


def new_coverage(kept: bytes = b"", plan: Plan = PLAN) -> Coverage:
    return Coverage(plan, kept, random.Random(1), Instant(0.0))


def progressed(
    *finished: tuple[int, int],
    text: bytes = TEXT,
    ranges: int = RANGES,
    lanes: tuple[int, ...] = (),
) -> WorkerProgressed:
    flat = tuple(number for done in finished for number in (0, *done))
    places = zip(*[iter(lanes)] * 3, strict=True)
    return WorkerProgressed(
        1,
        1,
        1,
        None,
        1.0,
        0,
        texts=(text,),
        ranges=(ranges,),
        finished=flat,
        lanes=tuple(number for place in places for number in (0, *place)),
    )


def messages(effects: list[Effect]) -> list[RangesDone]:
    sent = [effect.message for effect in effects if isinstance(effect, Send)]
    return [message for message in sent if isinstance(message, RangesDone)]


class Swarm:
    """Nodes with a worker each, a second at a time. `loss`: share of what is told that never arrives."""

    def __init__(self, n: int, seed: int = 1, loss: float = 0.0) -> None:
        self.rng, self.loss, self.now = random.Random(seed), loss, 0.0
        self.read = Counter[tuple[int, int]]()
        self.disks: dict[PeerId, bytes] = {}
        self.nodes: dict[PeerId, Coverage] = {}
        self.loaders: dict[PeerId, Loader] = {}
        for number in range(n):
            self.start(peer_of(number))

    def start(self, peer: PeerId) -> None:
        node = Coverage(PLAN, self.disks.get(peer, b""), self.rng, Instant(self.now))
        others = dict(self.nodes)
        self.nodes[peer] = node
        for other, there in others.items():
            self.carry(there.link_up(peer))
            self.carry(node.link_up(other))
        self.work(peer)
        self.see()

    def work(self, peer: PeerId) -> None:
        """A worker, the first or another."""
        self.loaders[peer] = loader = Loader(CORPUS, PLAN, peer, 1, text=TEXT)
        if kept := self.nodes[peer].for_start():
            known, lanes = decode(kept)
            assert loader.hear(known)
            loader.go_on(lanes)

    def die(self, peer: PeerId) -> None:
        del self.nodes[peer], self.loaders[peer]
        self.see()

    def see(self) -> None:
        for loader in self.loaders.values():
            loader.set_members(list(self.nodes))

    def carry(self, effects: list[Effect]) -> None:
        for effect in effects:
            assert isinstance(effect, Send)
            message = codec.decode(codec.encode(effect.message))
            assert isinstance(message, RangesDone)
            if effect.peer in self.nodes and self.rng.random() >= self.loss:
                self.nodes[effect.peer].heard(message)

    def second(self) -> None:
        self.now += 1.0
        for peer, loader in self.loaders.items():
            node = self.nodes[peer]
            if steering := node.for_steering():
                assert loader.hear(decode(steering)[0])
            for _ in range(STEPS_S):
                loader.next_batch()
            finished = loader.take_finished()
            self.read.update(finished)
            lanes = tuple(n for lane in loader.lanes() for n in lane)
            node.read(progressed(*finished, lanes=lanes))
            effects = node.wake([p for p in self.nodes if p != peer], Instant(self.now))
            for effect in effects:
                if isinstance(effect, Save):
                    assert effect.name == "passes"
                    self.disks[peer] = effect.data
            self.carry([effect for effect in effects if isinstance(effect, Send)])

    def until_pass(self, number: int) -> None:
        for _ in range(2000):
            self.second()
            if all(node.number >= number for node in self.nodes.values()):
                return
        raise AssertionError(f"pass {number} is never reached")

    def again(self, number: int) -> int:
        """How often a range of a pass was read that had been read; all of it was read once."""
        read = [self.read[number, index] for index in range(RANGES)]
        assert min(read) >= 1
        return sum(read) - RANGES


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_in_peace_a_swarm_reads_each_range_once(n: int) -> None:
    swarm = Swarm(n)
    swarm.until_pass(2)
    assert [swarm.again(number) for number in range(2)] == [0, 0]


def test_what_gets_lost_on_the_way_is_told_again() -> None:
    swarm = Swarm(4, loss=0.5)
    swarm.until_pass(2)
    assert sum(swarm.again(number) for number in range(2)) == 0


def test_after_a_death_what_the_dead_had_not_told_is_read_again_and_no_more() -> None:
    swarm = Swarm(3)
    for _ in range(20):
        swarm.second()
    swarm.die(peer_of(1))
    swarm.until_pass(1)
    assert swarm.again(0) <= STEPS_S * TELL_S


def test_a_worker_that_starts_again_goes_on_where_the_one_before_was() -> None:
    swarm = Swarm(2)
    for second in range(30):
        swarm.second()
        if second % 7 == 0:
            swarm.work(peer_of(0))
            swarm.see()
    swarm.until_pass(1)
    assert swarm.again(0) == 0


def test_a_node_that_comes_back_and_one_that_is_new_read_what_is_left() -> None:
    swarm = Swarm(3)
    for _ in range(20):
        swarm.second()
    swarm.die(peer_of(1))
    for _ in range(5):
        swarm.second()
    swarm.start(peer_of(1))
    for _ in range(5):
        swarm.second()
    swarm.start(peer_of(7))
    swarm.second()
    assert swarm.nodes[peer_of(7)].position > 0.3, "it knows from its first link"
    swarm.until_pass(1)
    views, untold = 3, 3 * STEPS_S * TELL_S
    assert swarm.again(0) <= views * untold


def test_a_swarm_that_was_killed_as_a_whole_goes_on_where_it_was() -> None:
    swarm = Swarm(3)
    for _ in range(35):
        swarm.second()
    peers = list(swarm.nodes)
    swarm.nodes.clear()
    swarm.loaders.clear()
    for peer in peers:
        swarm.start(peer)
    assert all(node.position > 0.3 for node in swarm.nodes.values())
    swarm.until_pass(1)
    assert swarm.again(0) <= 3 * STEPS_S * SAVE_S


# --------------------------------------------------------------------------------------- one node


def test_only_what_is_new_is_told_and_to_everybody_in_few_bytes() -> None:
    node, others = new_coverage(), [peer_of(1), peer_of(2)]
    node.read(progressed((0, 3), (0, 9)))
    effects = node.wake(others, Instant(TELL_S))
    assert [e.peer for e in effects if isinstance(e, Send)] == others
    assert {(m.number, m.bits, m.few) for m in messages(effects)} == {
        (0, (1 << 3 | 1 << 9).to_bytes(2, "little"), b"")
    }
    node.read(progressed((0, 300)))
    told = messages(node.wake(others, Instant(2 * TELL_S)))
    assert told[0].few == struct.pack("<H", 300)
    assert messages(node.wake(others, Instant(3 * TELL_S))) == []
    (whole,) = messages(node.wake(others, Instant(WHOLE_S)))
    assert len(whole.few) == 6, "to one of them, now and then, all that is known"


def test_among_many_news_is_told_rarer() -> None:
    node, others = new_coverage(), [peer_of(n) for n in range(64)]
    node.wake(others, Instant(TELL_S))
    node.read(progressed((0, 3)))
    assert messages(node.wake(others, Instant(2 * TELL_S))) == []
    assert len(messages(node.wake(others, Instant(5 * TELL_S)))) >= 64


def test_who_leaves_tells_and_keeps_the_last_it_knows() -> None:
    node = new_coverage()
    node.read(progressed((0, 3), lanes=(0, 5, 0)))
    told, saved = node.leave([peer_of(1)])
    assert isinstance(told, Send)
    assert isinstance(saved, Save)
    again = new_coverage(saved.data)
    assert again.for_start() == node.for_start()
    assert again.link_up(peer_of(1)) == node.link_up(peer_of(1))


def test_other_text_begins_anew_and_what_is_said_of_the_old_is_void() -> None:
    node = new_coverage()
    node.read(progressed((0, 3)))
    other = plan_of(**{"data.shards": ["ef" * 32]})
    node.use_plan(plan_of(**{"run.token_budget": 7}))
    assert node.position > 0
    node.use_plan(other)
    assert (node.number, node.position) == (0, 0.0)
    node.read(progressed((0, 4)))
    node.heard(RangesDone(TEXT, 5, 5, b"\1", b""))
    assert (node.number, node.position) == (0, 0.0)
    new = passes.text_of(other.data.shards, other)
    node.read(progressed((0, 4), text=new, ranges=50))
    assert node.position == 1 / 50
    assert new_coverage(new_coverage().for_start(), other).number == 0


def test_a_text_of_its_own_is_kept_and_neither_told_nor_heard() -> None:
    plan = plan_of(**{"data.source": "local", "data.shards": []})
    node = new_coverage(plan=plan)
    own = passes.as_own(b"m" * 32)
    node.read(progressed((0, 3), text=own))
    assert node.position == 1 / RANGES
    assert messages(node.wake([peer_of(1)], Instant(100.0))) == []
    assert node.link_up(peer_of(1)) == []
    node.heard(RangesDone(own, 5, 5, b"\1", b""))
    assert node.number == 0
    assert new_coverage(node.for_start(), plan).for_start() == node.for_start()


def test_a_record_of_own_text_that_an_earlier_release_kept_is_gone_on_with() -> None:
    plan = plan_of(**{"data.source": "local", "data.shards": []})
    old = Passes(b"m" * 32, RANGES)
    old.finish(0, 3)
    node = new_coverage(old.encode(), plan)
    assert node.position == 1 / RANGES
    node.read(progressed((0, 4), text=passes.as_own(b"m" * 32)))
    assert node.position == 2 / RANGES


# ------------------------------------------------------------------------------ own text with others

WITH_OWN = plan_of(
    **{"data.source": "swarm:plays+local", "data.shards": SHARDS[:1], "data.parts": [1, 0]}
)
PLAYS_ALONE, UNNAMED = (part.text for part in parts_of(WITH_OWN))
LETTERS = passes.as_own(b"letters".rjust(32))


def with_own(*finished: tuple[int, int, int], texts: tuple[bytes, ...]) -> WorkerProgressed:
    return dataclasses.replace(
        progressed(),
        texts=texts,
        ranges=(RANGES, 7)[: len(texts)],
        finished=tuple(number for done in finished for number in done),
        lanes=(),
        order=b"drawn",
    )


def test_of_a_mixture_only_what_is_of_the_shared_texts_is_told_and_heard() -> None:
    node = new_coverage(plan=WITH_OWN)
    node.read(with_own((0, 0, 1), (1, 0, 2), texts=(PLAYS_ALONE, LETTERS)))
    assert node.texts == [PLAYS_ALONE, LETTERS]
    assert node.positions() == [(0, 1 / RANGES), (0, 1 / 7)]
    told = [
        message
        for at in (10.0, 20.0, 30.0)
        for message in messages(node.wake([peer_of(1)], Instant(at)))
    ]
    told += messages(node.link_up(peer_of(2))) + messages(node.leave([peer_of(1)]))
    assert len(told) >= 4
    assert {message.text for message in told} == {PLAYS_ALONE}
    assert [record.passes.text for record in decode_all(node.for_steering())[0]] == [PLAYS_ALONE]
    for text in (LETTERS, UNNAMED):
        node.heard(RangesDone(text, 5, 5, b"\1", b""))
    assert node.positions() == [(0, 1 / RANGES), (0, 1 / 7)]
    again = new_coverage(node.for_start(), plan=WITH_OWN)
    assert again.for_start() == node.for_start()
    assert again.texts == [PLAYS_ALONE, LETTERS], "before the worker has named it"
    assert decode_all(again.for_start())[1] == b"drawn"


def test_who_has_no_text_of_its_own_counts_none() -> None:
    node = new_coverage(plan=WITH_OWN)
    assert node.texts == [PLAYS_ALONE, UNNAMED]
    node.read(with_own(*((0, 0, index) for index in range(RANGES)), texts=(PLAYS_ALONE,)))
    assert node.texts == [PLAYS_ALONE]
    assert (node.number, node.position) == (1, 0.0)
    assert decode_all(node.for_start())[1] == b"drawn"


def test_a_worker_of_the_plan_before_does_not_name_own_text() -> None:
    before = plan_of(**{"data.source": "swarm:news", "data.shards": SHARDS[1:2]})
    node = new_coverage(plan=before)
    node.use_plan(WITH_OWN)
    node.read(with_own((0, 0, 1), texts=(parts_of(before)[0].text,)))
    assert node.texts == [PLAYS_ALONE, UNNAMED]
    assert node.positions() == [(0, 0.0), (0, 0.0)]
    node.read(with_own((1, 0, 2), texts=(PLAYS_ALONE, LETTERS)))
    other = passes.as_own(b"diaries".rjust(32))
    node.read(with_own((0, 0, 1), texts=(PLAYS_ALONE, other)))
    assert node.positions() == [(0, 1 / RANGES), (0, 0.0)], "other text begins anew"
    node.use_plan(before)
    assert node.texts == [parts_of(before)[0].text]


def test_absurd_words_take_no_room_and_no_more_than_text_of_passes_at_hand() -> None:
    node = new_coverage()
    node.read(progressed((0, 3)))
    before = node.for_start()
    for number in (PASSES_AHEAD, 10**6, 1 << 62):
        node.heard(RangesDone(TEXT, 0, number, b"\xff" * 8192, b"\xff\xff"))
    assert node.for_start() == before
    node.heard(RangesDone(TEXT, 0, 1, b"", struct.pack("<2H", RANGES, 65_535) + b"x"))
    assert node.for_start() == before, "ranges that there are not"
    node.heard(RangesDone(TEXT, 1 << 40, 1 << 40, b"\xff" * 8192, b""))
    assert node.number == (1 << 40) + 1
    node.read(progressed(((1 << 40) + 1, 3)))
    assert messages(node.wake([peer_of(1)], Instant(100.0))) == [], "no number to tell it by"
    loader = Loader(CORPUS, PLAN, peer_of(0), 1, text=TEXT)
    assert loader.hear(decode(node.for_steering())[0])
    loader.next_batch()
    assert loader.position()["pass"] == (1 << 40) + 1


def test_before_the_worker_is_there_it_takes_others_words_and_passes_them_on() -> None:
    node = new_coverage()
    known = Passes(TEXT, RANGES, 3)
    node.heard(RangesDone(TEXT, 3, 3, b"\x05", b""))
    known.add(3, 5)
    assert node.number == 3
    (told,) = messages(node.link_up(peer_of(2)))
    assert (told.lowest, told.number, told.bits or told.few) == (3, 3, b"\x05")
    node.read(progressed((3, 1)))
    assert node.position == 3 / RANGES


# --------------------------------------------------------------------------------------- a mixture

MIXED = plan_of(**{"data.source": "swarm:plays*3+news", "data.parts": [1, 1]})
PLAYS, NEWS = (part.text for part in parts_of(MIXED))


def mixed(*finished: tuple[int, int, int], order: bytes = b"") -> WorkerProgressed:
    return dataclasses.replace(
        progressed(),
        texts=(PLAYS, NEWS),
        ranges=(RANGES, 7),
        finished=tuple(number for done in finished for number in done),
        lanes=(0, 0, 5, 1, 1, 0, 3, 0),
        order=order,
    )


def test_each_text_of_a_mixture_has_a_record_of_its_own() -> None:
    node, other = new_coverage(plan=MIXED), new_coverage(plan=MIXED)
    node.read(mixed((0, 0, 1), (1, 0, 2), (1, 0, 4), order=b"drawn"))
    told = messages(node.wake([peer_of(1)], Instant(TELL_S)))
    assert {message.text for message in told} == {PLAYS, NEWS}
    for message in told:
        other.heard(message)
    other.read(mixed())
    assert other.positions() == node.positions() == [(0, 1 / RANGES), (0, 2 / 7)]
    assert (node.number, node.position) == (0, 1 / RANGES)
    wholes = [messages(node.wake([peer_of(1)], Instant(at))) for at in (10.0, 15.0)]
    assert {message.text for whole in wholes for message in whole} == {PLAYS, NEWS}
    assert [len(whole) for whole in wholes] == [1, 1], "one text at a time"
    again = new_coverage(node.for_start(), plan=MIXED)
    assert again.for_start() == node.for_start()
    found, order = decode_all(again.for_start())
    assert order == b"drawn"
    assert [list(record.lanes) for record in found] == [[(0, 5, 1)], [(0, 3, 0)]]


def test_a_text_that_a_new_plan_names_too_keeps_its_record() -> None:
    node = new_coverage(plan=MIXED)
    node.read(mixed((0, 0, 1), (1, 0, 2)))
    changes = {"data.source": "swarm:laws+news*2", "data.shards": ["ef" * 32, SHARDS[1]]}
    node.use_plan(with_changes(MIXED, changes, "test"))
    assert node.positions() == [(0, 0.0), (0, 1 / 7)]
    node.read(mixed((0, 0, 3), (1, 0, 6), order=b"old"))
    assert node.positions() == [(0, 0.0), (0, 2 / 7)], "the worker is still at the old ones"
    node.heard(RangesDone(PLAYS, 5, 5, b"\1", b""))
    alone = {"data.source": "swarm:news", "data.shards": [SHARDS[1]], "data.parts": []}
    node.use_plan(with_changes(MIXED, alone, "test"))
    assert node.positions() == [(0, 2 / 7)]
    assert decode(node.for_start())[0].text == NEWS


# ------------------------------------------------------------------------------------ whole nodes


def test_nodes_tell_each_other_and_find_on_their_disks_what_was_read() -> None:
    world = World(1).swarm(3)
    world.within(10, world.all_mixing, "all train and mix")
    plan = world.plan.plan
    text, some = passes.text_of(plan.data.shards, plan), [(0, index) for index in range(40)]
    for number in range(3):
        world.machines[number].post(progressed(*some[number::4], text=text, ranges=40))
    world.run(TELL_S + 1)
    assert [world.summary(number).data_position for number in range(3)] == [0.75] * 3
    world.machines[1].post(progressed(*some[3::4], (1, 7), text=text, ranges=40))
    world.run(SAVE_S + TELL_S)
    for number in range(3):
        world.kill(number)
    world.machines[2].start()
    assert world.summary(2).data_pass == 1
    assert world.summary(2).data_position == 1 / 40
    started = [e for _, e in world.machines[2].effects if isinstance(e, StartWorker)]
    assert not started[0].passes, "nothing was known when the first began"
    world.within(20, lambda: world.summary(2).tokens > 0, "it trains again")
    started = [e for _, e in world.machines[2].effects if isinstance(e, StartWorker)]
    assert decode(started[-1].passes)[0].lowest == 1
    steered = [e for _, e in world.machines[2].effects if isinstance(e, SteerWorker)]
    assert decode(steered[-1].passes)[0].is_finished(1, 7)


def test_where_nothing_is_known_nothing_is_said_or_kept() -> None:
    node = new_coverage()
    for seconds in range(100):
        assert node.wake([peer_of(1)], Instant(float(seconds))) == []
    assert node.for_start() == node.for_steering() == b""
    assert node.link_up(peer_of(1)) == []
