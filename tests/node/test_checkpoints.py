"""Checkpoints of a swarm: gathered by one, in shares of all, whoever dies on the way."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from unittest.mock import Mock, patch

import pytest
from store_scene import peer_of, sign

from peerlm import effects as fx
from peerlm.config import StoreSection
from peerlm.effects import Effect
from peerlm.errors import StateError
from peerlm.events import CheckpointWritten, FragmentCut
from peerlm.node.checkpoints import (
    GIVEN_UP_S,
    PASSES_TRIES,
    SHARE_S,
    TURN_S,
    Around,
    Checkpoints,
)
from peerlm.node.library import Library
from peerlm.node.register import Writing
from peerlm.node.stored import Stored
from peerlm.node.succession import AGAIN_S, LATE_S
from peerlm.node.survey import Survey
from peerlm.store.manifest import Kind
from peerlm.store.names import FLOOR_NAME, Names
from peerlm.types import FragmentId, Instant, ObjectHash, PeerId, WallTime
from peerlm.wire.message import NameRecord, PartAsk, PartChunk, PartGive

EVERY_S = 100.0

FIRST = peer_of(1)


@dataclass
class Node:
    checkpoints: Checkpoints
    run: tuple[int, int]
    is_up: bool = True
    has_moments: bool = True
    is_mute: bool = False
    """It takes what it is asked, and never delivers."""
    told: list[fx.TellCheckpoint] = field(default_factory=list)
    cut: list[FragmentId] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)


class Swarm:
    """Nodes that hold the stages `runs`; each fragment is a chunk of its own. Names are heard at once."""

    def __init__(
        self,
        *runs: tuple[int, int],
        stages: int = 1,
        kept: int = 3,
        moments: bool = False,
        passes: Callable[[PeerId], bytes] | None = None,
        continues: bytes = b"",
    ) -> None:
        self.wants_moments, self.passes, self.continues = moments, passes, continues
        self.now, self.tokens, self.is_done = Instant(0.0), 1000, False
        self.names = Names()
        self.stage_of = {FragmentId(i): i % stages for i in range(8)}
        self.written: list[fx.WriteCheckpoint] = []
        self.copies: dict[ObjectHash, int] = {}
        """Of a checkpoint's chunks, if not two."""
        self.unread: set[ObjectHash] = set()
        self.settings = StoreSection(checkpoint_every_s=EVERY_S, checkpoints_kept=kept)
        self.nodes = {
            peer_of(i): Node(self._checkpoints(peer_of(i)), run) for i, run in enumerate(runs, 1)
        }

    def _checkpoints(self, me: PeerId) -> Checkpoints:
        def write(w: Writing, wall: WallTime, now: Instant) -> list[Effect]:
            lamport = self.names.next_lamport(w.name)
            record = NameRecord(
                w.name,
                w.kind,
                w.manifest or b"",
                w.size,
                lamport,
                me,
                wall,
                3,
                w.is_pinned,
                w.about,
            )
            self.names.merge(record, sign(record))
            return []

        def raise_floor(floor: int, wall: WallTime, now: Instant) -> list[Effect]:
            record = NameRecord(FLOOR_NAME, Kind.CHECKPOINT, b"", 0, floor, me, wall, 1, False, "")
            self.names.merge(record, sign(record))
            return []

        living = lambda: [e for e in self.names if e.record.manifest]  # noqa: E731
        rng = random.Random(int.from_bytes(me, "big"))
        made = Checkpoints(
            me,
            self.settings,
            self.stage_of,
            living,
            write,
            raise_floor,
            self.held_by,
            rng,
            self.now,
            lambda: self.wants_moments,
            None if self.passes is None else partial(self.passes, me),
            lambda: self.continues,
        )
        return made

    def held_by(self, manifest: ObjectHash, _: Instant) -> tuple[Survey, int, list[Effect]] | None:
        if manifest in self.unread:
            return None
        survey = Survey(0, [manifest], (), ())
        survey.counts = [self.copies.get(manifest, 2)]
        return survey, 2, []

    def around(self, me: PeerId) -> Around:
        runs = {peer: node.run for peer, node in self.nodes.items() if node.is_up}
        return Around(runs, self.nodes[me].is_up, self.is_done, self.tokens, may_store=True)

    @property
    def wall(self) -> WallTime:
        return WallTime(1e9 + self.now)

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now = Instant(self.now + 1.0)
            self.tokens += 10
            for peer, node in self.nodes.items():
                if node.is_up:
                    woken = node.checkpoints.wake(self.around(peer), self.wall, self.now)
                    self.perform(peer, woken)

    def perform(self, peer: PeerId, effects: list[Effect]) -> None:
        node = self.nodes[peer]
        for effect in effects:
            match effect:
                case fx.Send(peer=to, message=PartAsk() as ask):
                    if self.nodes[to].is_up:
                        asked = self.nodes[to].checkpoints.asked(
                            peer, ask, self.around(to), self.now
                        )
                        self.perform(to, asked)
                case fx.Send(peer=to, message=PartGive() as give):
                    if self.nodes[to].is_up and not node.is_mute:
                        self.perform(to, self.nodes[to].checkpoints.given(peer, give, self.now))
                case fx.CutFragments():
                    for fragment in effect.fragments:
                        node.cut.append(fragment)
                        chunk = (ObjectHash(fragment.to_bytes(32, "big")), 100)
                        is_there = fragment < fx.MOMENTS or node.has_moments
                        if fragment == fx.PASSES:
                            chunk = (ObjectHash(effect.passes.ljust(32)), len(effect.passes))
                            is_there = bool(effect.passes)
                        event = FragmentCut(effect.slot, fragment, 7, (chunk,) if is_there else ())
                        self.perform(peer, node.checkpoints.cut(event, self.now))
                case fx.WriteCheckpoint():
                    self.written.append(effect)
                    manifest = ObjectHash(len(self.written).to_bytes(32, "big"))
                    done = CheckpointWritten(effect.slot, manifest, 500)
                    self.perform(peer, node.checkpoints.written(done, self.wall, self.now))
                case fx.TellCheckpoint():
                    node.told.append(effect)
                case fx.Log():
                    node.logs.append(effect.event)

    def living(self) -> list[str]:
        return [e.record.name for e in self.names if e.record.manifest]


