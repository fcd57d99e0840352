"""What this node believes: facts come in, the table moves, and news becomes rumors.

The rules of SWIM's suspicion mechanism in one place. A later record clears every doubt; a doubt of
the very incarnation we hold starts or confirms a suspicion; a suspicion that runs out, or somebody
else's verdict, is a death. We never believe a doubt about ourselves: we become a later incarnation.

Suspect and Dead about an incarnation whose signed record we do not hold are ignored: only the owner
mints incarnations. The record comes by gossip or push-pull, and the doubt with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from peerlm.effects import Log
from peerlm.membership.address_book import AddressBook
from peerlm.membership.detector import Detector
from peerlm.membership.member import SUSPECT, Member, State, accused, from_alive, rank_of, record_of
from peerlm.membership.profile import Profile
from peerlm.membership.rumors import RumorQueue
from peerlm.membership.suspicion import Suspicion, begin_suspicion
from peerlm.membership.table import Table
from peerlm.types import Instant, PeerId, short
from peerlm.wire.message import Alive, Dead, DigestEntry, NodeRecord, Rumor, Suspect


class Beliefs:
    """The table, the open suspicions, and our own record."""

    def __init__(
        self,
        record: NodeRecord,
        profile: Profile,
        sign: Callable[[NodeRecord], Alive],
        rumors: RumorQueue,
        detector: Detector,
        book: AddressBook,
        now: Instant,
    ) -> None:
        self.me = PeerId(record.peer)
        self.table = Table(profile)
        self._profile = profile
        self._sign = sign
        self._rumors = rumors
        self._detector = detector
        self._book = book
        self._suspicions: dict[PeerId, Suspicion] = {}
        self._first_end: float | None = math.inf
        """When the first of them runs out; None until it is asked for again."""
        self._hearsay: list[PeerId] = []
        self._announced = False
        self._doubters: dict[PeerId, None] = {}
        self._logs: list[Log] = []
        self.announce(record, now)

    # --------------------------------------------------------------------------------- ourselves

    def announce(self, record: NodeRecord, now: Instant) -> None:
        """This is our record from now on."""
        alive = self._sign(record)
        self.us = from_alive(record, alive, now)
        self._announced = True
        self._rumors.put(alive_subject(self.me), alive)

    @property
    def is_leaving(self) -> bool:
        return self.us.record.left

    @property
    def have_news(self) -> bool:
        """Whether there is anything to drain."""
        return bool(self._announced or self._hearsay or self._doubters or self._logs)

    def drain_announced(self) -> bool:
        """Whether our record changed since the last call."""
        announced, self._announced = self._announced, False
        return announced

    def drain_hearsay(self) -> list[PeerId]:
        """Whom others have begun to suspect since the last call."""
        hearsay, self._hearsay = self._hearsay, []
        return hearsay

    def drain_doubters(self) -> list[PeerId]:
        """Who holds a doubt of us and should hear at once what we are."""
        doubters, self._doubters = list(self._doubters), {}
        return doubters

    def drain_logs(self) -> list[Log]:
        logs, self._logs = self._logs, []
        return logs

    def everyone(self) -> list[Member]:
        """All members and this node, for digests."""
        return [self.us, *self.table.all().values()]

    # ------------------------------------------------------------------------------------- facts

    def is_news(self, alive: Alive) -> bool:
        """Whether this record is later than what we hold. False for anything that is no record."""
        record = record_of(alive)
        if record is None:
            return False
        known = self.us if record.peer == self.me else self.table.get(PeerId(record.peer))
        return known is None or rank_of(record) > rank_of(known.record)

    def hear(self, teller: PeerId, rumors: tuple[Rumor, ...], now: Instant) -> list[Rumor]:
        """Take in membership rumors, records before verdicts on them; the rest is handed back."""
        if not rumors:
            return []
        for rumor in rumors:
            if isinstance(rumor, Alive):
                self._on_alive(rumor, teller, now)
        others: list[Rumor] = []
        for rumor in rumors:
            match rumor:
                case Alive():
                    pass
                case Suspect():
                    self._on_suspect(rumor, teller, now)
                case Dead():
                    self._on_dead(rumor, teller, now)
                case _:
                    others.append(rumor)
        return others

    def accuse(self, peer: PeerId, now: Instant) -> None:
        """Our own probe of this member failed."""
        member = self.table.get(peer)
        assert member is not None, "a failed probe of nobody"
        self._on_suspect(Suspect(peer, *member.incarnation, accuser=self.me), self.me, now)

    def doubt(self, entry: DigestEntry, teller: PeerId, now: Instant) -> None:
        """Another table's dead are suspects here: a stale table must not kill the living."""
        member = self.table.get(PeerId(entry.peer))
        if entry.peer == self.me or (member is not None and member.state is State.ALIVE):
            rumor = Suspect(entry.peer, entry.epoch, entry.counter, accuser=teller)
            self._on_suspect(rumor, teller, now)

    def expel(self, peer: PeerId) -> None:
        """Forget everything about a peer."""
        self._clear(peer)
        self._rumors.drop(alive_subject(peer))
        self.table.remove(peer)
        self._book.drop(peer)

    # -------------------------------------------------------------------------------- suspicions

    def deadline(self) -> float:
        """When the first of the open suspicions runs out; infinite without any."""
        if self._first_end is None:
            ends = [suspicion.deadline() for suspicion in self._suspicions.values()]
            self._first_end = min(ends, default=math.inf)
        return self._first_end

    @property
    def n_suspected(self) -> int:
        return len(self._suspicions)

    def end_suspicions(self, now: Instant) -> None:
        """Suspicions that have run out become verdicts."""
        for peer, suspicion in list(self._suspicions.items()):
            if now >= suspicion.deadline():
                member = self.table.get(peer)
                assert member is not None, "a suspicion of nobody"
                self._on_dead(Dead(peer, *member.incarnation, accuser=self.me), self.me, now)

    def push(self, seconds: float) -> None:
        """We were deaf for this long and could not hear refutations."""
        self._first_end = None
        for suspicion in self._suspicions.values():
            suspicion.push(seconds)

    def remember(self, members: Mapping[PeerId, Member], now: Instant) -> None:
        """Begin among these, as if met before; tells nobody."""
        others = {peer: member for peer, member in members.items() if peer != self.me}
        assert all(m.state is not State.SUSPECT for m in others.values()), "a suspect remembered"
        self.table.remember(others)
        self._book.remember(others.values(), now)
        self._announced = False
        self._rumors.drop(alive_subject(self.me))

    def check(self) -> None:
        """Assert that what changed since the last check is sound."""
        for peer in self.table.check():
            self._check_suspicion(peer)
        assert self.me not in self.table.all(), "we list ourselves"
        assert all(peer in self.table.all() for peer in self._suspicions), "a suspicion of nobody"

    def audit(self) -> None:
        """Assert that everything is sound."""
        self.check()
        ends = [suspicion.deadline() for suspicion in self._suspicions.values()]
        assert self.deadline() == min(ends, default=math.inf), "the end of a suspicion is stale"
        self.table.audit()
        suspects = {peer for peer, m in self.table.all().items() if m.state is SUSPECT}
        assert suspects == self._suspicions.keys(), "suspicion and state disagree"

    def _check_suspicion(self, peer: PeerId) -> None:
        suspected = self.table.all()[peer].state is State.SUSPECT
        assert suspected == (peer in self._suspicions), "suspicion and state disagree"

    # ----------------------------------------------------------------------------------- private

    def _on_alive(self, alive: Alive, teller: PeerId, now: Instant) -> None:
        record = record_of(alive)
        if record is None:
            return
        if record.peer == self.me:
            self._outdo(record, now)
            return
        member = from_alive(record, alive, now)
        if not self.table.put(member):
            return
        self._clear(member.peer)
        self._rumors.put(alive_subject(member.peer), alive, teller)
        self._book.note(record, alive, now)
        if member.is_live:
            self._detector.welcome(member.peer)

    def _on_suspect(self, rumor: Suspect, teller: PeerId, now: Instant) -> None:
        peer, accuser = PeerId(rumor.peer), PeerId(rumor.accuser)
        if peer == self.me:
            self._refute(rumor, teller, now)
            return
        member = self.table.get(peer)
        if member is None or member.incarnation != (rumor.epoch, rumor.counter):
            return
        accuser_member = self.table.get(accuser)
        known = accuser_member is not None and accuser_member.is_live
        if not (known or accuser in (self.me, teller)):
            return  # invented accusers must not confirm
        suspicion = self._suspicions.get(peer)
        if suspicion is None:
            if not self.table.put(accused(member, State.SUSPECT, now)):
                return
            suspicion = begin_suspicion(self._profile, self.table.n_live + 1, now)
            self._suspicions[peer] = suspicion
            if accuser != self.me:
                self._hearsay.append(peer)
            self._log("info", "member_suspected", peer=short(peer), accuser=short(accuser))
        self._first_end = None
        if suspicion.accuse(accuser, is_us=teller == self.me):
            self._rumors.put(_verdict_subject(peer, accuser), rumor, teller)

    def _on_dead(self, rumor: Dead, teller: PeerId, now: Instant) -> None:
        peer = PeerId(rumor.peer)
        if peer == self.me:
            self._refute(rumor, teller, now)
            return
        member = self.table.get(peer)
        if member is None or member.incarnation != (rumor.epoch, rumor.counter):
            return
        if not self.table.put(accused(member, State.DEAD, now)):
            return
        self._clear(peer)
        self._book.saw(peer, now)
        self._rumors.put(_verdict_subject(peer), rumor, teller)
        self._log("warning", "member_dead", peer=short(peer), accuser=short(rumor.accuser))

    def _clear(self, peer: PeerId) -> None:
        """What was doubted, asked and told about a peer's earlier state no longer matters."""
        suspicion = self._suspicions.pop(peer, None)
        self._first_end = None
        for accuser in suspicion.accusers if suspicion else ():
            self._rumors.drop(_verdict_subject(peer, accuser))
        self._rumors.drop(_verdict_subject(peer))
        self._detector.forget(peer)

    def _refute(self, rumor: Suspect | Dead, teller: PeerId, now: Instant) -> None:
        """Somebody doubts the incarnation we are: be a later one. Doubts of earlier ones are
        answered by what we are, and of later ones nobody can have a record."""
        doubted = (rumor.epoch, rumor.counter)
        if doubted > self.us.incarnation or teller == self.me:
            return
        if doubted == self.us.incarnation and not self.is_leaving:
            self._detector.awareness.add(1)
            self.announce(replace(self.us.record, counter=rumor.counter + 1), now)
            accuser, counter = short(rumor.accuser), rumor.counter + 1
            self._log("warning", "refuted", accuser=accuser, counter=counter)
        if rumor.accuser == teller:
            self._doubters[teller] = None

    def _outdo(self, theirs: NodeRecord, now: Instant) -> None:
        """A record of ours that is ahead of us: our memory was rolled back, or we have a double."""
        ours = self.us.record
        if rank_of(theirs) <= rank_of(ours):
            return
        epoch, counter = (
            (theirs.epoch + 1, 0) if theirs.left else (theirs.epoch, theirs.counter + 1)
        )
        self.announce(replace(ours, epoch=epoch, counter=counter), now)
        self._log("warning", "identity_ahead", epoch=epoch, counter=counter)

    def _log(self, level: str, event: str, **fields: object) -> None:
        self._logs.append(Log(level, event, tuple(fields.items())))


def alive_subject(peer: PeerId) -> bytes:
    """Under which a peer's record is queued as a rumor."""
    return b"a" + peer


def _verdict_subject(peer: PeerId, accuser: PeerId | None = None) -> bytes:
    """A death is one fact, whoever says it first; accusers count."""
    return b"v" + peer + (accuser or b"")
