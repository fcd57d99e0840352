"""Checkpoints of the whole swarm, into its own store, while it trains on.

A *checkpoint* is a name whose manifest holds a model: every fragment's slow weights as they were at some node that holds
it. Replicas are near consensus, so fragments may come from different nodes, and each node is asked for a share: what it
cuts into chunks it also gives to those that are to keep them. One node gathers the hashes and writes the name, its
*gatherer*. Nobody appoints it. When a checkpoint is due is seen by all from the newest name; all draw the same order
of nodes from it, and each waits a little longer than the one before, so the second sees that the first is at it,
or dead.

A node that does not deliver its share is left out and another asked, also when it dies with what it has delivered before anybody else
has that (`mending`): then the name gets another manifest. Where the plan wants the optimizer's state in it too, all of a
stage's comes from one host, since a count of steps goes with its moments; what nobody has is left out, of all stages. What of the text is
read is told by a host of the first stage, for a run that goes on from the checkpoint; where nobody can, it is left out. Names are kept to the newest few, pinned ones aside, and
the gatherer sees to it that the others go (`succession`).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from peerlm.config import StoreSection
from peerlm.effects import (
    MOMENTS,
    PASSES,
    CheckpointPart,
    CutFragments,
    Effect,
    Log,
    Send,
    TellCheckpoint,
    WriteCheckpoint,
)
from peerlm.errors import StateError
from peerlm.events import CheckpointWritten, FragmentCut
from peerlm.node.mending import Mending
from peerlm.node.register import RaiseFloor, Write, Writing
from peerlm.node.succession import HeldBy, Succession, is_of_past
from peerlm.store.manifest import Kind
from peerlm.store.names import Entry
from peerlm.swarm.hosting import Run
from peerlm.types import FragmentId, Instant, ObjectHash, PeerId, WallTime, after, short
from peerlm.wire.message import NameRecord, PartAsk, PartChunk, PartGive

TURN_S = 20.0
"""Each in the order of nodes waits so much longer than the one before."""

SHARE_S = 60.0
"""Who has delivered nothing of its share for so long is asked no more."""

GIVEN_UP_S = 600.0
"""A checkpoint that is not complete by then comes to nothing."""

STANDSTILL_S = 90.0
"""Nor does one of which nothing was delivered for so long; where only what it can go without is lacking, it goes without. Long
enough for a second to deliver what a first did not, and for one that did not grant the share at once."""

WRITING_S = 120.0
"""Nor one whose manifest is not on this node's disk after so long."""

WANTED_S = 60.0
"""So long a person waits for this node to have weights that count: it may have just been started."""

PASSES_TRIES = 3
"""So many hosts are asked what of the text is read; it is not worth waiting for more."""

AGAIN_S = 60.0
"""After one that came to nothing."""

ASKED_S, ASKED_S_MAX = 60.0, 3600.0
"""A node that began a checkpoint of which nothing came about may ask for another after so long, then twice as long each
time: what is cut takes room until it has a name or an hour has passed."""

PREFIX = "checkpoint-"