def test_one_gathers_and_all_deliver_a_share() -> None:
    swarm = Swarm((0, 0), (0, 0), (0, 0))
    swarm.run(EVERY_S + 3 * TURN_S)
    assert len(swarm.written) == 1, "one of three gathers"
    assert [part.fragment for part in swarm.written[0].parts] == sorted(swarm.stage_of)
    assert all(node.cut for node in swarm.nodes.values()), "each cuts a share"
    assert sum(len(node.cut) for node in swarm.nodes.values()) == len(swarm.stage_of)


def test_who_holds_a_stage_delivers_it() -> None:
    swarm = Swarm((0, 0), (1, 1), (2, 2), stages=3)
    swarm.run(EVERY_S + 3 * TURN_S)
    assert len(swarm.written) == 1
    for peer, node in swarm.nodes.items():
        assert {swarm.stage_of[f] for f in node.cut} == {node.run[0]}
        delivered = [p.fragment for p in swarm.written[0].parts if p.peer == peer]
        assert sorted(delivered) == sorted(node.cut)


def of_moments(written: fx.WriteCheckpoint) -> list[tuple[int, PeerId]]:
    """Of which fragments the optimizer's state is in it, from whom."""
    return [(part.fragment - fx.MOMENTS, part.peer) for part in written.moments]


def test_the_optimizer_of_a_stage_comes_from_one_host_of_it() -> None:
    swarm = Swarm((0, 1), (0, 0), (1, 1), (1, 1), stages=2, moments=True)
    swarm.nodes[peer_of(3)].checkpoints.want("now", is_pinned=False)
    swarm.run(10)
    (written,) = swarm.written
    assert [part.fragment for part in written.parts] == sorted(swarm.stage_of)
    found = of_moments(written)
    assert [fragment for fragment, _ in found] == sorted(swarm.stage_of)
    makers = {swarm.stage_of[FragmentId(f)]: peer for f, peer in found}
    assert {(swarm.stage_of[FragmentId(f)], peer) for f, peer in found} == set(makers.items())
    assert makers[1] == peer_of(3), "who gathers has its own"
    assert makers[0] in (peer_of(1), peer_of(2))


