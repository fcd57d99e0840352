"""Checkpoints whose makers die at once: what nobody else had yet is made again by those that are left."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from store_scene import Store, peer_of, sign

from peerlm import effects as fx
from peerlm.effects import Effect
from peerlm.events import CheckpointWritten, FragmentCut
from peerlm.node.checkpoints import STANDSTILL_S, WANTED_S, WRITING_S, Around, Checkpoints
from peerlm.node.mending import AGAIN_S
from peerlm.node.survey import ANSWER_S, SURVEYS
from peerlm.store.manifest import Chunk, Kind, Manifest, manifest_hash, of_files, read_manifest
from peerlm.types import FragmentId, ObjectHash, PeerId
from peerlm.wire.message import HaveAsk, NameRecord, PartAsk, PartGive

A, B, C, D = (peer_of(number) for number in range(1, 5))

FRAGMENTS = 24


class Swarm(Store):
    """Nodes of a store that hold weights, each its own: no two cut equal chunks. Stages that a node holds are in `runs`."""

    def __init__(self, *runs: tuple[int, int], stages: int = 1, moments: bool = False) -> None:
        super().__init__(len(runs), checkpoint_every_s=0.0)
        self.runs = {peer_of(i): run for i, run in enumerate(runs, 1)}
        self.stage_of = {FragmentId(i): i % stages for i in range(FRAGMENTS)}
        self.told: list[fx.TellCheckpoint] = []
        self.said: list[str] = []
        self.inactive: set[PeerId] = set()
        self.may_store, self.is_stuck = True, False
        self.full: dict[PeerId, str] = {}
        """Whose disks take nothing, and what they say."""
        self.gatherers = {peer: self._gatherer(peer, moments) for peer in self.nodes}

    def _gatherer(self, me: PeerId, moments: bool) -> Checkpoints:
        storing = self.nodes[me].storing
        return Checkpoints(
            me,
            self.settings,
            self.stage_of,
            storing.register.living,
            storing.write,
            storing.raise_floor,
            storing.held_by,
            random.Random(int.from_bytes(me, "big")),
            self.now,
            lambda: moments,
        )

    def around(self) -> Around:
        up = {p: run for p, run in self.runs.items() if self.nodes[p].is_up}
        runs = {p: run for p, run in up.items() if p not in self.inactive}
        return Around(runs, A in runs, False, 1000, self.may_store)

    def look(self) -> None:
        """One look of each gatherer."""
        for peer, gatherer in self.gatherers.items():
            if self.nodes[peer].is_up:
                self.carry(peer, gatherer.wake(self.around(), self.wall, self.now))
        self.settle()

    def live(self, seconds: int) -> None:
        for _ in range(seconds):
            self.run(1.0)
            self.look()

    def carry(self, peer: PeerId, effects: list[Effect]) -> None:
        gatherer = self.gatherers[peer]
        for effect in effects:
            match effect:
                case fx.Send(peer=to, message=PartAsk() as ask):
                    if self.nodes[to].is_up:
                        other = self.gatherers[to]
                        self.carry(to, other.asked(peer, ask, self.around(), self.now))
                case fx.Send(peer=to, message=PartGive() as give):
                    self.carry(to, self.gatherers[to].given(peer, give, self.now))
                case fx.CutFragments():
                    for fragment in effect.fragments:
                        if why := self.full.get(peer):
                            cut = FragmentCut(effect.slot, fragment, 0, (), why)
                        else:
                            chunk = self.put(peer, b"%s %d" % (peer, fragment))
                            cut = FragmentCut(effect.slot, fragment, 7, (chunk,))
                        self.carry(peer, gatherer.cut(cut, self.now))
                case fx.WriteCheckpoint():
                    if self.is_stuck:
                        continue
                    parts = [Chunk(*c) for p in (*effect.parts, *effect.moments) for c in p.chunks]
                    made = of_files(
                        Kind.CHECKPOINT, [("model", parts)], {"before": effect.before.hex()}
                    )
                    kept = self.put(peer, made.encode())
                    done = CheckpointWritten(effect.slot, kept.hash, kept.size)
                    self.carry(peer, gatherer.written(done, self.wall, self.now))
                case fx.TellCheckpoint():
                    self.told.append(effect)
                case fx.Log(event=event):
                    self.said.append(event)
                case _:
                    self._perform(peer, [effect])

    def make(self, name: str = "kept", *, is_pinned: bool = True) -> None:
        """A person wants one at the first node: it has its name when this returns, and nobody has fetched anything."""
        self.gatherers[A].want(name, is_pinned=is_pinned)
        self.carry(A, self.gatherers[A].wake(self.around(), self.wall, self.now))

    def pin(self, *, is_pinned: bool) -> None:
        """Someone does."""
        record = replace(self.record(), is_pinned=is_pinned, lamport=self.record().lamport + 1)
        for node in self.nodes.values():
            node.storing.register.names.merge(record, sign(record))

    def record(self, name: str = "kept") -> NameRecord:
        found = self.nodes[A].storing.register.names.get(name)
        assert found is not None
        return found.record

    def manifest(self, name: str = "kept") -> Manifest:
        return read_manifest(self.nodes[A].disk[ObjectHash(self.record(name).manifest)])


def test_two_of_four_die_with_their_shares_and_the_others_have_all_of_it_within_seconds() -> None:
    swarm = Swarm(*[(0, 0)] * 4)
    swarm.make()
    first = swarm.manifest()
    assert swarm.told == [fx.TellCheckpoint("kept")]
    swarm.kill(C, D)
    assert min(swarm.copies(first)) == 0, "what they made died with them"
    swarm.live(20)
    second = swarm.manifest()
    assert manifest_hash(second.encode()) != manifest_hash(first.encode())
    assert min(swarm.copies(second)) == 2
    assert len(swarm.told) == 1, "it was said that it is there, once"
    assert swarm.said.count("checkpoint_mended") == 1
    kept = {c.hash for c in first.chunks} & {c.hash for c in second.chunks}
    assert kept, "what was not lost is not made again"
    assert second.meta["before"] == first.meta["before"], "it does not follow itself"


@pytest.mark.parametrize("is_pinned", [True, False])
def test_what_is_mended_is_pinned_as_someone_has_pinned_it_meanwhile(is_pinned: bool) -> None:
    swarm = Swarm(*[(0, 0)] * 4)
    swarm.make(is_pinned=not is_pinned)
    swarm.pin(is_pinned=is_pinned)
    swarm.kill(C, D)
    swarm.live(20)
    assert swarm.said.count("checkpoint_mended") == 1
    assert swarm.record().is_pinned is is_pinned


def test_what_others_had_fetched_is_not_made_again() -> None:
    swarm = Swarm(*[(0, 0)] * 4)
    swarm.make()
    first = swarm.manifest()
    swarm.live(10)
    assert min(swarm.copies(first)) >= 3
    swarm.kill(C, D)
    swarm.live(20)
    assert swarm.manifest() == first
    assert min(swarm.copies(first)) == 2
    assert "checkpoint_mended" not in swarm.said


def test_moments_of_a_stage_are_made_again_by_one_host() -> None:
    swarm = Swarm((0, 0), (1, 1), (1, 1), (1, 1), stages=2, moments=True)
    swarm.make()
    first = swarm.manifest()
    swarm.kill(*{B, C, D} - {survivor(swarm, first)})
    swarm.live(20)
    second = swarm.manifest()
    assert second != first
    assert min(swarm.copies(second)) == 2
    assert len(second.chunks) == 2 * FRAGMENTS, "the optimizer's state is in it"


def survivor(swarm: Swarm, manifest: Manifest) -> PeerId:
    """One that has made none of the moments."""
    moments = {chunk.hash for chunk in manifest.chunks[FRAGMENTS:]}
    return next(p for p in (B, C, D) if moments.isdisjoint(swarm.nodes[p].disk))


def test_a_stage_that_died_out_is_not_waited_for_and_the_next_make_says_so() -> None:
    swarm = Swarm((0, 0), (0, 0), (1, 1), (1, 1), stages=2)
    swarm.make()
    swarm.kill(C, D)
    swarm.live(10)
    gatherer = swarm.gatherers[A]
    assert not gatherer.is_gathering
    assert gatherer.trouble == "nobody holds stage 1"
    assert len(swarm.told) == 1
    swarm.make("again")
    assert swarm.told[-1] == fx.TellCheckpoint("again", "nobody holds stage 1")


def test_who_comes_back_with_its_share_has_nothing_made_again() -> None:
    swarm = Swarm((0, 0), (0, 0), (1, 1), (1, 1), stages=2)
    swarm.make()
    first = swarm.manifest()
    swarm.kill(C, D)
    swarm.live(30)
    swarm.back(C)
    swarm.back(D)
    swarm.live(60)
    assert swarm.manifest() == first
    assert min(swarm.copies(first)) >= 3


def test_one_that_hangs_does_not_keep_back_what_is_lost() -> None:
    swarm = Swarm(*[(0, 0)] * 4)
    swarm.make()
    first, deaf = swarm.manifest(), swarm.nodes[B].storing
    received = deaf.received
    deaf.received = lambda peer, message, now: (  # type: ignore[method-assign]
        [] if isinstance(message, HaveAsk) else received(peer, message, now)
    )
    swarm.kill(C, D)
    swarm.live(int(ANSWER_S))
    assert "checkpoint_mended" not in swarm.said, "it may have what is found nowhere"
    swarm.live(int(SURVEYS * (ANSWER_S + AGAIN_S)) + 5)
    assert swarm.said.count("checkpoint_mended") == 1
    assert swarm.manifest() != first
    assert min(swarm.copies(swarm.manifest())) == 2


def test_a_name_that_was_removed_meanwhile_is_not_written_again() -> None:
    swarm = Swarm(*[(0, 0)] * 4)
    swarm.make()
    swarm.kill(C, D)
    swarm.remove(A, "kept")
    swarm.live(20)
    assert swarm.nodes[A].storing.register.living() == []
    assert not swarm.gatherers[A].is_at_it


def test_what_a_person_wants_of_a_node_that_cannot_is_refused_in_one_line() -> None:
    swarm = Swarm((0, 0), (0, 0))
    swarm.inactive = {A}
    swarm.make()
    assert swarm.told == [], "it may have just been started"
    swarm.live(int(WANTED_S) + 2)
    (told,) = swarm.told
    assert "no weights that count yet" in told.reason
    swarm.may_store = False
    swarm.make()
    assert "without the role store" in swarm.told[-1].reason


def test_a_manifest_that_is_never_written_ends_it() -> None:
    swarm = Swarm((0, 0), (0, 0))
    swarm.is_stuck = True
    swarm.make()
    swarm.live(int(WRITING_S) + 2)
    (told,) = swarm.told
    assert "manifest" in told.reason
    assert not swarm.gatherers[A].is_gathering


def test_a_stage_of_which_nothing_comes_is_named() -> None:
    swarm = Swarm((0, 0), (1, 1), stages=2)
    swarm.gatherers[B].asked = lambda *_: []  # type: ignore[method-assign]
    swarm.make()
    swarm.live(int(STANDSTILL_S) + 2)
    (told,) = swarm.told
    assert told.reason == f"nothing was delivered for {STANDSTILL_S:.0f} s: 12 fragments of stages 1 lack"  # fmt: skip


def test_a_full_disk_is_logged_once_and_is_why_it_comes_to_nothing() -> None:
    swarm = Swarm((0, 0))
    swarm.full[A] = "the disk is full"
    swarm.make()
    swarm.live(int(STANDSTILL_S) + 2)
    (told,) = swarm.told
    assert told.reason.endswith("24 fragments of stages 0 lack (the disk is full)")
    assert swarm.said.count("checkpoint_not_cut") == 1


def test_one_whose_disk_is_full_says_so_itself_and_others_deliver_its_share() -> None:
    swarm = Swarm((0, 0), (0, 0))
    swarm.full[B] = "the disk is full"
    swarm.make()
    swarm.live(5)
    assert swarm.told == [fx.TellCheckpoint("kept")]
    assert swarm.said.count("checkpoint_not_cut") == 1
