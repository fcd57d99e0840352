"""What a node keeps for the swarm's store, and what it does about what is lacking.

Every node knows all names (`register`). Who offers room also knows the chunks behind them, works out with all others, by
the same hashing, which of them are its own to keep (`store.catalog`), and pulls what it lacks from those that have it
(`manifests`, `repair`, `pulls`). So nobody assigns and nobody has to be told: a chunk whose keeper died is due to the next node as soon as
the keeper was away for long enough, or at once where few replicas are left.

Nothing is given up on a guess: what is not due here any more is dropped only after as many others as should keep it
have said that they do (`survey`), and have shown it (`witnesses`). What others say is tried now and then besides: a node that cannot
show the bytes it claims does not count as a keeper.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf

from peerlm.config import StoreSection
from peerlm.effects import (
    DropChunks,
    Effect,
    Log,
    Save,
    Send,
    TellReaders,
    TellSurveyed,
)
from peerlm.events import (
    Event,
    ManifestRead,
    ObjectKept,
    ObjectLost,
    ProofMade,
    PullEnded,
    PullProgressed,
)
from peerlm.node.awaited import Awaited
from peerlm.node.dropping import Dropping
from peerlm.node.keepers import Keepers
from peerlm.node.leftovers import Leftovers
from peerlm.node.makers import Makers
from peerlm.node.manifests import Manifests
from peerlm.node.proofs import Proofs
from peerlm.node.pulls import Pulls
from peerlm.node.register import Author, Register, Spread, Writing, as_kept, read_kept
from peerlm.node.repair import Repair
from peerlm.node.shortage import Shortage
from peerlm.node.stored import Offer, Standing, Stored
from peerlm.node.survey import Survey, Surveys, bits_of
from peerlm.node.trust import FALSE_CLAIM_S, NOBODY, WRONG_BYTES_S, Trust
from peerlm.node.witnesses import Witnesses
from peerlm.store.catalog import Catalog, StoreNode
from peerlm.types import Instant, ObjectHash, PeerId, TransferId, WallTime, after, short
from peerlm.wire.message import (
    HaveAsk,
    HaveGive,
    Message,
    Named,
    NameRecord,
    NamesAsk,
    NamesGive,
    ProofAsk,
    ProofGive,
    PullAnswer,
)

LOOK_S = 1.0
"""How often it is looked what is lacking."""

FEW_NAMES, FOLLOW_S = 256, 1.0
"""With more names than these, what follows from those heard of is seen to no more often: it takes a look at all."""

SAVE_S = 1.0
"""Names and nodes are saved no more often: many may come at once."""

SWEEP_S = 30.0
"""How often it is looked what could be dropped."""

DURABLE = 2
"""Copies."""

SOON, NEVER = Instant(-inf), Instant(inf)


class Storing:
    """Of one node.

    Args:
        spread: gossips a name.
        endpoint: where a peer's bulk port can be dialled, or None.
    """

    def __init__(
        self,
        me: PeerId,
        settings: StoreSection,
        stored: Stored,
        sign: Callable[[NameRecord], Named],
        author: Author,
        spread: Spread,
        endpoint: Callable[[PeerId], tuple[str, int] | None],
        rng: random.Random,
        now: Instant,
    ) -> None:
        self._me, self._settings, self.capacity = me, settings, stored.capacity
        self._rng, self._began = rng, now
        self.register = Register(me, sign, author, spread, rng, now)
        self.catalog = Catalog(me)
        self.here: dict[ObjectHash, int] = {}
        self._live: tuple[PeerId, ...] = ()
        """Live nodes of the store but this one."""
        self._keepers = Keepers((), now)
        self._pulls = Pulls(self._sources, self._maker_of, endpoint, rng, now)
        self.awaited = Awaited()
        self._followed_at, self._follow_at = now, NEVER
        self._fresh = Makers(me, self.catalog.lists)
        self._leftovers = Leftovers(settings.keep_s)
        self._manifests = Manifests(self.catalog, self.register, self._fresh, self._leftovers)
        self._repair = Repair(
            settings,
            self.catalog,
            self._pulls,
            self.awaited,
            self._manifests,
            self._fresh,
            now,
        )
        self._surveys = Surveys()
        self._proofs = Proofs(me, self.catalog, self._surveys, rng, now)
        self._surveys.claimed = self._proofs.claimed
        self._witnesses = Witnesses(self._proofs.is_asking, rng)
        self._dropping = Dropping(
            self.catalog, self._leftovers, self._surveys, self._witnesses, self._is_used
        )
        self._trust, self._distrusted = Trust(), NOBODY
        self._saved, self._save_at = (0, 0, 0), now
        self._look_at, self._sweep_at = now, after(now, SWEEP_S)
        self._used = 0
        self.makers_of: Callable[[ObjectHash], tuple[PeerId, ...]] = lambda _: ()
        """Whom to ask for an object before others, besides those who wrote its name."""
        self.is_held: Callable[[ObjectHash], bool] = lambda _: False
        """It must not go, although nothing that has a name needs it, or not here."""
        self.shortage = Shortage()
        self.lost_here = 0
        """Objects that were found damaged or gone since the start."""
        for object_hash, size in stored.here:
            self._keep(object_hash, size)
        self._restore(stored.memory, now)

    def _restore(self, memory: bytes, now: Instant) -> None:
        names, nodes, since = read_kept(memory) if memory else ([], [], None)
        self.register.restore(names, since)
        self._keepers = Keepers((node for node in nodes if node[0] != self._me), now)
        self._saved = self._savable()

    # ------------------------------------------------------------------------------ who is there

    def nodes_are(self, live: Mapping[PeerId, Offer], now: Instant) -> list[Effect]:
        """Live members that offer room, this node aside."""
        effects: list[Effect] = []
        for peer in self._live:
            if peer not in live:
                effects += self._pulls.peer_gone(peer, now)
                self._asked_no_more(peer)
        if not live.keys() <= set(self._live):
            self._repair.somebody_came()
        self._keepers.are(live, now)
        self._live = tuple(sorted(live))
        self._tell_catalog(now)
        return effects

    def _tell_catalog(self, now: Instant) -> None:
        self._keepers.forget(self._settings.repair_after_s, now)
        self._trust.forget(now)
        self._distrusted = self._trust.at(now)
        self.catalog.nodes_are(self._believed(now))

    def _stores(self) -> list[StoreNode]:
        """All that offer room, sorted."""
        return sorted([*self._keepers.nodes(), *self._myself()])

    def _believed(self, now: Instant) -> list[StoreNode]:
        """As the catalog is to see them: who is not believed is away, and after the patience gone."""
        patience = self._settings.repair_after_s
        gone = [p for p, distrust in self._distrusted.items() if now - distrust.since >= patience]
        return sorted([*self._keepers.nodes(self._distrusted, gone), *self._myself()])

    def _myself(self) -> list[StoreNode]:
        label = self._settings.label
        return [StoreNode(self._me, self.capacity, label, True)] if self.capacity else []

    def link_up(self, peer: PeerId) -> list[Effect]:
        return self.register.compare(peer)

    # ------------------------------------------------------------------------------------- names

    def write(self, wanted: Writing, wall: WallTime, now: Instant) -> list[Effect]:
        """Give a name to a manifest that is here, or remove the name. Raises `StateError`."""
        return self._written(self.register.write(wanted, wall, now), now)

    def raise_floor(self, floor: int, wall: WallTime, now: Instant) -> list[Effect]:
        """Remove checkpoints' names below it. Raises `StateError`."""
        return self._written(self.register.raise_floor(floor, wall, now), now)

    def _written(self, told: list[Effect], now: Instant) -> list[Effect]:
        self._save_at = now  # a person waits for it
        return [*self._save(now), *told, *self._follow_names(now), *self._look(now)]

    def hear(self, proof: Named, teller: PeerId | None, now: Instant) -> list[Effect]:
        return self._hear_all(teller, NamesGive((proof,)), now)

    def _hear_all(self, teller: PeerId | None, give: NamesGive, now: Instant) -> list[Effect]:
        heard = [
            self.register.hear(proof, teller, now, is_current=give.is_current)
            for proof in give.names
        ]
        if all(record is None for record, _ in heard):
            return []
        told = [effect for _, effects in heard for effect in effects]
        return [*self._save(now), *told, *self._follow_soon(now)]

    def _follow_soon(self, now: Instant) -> list[Effect]:
        due = after(self._followed_at, FOLLOW_S)
        if len(self.register.names) <= FEW_NAMES or due <= now:
            return self._follow_names(now)
        self._follow_at = due
        return []

    def _follow_names(self, now: Instant) -> list[Effect]:
        """Know what living names stand for, and nothing else."""
        self._followed_at, self._follow_at = now, NEVER
        living = self._manifests.living()
        if self._manifests.forget_but(living):
            self._sweep_at = now
        effects = self._pulls.forget([h for h in self._pulls.wanted if not self._is_needed(h)])
        effects += self._manifests.seek(living, self.here, now, pulls=bool(self.capacity))
        return [*effects, *self._look(now)] if self._manifests.lacked else effects

    def _is_needed(self, object_hash: ObjectHash) -> bool:
        """Somebody reads it, or a name leads to it."""
        is_named = object_hash in self._manifests.lacked or self.catalog.replicas(object_hash) > 0
        return is_named or object_hash in self.awaited

    def manifest_read(self, event: ManifestRead, now: Instant) -> list[Effect]:
        told: list[Effect] = []
        if event.reason:
            told = [Log("warning", "manifest_unusable", (("why", event.reason),))]
            if not event.is_wrong:  # what is wrong is known from here on, and has no chunks
                self._manifests.unreadable(event.manifest)
                return [*told, *self.lost(ObjectLost(event.manifest, event.reason), now)]
        self._manifests.read(event)
        return [*told, *self._take_in(now)]

    def _take_in(self, now: Instant) -> list[Effect]:
        manifest, told = self._manifests.take_in(now)
        if manifest is None:
            return told
        is_so = self._manifests.is_as_wanted(manifest)  # as when it was begun
        return [*([] if is_so else self._follow_names(now)), *self._look(now)]

    # ----------------------------------------------------------------------------------- objects

    def _keep(self, object_hash: ObjectHash, size: int) -> None:
        if object_hash not in self.here:
            self._used += size
            self.here[object_hash] = size
            self.catalog.kept(object_hash)

    def _lose(self, object_hash: ObjectHash) -> None:
        size = self.here.pop(object_hash, None)
        self._leftovers.gone(object_hash)
        if size is not None:
            self._used -= size
            self.catalog.lost(object_hash)

    def came(self, event: ObjectKept, now: Instant) -> list[Effect]:
        """A process of this machine has put it."""
        self._keep(event.object_hash, event.size)
        self._leftovers.put(event.object_hash, is_amid_removal=self.catalog.is_untidy)
        effects = self._pulls.forget((event.object_hash,))
        effects += self.awaited.came([event.object_hash])
        if self._manifests.came(event.object_hash):
            effects += self._follow_names(now)
        return effects

    def lost(self, event: ObjectLost, now: Instant) -> list[Effect]:
        """It was damaged; it is due again, if it was due."""
        self.lost_here += 1
        self._lose(event.object_hash)
        if self._manifests.lost(event.object_hash):
            return [*self._say_lost(event), *self._look(now)]
        return [*self._say_lost(event), *self._follow_names(now), *self._look(now)]

    def _say_lost(self, event: ObjectLost) -> list[Effect]:
        fields = (("object", short(event.object_hash)), ("why", event.reason))
        return [Log("warning", "chunk_lost", fields)]

    def read(self, object_hash: ObjectHash, size: int, now: Instant) -> list[Effect]:
        """Have it here, for a process of this machine: → `TellReaders`."""
        if object_hash in self.here:
            return [TellReaders((object_hash,))]
        self.awaited.add(object_hash)
        return self._pulls.want([(object_hash, size)], now)

    def read_no_more(self, object_hash: ObjectHash) -> list[Effect]:
        self.awaited.discard(object_hash)
        is_needed = object_hash in self._manifests.lacked or self.catalog.is_due(object_hash)
        return [] if is_needed else self._pulls.forget((object_hash,))

    # ------------------------------------------------------------------------------------ repair

    def repair_now(self, now: Instant) -> list[Effect]:
        """A person does not want to wait: who is away counts as gone, and what repair fetches has no ceiling, until
        nothing is lacking."""
        self._repair.hurry()
        self._keepers.forget(0.0, now)
        self._tell_catalog(now)
        return self._look(now)

    def _maker_of(self, object_hash: ObjectHash) -> PeerId | None:
        maker = self._fresh.maker_of(object_hash)
        return None if maker is not None and self._keepers.is_away(maker) else maker

    def _sources(self, object_hash: ObjectHash) -> tuple[PeerId, ...]:
        others = self.catalog.sources(object_hash)
        if not others:  # a manifest, or an object that is in none that is known
            others = self._live
        made = (*self._fresh.of(object_hash), *self.makers_of(object_hash))
        is_away = self._keepers.is_away
        return tuple(dict.fromkeys([*(peer for peer in made if not is_away(peer)), *others]))

    def _look(self, now: Instant) -> list[Effect]:
        """Pull what is due here and lacking."""
        self._look_at = after(now, LOOK_S)
        self.shortage.see(self.lacking, now)
        return self._repair.look(self.capacity - self._used, now, keeps=bool(self.capacity))

    def _take_arrived(self, now: Instant) -> list[Effect]:
        came = self._pulls.take_arrived()
        for object_hash, size in came:
            self._keep(object_hash, size)
            if object_hash in self.awaited and not self.catalog.is_due(object_hash):
                self._leftovers.borrow(object_hash, size)
        if self._leftovers.is_crowded:
            self._sweep_at = now
        effects: list[Effect] = []
        for peer in self._pulls.take_corrupt():
            why = "sent bytes that are not the chunk"
            effects += self._distrust(peer, why, WRONG_BYTES_S, now)
        if not came:
            return effects
        hashes = [object_hash for object_hash, _ in came]
        effects += self.awaited.came(hashes)
        if [wanted for wanted in hashes if self._manifests.came(wanted)]:
            effects += self._follow_names(now)
        return [*effects, *self._look(now)]

    # ------------------------------------------------------------------------------------ dropping

    def _sweep(self, now: Instant) -> list[Effect]:
        """Drop what may go; ask who else keeps what is not due here."""
        self._sweep_at = after(now, SWEEP_S)
        self._fresh.expire(now)
        manifests = {ObjectHash(entry.record.manifest) for entry in self.register.living()}
        effects = self._drop(self._dropping.loose(manifests, now))
        asked = self._dropping.ask(self._live, self._trusted(), now, is_full=self._repair.is_full)
        return [*effects, *asked]

    def _is_used(self, object_hash: ObjectHash) -> bool:
        return object_hash in self.awaited or self.is_held(object_hash)

    def _drop(self, doomed: Iterable[ObjectHash]) -> list[Effect]:
        hashes = tuple(doomed)
        for object_hash in hashes:
            self._lose(object_hash)
        return [DropChunks(hashes)] if hashes else []

    # ------------------------------------------------------------------------------------ surveys

    def _trusted(self) -> list[PeerId]:
        return [peer for peer in self._live if peer not in self._distrusted]

    def survey(self, hashes: Iterable[ObjectHash], now: Instant) -> tuple[Survey, list[Effect]]:
        """Ask all live nodes of the store which of these they keep; ours count too."""
        wanted = tuple(hashes)
        here = [h for h in wanted if h in self.here]
        survey, effects = self._surveys.begin(wanted, here, self._trusted(), now)
        return survey, [*effects, *self._surveyed(now)]

    def held_by(
        self, manifest: ObjectHash, now: Instant
    ) -> tuple[Survey, int, list[Effect]] | None:
        """A survey of it and its chunks, and how many copies make it durable here; None: they are not known."""
        chunks = self.catalog.chunks_of(manifest)
        if chunks is None:
            return None
        survey, effects = self.survey((manifest, *chunks), now)
        nodes = sum(node.peer not in self._distrusted for node in self._stores())
        return survey, max(1, min(DURABLE, nodes, self.register.replicas_of(manifest))), effects

    def _surveyed(self, now: Instant) -> list[Effect]:
        """What follows from surveys that are done."""
        effects: list[Effect] = []
        for survey in self._surveys.take_done():
            if self._dropping.is_about(survey):
                effects += self._dropping.surveyed(survey, now)
            elif self._proofs.is_about(survey):
                effects += self._doubted(now)
            else:
                effects.append(TellSurveyed(survey.number))
        return effects

    # -------------------------------------------------------------------------------------- trust

    def _proof_made(self, event: ProofMade, now: Instant) -> list[Effect]:
        if self._witnesses.is_made_for_us(event):
            shown = self._witnesses.made(event)
            is_wrong, effects = shown.liar is not None, self._drop(self._dropping.may_go(shown))
        else:
            effects, is_wrong = self._proofs.made(event)
        if is_wrong:
            why = f"could not show chunk {short(event.object_hash)}"
            effects += self._distrust(event.peer, why, FALSE_CLAIM_S, now)
        return [*effects, *self._witnesses.wake(now)]

    def _proof_came(self, peer: PeerId, give: ProofGive, now: Instant) -> list[Effect]:
        if not self._witnesses.is_about(peer, give):
            return self._proofs.came(peer, give, now)
        effects = self._witnesses.came(peer, give, now)
        for liar, chunk in self._witnesses.take_lacking():
            self._proofs.claimed(liar, [chunk])
            effects += self._proofs.refused(liar, chunk, now)
        return effects

    def _doubted(self, now: Instant) -> list[Effect]:
        effects, liar = self._proofs.surveyed(now)
        if liar is None:
            return effects
        why = f"says that it keeps chunk {short(liar[1])}, and does not show it"
        return [*effects, *self._distrust(liar[0], why, FALSE_CLAIM_S, now)]

    def _distrust(
        self, peer: PeerId, why: str, steps: tuple[float, ...], now: Instant
    ) -> list[Effect]:
        self._trust.distrust(peer, why, steps, now)
        self._asked_no_more(peer)
        self._tell_catalog(now)
        fields = (("peer", short(peer)), ("why", why))
        return [Log("warning", "store_node_distrusted", fields), *self._look(now)]

    def _asked_no_more(self, peer: PeerId) -> None:
        self._surveys.gone(peer)
        self._proofs.gone(peer)
        self._witnesses.gone(peer)

    # ------------------------------------------------------------------------------ being driven

    def handle(self, event: Event, now: Instant) -> list[Effect]:
        """Events of the store, and those of pulls, which may be others'."""
        match event:
            case PullProgressed():
                return self._pulls.progressed(event, now)
            case PullEnded():
                if event.outcome in ("ok", "failed"):
                    self.awaited.disk_was(event.reason, now)
                return [*self._pulls.ended(event, now), *self._take_arrived(now)]
            case ObjectKept():
                self.awaited.disk_was("", now)
                return self.came(event, now)
            case ObjectLost():
                return self.lost(event, now)
            case ManifestRead():
                return self.manifest_read(event, now)
            case ProofMade():
                return self._proof_made(event, now)
        raise AssertionError(f"the store takes no {type(event).__name__}")

    def received(self, peer: PeerId, message: Message, now: Instant) -> list[Effect]:
        match message:
            case NamesAsk():
                known = self.register.names.version
                effects = self.register.asked(peer, message, now)
                if self.register.names.version == known:
                    return effects
                return [*effects, *self._save(now), *self._follow_soon(now)]
            case NamesGive():
                return self._hear_all(peer, message, now)
            case HaveAsk():
                kept = [h for h in map(ObjectHash, message.hashes) if h in self.here]
                if message.is_due:
                    kept = [h for h in kept if self.catalog.is_due(h)]
                    self._dropping.said(kept)
                bits = bits_of(message.hashes, kept)
                return [Send(peer, HaveGive(message.number, bits))]
            case HaveGive():
                return [*self._surveys.heard(peer, message, now), *self._surveyed(now)]
            case ProofAsk():
                return self._proofs.asked(peer, message, self.here, now)
            case ProofGive():
                return self._proof_came(peer, message, now)
            case PullAnswer():
                effects = self._pulls.on_answer(peer, message, now)
                for donor, refused in self._pulls.take_refused():
                    effects += self._proofs.refused(donor, refused, now)
                return effects
        return []

    def is_taken(self, transfer: TransferId) -> bool:
        return self._pulls.is_taken(transfer)

    def size_of(self, object_hash: ObjectHash) -> int | None:
        """Bytes of what is kept here, for whoever asks; None: it is not."""
        return self.here.get(object_hash)

    def start(self, now: Instant) -> list[Effect]:
        self._tell_catalog(now)
        return self._follow_names(now)

    @property
    def is_idle(self) -> bool:
        """It keeps nothing, knows no names, and looks for nothing: time changes nothing."""
        kept = self.capacity or self.here or len(self.register.names)
        return not (kept or self._pulls.wanted or self._surveys.are_open)

    def wake(self, linked: Callable[[], Sequence[PeerId]], now: Instant) -> list[Effect]:
        effects = [*self._pulls.wake(now), *self.register.wake(linked, now)]
        self._surveys.wake(now)
        effects += self._surveyed(now)
        self._manifests.tidy()
        if self._manifests.is_busy:
            effects += self._take_in(now)
        if self._follow_at <= now:
            effects += self._follow_names(now)
        if self._look_at <= now:
            self._tell_catalog(now)
            effects += self._look(now)
        if self._sweep_at <= now:
            effects += self._sweep(now)
        if self._witnesses.are_called:
            effects += self._witnesses.wake(now)
        if self._proofs.due <= now:
            effects += self._proofs.wake(self.here, self._trusted(), now)
        return [*effects, *self._save(now)]

    def _save(self, now: Instant) -> list[Effect]:
        """What is new; at once, where nothing was saved a moment ago."""
        saved = self._savable()
        if saved == self._saved or now < self._save_at:
            return []
        self._saved, self._save_at = saved, after(now, SAVE_S)
        return [Save("catalog", self.encode())]

    def deadline(self) -> Instant:
        others = (self._pulls.deadline(), self.register.deadline())
        if self._manifests.is_busy or self.catalog.is_untidy:
            return SOON
        own = (self._look_at, self._sweep_at, self._proofs.due, self._follow_at)
        return min(*own, *others, self._surveys.deadline())

    def encode(self) -> bytes:
        nodes = [(n.peer, n.capacity, n.label) for n in sorted(self._keepers.nodes())]
        return as_kept(self.register.encode(), nodes, self.register.current.since)

    def _savable(self) -> tuple[int, int, int]:
        register = self.register
        return register.names.version, self._keepers.version, register.current.day

    # --------------------------------------------------------------------------------- for people

    @property
    def used(self) -> int:
        return self._used

    @property
    def hedged_bytes(self) -> int:
        """Of all that came since the start, what came twice, since a node was slow."""
        return self._pulls.hedged_bytes

    @property
    def unread(self) -> int:
        """Manifests of names that this node should know and does not yet: what is lacking of them, nobody can say."""
        return self._manifests.unread if self.capacity else 0

    @property
    def lacking(self) -> int:
        """Chunks and manifests that should be here and are not."""
        return self.catalog.lacking + self.unread

    def standing(self) -> Standing:
        return Standing(
            capacity=self.capacity,
            used=self._used,
            names=len(self.register.living()),
            catalog=self.catalog.summary(),
            unread=self.unread,
            pulling=len(self._pulls.wanted),
            unfound=self._repair.unfound,
            full=self._repair.is_full,
            trouble=self.awaited.trouble,
            distrusted=dict(sorted(self._distrusted.items())),
            nodes=tuple(self._stores()),
        )

    def check(self) -> None:
        """Raises: AssertionError when an invariant is broken."""
        self._pulls.check()
        self.register.names.check()

    def audit(self) -> None:
        """`check`, and what costs more."""
        self.check()
        assert self._used == sum(self.here.values()), "what is used was miscounted"