def test_who_has_no_optimizer_is_passed_over_and_what_nobody_has_is_left_out() -> None:
    swarm = Swarm((0, 0), (0, 0), (1, 1), stages=2, moments=True)
    swarm.nodes[peer_of(1)].has_moments = False
    swarm.nodes[peer_of(1)].checkpoints.want("one", is_pinned=False)
    swarm.run(10)
    assert {peer for f, peer in of_moments(swarm.written[0]) if not f % 2} == {peer_of(2)}
    swarm.nodes[peer_of(3)].has_moments = False
    swarm.nodes[peer_of(1)].checkpoints.want("two", is_pinned=False)
    swarm.run(10)
    assert len(swarm.written) == 2
    assert swarm.written[1].moments == ()
    assert [part.fragment for part in swarm.written[1].parts] == sorted(swarm.stage_of)
    assert swarm.nodes[peer_of(1)].logs.count("checkpoint_without_optimizer") == 1


def test_a_release_that_knows_no_moments_refuses_them_and_gives_its_weights() -> None:
    swarm = Swarm((0, 0), (0, 0))
    ask = PartAsk(b"s" * 16, (FragmentId(2), FragmentId(fx.MOMENTS + 8)))
    said = swarm.nodes[FIRST].checkpoints.asked(peer_of(2), ask, swarm.around(FIRST), swarm.now)
    assert said == [
        fx.Send(peer_of(2), PartGive(b"s" * 16, fx.MOMENTS + 8, 0, ())),
        fx.CutFragments(b"s" * 16, (FragmentId(2),)),
    ]


# ------------------------------------------------------------------------ what of the text is read


def made_by(swarm: Swarm, gatherer: int) -> fx.WriteCheckpoint:
    swarm.nodes[peer_of(gatherer)].checkpoints.want("kept", is_pinned=False)
    swarm.run(10)
    (written,) = swarm.written
    assert [part.fragment for part in written.parts] == sorted(swarm.stage_of)
    return written


def test_what_is_read_is_told_by_the_gatherer_or_by_who_holds_the_first_stage() -> None:
    alike = Swarm((0, 0), (0, 0), passes=bytes)
    written = made_by(alike, 2)
    assert written.passes is not None
    assert written.passes.peer == peer_of(2), "it asks nobody for what it knows"
    newcomer = Swarm((0, 0), (0, 0), passes=lambda peer: b"read" if peer == peer_of(1) else b"")
    written = made_by(newcomer, 2)
    assert written.passes is not None
    assert written.passes.peer == peer_of(1), "who came a moment ago asks who has read before"
    halves = Swarm((0, 0), (1, 1), stages=2, moments=True, passes=bytes)
    written = made_by(halves, 2)
    assert written.passes is not None
    assert written.passes.peer == peer_of(1)
    assert written.passes.chunks == ((ObjectHash(peer_of(1).ljust(32)), 16),)
    assert len(written.moments) == 8


def test_where_nothing_is_read_yet_or_nobody_can_say_a_checkpoint_goes_without() -> None:
    fresh = Swarm((0, 0), (0, 0), passes=lambda peer: b"")
    assert made_by(fresh, 1).passes is None
    assert fx.PASSES not in fresh.nodes[peer_of(1)].cut, "it knows that it does not know"
    silent = Swarm(
        (1, 1), *((0, 0) for _ in range(6)), stages=2, moments=True, passes=lambda peer: b""
    )
    written = made_by(silent, 1)
    assert (written.passes, len(written.moments)) == (None, 8)
    assert sum(fx.PASSES in node.cut for node in silent.nodes.values()) == PASSES_TRIES


def test_what_is_read_is_one_chunk_or_nothing() -> None:
    swarm = Swarm((1, 1), (0, 0), stages=2, passes=lambda peer: b"read")
    checkpoints = swarm.nodes[FIRST].checkpoints
    checkpoints.want("kept", is_pinned=False)
    checkpoints.wake(swarm.around(FIRST), swarm.wall, swarm.now)
    assert checkpoints._gathering is not None
    chunks = (PartChunk(b"a" * 32, 100), PartChunk(b"b" * 32, 100))
    give = PartGive(checkpoints._gathering.slot, fx.PASSES, 0, chunks)
    checkpoints.given(peer_of(2), give, swarm.now)
    assert fx.PASSES not in checkpoints._gathering.parts
    assert peer_of(2) in checkpoints._gathering.failed_passes