@dataclass(slots=True)
class _Gathering:
    slot: bytes
    name: str
    tokens: int
    is_pinned: bool
    began: Instant
    before: bytes
    """The newest checkpoint then, by its manifest; empty: none."""
    moved: Instant
    """Something was delivered then, at the latest."""
    moved_by: dict[PeerId, Instant] = field(default_factory=dict)
    asked: dict[FragmentId, tuple[PeerId, Instant]] = field(default_factory=dict)
    wanted: dict[FragmentId, int] = field(default_factory=dict)
    """Fragments, and from `MOMENTS` on their moments, with their stages."""
    failed: set[PeerId] = field(default_factory=set)
    failed_moments: set[PeerId] = field(default_factory=set)
    """They have none, or do not know what that is."""
    failed_passes: set[PeerId] = field(default_factory=set)
    lacks: str = ""
    """Why it goes without the optimizer's state."""
    trouble: str = ""
    """Why this node's disk did not take what it has cut last."""
    parts: dict[FragmentId, CheckpointPart] = field(default_factory=dict)
    written: Instant | None = None
    """All is here, and its manifest is being written since."""
    manifest: ObjectHash | None = None
    """The name stands for it, and parts of it were lost: it is gathered again."""

    def failed_at(self, fragment: FragmentId) -> set[PeerId]:
        if fragment == PASSES:
            return self.failed_passes
        return self.failed_moments if is_moments(fragment) else self.failed

    @property
    def lacking(self) -> list[FragmentId]:
        return [fragment for fragment in self.wanted if fragment not in self.parts]

    def is_late(self, now: Instant) -> str:
        """Why it has taken too long; empty: it has not."""
        if now - self.began > GIVEN_UP_S:
            return "not all fragments were delivered in time"
        is_still = now - self.moved > STANDSTILL_S
        return f"nothing was delivered for {STANDSTILL_S:.0f} s" if is_still else ""

    def without(self, fragment: FragmentId, why: str) -> None:
        """It goes without what the fragment is of: the optimizer's state, or what of the text is read."""
        if fragment == PASSES:
            self.wanted.pop(PASSES, None)
            return
        self.lacks = why
        self.wanted = {f: stage for f, stage in self.wanted.items() if not is_moments(f)}
        self.parts = {f: part for f, part in self.parts.items() if not is_moments(f)}


@dataclass(slots=True)
class _Asker:
    """Another node, for which fragments are cut."""

    slot: bytes
    began: Instant
    pause_s: float
    made: frozenset[bytes]
    """Checkpoints of it that there were then."""
    cut: dict[FragmentId, Instant] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Around:
    """What decides who does what, of live active members and this node."""

    runs: Mapping[PeerId, Run]
    """The stages that each holds."""
    is_active: bool
    """This node holds weights of the run."""
    is_done: bool
    tokens: int
    """Of the swarm."""
    may_store: bool


