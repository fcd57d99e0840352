"""Who can be dialled: what this node has found of others, and what others have found of it.

A node cannot see for itself whether others can dial it: behind a firewall or address translation all that
it dials works. So others try, and tell it. A member tries when an exchange that it began was lost on the way,
and the peer then goes on speaking over the link that it has dialled itself; or when it is asked to. It
introduces itself at the address in question, where the answer must be that very peer's, and knocks at the two
other ports. Where that fails it begins no exchanges with that peer any more, and tells it.

Who is told so asks the other members it is linked with. If none of them can dial it, it is *guarded*:
its record has no address from then on, so nobody dials it, and it exchanges with those that it dials. It asks
again now and then. A node that members see at another address than its own asks by itself, soon after its start.

After libp2p's AutoNAT. In a swarm in which everybody can be dialled nothing of this is ever said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peerlm.effects import Effect, Log, Send, TryDial
from peerlm.errors import AuthError
from peerlm.events import DialTried
from peerlm.membership.membership import Membership
from peerlm.types import Instant, PeerId, after, short
from peerlm.wire.message import Dialled, DialMe, NodeRecord, Refusal, Welcome

LOST_ON_THE_WAY = ("resolve", "connect", "transfer")
"""Steps at which an exchange is lost that say something of the way to a peer."""

STILL_SPEAKS_S = 1.0
"""What a peer had said before it died may come this late; who speaks later lives."""

SOON_S = 3.0
"""A node that has a reason to ask waits so long, until it is linked with more than one."""

ROUND_S = 15.0
"""For the answers of those who were asked: longer than a driver needs to try all ports."""

TRY_S = 30.0
"""A try whose end the driver has not told by then has none."""

AGAIN_S = 300.0
"""What was found counts for so long, then it is tried again."""

QUIET_S = 60.0
"""After a round of questions that ended well, no other one for so long, whatever is said."""

ASKED_AT_ONCE_S = 10.0
"""Whoever asks again sooner gets the same answer."""

NEVER = Instant(0.0)

ASKED_MAX = 8
TRIES_MAX = 32
"""Under way at once; one more is not begun."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a node listens. `host` empty: it cannot be dialled. `page`: 0 where others cannot see it at that host."""

    host: str
    introduction: int
    control: int
    bulk: int
    page: int = 0


IdOf = Callable[[Welcome], PeerId]
"""Whose welcome this is. Raises `AuthError`."""


@dataclass(slots=True)
class _Try:
    """One of ours to dial a peer."""

    where: Ports
    at: Instant
    """When it began; once it has ended, when it ended."""
    is_running: bool = True
    is_wanted: bool = False
    """The peer has asked for it."""
    failure: str = ""
    """Why it failed, if it did; while it is tried again, why it failed before."""

    @property
    def until(self) -> Instant:
        return after(self.at, TRY_S if self.is_running else AGAIN_S)


@dataclass(frozen=True, slots=True)
class Reached:
    """For people: how dialling this node goes for others."""

    guarded: bool = False
    by: int = 0
    """Members that have dialled it, or could."""
    not_by: int = 0
    """Members that tried last and could not."""
    failure: str = ""