def test_who_holds_no_first_stage_refuses_to_say_what_is_read() -> None:
    swarm = Swarm((1, 1), (0, 0), stages=2, passes=lambda peer: b"read")
    ask = PartAsk(b"s" * 16, (fx.PASSES,))
    said = swarm.nodes[FIRST].checkpoints.asked(peer_of(2), ask, swarm.around(FIRST), swarm.now)
    assert said == [fx.Send(peer_of(2), PartGive(b"s" * 16, fx.PASSES, 0, ()))]


def test_a_run_that_goes_on_names_the_checkpoint_it_began_with_as_the_one_before() -> None:
    swarm = Swarm((0, 0), continues=b"p" * 32)
    make_some(swarm, 2)
    assert [written.before for written in swarm.written] == [b"p" * 32, numbered(1)]


def test_they_go_on_and_old_ones_go_but_pinned_ones_stay() -> None:
    swarm = Swarm((0, 0), (0, 0), kept=2)
    gatherer = swarm.nodes[peer_of(1)]
    gatherer.checkpoints.want("before-the-change", is_pinned=True)
    swarm.run(8 * (EVERY_S + 2 * TURN_S))
    usual = [name for name in swarm.living() if name != "before-the-change"]
    assert "before-the-change" in swarm.living()
    assert len(usual) == 2
    assert len(swarm.written) >= 6
    assert gatherer.told[0] == fx.TellCheckpoint("before-the-change")


def make_some(swarm: Swarm, count: int, by: PeerId = FIRST) -> list[str]:
    """Checkpoints, one after the other, by one node. Returns the names that live."""
    for _ in range(count):
        swarm.nodes[by].checkpoints.want("", is_pinned=False)
        swarm.run(10)
    return swarm.living()


def numbered(number: int) -> ObjectHash:
    """The manifest of a checkpoint by the order of writing."""
    return ObjectHash(number.to_bytes(32, "big"))


def test_an_old_checkpoint_stays_until_the_newest_is_on_two_nodes() -> None:
    swarm = Swarm((0, 0), kept=1)
    checkpoints = swarm.nodes[peer_of(1)].checkpoints
    swarm.copies[numbered(2)] = 1
    first, second = make_some(swarm, 2)
    assert "1 of 1 chunks" in checkpoints.succession.kept_back
    assert second in checkpoints.succession.kept_back
    swarm.run(40)
    assert swarm.living() == [first, second]
    swarm.copies[numbered(2)] = 2
    swarm.run(2 * AGAIN_S)
    assert swarm.living() == [second]
    assert not checkpoints.succession.kept_back


def test_that_old_ones_stay_is_logged_once_when_it_goes_on() -> None:
    swarm = Swarm((0, 0), kept=1)
    swarm.settings = StoreSection(checkpoint_every_s=0.0, checkpoints_kept=1)
    swarm.nodes[peer_of(1)] = Node(swarm._checkpoints(peer_of(1)), (0, 0))
    node = swarm.nodes[peer_of(1)]
    swarm.unread = {numbered(2)}
    make_some(swarm, 2)
    assert node.checkpoints.is_at_it
    assert "checkpoints_kept_back" not in node.logs
    swarm.run(3 * LATE_S)
    assert node.logs.count("checkpoints_kept_back") == 1
    assert len(swarm.living()) == 2


def test_if_the_newest_never_is_the_next_that_stays_will_do() -> None:
    swarm = Swarm((0, 0), kept=2)
    swarm.settings = StoreSection(checkpoint_every_s=0.0, checkpoints_kept=2)
    swarm.nodes[peer_of(1)] = Node(swarm._checkpoints(peer_of(1)), (0, 0))
    swarm.copies[numbered(3)] = 1
    names = make_some(swarm, 3)
    assert len(names) == 3
    swarm.run(LATE_S + 60)
    assert swarm.living() == names[1:]


