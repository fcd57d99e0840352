"""Who is there: links, membership, vitals and the plan, as one half of a node.

Everything that a peer says about *people* passes here first, and is checked before a core sees it:
records and vitals by their owner's signature, plans and revocations by the root's. What is left are
facts, which membership and the ledger may take as such. How somebody comes to have a link at all is
in introductions.py, which certificates hold by now in certificates.py.

The same plan is the condition for company. A peer with a newer revision gives us that; one with an
older takes ours; one with *another plan of the same revision* is refused with a line that names
the first field in which they differ, and hears nothing more from us until one of the two changes.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from peerlm import __version__, config
from peerlm.config import Plan
from peerlm.effects import (
    Admit,
    Effect,
    Expel,
    Introduce,
    Log,
    Save,
    SaveRevocations,
    Send,
    UsePlan,
)
from peerlm.errors import AuthError, ConfigError, WireError
from peerlm.events import LinkDown, LinkUp
from peerlm.identity.chain import Chain, read_chain
from peerlm.identity.gate import Gate
from peerlm.identity.keys import NodeKeys
from peerlm.identity.root import SignedPlan, verify_plan
from peerlm.membership.address_book import AddressBook, address_of
from peerlm.membership.member import Member, record_of
from peerlm.membership.membership import Membership
from peerlm.membership.profile import Profile, profile_named
from peerlm.node.asks import Asks
from peerlm.node.certificates import Certificates
from peerlm.node.contacts import MESH_MAX, Contacts
from peerlm.node.dial_back import DialBack, Ports
from peerlm.node.introductions import CURES, Introductions
from peerlm.node.seen import HOLDERS
from peerlm.swarm.vitals import Ledger
from peerlm.swarm.ways import HOP_S_MAX, Way
from peerlm.types import Instant, PeerId, Role, WallTime, after, short
from peerlm.wire.codec import decode_as
from peerlm.wire.message import (
    Ack,
    Alive,
    Dialled,
    DialMe,
    Gossip,
    Greeting,
    Message,
    Nack,
    Named,
    NodeRecord,
    Ping,
    PingRequest,
    PlanAsk,
    PlanGive,
    PlanNews,
    PlanRefused,
    Pulse,
    Revoked,
    Rumor,
    Sync,
    Tallies,
    Tally,
    Vitals,
    Welcome,
)

TALK = (Ping, Ack, Gossip, PingRequest, Nack, Sync)
"""Messages about people, most of all there are; work never hears of them."""

REVOCATIONS_PER_MESSAGE = 32
"""Of the largest size, so many fit a control frame."""

TALLIES_MAX = 4096
"""Entries of the token count told on a new link."""

BOOK_S = 1.0
"""The address book is saved at most this often."""

CHAIN_CHECK_S = 60.0
"""How often certificates are looked at: expired ones leave, our own is renewed if it is due."""


class Company:
    """Everybody this node knows, and the plan they share.

    Args:
        chain: our own certificate chain.
        plan: the signed plan in force here.
        epoch: boot epoch, greater than at any earlier start.
        address_book: from earlier starts; `seeds` are addresses a person gave.
    """

    def __init__(
        self,
        keys: NodeKeys,
        chain: Chain,
        gate: Gate,
        plan: SignedPlan,
        ports: Ports,
        epoch: int,
        rng: random.Random,
        now: Instant,
        wall: WallTime,
        *,
        seeds: tuple[str, ...],
        book: AddressBook,
        ledger: Ledger,
        profile: Profile | None = None,
    ) -> None:
        self.gate = gate
        self.plan = plan
        self.ledger = ledger
        self.contacts = Contacts(rng)
        self.asks = Asks()
        self.refused_plans: dict[PeerId, str] = {}
        self.misbehaviour: Counter[str] = Counter()
        self._chain_due = after(now, CHAIN_CHECK_S)
        self._book_saved = 0
        self._book_due = now
        self.certificates = Certificates(keys, chain, gate, wall)
        self.me = self.certificates.me
        self._admitted_from_book = self.certificates.admit_book(book)
        record = NodeRecord(
            peer=self.me,
            epoch=epoch,
            counter=0,
            host=ports.host,
            intro_port=ports.introduction,
            control_port=ports.control,
            bulk_port=ports.bulk,
            left=False,
        )
        self.ports = ports
        self.hear_name: Callable[[Named, PeerId, Instant], list[Effect]] = lambda *_: []
        """What a name of the swarm's store leads to: the node sets it."""
        self.membership = Membership(
            record,
            profile or profile_named(plan.plan.swarm.profile),
            rng,
            now,
            sign=self.certificates.sign_record,
            curve_of=self.certificates.curve_of,
            seeds=seeds,
            book=book,
            vitals=ledger,
            mesh_max=MESH_MAX,
            lasts=self.contacts.is_greeted,
        )
        self.dial_back = DialBack(ports, self.membership, self._id_of)
        self.introductions = Introductions(
            gate, self.certificates, self.contacts, self.membership, self.dial_back, ports
        )

    # ----------------------------------------------------------------------------- what is known

    @property
    def address(self) -> str:
        return address_of(self.membership.record.host, self.ports.introduction)

    def linked(self) -> list[PeerId]:
        """Live members of the same plan that we have a link with, sorted."""
        return [p for p in self.membership.linked_peers() if p not in self.refused_plans]

    @property
    def version(self) -> tuple[object, ...]:
        """Changes with whom we know, whom we are linked with, what they may do and how they are."""
        return (
            self.membership.version,
            self.ledger.standing,
            self.gate.version,
            self.plan.revision,
            tuple(self.refused_plans),
        )

    def vitals_of(self, peer: PeerId) -> Vitals | None:
        """A live member's latest word on itself, if it is of its present life."""
        member, vitals = self.membership.member(peer), self.ledger.latest(peer)
        if member is None or vitals is None or vitals.epoch != member.record.epoch:
            return None
        return vitals

    def rate_of(self, peer: PeerId) -> float:
        """Tokens a second that it trains on, by its own last word."""
        vitals = self.vitals_of(peer)
        return 0.0 if vitals is None else vitals.tokens_per_s

    def way_to(self, peer: PeerId, own_line_bytes_s: float | None) -> Way:
        """As far as it is known: the way as probes have measured it, the rest by the peer's word."""
        vitals, delay_s = self.vitals_of(peer), self.membership.delay_to(peer)
        lines = [own_line_bytes_s or 0.0, vitals.line_bytes_s if vitals else 0.0]
        usual_s = min(vitals.delay_us / 1e6, HOP_S_MAX) if vitals else 0.0
        line = min((rate for rate in lines if rate > 0.0), default=0.0)
        return Way(delay_s or 0.0, usual_s, line)

    def endpoint(self, peer: PeerId) -> tuple[str, int] | None:
        """Where the peer's bulk port can be dialled, or None."""
        member = self.membership.member(peer)
        if member is None or not member.record.host or not member.record.bulk_port:
            return None
        if not self.dial_back.can_dial(peer):
            return None
        return member.record.host, member.record.bulk_port

    def _id_of(self, welcome: Welcome) -> PeerId:
        """Whose welcome this is; seats nobody. Raises `AuthError`."""
        return read_chain(welcome.chain, self.gate.root_public_key, self.gate.run_id).peer_id

    def allows(self, peer: PeerId, role: Role) -> bool:
        return self.gate.allows(peer, role)

    def may_hold(self, peer: PeerId) -> bool:
        """Whether its roles let a peer have the weights and the text, and so donate them."""
        return not HOLDERS.isdisjoint(self.gate.roles_of(peer))

    # -------------------------------------------------------------------------------------- links

    def link_up(self, event: LinkUp, now: Instant) -> list[Effect]:
        self.contacts.link_up(event.peer, greeted=event.dialled)
        effects: list[Effect] = []
        if event.dialled:
            effects.append(Send(event.peer, self._greeting(reply=False)))
        else:
            self.dial_back.came(event.peer)
        effects += self._tell_revocations(event.peer)
        effects.append(Send(event.peer, _tallies(self.ledger.tallies())))
        return effects + self.membership.on_link_up(event.peer, now)

    def link_down(self, event: LinkDown, now: Instant) -> list[Effect]:
        is_hint = not self.contacts.is_linked(event.peer) or self.contacts.is_greeted(event.peer)
        self.contacts.link_down(event.peer)
        self.dial_back.gone(event.peer)
        return self.membership.on_link_down(event.peer, now, is_hint=is_hint)

    def _greeting(self, *, reply: bool) -> Greeting:
        myself, plan = self.membership.myself, self.plan
        return Greeting(myself, plan.revision, plan.plan_hash, reply, __version__)

    def _tell_revocations(self, peer: PeerId) -> list[Effect]:
        rumors = [Revoked(blob) for blob in self.gate.revocations.blobs()]
        step = REVOCATIONS_PER_MESSAGE
        return [
            Send(peer, Gossip(tuple(rumors[at : at + step]))) for at in range(0, len(rumors), step)
        ]

    # ----------------------------------------------------------------------------------- messages

    def received(self, peer: PeerId, message: Message, now: Instant) -> list[Effect]:
        """A message about people or the plan. Messages about work are not for this half."""
        match message:
            case Ping() | Ack() | Gossip():
                return self._gossiped(peer, message, now)
            case Greeting():
                return self._greeted(peer, message, now)
            case PlanAsk():
                return [Send(peer, PlanGive(self.plan.blob))] if self.asks.may(peer, now) else []
            case PlanGive():
                return self.take_plan(message.signed_plan, peer, now)
            case PlanRefused():
                self.refused_plans.setdefault(peer, message.detail)
                return []
            case Tallies():
                if self.gate.allows(peer, Role.TRAIN):
                    self.ledger.restore(
                        (PeerId(t.peer), t.epoch, t.tokens) for t in message.entries
                    )
                return []
            case PingRequest() | Nack():
                return self.membership.on_message(peer, message, now).effects
            case Sync():
                effects = self.membership.on_message(peer, message, now).effects
                unproven = self.ledger.unproven()  # what was told at the link's start may be lost
                return [*effects, Send(peer, _tallies(unproven))] if unproven else effects
            case DialMe():
                return self.dial_back.asked(peer, message, now)
            case Dialled():
                return self.dial_back.told(peer, message, now)
        return []

    def hear_about_plan(self, peer: PeerId, message: Message, now: Instant) -> list[Effect]:
        """From a peer with another plan only news of its plan is heard."""
        if isinstance(message, Greeting | PlanAsk | PlanGive):
            return self.received(peer, message, now)
        return []

    def _greeted(self, peer: PeerId, greeting: Greeting, now: Instant) -> list[Effect]:
        self.contacts.greeted(peer, greeting.software)
        effects = self._plan_seen(peer, greeting.plan_revision, greeting.plan_hash)
        if not greeting.reply:
            effects.append(Send(peer, self._greeting(reply=True)))
        if peer not in self.refused_plans and self._is_true(greeting.myself, effects):
            effects += self.membership.learn(greeting.myself, peer, now)
        return effects + self.dial_back.greeted(peer)

    def _gossiped(self, peer: PeerId, message: Ping | Ack | Gossip, now: Instant) -> list[Effect]:
        """Take the untrue out, let membership read its rumors, read the others here."""
        effects: list[Effect] = []
        rumors = message.rumors
        kept = [r for r in rumors if not isinstance(r, Alive) or self._is_true(r, effects)]
        if len(kept) < len(rumors):
            message = dataclasses.replace(message, rumors=tuple(kept))
        heard = self.membership.on_message(peer, message, now)
        effects += heard.effects
        for rumor in heard.others:
            effects += self._other_rumor(peer, rumor, now)
        return effects

    def _is_true(self, alive: Alive, effects: list[Effect]) -> bool:
        """Whether a record is worth reading: news, of an admitted node, and signed by it. Whoever
        takes a seat by it may connect from now on: in a large swarm most members never introduce
        themselves to each other, and still probe each other."""
        record = record_of(alive)
        if record is None or not self.membership.is_news(alive):
            return False
        peer = PeerId(record.peer)
        seated = self.certificates.curve_of(peer)
        try:
            verified = self.certificates.admit(alive.chain, vouched=True)
        except AuthError as error:
            self._misbehaved("record", error)
            return False
        if verified.peer_id != peer or not self.gate.verify(peer, alive.record, alive.signature):
            return False
        if verified.curve_pk != seated:
            effects.append(Admit(peer, verified.curve_pk))
        return True

    def _other_rumor(self, teller: PeerId, rumor: Rumor, now: Instant) -> list[Effect]:
        match rumor:
            case Pulse():
                return self._pulse(teller, rumor, now)
            case Revoked():
                return self.revoked(rumor.blob, now, teller=teller)
            case PlanNews():
                return self._plan_seen(teller, rumor.revision, rumor.plan_hash)
            case Named():
                return self.hear_name(rumor, teller, now)
        return []

    def _pulse(self, teller: PeerId | None, pulse: Pulse, now: Instant) -> list[Effect]:
        vitals = _vitals_of(pulse.vitals)
        if vitals is None:
            self.misbehaviour["vitals: malformed"] += 1
            return []
        peer = PeerId(vitals.peer)
        if peer == self.me or not self.ledger.is_news(vitals):
            return []
        if not self.gate.verify(peer, pulse.vitals, pulse.signature):
            self.misbehaviour["vitals: bad_signature"] += 1
            return []
        if vitals.tokens and not self.gate.allows(peer, Role.TRAIN):
            self.misbehaviour["vitals: tokens without the role"] += 1
            return []
        self.ledger.merge(vitals, pulse)
        subject = b"vitals" + peer
        return self.membership.spread(pulse, subject, now, teller=teller, sends_max=3)

    def _misbehaved(self, what: str, error: Exception) -> None:
        """Count in words of our own: a peer's text as a key would let it fill our memory."""
        code = error.code if isinstance(error, AuthError) else "malformed"
        self.misbehaviour[f"{what}: {code}"] += 1

    def spread_name(
        self, proof: Named, subject: bytes, now: Instant, teller: PeerId | None
    ) -> list[Effect]:
        """Gossip a name of the swarm's store."""
        return self.membership.spread(proof, subject, now, teller=teller)

    def stores(self) -> dict[PeerId, tuple[int, str]]:
        """Live members that offer room to the swarm's store: bytes, and what each fails together with."""
        offers = {}
        for peer in self.linked():
            vitals = self.vitals_of(peer)
            if vitals is not None and vitals.store_bytes and self.gate.allows(peer, Role.STORE):
                offers[peer] = (vitals.store_bytes, vitals.store_label)
        return offers

    def publish(self, vitals: Vitals, now: Instant) -> list[Effect]:
        """Sign and gossip how this node is doing."""
        pulse = self.certificates.sign_vitals(vitals)
        self.ledger.merge(vitals, pulse)
        return self.membership.spread(pulse, b"vitals" + self.me, now, sends_max=3)

    # --------------------------------------------------------------------------- plan, revocation

    def _plan_seen(self, peer: PeerId, revision: int, plan_hash: bytes) -> list[Effect]:
        if revision == self.plan.revision and plan_hash == self.plan.plan_hash:
            self.refused_plans.pop(peer, None)
            return []
        return [Send(peer, PlanAsk())] if revision >= self.plan.revision else []

    def take_plan(self, blob: bytes, teller: PeerId | None, now: Instant) -> list[Effect]:
        """A signed plan: newer than ours it holds from now on; another of the same revision is
        refused, with the field named on both sides."""
        try:
            theirs = verify_plan(blob, self.gate.root_public_key, self.gate.run_id)
        except (AuthError, ConfigError) as error:
            self._misbehaved("plan", error)
            return [Log("warning", "plan_not_valid", (("why", str(error)),))]
        if theirs.revision == self.plan.revision and theirs.plan_hash != self.plan.plan_hash:
            return self._refuse_plan(teller, theirs)
        if theirs.revision <= self.plan.revision:
            return []
        changed = fixed_differences(self.plan.plan, theirs.plan)
        if changed:
            line = f"revision {theirs.revision} would change what a run cannot: {changed[0]}"
            return [Log("error", "plan_refused", (("why", line),))]
        self.plan = theirs
        # Those whose plan was refused hear nothing else from us.
        told: list[Effect] = [Send(p, PlanGive(blob)) for p in self.refused_plans if p != teller]
        self.refused_plans.clear()
        news = PlanNews(theirs.revision, theirs.plan_hash)
        effects: list[Effect] = [UsePlan(blob), Save("plan", blob), *told]
        return [*effects, *self.membership.spread(news, b"plan", now, teller=teller)]

    def _refuse_plan(self, teller: PeerId | None, theirs: SignedPlan) -> list[Effect]:
        line = f"another plan of revision {theirs.revision}: {_first_difference(self.plan, theirs)}"
        log = Log("error", "plan_refused", (("why", line),))
        if teller is None:
            return [log]
        self.refused_plans[teller] = line
        mirrored = _first_difference(theirs, self.plan)
        return [log, Send(teller, PlanRefused(f"revision {theirs.revision}: {mirrored}"[:400]))]

    def revoked(self, blob: bytes, now: Instant, *, teller: PeerId | None = None) -> list[Effect]:
        """A revocation, known or new; the expelled lose their links at once."""
        before = len(self.gate.revocations)
        try:
            expelled = self.gate.add_revocation(blob)
        except AuthError as error:
            self._misbehaved("revocation", error)
            return []
        if len(self.gate.revocations) == before:
            return []
        effects = self.membership.spread(Revoked(blob), b"revoked" + blob[-32:], now, teller=teller)
        effects.append(SaveRevocations(self.gate.revocations.blobs()))
        return effects + self._expel(expelled, "revoked", now)

    def _expel(self, peers: tuple[PeerId, ...], why: str, now: Instant) -> list[Effect]:
        effects: list[Effect] = []
        for peer in peers:
            if peer == self.me:
                self.introductions.shut_out = (
                    f"this node's certificate is {why}{CURES.get(why, '')}"
                )
                continue
            self.contacts.link_down(peer)
            self.ledger.forget(peer)
            self.dial_back.forget(peer)
            self.refused_plans.pop(peer, None)
            effects += [Expel(peer), *self.membership.expel(peer, now)]
            effects.append(Log("warning", "expelled", (("peer", short(peer)), ("why", why))))
        return effects

    # -------------------------------------------------------------------------------------- clock

    def start(self, now: Instant) -> list[Effect]:
        """Seat everybody we knew before, so that they can dial us, and look for them."""
        certificates = self.certificates
        woken = self.wake(now, certificates.wall)
        return [*certificates.kept, *self._admitted_from_book, *woken]

    def wake(self, now: Instant, wall: WallTime) -> list[Effect]:
        self.certificates.wall = wall
        effects: list[Effect] = []
        if self.membership.deadline() <= now:
            may_dial, woken = self.introductions.may_dial, self.membership.wake(now)
            effects = [e for e in woken if not isinstance(e, Introduce) or may_dial(e, now)]
        effects += self.dial_back.wake(now)
        effects += self.introductions.look(now)
        if self._chain_due <= now:
            effects += self._look_at_chains(now)
        if self._book_changed and self._book_due <= now:
            self._book_saved, self._book_due = self.membership.book.version, after(now, BOOK_S)
            effects.append(Save("address_book", self.membership.book_bytes(now, wall)))
        return effects

    def deadline(self) -> Instant:
        due = min(self.membership.deadline(), self._chain_due)
        if self._book_due < due and self._book_changed:
            due = self._book_due
        for at in (self.contacts.deadline(), self.dial_back.deadline()):
            due = due if at is None or due < at else at
        return due

    @property
    def _book_changed(self) -> bool:
        return self.membership.book.version != self._book_saved

    def _look_at_chains(self, now: Instant) -> list[Effect]:
        self._chain_due = after(now, CHAIN_CHECK_S)
        shown = self.certificates.chain
        effects = self.certificates.renew_if_due()
        if self.certificates.chain is not shown:
            effects += self.membership.announce(now)
        return effects + self._expel(self.certificates.expire(), "expired", now)

    def leave(self, now: Instant) -> list[Effect]:
        return self.membership.leave(now)

    def remember(
        self, members: Mapping[PeerId, Member], pulses: Mapping[PeerId, Pulse], now: Instant
    ) -> list[Effect]:
        """Begin in a swarm that has met: `Membership.remember`, with seats and vitals for all.
        Raises `AuthError` if a chain does not hold."""
        self.membership.remember(members, now)
        effects: list[Effect] = []
        for peer, member in members.items():
            if peer != self.me:
                seat = self.certificates.admit(member.alive.chain, vouched=True)
                effects.append(Admit(peer, seat.curve_pk))
        for pulse in pulses.values():
            vitals = _vitals_of(pulse.vitals)
            assert vitals is not None, "a pulse without vitals"
            self.ledger.merge(vitals, pulse)
        return effects

    def check(self) -> None:
        self.gate.check()
        self.membership.check()

    def audit(self) -> None:
        self.gate.audit()
        self.membership.audit()
        self.contacts.check()
        self.dial_back.check()
        self.ledger.check()


@lru_cache(maxsize=1024)
def _vitals_of(encoded: bytes) -> Vitals | None:
    """Read once, though they are heard from several, and by all nodes of a process."""
    try:
        return decode_as(Vitals, encoded)
    except WireError:
        return None


def fixed_differences(ours: Plan, theirs: Plan) -> list[str]:
    """Differences in what the weights of a run depend on, which no revision may change; one line each. To other text
    they get used."""
    model = ("model.", "data.tokenizer:", "data.vocab:", "mix.fragment_max:")
    fixed = (*model, "run.name:", "run.rng_seed:", "run.initial:", "run.continues:")
    return [line for line in config.differences(ours, theirs) if line.startswith(fixed)]


def _first_difference(ours: SignedPlan, theirs: SignedPlan) -> str:
    """The same values can be written in two ways, by two releases."""
    lines = config.differences(ours.plan, theirs.plan)
    return lines[0] if lines else "the same values, written by another release"


def _tallies(entries: Iterable[tuple[PeerId, int, int]]) -> Tallies:
    """The largest that fit a message; what is left out is what matters least."""
    largest = sorted(entries, key=lambda entry: (-entry[2], entry[:2]))
    return Tallies(tuple(Tally(*entry) for entry in largest[:TALLIES_MAX]))
