"""How this node and others come to be linked: who is dialled, what is shown, who is let in.

An introduction is the first contact, in the clear: both sides show their chains, the gate seats
them or not, and the one that dialled opens a CURVE link to the control port it was named. This file
answers those who come, reads what those we dialled answer, and looks again and again whom we should
be linked with and are not. What went wrong is kept by address (contacts.py) for `peerlm why`.

It ends where a link is open: what is said over links is company.py's. Nothing here decides who is
alive, and nobody is dialled for being unknown: addresses come from membership.
"""

from __future__ import annotations

from peerlm.effects import Admit, AnswerIntroduction, Effect, Introduce, Log, OpenLink
from peerlm.errors import AuthError
from peerlm.events import HelloCame, IntroductionAnswered, IntroductionFailed
from peerlm.identity.gate import Gate
from peerlm.membership.address_book import address_of
from peerlm.membership.membership import Membership
from peerlm.node.certificates import Certificates
from peerlm.node.contacts import Contacts, neighbours
from peerlm.node.dial_back import DialBack, Ports
from peerlm.types import Instant, PeerId, short
from peerlm.wire.message import Hello, Refusal, Welcome
from peerlm.wire.versions import PROTOCOL_VERSION, fits, misfit

CURES = {
    "revoked": "; only a new invite helps: `peerlm rm` here, then the line of `peerlm invite` from a member",
}
"""Reason of a refusal → what to do about it, where the refusal does not say so itself."""


