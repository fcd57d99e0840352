"""The membership core: who is in the swarm, as far as this node can know.

Composes the table of members, the failure detector, suspicions, rumors, anti-entropy and the heal
task into one machine. It is driven by messages, link hints and the clock; it answers with effects,
and the node reads the table. What it is told as `Alive` must have been verified by the
caller (signature, certificate chain, revocations): ask `is_news` first, most of it is old.

Verdicts are the swarm's, not the link's: a link that goes down only makes us probe at once. We
never believe a verdict on ourselves: we raise our counter and say so. A node that was frozen or
starved moves its own deadlines rather than accuse others.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, assert_never

from peerlm.effects import Effect, Introduce, Log, Send, SendFresh
from peerlm.membership import sync
from peerlm.membership.address_book import AddressBook, address_of
from peerlm.membership.beliefs import Beliefs, alive_subject
from peerlm.membership.comparing import Comparing
from peerlm.membership.detector import Answer, Ask, Detector, Failed, Step, Way
from peerlm.membership.heal import Healer
from peerlm.membership.links import Links
from peerlm.membership.member import Member, State
from peerlm.membership.profile import Profile
from peerlm.membership.rumors import RumorQueue, sends_limit
from peerlm.membership.table import MemberChanged
from peerlm.types import Instant, PeerId, WallTime, after
from peerlm.wire.message import (
    Ack,
    Alive,
    Dead,
    Gossip,
    Message,
    Nack,
    NodeRecord,
    Ping,
    PingRequest,
    Rumor,
    Suspect,
    Sync,
)

NEVER = Instant(math.inf)

MembershipMessage = Ping | Ack | PingRequest | Nack | Gossip | Sync
"""What `on_message` takes."""


class Heard(NamedTuple):
    """Outcome of a message: what to do, and rumors that are not about membership, unread."""

    effects: list[Effect]
    others: list[Rumor]


class Membership:
    """Built with this node's own record (its epoch greater than at any earlier start).

    sign: makes the signed `Alive` of our record, chain included.
    curve_of: a peer's CURVE key if known, for probes over fresh connections.
    book: addresses from earlier starts; `seeds` are added to its own.
    vitals: where signed vitals are kept, for push-pull.
    lasts: whether the link with a peer is more than a connection that it made for one probe.
    mesh_max: below so many other members everybody keeps a link with everybody that can be dialled.
    """

    def __init__(
        self,
        record: NodeRecord,
        profile: Profile,
        rng: random.Random,
        now: Instant,
        *,
        sign: Callable[[NodeRecord], Alive],
        curve_of: Callable[[PeerId], bytes | None],
        seeds: tuple[str, ...] = (),
        book: AddressBook | None = None,
        vitals: sync.VitalsShelf | None = None,
        mesh_max: int = 0,
        lasts: Callable[[PeerId], bool] = lambda peer: True,
    ) -> None:
        self.me = PeerId(record.peer)
        self.profile = profile
        self.book = AddressBook() if book is None else book
        self.book.add_seeds(seeds)
        self._rng = rng
        self._curve_of = curve_of
        self._rumors = RumorQueue()
        self._detector = Detector(profile, rng, now)
        self._beliefs = Beliefs(record, profile, sign, self._rumors, self._detector, self.book, now)
        self._table = self._beliefs.table
        self._healer = Healer(profile, rng, now)
        self._links = Links(self.me, self._table, curve_of, lasts, mesh_max)
        shelf = sync.NoVitals() if vitals is None else vitals
        self._comparing = Comparing(profile, rng, self._beliefs, shelf, now)
        self._next_round = Instant(-math.inf)
        self._awake_until = now
        self._wanted = Instant(math.inf)
        self._now = now
        self._effects: list[Effect] = []
        self._checked: object = None
        """What all that is checked depends on, when it was last found to be sound."""
        self._due = self._next_due()

    # --------------------------------------------------------------------------- what is known

    @property
    def myself(self) -> Alive:
        """Our own signed record, as it stands now."""
        return self._beliefs.us.alive

    @property
    def us(self) -> Member:
        """This node's own entry, for views."""
        return self._beliefs.us

    @property
    def record(self) -> NodeRecord:
        return self._beliefs.us.record

    @property
    def incarnation(self) -> tuple[int, int]:
        """(boot epoch, counter). The epoch can grow while we run, if our own past is ahead of us
        (a restored state directory): the node must then keep it."""
        return self._beliefs.us.incarnation

    @property
    def _leaving(self) -> bool:
        return self._beliefs.is_leaving

    @property
    def goodbye_spread(self) -> bool:
        """We have left, and told it as often as a rumor is told, or nobody listens any more."""
        told = alive_subject(self.me) not in self._rumors or not self._links.listeners()
        return self._leaving and told

    def member(self, peer: PeerId) -> Member | None:
        return self._table.get(peer)

    def members(self) -> Mapping[PeerId, Member]:
        """All other members, dead and left ones too, sorted by PeerId. Read-only."""
        return self._table.in_order()

    @property
    def version(self) -> int:
        """Grows with every change of `members` or of who is linked."""
        return self._links.version

    def live_peers(self) -> tuple[PeerId, ...]:
        """Other members alive or suspect, sorted."""
        return self._table.live()

    @property
    def n_live(self) -> int:
        """How many those are."""
        return self._table.n_live

    def delay_to(self, peer: PeerId) -> float | None:
        """Seconds of the way to it; None: not known yet."""
        return self._detector.delays.to(peer)

    def usual_delay(self) -> float | None:
        """The middle one of the ways to linked members; None: none is known yet."""
        return self._detector.delays.middle(self.linked_peers())

    def linked_peers(self) -> tuple[PeerId, ...]:
        """Those of them we have a link with, sorted."""
        return self._links.linked_peers()

    def is_live(self, peer: PeerId) -> bool:
        return self._links.is_live(peer)

    def changes(self) -> list[MemberChanged]:
        """Changes of other members since the last call, in order. Simulations read them: the node
        looks at the table itself."""
        return self._table.drain_changes()

    def book_bytes(self, now: Instant, wall: WallTime) -> bytes:
        """The address book as a file; save it when `book.version` has grown."""
        for peer in self._table.live():
            self.book.saw(peer, now)
        return self.book.to_bytes(now, wall)

    def is_news(self, alive: Alive) -> bool:
        """Whether this record is later than what we hold: only then verify it, and pass it on to
        `learn` or `on_message`. False for anything that is no record."""
        return self._beliefs.is_news(alive)

    def remember(self, members: Mapping[PeerId, Member], now: Instant) -> None:
        """Begin in a swarm that has met: know these members (our own entry is passed over) and tell
        nobody. For simulations: entries may be shared between nodes. Before anything else."""
        self._enter(now)
        self._beliefs.remember(members, now)
        self._comparing.remember(now)
        self._due = self._next_due()

    # ------------------------------------------------------------------------------- what came

    def on_message(self, peer: PeerId, message: MembershipMessage, now: Instant) -> Heard:
        """A message from a peer, with unverified `Alive` rumors taken out by the caller."""
        self._enter(now)
        others: list[Rumor] = []
        match message:
            case Ping():
                others = self._beliefs.hear(peer, message.rumors, now)
                self._send(peer, Ack(message.seq, self.me, self._ride(peer)))
            case Ack():
                others = self._beliefs.hear(peer, message.rumors, now)
                self._do(self._detector.on_ack(peer, message, now), now)
            case PingRequest():
                self._on_request(peer, message, now)
            case Nack():
                self._detector.on_nack(peer, message)
            case Gossip():
                others = self._beliefs.hear(peer, message.rumors, now)
            case Sync():
                self._on_sync(peer, message, now)
            case _:
                assert_never(message)
        return Heard(self._outcome(), others)

    def learn(self, rumor: Alive | Suspect | Dead, from_peer: PeerId, now: Instant) -> list[Effect]:
        """One verified membership fact, from a greeting say."""
        self._enter(now)
        self._beliefs.hear(from_peer, (rumor,), now)
        return self._outcome()

    def on_link_up(self, peer: PeerId, now: Instant) -> list[Effect]:
        """Exchange tables with whoever is new on the line, unless both just did."""
        self._enter(now)
        if not self._links:
            self._comparing.begin(now)
        self._links.up(peer)
        if self._comparing.is_due_with(peer, now, is_alive=self._links.is_alive(peer)):
            self._send(peer, self._comparing.digest(now, reply=False))
        return self._outcome()

    def on_link_down(self, peer: PeerId, now: Instant, *, is_hint: bool = True) -> list[Effect]:
        """A hint, never a verdict: probe at once, over a fresh connection. No hint: it was a
        connection for one probe, and ended as those do."""
        self._enter(now)
        self._unlink(peer)
        if is_hint and self._links.is_live(peer) and not self._leaving:
            self._do(self._detector.begin(peer, now, self._links), now)
        return self._outcome()

    def introduced(self, address: str, peer: PeerId) -> None:
        """An introduction at this address was answered by this peer (or by ourselves)."""
        self._healer.answered(address, peer)

    def lagged(self, seconds: float, now: Instant) -> list[Effect]:
        """Our loop could not run for the last `seconds`: see `events.LoopLagged`. Time already
        noticed from a late wake does not count twice."""
        self._enter(now)
        self._oversleep(min(seconds, now - self._awake_until), now)
        return self._outcome()

    # ------------------------------------------------------------------------------ what we say

    def announce(
        self,
        now: Instant,
        *,
        host: str | None = None,
        intro_port: int | None = None,
        control_port: int | None = None,
        bulk_port: int | None = None,
    ) -> list[Effect]:
        """Our record has changed (or our certificate, then without arguments): tell everyone."""
        self._enter(now)
        old = self.record
        changed = replace(
            old,
            counter=old.counter + 1,
            host=old.host if host is None else host,
            intro_port=old.intro_port if intro_port is None else intro_port,
            control_port=old.control_port if control_port is None else control_port,
            bulk_port=old.bulk_port if bulk_port is None else bulk_port,
        )
        self._beliefs.announce(changed, now)
        return self._outcome()

    def leave(self, now: Instant) -> list[Effect]:
        """Say goodbye, signed, to all linked members at once. Afterwards we only pass it on; keep
        running until `goodbye_spread`, at least 1 and at most 5 seconds."""
        self._enter(now)
        if not self._leaving:
            left = replace(self.record, counter=self.record.counter + 1, left=True)
            self._beliefs.announce(left, now)
        return self._outcome()

    def spread(
        self,
        rumor: Rumor,
        subject: bytes,
        now: Instant,
        *,
        teller: PeerId | None = None,
        sends_max: int | None = None,
    ) -> list[Effect]:
        """Gossip a fact of another room. It replaces the last one on `subject`. `teller`: who told
        us, and need not hear it. `sends_max`: for news that is soon old (vitals), fewer tellings."""
        self._enter(now)
        self._rumors.put(b"x" + subject, rumor, teller, sends_max)
        return self._outcome()

    def expel(self, peer: PeerId, now: Instant) -> list[Effect]:
        """Forget a peer that is no longer welcome (revoked). Do not verify its records again."""
        self._enter(now)
        self._beliefs.expel(peer)
        self._unlink(peer)
        return self._outcome()

    # ------------------------------------------------------------------------------------ clock

    def deadline(self) -> Instant:
        """When to call `wake`."""
        return self._due

    def _next_due(self) -> Instant:
        round_due, beliefs = self._round_due(), self._beliefs
        if beliefs.is_leaving:
            return round_due
        probe_due, heal_due = self._detector.deadline(), self._healer.deadline()
        return Instant(min(round_due, probe_due, heal_due, self._comparing.due, beliefs.deadline()))

    def wake(self, now: Instant) -> list[Effect]:
        """Do what is due."""
        self._enter(now)
        if not self._leaving:
            self._do(self._detector.wake(now, self._links), now)
            self._beliefs.end_suspicions(now)
            self._pull(now)
            self._heal(now)
        if now >= self._round_due():
            self._gossip(now)
        return self._outcome()

    def check(self) -> None:
        """Assert what we promise of our own state, where it changed since the last check; what only
        all tables together show (everyone converges, nobody reachable stays dead) is for whoever
        sees them all."""
        assert not math.isnan(self._due), "no deadline"
        state = (self._table.version, self._beliefs.n_suspected, self._detector.probes_begun)
        if state == self._checked:
            return
        self._beliefs.check()
        for target in self._detector.targets():
            assert self._links.is_live(target), "a probe of a member that is not live"
        self._checked = state

    def audit(self) -> None:
        """`check` of everything, whether it changed or not."""
        self._checked = None
        self.check()
        self._beliefs.audit()
        self._rumors.check()
        self._detector.check()
        assert self._due == self._next_due(), "the deadline is stale"
        self._comparing.audit()

    # -------------------------------------------------------------------------- private: messages

    def _on_request(self, asker: PeerId, message: PingRequest, now: Instant) -> None:
        target = PeerId(message.target)
        if target == self.me:
            self._send(asker, Ack(message.seq, self.me, self._ride(asker)))
            return
        self._do(self._detector.on_request(asker, message.seq, target, now, self._links), now)

    def _on_sync(self, peer: PeerId, message: Sync, now: Instant) -> None:
        """Answer with our digest, take doubts from theirs, hand over what they lack."""
        self._comparing.heard(peer, now)
        ours = self._comparing.digest(now, reply=True)
        if not message.reply:
            self._send(peer, ours)
        if message.entries == ours.entries:
            return
        lacking = self._comparing.lacking(message.entries, self.me)
        for entry in message.entries:
            if entry.state in (State.SUSPECT, State.DEAD):
                self._beliefs.doubt(entry, peer, now)
        for batch in lacking:
            self._send(peer, batch)

    def _do(self, steps: list[Step], now: Instant) -> None:
        """Turn what the detector wants into effects and facts."""
        for step in steps:
            match step:
                case Ask():
                    self._ask(step)
                case Answer():
                    self._send(step.to, step.message)
                case Failed():
                    self._beliefs.accuse(step.target, now)
                case _:
                    assert_never(step)

    def _ask(self, step: Ask) -> None:
        if step.way is Way.HELPER:
            self._send(step.to, PingRequest(step.seq, step.target))
            return
        ping = Ping(step.seq, self._ride(step.to))
        if step.way is Way.LINK:
            self._send(step.to, ping)
        else:
            self._send_fresh(step.to, ping)

    def _ride(self, to: PeerId) -> tuple[Rumor, ...]:
        """Rumors for a probe or its answer. First of all what we hold against the reader itself,
        so that it can refute at once (Lifeguard's buddy rule, here for the dead too)."""
        first: tuple[Rumor, ...] = ()
        member = self._table.get(to)
        if member is not None and member.state in (State.SUSPECT, State.DEAD):
            kind = Suspect if member.state is State.SUSPECT else Dead
            first = (kind(to, *member.incarnation, accuser=self.me),)
        return first + self._rumors.take(to, self.profile.ping_bytes_max, self._sends_limit())

    # ----------------------------------------------------------------------------- private: clock

    def _gossip(self, now: Instant) -> None:
        """One round: rumors to a few linked members, the dead among them too (they may not be)."""
        self._next_round = after(now, self.profile.gossip_interval_s)
        targets = self._links.listeners()
        limit = self._sends_limit()
        for peer in self._rng.sample(targets, min(self.profile.fan_out, len(targets))):
            if rumors := self._rumors.take(peer, self.profile.gossip_bytes_max, limit):
                self._send(peer, Gossip(rumors))
        self._rumors.end_round(limit)

    def _round_due(self) -> Instant:
        """Rumors wait until someone can hear them."""
        if not self._rumors or not self._links.listeners():
            return NEVER
        return self._next_round

    def _pull(self, now: Instant) -> None:
        """Push-pull with a random linked member."""
        if not self._comparing.take_turn(now, has_links=bool(self._links)):
            return
        self._table.expire(now)
        if listeners := self._links.listeners():
            self._send(self._rng.choice(listeners), self._comparing.digest(now, reply=False))

    def _heal(self, now: Instant) -> None:
        if now < self._healer.deadline():
            return
        own = address_of(self.record.host, self.record.intro_port)
        for address in self._healer.wake(now, self._table.all(), self.book, own):
            self._effects.append(Introduce(address))

    def _oversleep(self, seconds: float, now: Instant) -> None:
        """We were deaf: what was due in that time is due that much later."""
        self._awake_until = now
        if seconds <= self.profile.lag_tolerance_s:
            return
        self._detector.push(seconds)
        self._beliefs.push(seconds)
        if seconds > self.profile.probe_timeout_s:
            self._detector.awareness.add(1)
        self._effects.append(Log("debug", "overslept", (("seconds", round(seconds, 3)),)))

    # --------------------------------------------------------------------------- private: plumbing

    def _enter(self, now: Instant) -> None:
        """Every entrance: notice if we should have been called long ago."""
        self._now = now
        overrun_s = now - self._wanted
        if overrun_s > self.profile.lag_tolerance_s:
            overrun_s = min(overrun_s, now - self._awake_until)
            if overrun_s > self.profile.lag_tolerance_s:
                self._oversleep(overrun_s, now)

    def _outcome(self) -> list[Effect]:
        """Every exit: what to do, and when we want to be woken. A new record of ours goes to all
        linked members at once: a refutation or a goodbye must not wait for its turn."""
        if self._beliefs.have_news:
            self._follow_news()
        if self._table.n_live == 0:
            self._healer.lonely(self._now)
        self._due = self._next_due()
        self._wanted = self._due if self._due > self._now else self._now
        effects, self._effects = self._effects, []
        return effects

    def _follow_news(self) -> None:
        """What has to be said at once about what was heard."""
        self._ask_suspects()
        told = list(self._links) if self._beliefs.drain_announced() else []
        for peer in dict.fromkeys((*told, *self._beliefs.drain_doubters())):
            self._tell(peer)
        self._effects += self._beliefs.drain_logs()

    def _ask_suspects(self) -> None:
        """Some of those who hear of a suspicion ask the suspect: so it hears of it, and if it is
        silent they accuse it too."""
        for suspect in self._beliefs.drain_hearsay():
            share = self.profile.askers / max(1, self._table.n_live)
            is_asker = bool(self.profile.early_accusers) and self._rng.random() < share
            is_asker &= (
                not self._leaving and self._links.is_live(suspect) and self._links.can_ask(suspect)
            )
            if is_asker:
                self._do(self._detector.begin(suspect, self._now, self._links), self._now)

    def _tell(self, peer: PeerId) -> None:
        """Our record, by whatever way there is: who holds us dead has closed its link with us."""
        message = Gossip((self.myself,))
        if self._links.is_linked(peer) or not self._links.can_dial(peer):
            self._send(peer, message)
        else:
            self._send_fresh(peer, message)

    def _send_fresh(self, peer: PeerId, message: Message) -> None:
        member, curve_key = self._table.get(peer), self._curve_of(peer)
        assert member is not None, "a fresh connection to nobody"
        assert curve_key is not None, "a fresh connection without a key"
        record = member.record
        self._effects.append(SendFresh(peer, record.host, record.control_port, curve_key, message))

    def _send(self, peer: PeerId, message: Message) -> None:
        self._effects.append(Send(peer, message))

    def _sends_limit(self) -> int:
        n = self._table.n_live + 1
        return sends_limit(self.profile.retransmit_mult, n, self.profile.sends_min)

    def _unlink(self, peer: PeerId) -> None:
        self._links.down(peer)
        self._comparing.forget(peer)