@pytest.mark.parametrize("kept", [1, 3])
def test_who_gathered_an_older_one_removes_none_that_is_newer(kept: int) -> None:
    swarm = Swarm((0, 0), (0, 0), kept=kept)
    swarm.settings = StoreSection(checkpoint_every_s=0.0, checkpoints_kept=kept)
    for peer in swarm.nodes:
        swarm.nodes[peer] = Node(swarm._checkpoints(peer), (0, 0))
    swarm.copies = {numbered(n): 1 for n in range(kept + 1, 2 * kept + 2)}
    make_some(swarm, kept + 1)
    names = make_some(swarm, kept, peer_of(2))
    assert len(names) == 2 * kept + 1
    swarm.copies[numbered(kept + 1)] = 2
    swarm.run(2 * AGAIN_S)
    assert swarm.living() == names, "what the older one waits for has come, and says nothing"
    swarm.copies.clear()
    swarm.run(2 * AGAIN_S)
    assert sorted(swarm.living()) == sorted(names)[-kept:]


def test_hundreds_of_checkpoints_leave_no_tombstones() -> None:
    swarm = Swarm((0, 0), kept=3)
    swarm.run(120 * (EVERY_S + 1))
    assert len(swarm.written) > 100
    swarm.run(20)
    assert len(swarm.living()) == 3
    assert len(swarm.names) == 4, "these and the floor"


def test_tokens_that_went_back_end_no_checkpoints() -> None:
    swarm = Swarm((0, 0), kept=2)
    swarm.run(6 * (EVERY_S + 1))
    swarm.tokens = 2000
    before = len(swarm.written)
    swarm.run(6 * (EVERY_S + 1))
    assert len(swarm.written) > before + 3
    living = {e.record.manifest for e in swarm.names if e.record.manifest}
    assert len(living) == 2
    assert len(swarm.written).to_bytes(32, "big") in living


def test_a_node_that_never_delivers_is_left_out() -> None:
    swarm = Swarm((0, 0), (0, 0), (0, 0))
    swarm.nodes[peer_of(2)].is_mute = True
    swarm.run(EVERY_S + 3 * TURN_S + SHARE_S + 10)
    assert swarm.written
    mute = [p for p in swarm.written[0].parts if p.peer == peer_of(2)]
    assert not mute or swarm.nodes[peer_of(2)].checkpoints.is_gathering is False


def test_the_next_takes_over_from_a_dead_gatherer() -> None:
    swarm = Swarm((0, 0), (0, 0), (0, 0))
    swarm.run(EVERY_S + 3 * TURN_S)
    before = len(swarm.written)
    order = sorted(
        swarm.nodes, key=lambda peer: swarm.nodes[peer].checkpoints._turn(
            swarm.nodes[peer].checkpoints._newest(), swarm.around(peer)
        )
    )  # fmt: skip
    swarm.nodes[order[0]].is_up = False
    swarm.run(EVERY_S + 3 * TURN_S)
    assert len(swarm.written) > before
    assert all(part.peer != order[0] for part in swarm.written[-1].parts)


def test_without_a_host_of_a_stage_it_comes_to_nothing_and_says_so() -> None:
    swarm = Swarm((0, 0), (1, 1), stages=3)
    node = swarm.nodes[peer_of(1)]
    node.checkpoints.want("now", is_pinned=False)
    swarm.run(3)
    assert swarm.written == []
    assert node.told == [fx.TellCheckpoint("now", "nobody holds stage 2")]
    assert not node.checkpoints.is_gathering


def test_one_that_is_never_complete_is_given_up() -> None:
    swarm = Swarm((0, 0), (1, 1), stages=2)
    swarm.nodes[peer_of(2)].is_mute = True
    node = swarm.nodes[peer_of(1)]
    node.checkpoints.want("now", is_pinned=False)
    swarm.run(GIVEN_UP_S + 5)
    assert node.told[0].reason
    assert not node.checkpoints.is_gathering


def test_the_finished_model_is_kept_once_and_pinned() -> None:
    swarm = Swarm((0, 0), (0, 0))
    swarm.run(EVERY_S + 2 * TURN_S)
    swarm.is_done, swarm.tokens = True, 10**6
    swarm.run(20 * EVERY_S)
    finished = [e.record for e in swarm.names if e.record.name.endswith("-finished")]
    assert len(finished) == 1
    assert finished[0].is_pinned


def pinned(swarm: Swarm) -> list[str]:
    return [e.record.name for e in swarm.names if e.record.is_pinned]