class Checkpoints:
    """Of one node.

    Args:
        stage_of: of every fragment of the plan.
        names: those that stand for something.
        wants_moments: whether the plan has the optimizer's state in checkpoints.
        passes: what of the text is read, as this node knows it; None: nobody knows.
        continues: the checkpoint that the run goes on from, by its manifest; empty: none.
    """

    def __init__(
        self,
        me: PeerId,
        settings: StoreSection,
        stage_of: Mapping[FragmentId, int],
        names: Callable[[], Sequence[Entry]],
        write: Write,
        raise_floor: RaiseFloor,
        held_by: HeldBy,
        rng: random.Random,
        now: Instant,
        wants_moments: Callable[[], bool] = lambda: False,
        passes: Callable[[], bytes] | None = None,
        continues: Callable[[], bytes] = bytes,
    ) -> None:
        self._me, self._settings, self._stage_of = me, settings, dict(stage_of)
        self._names, self._write, self._rng = names, write, rng
        self._wants_moments, self._passes, self._continues = wants_moments, passes, continues
        kept = settings.checkpoints_kept
        self.succession = Succession(kept, names, write, raise_floor, held_by)
        self._mending = Mending(me, names, held_by)
        self._made: _Gathering | None = None
        """The last, while it is seen to that it outlives those that made it."""
        self._began = now
        self._gathering: _Gathering | None = None
        self._rest_until = now
        self._wanted: tuple[str, bool] | None = None
        self._wanted_since: Instant | None = None
        self._cutting: dict[tuple[bytes, FragmentId], PeerId] = {}
        """What is being cut, for whom."""
        self._askers: dict[PeerId, _Asker] = {}
        self._uncut = b""
        """The last checkpoint of which something could not be cut here, as its log says."""
        self.trouble = ""

    @property
    def is_gathering(self) -> bool:
        return self._gathering is not None

    @property
    def is_wanted(self) -> bool:
        """A person waits for one that is not begun yet."""
        return self._wanted is not None

    @property
    def is_at_it(self) -> bool:
        """It has to be looked at again and again."""
        wanted = self.is_wanted or self.is_gathering
        is_seen_to = self.succession.is_at_it or self._mending.is_at_it
        return wanted or is_seen_to or self._settings.checkpoint_every_s > 0

    @property
    def progress(self) -> tuple[int, int]:
        """(fragments delivered, all)."""
        gathering = self._gathering
        if gathering is None:
            return 0, len(self._stage_of)
        return len(gathering.parts), len(gathering.wanted)

    # ------------------------------------------------------------------------------------ when

    def want(self, name: str, *, is_pinned: bool) -> None:
        """A person wants one now; an empty name: the usual one. Not while another is wanted. → `TellCheckpoint`"""
        assert not self.is_wanted, "two are wanted at once"
        self._wanted, self._wanted_since = (name, is_pinned), None

    def wake(self, around: Around, wall: WallTime, now: Instant) -> list[Effect]:
        return [*self.succession.wake(wall, now), *self._gather(around, wall, now)]

    def _gather(self, around: Around, wall: WallTime, now: Instant) -> list[Effect]:
        if self._gathering is not None:
            return self._go_on(around, now)
        if not around.is_active or not around.may_store:
            return self._refuse_wanted(around, now)
        if self._wanted is not None:
            (name, is_pinned), self._wanted = self._wanted, None
            return self._begin(name, around, now, is_pinned=is_pinned)
        if self._is_due(around, wall, now):
            return self._begin("", around, now, is_pinned=around.is_done)
        return self._mend(around, now)

    def _refuse_wanted(self, around: Around, now: Instant) -> list[Effect]:
        """What a person wants, once it is clear that this node cannot."""
        if self._wanted is None:
            return []
        self._wanted_since = now if self._wanted_since is None else self._wanted_since
        if around.may_store and now - self._wanted_since < WANTED_S:
            return []
        why = "this node has no weights that count yet: see `peerlm status`, or ask another node"
        if not around.may_store:
            why = (
                "this node may not write into the store: its certificate is without the role store"
            )
        (name, _), self._wanted = self._wanted, None
        return [TellCheckpoint(name, why)]

    def _is_due(self, around: Around, wall: WallTime, now: Instant) -> bool:
        every_s = self._settings.checkpoint_every_s
        if not every_s or now < self._rest_until:
            return False
        newest = self._newest(wall)
        if (
            newest is not None
            and name_of(around.tokens, is_done=around.is_done) == newest.record.name
        ):
            return False
        wait_s = TURN_S * self._turn(newest, around)
        if around.is_done:
            is_kept = newest is not None and newest.record.name.endswith(FINISHED)
            return not is_kept and now - self._began > wait_s
        if newest is None:
            return now - self._began >= every_s + wait_s
        return wall - newest.record.wall >= every_s + wait_s and now - self._began >= wait_s

    def _newest(self, wall: float = inf) -> Entry | None:
        """Of those that are from no later than now."""
        found = [e for e in self._names() if is_of_past(e.record, wall)]
        return max(found, key=lambda e: (e.record.wall, e.record.name), default=None)

    def _turn(self, newest: Entry | None, around: Around) -> int:
        """How many are before this node in the order that all draw from the newest checkpoint."""
        slot = newest.record.manifest if newest is not None else b""
        mine = _rank(slot, self._me)
        return sum(_rank(slot, peer) < mine for peer in around.runs if peer != self._me)

    # ------------------------------------------------------------------------------- gathering

    def _begin(self, name: str, around: Around, now: Instant, *, is_pinned: bool) -> list[Effect]:
        self._mending.end()
        newest = self._newest()
        before = newest.record.manifest if newest is not None else self._continues()
        name = name or name_of(around.tokens, is_done=around.is_done)
        slot = self._rng.randbytes(16)
        wanted = dict(self._stage_of)
        if self._wants_moments():
            wanted |= {FragmentId(MOMENTS + f): stage for f, stage in self._stage_of.items()}
        knows = self._passes is not None and bool(self._passes())
        if knows or (self._passes is not None and self._others_read(around)):
            wanted[PASSES] = 0
        self._gathering = _Gathering(
            slot, name, around.tokens, is_pinned, now, before, now, wanted=wanted
        )
        if not knows:  # it may have come a moment ago: others have read before
            self._gathering.failed_passes.add(self._me)
        log = Log("info", "checkpoint_begun", (("name", name),))
        return [log, *self._go_on(around, now)]

    def _others_read(self, around: Around) -> bool:
        """There are others who may know what is read: hosts of the first stage."""
        return any(first == 0 for peer, (first, _) in around.runs.items() if peer != self._me)

    def _go_on(self, around: Around, now: Instant) -> list[Effect]:
        """Ask for what was not asked for yet, or in vain."""
        gathering = self._gathering
        assert gathering is not None, "nothing is gathered"
        if gathering.written is not None:
            if now - gathering.written < WRITING_S:
                return []
            return self._give_up("its manifest is not on this node's disk yet", now)
        if (late := gathering.is_late(now)) and (lacking := self._lacking(gathering)):
            return self._give_up(f"{late}: {lacking}", now)
        if late or now - gathering.began > GIVEN_UP_S / 2:
            for besides in [f for f in gathering.lacking if f >= MOMENTS]:
                gathering.without(besides, "not all of it was delivered in time")
        shares: dict[tuple[PeerId, bool], list[FragmentId]] = {}
        for fragment, stage in tuple(gathering.wanted.items()):
            if fragment in gathering.parts or fragment not in gathering.wanted:
                continue
            failed, is_besides = gathering.failed_at(fragment), fragment >= MOMENTS
            asked = gathering.asked.get(fragment)
            if asked is not None:
                peer, since = asked
                is_there = peer == self._me or peer in around.runs
                if is_there and now - max(since, gathering.moved_by.get(peer, since)) < SHARE_S:
                    continue
                failed.add(peer)
            hosts = [
                peer
                for peer, (first, last) in around.runs.items()
                if first <= stage <= last and peer not in failed
            ]
            is_given_up = fragment == PASSES and len(failed - {self._me}) >= PASSES_TRIES
            if is_given_up or (not hosts and is_besides):
                gathering.without(fragment, f"no host of stage {stage} has it")
                continue
            if not hosts:
                if stage_is_lost(stage, around.runs):
                    return self._give_up(f"nobody holds stage {stage}", now)
                gathering.failed.clear()  # all have failed once: begin anew
                continue
            of = (MOMENTS + stage if is_besides else fragment).to_bytes(4, "big")
            peer = min(hosts, key=lambda p: _rank(gathering.slot + of, p))
            if is_besides and self._me in hosts:
                peer = self._me
            gathering.asked[fragment] = (peer, now)
            shares.setdefault((peer, is_besides), []).append(fragment)
        effects: list[Effect] = self._write_if_all(now)
        for (peer, _), share in shares.items():
            if peer == self._me:
                effects += self._cut(self._me, gathering.slot, share)
            else:
                effects.append(Send(peer, PartAsk(gathering.slot, tuple(share))))
        return effects

    def _give_up(self, why: str, now: Instant) -> list[Effect]:
        gathering, self._gathering = self._gathering, None
        assert gathering is not None, "nothing is gathered"
        self._rest_until, self.trouble = after(now, AGAIN_S), why
        log = Log("warning", "checkpoint_given_up", (("name", gathering.name), ("why", why)))
        is_told = gathering.manifest is not None  # the name is there, and is said to be
        return [log] if is_told else [TellCheckpoint(gathering.name, why), log]

    def _lacking(self, gathering: _Gathering) -> str:
        """Of the weights, in words; empty: nothing."""
        lacking = [self._stage_of[f] for f in gathering.lacking if f < MOMENTS]
        stages = ", ".join(map(str, sorted(set(lacking))))
        why = f" ({gathering.trouble})" if gathering.trouble else ""
        return f"{len(lacking)} fragments of stages {stages} lack{why}" if lacking else ""

    def _mend(self, around: Around, now: Instant) -> list[Effect]:
        """Gather again what was lost with those that made it."""
        lost, effects = self._mending.wake(around.runs.keys(), now)
        gathering = self._made
        if not self._mending.is_at_it:
            self._made = None
        if not lost or gathering is None:
            return effects
        stages = {self._stage_of[_weights_of(f)] for f in lost if is_moments(f)}
        for fragment in tuple(gathering.parts):  # a stage's moments are one host's
            is_of_lost = is_moments(fragment) and gathering.wanted.get(fragment) in stages
            if fragment in lost or is_of_lost:
                del gathering.parts[fragment]
                gathering.asked.pop(fragment, None)
        for failed in (gathering.failed, gathering.failed_moments):
            failed.clear()
        gathering.began = gathering.moved = now
        gathering.written, self._gathering = None, gathering
        fields = (("name", gathering.name), ("fragments", len(lost)))
        log = Log("warning", "checkpoint_mended", fields)
        return [*effects, log, *self._go_on(around, now)]

    def given(self, peer: PeerId, give: PartGive, now: Instant) -> list[Effect]:
        """A share of another node's: hashes of chunks that it keeps. Their bytes are checked by whoever pulls them."""
        gathering, fragment = self._gathering, FragmentId(give.fragment)
        if gathering is None or gathering.slot != give.slot:
            return []
        if gathering.asked.get(fragment, (None,))[0] != peer or fragment in gathering.parts:
            return []
        if not give.chunks or (fragment == PASSES and len(give.chunks) > 1):
            gathering.failed_at(fragment).add(peer)
            del gathering.asked[fragment]
            return []
        chunks = tuple((ObjectHash(c.hash), c.size) for c in give.chunks)
        return self._took(CheckpointPart(fragment, give.version, chunks, peer), now)

    def _took(self, part: CheckpointPart, now: Instant) -> list[Effect]:
        gathering = self._gathering
        assert gathering is not None, "nothing is gathered"
        if part.fragment in gathering.wanted:
            gathering.parts[part.fragment] = part
            gathering.moved = gathering.moved_by[part.peer] = now
        return self._write_if_all(now)

    def _write_if_all(self, now: Instant) -> list[Effect]:
        gathering = self._gathering
        if gathering is None or len(gathering.parts) < len(gathering.wanted):
            return []
        gathering.written = now
        parts = tuple(gathering.parts[fragment] for fragment in sorted(self._stage_of))
        moments = tuple(gathering.parts[f] for f in sorted(gathering.wanted) if is_moments(f))
        slot, tokens, before = gathering.slot, gathering.tokens, gathering.before
        passes = gathering.parts.get(PASSES)
        return [WriteCheckpoint(slot, tokens, parts, before, moments, passes)]

    def written(self, event: CheckpointWritten, wall: WallTime, now: Instant) -> list[Effect]:
        gathering = self._gathering
        if gathering is None or gathering.slot != event.slot:
            return []
        if event.reason:
            return self._give_up(event.reason, now)
        again = gathering.manifest
        if again is not None and not self._mending.is_named(gathering.name, again):
            return self._give_up("its name was removed, or stands for something else", now)
        about = f"{gathering.tokens} tokens of the swarm"
        known = self._known(gathering.name)
        was_pinned = known is not None and known.is_pinned
        try:
            wanted = Writing(
                gathering.name,
                Kind.CHECKPOINT,
                event.manifest,
                event.size,
                is_pinned=was_pinned or (gathering.is_pinned and again is None),
                about=about,
                replaces=known is not None,
            )
            effects = self._write(wanted, wall, now)
        except StateError as error:
            return self._give_up(str(error), now)
        self._gathering, self._made, self.trouble = None, gathering, ""
        gathering.manifest = event.manifest
        self._mending.wrote(gathering.name, event.manifest, gathering.parts, now)
        fields = (("name", gathering.name), ("manifest", short(event.manifest)))
        told: list[Effect] = [Log("info", "checkpoint", fields)]
        if again is None:
            told.insert(0, TellCheckpoint(gathering.name))
        if lacks := gathering.lacks or event.lacks:
            told.append(Log("warning", "checkpoint_without_optimizer", (("why", lacks),)))
        self.succession.wrote(gathering.name, now)
        return [*told, *effects]

    def _known(self, name: str) -> NameRecord | None:
        """The checkpoint that the name stands for."""
        found = (e.record for e in self._names() if e.record.name == name)
        return next((record for record in found if record.kind == Kind.CHECKPOINT), None)

    # ---------------------------------------------------------------------------------- shares

    def asked(self, peer: PeerId, ask: PartAsk, around: Around, now: Instant) -> list[Effect]:
        """Another node gathers: cut these, keep the chunks, tell it their hashes."""
        slot, wanted = ask.slot, [FragmentId(fragment) for fragment in ask.fragments]
        first, last = around.runs.get(self._me, (1, 0))
        mine = [f for f in wanted if first <= self._stage_at(f) <= last]
        if not around.is_active or not around.may_store:
            mine = []
        mine = self._granted(peer, slot, mine, now)
        refused: list[Effect] = [
            Send(peer, PartGive(slot, fragment, 0, ()))
            for fragment in wanted
            if fragment not in mine
        ]
        return [*refused, *self._cut(peer, slot, mine)]

    def _granted(
        self, peer: PeerId, slot: bytes, wanted: Sequence[FragmentId], now: Instant
    ) -> list[FragmentId]:
        """What is cut for another node, without filling our disk by its mere asking."""
        asker = self._askers.get(peer)
        if asker is None or asker.slot != slot:
            made = frozenset(e.record.manifest for e in self._names() if e.record.writer == peer)
            pause_s = ASKED_S
            if asker is not None and made <= asker.made:
                if now - asker.began < asker.pause_s:
                    return []
                pause_s = min(ASKED_S_MAX, 2 * asker.pause_s)
            asker = self._askers[peer] = _Asker(slot, now, pause_s, made)
        long_ago = now - SHARE_S
        granted = [f for f in dict.fromkeys(wanted) if asker.cut.get(f, long_ago) <= long_ago]
        asker.cut |= dict.fromkeys(granted, now)
        return granted

    def _cut(self, peer: PeerId, slot: bytes, wanted: Sequence[FragmentId]) -> list[Effect]:
        fresh = [f for f in wanted if (slot, f) not in self._cutting]
        self._cutting |= {(slot, fragment): peer for fragment in fresh}
        passes = self._passes() if self._passes is not None and PASSES in fresh else b""
        return [CutFragments(slot, tuple(fresh), passes)] if fresh else []

    def _stage_at(self, fragment: FragmentId) -> int:
        """Whose hosts have it; -1: nobody knows it."""
        return 0 if fragment == PASSES else self._stage_of.get(_weights_of(fragment), -1)

    def cut(self, event: FragmentCut, now: Instant) -> list[Effect]:
        peer = self._cutting.pop((event.slot, event.fragment), None)
        if peer is None:
            return []
        said: list[Effect] = []
        if event.reason and self._uncut != event.slot:
            self._uncut = event.slot
            said = [Log("warning", "checkpoint_not_cut", (("why", event.reason),))]
        if peer != self._me:
            chunks = tuple(PartChunk(*chunk) for chunk in event.chunks)
            return [*said, Send(peer, PartGive(event.slot, event.fragment, event.version, chunks))]
        gathering = self._gathering
        if gathering is None or gathering.slot != event.slot:
            return said
        if not event.chunks:
            gathering.failed_at(event.fragment).add(self._me)
            gathering.asked.pop(event.fragment, None)
            gathering.trouble = event.reason or gathering.trouble
            return said
        part = CheckpointPart(event.fragment, event.version, event.chunks, self._me)
        return self._took(part, now)


FINISHED = "-finished"


def name_of(tokens: int, *, is_done: bool) -> str:
    """Sorted by name they are sorted by tokens."""
    return f"{PREFIX}{tokens:012}{FINISHED if is_done else ''}"


def stage_is_lost(stage: int, runs: Mapping[PeerId, Run]) -> bool:
    return not any(first <= stage <= last for first, last in runs.values())


def is_moments(fragment: FragmentId) -> bool:
    return MOMENTS <= fragment < PASSES


def _weights_of(fragment: FragmentId) -> FragmentId:
    """Whose moments it is, if it is any's."""
    return FragmentId(fragment % MOMENTS)


def _rank(slot: bytes, peer: PeerId) -> bytes:
    return hashlib.blake2b(slot + peer, digest_size=8).digest()