class Introductions:
    """Introductions of one node, given and taken. Each method returns effects to carry out."""

    def __init__(
        self,
        gate: Gate,
        certificates: Certificates,
        contacts: Contacts,
        membership: Membership,
        dial_back: DialBack,
        ports: Ports,
    ) -> None:
        self.shut_out = ""
        """Why members refuse us, when they do: expired, revoked."""
        self._gate = gate
        self._certificates = certificates
        self._contacts = contacts
        self._membership = membership
        self._dial_back = dial_back
        self._ports = ports
        self._looked_at: object = None
        """The state of things when links were last looked at; None: look in any case."""
        self._live: tuple[PeerId, ...] = ()
        self._neighbours: tuple[PeerId, ...] = ()

    # ------------------------------------------------------------------------- those who come

    def hello_came(self, event: HelloCame) -> list[Effect]:
        hello = event.hello
        if not fits(hello.version):
            refusal = Refusal("version", misfit(hello.version))
            return [AnswerIntroduction(event.route, refusal)]
        if hello.run_id != self._gate.run_id:
            detail = f"this node is in run {short(self._gate.run_id)}, not {short(hello.run_id)}"
            return [AnswerIntroduction(event.route, Refusal("wrong_run", detail))]
        try:
            verified = self._certificates.admit(hello.chain, vouched=False)
        except AuthError as error:
            log = Log("warning", "hello_refused", (("from", event.from_host), ("why", str(error))))
            return [log, AnswerIntroduction(event.route, Refusal(error.code, str(error)[:400]))]
        welcome = Welcome(
            version=PROTOCOL_VERSION,
            run_id=self._gate.run_id,
            chain=self._certificates.chain,
            control_port=self._ports.control,
            bulk_port=self._ports.bulk,
            seen_host=event.from_host[:255],
        )
        admit = Admit(verified.peer_id, verified.curve_pk)
        return [admit, AnswerIntroduction(event.route, welcome)]

    # --------------------------------------------------------------------------- those we dialled

    def hello(self, now: Instant) -> Hello:
        """What we show when we introduce ourselves."""
        return Hello(PROTOCOL_VERSION, self._gate.run_id, self._certificates.chain)

    def answered(self, event: IntroductionAnswered, now: Instant) -> list[Effect]:
        self._looked_at = None
        match event.answer:
            case Refusal(reason=reason, detail=detail):
                if reason in ("expired", "revoked", "not_yet_valid"):
                    self.shut_out = f"members refuse this node: {detail}{CURES.get(reason, '')}"
                return self._refused(event.address, reason, detail, now)
            case Welcome() as welcome:
                return self._welcomed(event, welcome, now)

    def _refused(self, address: str, reason: str, detail: str, now: Instant) -> list[Effect]:
        self._contacts.failed(address, f"refused: {detail}", now)
        fields = (("address", address), ("reason", reason), ("detail", detail))
        return [Log("warning", "introduction_refused", fields)]

    def _welcomed(self, event: IntroductionAnswered, answer: Welcome, now: Instant) -> list[Effect]:
        try:
            if not fits(answer.version):
                raise AuthError("version", misfit(answer.version))
            if answer.run_id != self._gate.run_id:
                raise AuthError("wrong_run", f"{event.address} answers for another run")
            verified = self._certificates.admit(answer.chain, vouched=True)
        except AuthError as error:
            return self._refused(event.address, error.code, str(error), now)
        peer = verified.peer_id
        self._membership.introduced(event.address, peer)
        self._contacts.succeeded(event.address)
        if peer == self._certificates.me:
            return []
        self.shut_out = ""
        effects: list[Effect] = [Admit(peer, verified.curve_pk)]
        self._dial_back.seen_as(answer.seen_host, now)
        effects += self._be_reachable_as(answer.seen_host, now)
        if self._contacts.is_linked(peer):
            return effects
        self._contacts.opening(peer, now)
        return [*effects, OpenLink(peer, event.host, answer.control_port, verified.curve_pk)]

    def _be_reachable_as(self, seen_host: str, now: Instant) -> list[Effect]:
        """A node that does not know its own address takes the one a member sees it at."""
        if self._ports.host or self._membership.record.host or not seen_host:
            return []
        return self._membership.announce(now, host=seen_host)

    def failed(self, event: IntroductionFailed, now: Instant) -> list[Effect]:
        self._contacts.failed(event.address, f"{event.step}: {event.detail}", now)
        fields = (("address", event.address), ("step", event.step), ("detail", event.detail))
        return [Log("debug", "introduction_failed", fields)]

    # --------------------------------------------------------------------------- whom to dial

    def may_dial(self, effect: Introduce, now: Instant) -> bool:
        """Whether this address may be tried now; if so, it counts as being tried."""
        if not self._contacts.may_dial(effect.address, now):
            return False
        self._contacts.dialling(effect.address, now)
        return True

    def look(self, now: Instant) -> list[Effect]:
        """Whom we should be linked with, where there is anything new to see."""
        membership = self._membership
        state = (membership.version, membership.book.version)
        retry = self._contacts.deadline()
        if state == self._looked_at and (retry is None or retry > now):
            return []
        self._looked_at = state
        if self._live is not (live := membership.live_peers()):
            self._live, self._neighbours = live, neighbours(self._certificates.me, live)
        if self._contacts.attempts:
            self._contacts.keep_only(self._addresses())
        return self._keep_links(now)

    def _keep_links(self, now: Instant) -> list[Effect]:
        """Introduce ourselves to live members we should have a link with and have none."""
        contacts, effects = self._contacts, list[Effect]()
        for peer in self._neighbours:
            member = self._membership.member(peer)
            assert member is not None
            address = address_of(member.record.host, member.record.intro_port)
            if not address or contacts.is_linked(peer) or contacts.is_pending(peer, now):
                continue
            effect = Introduce(address)
            if self.may_dial(effect, now):
                effects.append(effect)
        contacts.looked(now)
        return effects

    def _addresses(self) -> set[str]:
        """Where somebody is known to live or to have lived."""
        book = self._membership.book
        members = self._membership.members().values()
        lived_at = {address_of(m.record.host, m.record.intro_port) for m in members}
        return {*book.seeds, *(contact.address for contact in book.contacts()), *lived_at}