def test_the_finished_model_stays_pinned_when_a_person_makes_it_again() -> None:
    swarm = Swarm((0, 0), (0, 0))
    swarm.run(2 * TURN_S + 1)
    swarm.is_done = True
    swarm.run(2)
    (finished,) = swarm.living()
    swarm.nodes[FIRST].checkpoints.want(finished, is_pinned=False)
    swarm.run(2)
    assert len(swarm.written) == 2
    assert pinned(swarm) == [finished]
    swarm.is_done, swarm.tokens = False, 10**6
    swarm.run(6 * (EVERY_S + 2 * TURN_S))
    assert finished in swarm.living()


def test_shares_that_nobody_asked_for_are_not_taken() -> None:
    swarm = Swarm((0, 0), (0, 0))
    node = swarm.nodes[peer_of(1)]
    swarm.nodes[peer_of(2)].is_mute = True
    node.checkpoints.want("now", is_pinned=False)
    swarm.run(1)
    before = node.checkpoints.progress
    for fragment in swarm.stage_of:
        forged = PartGive(b"x" * 16, fragment, 1, (PartChunk(b"c" * 32, 5),))
        assert node.checkpoints.given(peer_of(2), forged, swarm.now) == []
    assert node.checkpoints.progress == before
    ask = PartAsk(b"s" * 16, (99,))
    answered = node.checkpoints.asked(peer_of(2), ask, swarm.around(peer_of(1)), swarm.now)
    assert answered == [fx.Send(peer_of(2), PartGive(b"s" * 16, 99, 0, ()))]


def test_a_clock_that_was_wrong_neither_ends_them_nor_has_the_newest_removed() -> None:
    swarm = Swarm((0, 0), (0, 0), kept=2)
    for number in range(3):
        record = NameRecord(
            f"checkpoint-{number}", Kind.CHECKPOINT, bytes([number]) * 32, 500, 1, peer_of(2), 5e9, 3, False, ""
        )  # fmt: skip
        swarm.names.merge(record, sign(record))
    swarm.run(2 * (EVERY_S + 3 * TURN_S))
    assert len(swarm.written) >= 2
    newest = [e.record.manifest for e in swarm.names if e.record.manifest and e.record.wall < 5e9]
    assert len(swarm.written).to_bytes(32, "big") in newest


def test_a_name_that_cannot_be_written_ends_no_node() -> None:
    swarm = Swarm((0, 0), (0, 0))
    node = swarm.nodes[peer_of(1)]

    def refuse(*_: object, **__: object) -> list[Effect]:
        raise StateError("the register of names is full")

    node.checkpoints._write = refuse
    node.checkpoints.want("now", is_pinned=False)
    swarm.run(3)
    assert node.told == [fx.TellCheckpoint("now", "the register of names is full")]
    assert not node.checkpoints.is_gathering


def test_who_only_asks_does_not_fill_our_disk() -> None:
    swarm = Swarm((0, 0), (0, 0))
    node, fragments = swarm.nodes[peer_of(1)], tuple(swarm.stage_of)
    for number in range(600):
        swarm.now = Instant(swarm.now + 1.0)
        ask = PartAsk(number.to_bytes(16, "big"), fragments)
        around = swarm.around(peer_of(1))
        swarm.perform(peer_of(1), node.checkpoints.asked(peer_of(2), ask, around, swarm.now))
    assert len(node.cut) <= 4 * len(fragments)


def test_one_that_a_person_wants_does_not_wait_for_the_next_look() -> None:
    company = Mock(me=peer_of(1), certificates=Mock(wall=WallTime(0)))
    now = Instant(100.0)
    library = Library(company, Mock(), StoreSection(), Stored(1), {}, random.Random(1), now)
    looks = Mock(return_value=[])
    with patch.multiple(library, _around=Mock()), patch.multiple(library.checkpoints, wake=looks):
        library.wake(tuple, now)
        library.wake(tuple, Instant(100.5))
        assert looks.call_count == 1
        library.want_checkpoint("mine", is_pinned=False)
        assert library.deadline() <= Instant(100.5)
        library.wake(tuple, Instant(100.5))
        assert looks.call_count == 2


def test_a_disk_that_takes_no_checkpoint_is_what_the_store_says() -> None:
    company = Mock(me=peer_of(1), certificates=Mock(wall=WallTime(0)))
    now = Instant(100.0)
    library = Library(company, Mock(), StoreSection(), Stored(1), {}, random.Random(1), now)
    library.handle(FragmentCut(b"s" * 16, FragmentId(0), 0, (), "the disk is full"), now)
    assert library.storing.standing().trouble == "the disk is full"