class DialBack:
    """Of one node. Each method returns effects to carry out.

    Args:
        ports: where this node is to be dialled, as far as it knows.
    """

    def __init__(self, ports: Ports, membership: Membership, id_of: IdOf) -> None:
        self.guarded = False
        """Nobody who tried can dial this node."""
        self._ports = ports
        self._membership = membership
        self._id_of = id_of
        self._doubts: dict[PeerId, Instant] = {}
        self._tries: dict[PeerId, _Try] = {}
        self._came: dict[PeerId, None] = {}
        self._answers: dict[PeerId, str] = {}
        """Why members could not dial us; empty where they could."""
        self._awaited: set[PeerId] = set()
        self._round_ends: Instant | None = None
        self._ask_at: Instant | None = None
        self._quiet_until = NEVER
        self._is_translated = False

    @property
    def reached(self) -> Reached:
        by = self._came.keys() | {peer for peer, failure in self._answers.items() if not failure}
        failures = [failure for failure in self._answers.values() if failure]
        return Reached(self.guarded, len(by), len(failures), failures[-1] if failures else "")

    @property
    def is_asking(self) -> bool:
        """Members are asked, and not all have answered."""
        return self._round_ends is not None

    @property
    def answers(self) -> dict[PeerId, str]:
        """Of members that tried last: why they could not dial this node; empty where they could."""
        return dict(self._answers)

    # ------------------------------------------------------------------------- dialling others

    def can_dial(self, peer: PeerId) -> bool:
        """False where we have tried, and it is still where we tried."""
        tried = self._tries.get(peer)
        return tried is None or not tried.failure or tried.where != self._where(peer)

    def lost(self, peer: PeerId, reason: str, now: Instant) -> None:
        """An exchange that we had begun with `peer` was lost."""
        if reason.partition(":")[0] in LOST_ON_THE_WAY:
            self._doubts[peer] = now

    def heard(self, peer: PeerId, now: Instant) -> list[Effect]:
        """`peer` speaks. If we could not reach it before that, it is not for its being dead."""
        if not self._doubts:
            return []
        doubted_at = self._doubts.get(peer)
        if doubted_at is None or now < doubted_at + STILL_SPEAKS_S:
            return []
        del self._doubts[peer]
        where = self._where(peer)
        return self._try(peer, where, now) if where is not None else []

    def asked(self, peer: PeerId, question: DialMe, now: Instant) -> list[Effect]:
        """`peer` wants to know whether we can dial it."""
        where = Ports(question.host, question.intro_port, question.control_port, question.bulk_port)
        tried = self._tries.get(peer)
        if tried is not None and tried.where == where:
            if tried.is_running:
                tried.is_wanted = True
                return []
            if now < tried.at + ASKED_AT_ONCE_S:
                return [self._answer(peer, tried)]
        return self._try(peer, where, now, is_wanted=True)

    def greeted(self, peer: PeerId) -> list[Effect]:
        """`peer` is new on the line. It may not know what we have found."""
        tried = self._tries.get(peer)
        if tried is None or tried.is_running or self.can_dial(peer):
            return []
        return [self._answer(peer, tried)]

    def tried(self, event: DialTried, now: Instant) -> list[Effect]:
        tried = self._tries.get(event.peer)
        if tried is None or not tried.is_running:
            return []
        failure = event.failure or self._misfit(event.peer, event.answer)
        tried.is_running, tried.at = False, now
        is_news = bool(failure) != bool(tried.failure)
        tried.failure = failure
        effects: list[Effect] = []
        if tried.is_wanted or is_news:
            effects.append(self._answer(event.peer, tried))
        if is_news:
            fields = (("peer", short(event.peer)), ("dialled", not failure), ("why", failure))
            effects.append(Log("info", "dial_back", fields))
        return effects

    def _misfit(self, peer: PeerId, answer: Welcome | Refusal | None) -> str:
        """Why this is not the answer of `peer`; empty if it is."""
        try:
            if isinstance(answer, Welcome) and self._id_of(answer) == peer:
                return ""
        except AuthError:
            pass
        return "somebody else answers there"

    def _try(
        self, peer: PeerId, where: Ports, now: Instant, *, is_wanted: bool = False
    ) -> list[Effect]:
        running = sum(tried.is_running for tried in self._tries.values())
        before = self._tries.get(peer)
        if running >= TRIES_MAX or (before is not None and before.is_running):
            return []
        failure = before.failure if before is not None and before.where == where else ""
        self._tries[peer] = _Try(where, now, is_wanted=is_wanted, failure=failure)
        return [TryDial(peer, where.host, where.introduction, where.control, where.bulk)]

    def _answer(self, peer: PeerId, tried: _Try) -> Effect:
        return Send(peer, Dialled(tried.where.host, not tried.failure, tried.failure[:400]))

    def _where(self, peer: PeerId) -> Ports | None:
        member = self._membership.member(peer)
        return None if member is None else _where_of(member.record)

    # ------------------------------------------------------------------------ being dialled

    def came(self, peer: PeerId) -> None:
        """`peer` has dialled us."""
        self._came[peer] = None

    def seen_as(self, host: str, now: Instant) -> None:
        """A member sees us at this address."""
        if host and self._ports.host and host != self._ports.host and not self._is_translated:
            self._is_translated = True
            self._ask_at = after(now, SOON_S)

    def told(self, peer: PeerId, answer: Dialled, now: Instant) -> list[Effect]:
        """`peer` has tried to dial us."""
        if answer.host != self._ports.host:
            return []  # that was elsewhere
        self._answers[peer] = "" if answer.ok else answer.detail or "no answer"
        if self._round_ends is not None:
            self._awaited.discard(peer)
            return [] if self._awaited else self._conclude(now)
        if self.guarded != answer.ok:
            return []
        self._ask_at = max(now, self._quiet_until)
        return self.wake(now)

    def ask(self, now: Instant) -> list[Effect]:
        """A person wants to know: ask now, unless that is under way, or nobody could say."""
        if self.is_asking or not self._ports.host or not self._membership.linked_peers():
            return []
        return self._ask(now)

    def _ask(self, now: Instant) -> list[Effect]:
        """Begin a round of questions; what was said in the last moment belongs to it."""
        ports, self._ask_at = self._ports, None
        linked = self._membership.linked_peers()
        self._answers = {p: said for p, said in self._answers.items() if p in linked}
        self._awaited = set(linked[:ASKED_MAX])
        self._round_ends = after(now, ROUND_S)
        question = DialMe(ports.host, ports.introduction, ports.control, ports.bulk)
        return [Send(peer, question) for peer in linked[:ASKED_MAX]]

    def _conclude(self, now: Instant) -> list[Effect]:
        """The round is over: those who answered decide."""
        self._round_ends, self._quiet_until = None, after(now, QUIET_S)
        self._awaited.clear()
        was, failures = self.guarded, [f for f in self._answers.values() if f]
        if self._answers:
            self.guarded = len(failures) == len(self._answers)
        self._ask_at = after(now, AGAIN_S) if failures or self.guarded else None
        if self.guarded == was:
            return []
        host = "" if self.guarded else self._ports.host
        word = "cannot_be_dialled" if self.guarded else "can_be_dialled"
        log = Log("warning" if self.guarded else "info", word, (("why", (failures or [""])[0]),))
        return [log, *self._membership.announce(now, host=host)]

    # -------------------------------------------------------------------------------------- clock

    def gone(self, peer: PeerId) -> None:
        """No link with `peer` is left."""
        self._doubts.pop(peer, None)

    def forget(self, peer: PeerId) -> None:
        """`peer` is no member any more."""
        self._doubts.pop(peer, None)
        self._tries.pop(peer, None)
        self._came.pop(peer, None)
        self._answers.pop(peer, None)

    def wake(self, now: Instant) -> list[Effect]:
        effects: list[Effect] = []
        for peer in [p for p, tried in self._tries.items() if tried.until <= now]:
            tried = self._tries.pop(peer)
            is_there = self._membership.is_live(peer) and self._where(peer) == tried.where
            if tried.failure and is_there:
                self._tries[peer] = tried
                tried.is_running = False
                effects += self._try(peer, tried.where, now)
        if self._round_ends is not None and self._round_ends <= now:
            effects += self._conclude(now)
        if self._ask_at is not None and self._ask_at <= now:
            effects += self._ask(now)
        return effects

    def deadline(self) -> Instant | None:
        """When to call `wake`; None for never."""
        due = [at for at in (self._round_ends, self._ask_at) if at is not None]
        due += [tried.until for tried in self._tries.values()]
        return min(due, default=None)

    def check(self) -> None:
        running = sum(tried.is_running for tried in self._tries.values())
        assert running <= TRIES_MAX, "more tries under way than promised"
        assert self._round_ends is not None or not self._awaited, "answers awaited for ever"


def _where_of(record: NodeRecord) -> Ports | None:
    """Where a record says that its owner can be dialled; None if nowhere."""
    if not record.host:
        return None
    return Ports(record.host, record.intro_port, record.control_port, record.bulk_port)
