"""How sessions go on through hosts elsewhere: which hosts, what was said to them, and what to do when one is lost.

A gateway remembers the tokens of its sessions, and that is all it needs: a session whose host is gone, or has forgotten it,
is read again from its first token by other hosts, and goes on where it was. Each session keeps to the hosts that it
began with, drawn by how long they take, how much they have to do for this gateway already and how far they are, and each of these to the
weights that it named at first. Sessions that go the same way are sent on together, those of different ways know nothing of
each other. Whoever loses a lap, or answers what cannot be, is left alone for a while, longer each time. Pure: `now` and an rng are given, laps to be sent
are returned.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from peerlm.errors import WireError
from peerlm.serve import lap as laps
from peerlm.serve.guests import CROWDED, FULL, UNKNOWN
from peerlm.serve.lap import Head, Kind, Lap, Leg, Numbers, Row
from peerlm.serve.route import Turn, name_of_all
from peerlm.types import Instant, PeerId, after, short

SMOOTHING = 0.2
"""Share of the newest time in what is known of a host."""

AVOID_S, AVOID_S_MAX = 1.0, 10.0
"""Whoever loses a lap is left alone for so long, then for twice as long each time."""

UNTRIED_S = 0.01
"""What is taken for a host's work on a token in a stage while none was tried."""

PATIENCE_S, PATIENCE_TIMES, FIRST_PATIENCE_S = 5.0, 8.0, 60.0
"""A lap is taken for lost after so many seconds, and so many times what its tokens, and those under way with its hosts already,
usually take; the first ones, for which hosts may have to start, after the last of these, and none later."""

WAIT_S = 30.0
"""A session that nobody can advance for so long fails."""

LAST_TRY_S = 2.0
"""But not sooner than so long after its last lap was lost: by then hosts that stumbled for the first time are asked again."""

TRIES_MAX = 16
"""Laps of one turn that may come to nothing."""

READY_EVERY_S = 240.0
"""Hosts are told that laps may come so often, while there are sessions."""

CHUNK = 256
"""Tokens read again at a time."""

FAILS_MAX = 2
"""Nobody waits for the newer weights of a host that has lost so many laps in a row, other than for want of room."""

EARLIER_MAX = 256
"""Names of weights that a session is remembered to have been advanced with, before it was read again."""

FAULTS_MAX = 16
"""Faults of hosts that nobody has read yet; older ones are lost."""

Run = tuple[int, int]

Ways = Mapping[PeerId, tuple[float, float]]
NO_WAYS: Ways = MappingProxyType({})


class Stuck(NamedTuple):
    """Why nobody goes on with a session. `is_full`: others are in its way."""

    why: str
    is_full: bool


Sent = list[tuple[PeerId, bytes]]


class Shape(NamedTuple):
    """Of the model."""

    stages: int
    features: int
    vocab: int
    context: int


@dataclass(slots=True)
class _Host:
    run: Run
    took_s: float | None = None
    """For each token."""
    avoid_until: Instant | None = None
    avoid_s: float = AVOID_S
    is_full: bool = False
    """It is left alone because it had no room."""
    fails: int = 0
    """Laps lost in a row, other than for want of room."""
    is_behind: bool = False
    """Its weights are old beside those of others of its stages."""

    def holds(self, stage: int) -> bool:
        return self.run[0] <= stage <= self.run[1]


@dataclass(slots=True)
class _Session:
    legs: tuple[Leg, ...] = ()
    """Those that know it; none: it has to begin again."""
    life: int = 0
    """Which beginning it is, of all sessions."""
    tokens: list[int] = field(default_factory=list)
    """All but those of the turn that is under way."""
    versions: tuple[str, ...] = ()
    """Of each leg."""
    earlier: tuple[str, ...] = ()
    """Of the legs it had before, where they named others."""


@dataclass(slots=True)
class _Turn:
    """One call's tokens of a session. `read`: places that its hosts have read so far."""

    tokens: tuple[int, ...]
    read: int
    stuck_since: Instant | None = None
    """Nobody has advanced it since."""
    lost_at: Instant | None = None
    """Its last lap."""
    lap: int | None = None
    tries: int = 0
    why: str = ""
    is_full: bool = False
    """Hosts have no room for it."""
    is_crowded: bool = False
    """Its last lap was lost because too much waited on its way."""
    logits: Numbers | None = None
    failed: bool = False

    @property
    def is_over(self) -> bool:
        return self.failed or self.logits is not None


@dataclass(frozen=True, slots=True)
class _UnderWay:
    legs: tuple[Leg, ...]
    rows: tuple[Row, ...]
    since: Instant
    due: Instant

    @property
    def tokens(self) -> int:
        return sum(row.length for row in self.rows)


class Gateway:
    """Of one process. `number` tells it from others of its node; no two have the same."""

    def __init__(self, shape: Shape, number: int, rng: random.Random) -> None:
        self._shape, self._number, self._rng = shape, number, rng
        self._me = PeerId(bytes(16))
        self._hosts: dict[PeerId, _Host] = {}
        self._ways = NO_WAYS
        self._sessions: dict[int, _Session] = {}
        self._turns: dict[int, _Turn] = {}
        self._under_way: dict[int, _UnderWay] = {}
        self._next = self._lives = 0
        self._ready_due = Instant(0.0)
        self._took_s: float | None = None
        """Of a lap, for each token."""
        self.again = 0
        """Sessions that were read again."""
        self.faults: deque[str] = deque(maxlen=FAULTS_MAX)
        """What hosts have answered that cannot be used, for a person; whoever shows a line takes it away."""

    # ------------------------------------------------------------------------------------ hosts

    def hosts_are(
        self,
        me: PeerId,
        runs: Mapping[PeerId, Run],
        now: Instant,
        behind: Collection[PeerId] = (),
        ways: Ways = NO_WAYS,
    ) -> Sent:
        """Who can advance texts now, and from which stage to which, as each says. `me`: the gateway's node. `behind`: whose
        weights are far behind those of others of its stages; no text begins with them while one of these is there and
        does not fail. `ways`: seconds of a token from here to a host, and between it and a third, where they are known."""
        self._me, self._ways = me, ways
        before = self._hosts
        stages = self._shape.stages
        runs = {peer: run for peer, run in runs.items() if run[0] <= run[1] < stages}
        self._hosts = {
            peer: before[peer] if peer in before and before[peer].run == run else _Host(run)
            for peer, run in runs.items()
        }
        for peer, host in self._hosts.items():
            host.is_behind = peer in behind
        for number in [n for n, lap in self._under_way.items() if not self._all_there(lap.legs)]:
            self._lose(number, "a host is gone", now)
        new = [peer for peer, host in self._hosts.items() if host is not before.get(peer)]
        return self._make_ready(new) + self._go(now)

    def _make_ready(self, peers: Iterable[PeerId]) -> Sent:
        """So that whoever takes over from another need not begin by starting a process."""
        ready = laps.pack(Lap(self._head(Kind.READY, 0)))
        return [(peer, ready) for peer in peers]

    def lacking(self) -> int | None:
        """A stage that nobody holds."""
        every, hosts = range(self._shape.stages), self._hosts.values()
        return next((s for s in every if not any(host.holds(s) for host in hosts)), None)

    # ------------------------------------------------------------------------------------- turns

    def begin(self, turns: Sequence[Turn], now: Instant) -> Sent:
        """The next tokens of these sessions; `take` says what comes of it."""
        sent: Sent = []
        if self._ready_due <= now:
            self._ready_due = after(now, READY_EVERY_S)
            sent = self._make_ready(self._hosts)
        for turn in turns:
            if turn.start == 0:
                self._sessions[turn.slot] = _Session()
            session = self._sessions[turn.slot]
            assert turn.start == len(session.tokens), (turn.start, len(session.tokens))
            self._turns[turn.slot] = _Turn(turn.tokens, turn.start)
        return sent + self._go(now)

    @property
    def has_ended(self) -> bool:
        """There is something to take."""
        return any(turn.is_over for turn in self._turns.values())

    def take(self) -> tuple[list[int], Numbers, dict[int, Stuck]]:
        """Slots whose turns are over, logits (slots, vocab), and by slot why there are none; those rows are NaN."""
        slots = [slot for slot, turn in self._turns.items() if turn.is_over]
        logits = np.full((len(slots), self._shape.vocab), np.nan, np.float32)
        why: dict[int, Stuck] = {}
        for row, slot in enumerate(slots):
            turn = self._turns.pop(slot)
            if turn.logits is None:
                is_full = (turn.is_full or turn.is_crowded) and self.lacking() is None
                why[slot] = Stuck(turn.why, is_full)
            else:
                logits[row] = turn.logits
                self._sessions[slot].tokens += turn.tokens
        return slots, logits, why

    def version_of(self, slot: int) -> str | None:
        """Of the weights of all stages that the session in `slot` has been advanced with so far."""
        session = self._sessions.get(slot)
        if session is None or not session.versions:
            return None
        return name_of_all(session.earlier + session.versions)

    def hosts_of(self, slot: int) -> tuple[PeerId, ...]:
        """Whom the session in `slot` goes through, stage after stage; nobody while it has to begin again."""
        session = self._sessions.get(slot)
        return () if session is None else tuple(leg.host for leg in session.legs)

    def over(self, slot: int) -> Sent:
        """The session in `slot` is over: its hosts may forget it."""
        session = self._sessions.pop(slot, None)
        self._turns.pop(slot, None)
        if session is None:
            return []
        for leg in session.legs:
            if (host := self._hosts.get(leg.host)) is not None and host.is_full:
                host.avoid_until, host.is_full = None, False
        rows = (Row(slot, 0, 0, life=session.life),)
        over = Lap(self._head(Kind.OVER, 0), session.legs, rows=rows)
        return [
            (leg.host, laps.pack(replace(over, at=at)))
            for at, leg in enumerate(session.legs)
            if leg.host in self._hosts
        ]

    # -------------------------------------------------------------------------------------- news

    def hear(self, peer: PeerId, data: bytes, now: Instant) -> Sent:
        """A lap has come from this node. Raises `WireError`."""
        number = laps.read_head(data).number
        sent = self._under_way.get(number)
        if sent is None:
            return []  # it was given up
        if peer != self._me and all(leg.host != peer for leg in sent.legs):
            raise WireError("lap: from a node that has no part in it")
        try:
            lap = self._answer(peer, data, sent)
        except WireError as error:
            if peer != sent.legs[0].host:
                raise  # it is not this host's to answer, so what it says changes nothing
            return self._blame(number, peer, str(error), now)
        if lap.head.kind is Kind.LOST:
            if lap.reason != UNKNOWN or all(row.start == 0 for row in sent.rows):
                to_blame = any(leg.host == lap.culprit for leg in sent.legs)
                culprit = lap.culprit if lap.culprit and to_blame else peer
                self._avoid(culprit, now, lap.reason)
            self._lose(number, lap.reason, now, lap.culprit)
            return self._go(now)
        if (fault := self._other_weights(number, lap)) is not None:
            return self._blame(number, *fault, now)
        del self._under_way[number]
        self._measure(sent, lap, now)
        self._come_home(lap)
        return self._go(now)

    def _answer(self, peer: PeerId, data: bytes, sent: _UnderWay) -> Lap:
        """A lap that is lost, or home as it has to come. Raises `WireError`."""
        lap = laps.unpack(data, *self._shape)
        if lap.head.kind is Kind.LOST:
            return lap
        if lap.head.kind is not Kind.HOME:
            raise WireError("lap: not for a gateway")
        is_same = lap.legs == sent.legs and lap.rows == sent.rows
        if peer != sent.legs[0].host or not is_same or len(lap.versions) != len(sent.legs):
            raise WireError("lap: did not come home as it left")
        return lap

    def _other_weights(self, number: int, lap: Lap) -> tuple[PeerId, str] | None:
        """A host that goes on with a session with other weights than it began it with, or does not say with which it
        begins; and what to say of it."""
        for index, row in enumerate(lap.rows):
            turn, session = self._turns.get(row.slot), self._sessions.get(row.slot)
            if turn is None or session is None or turn.lap != number:
                continue
            for at, leg in enumerate(lap.legs):
                name = lap.versions[at][index]
                if row.start == 0 and not name:
                    return leg.host, "does not name the weights that a text begins with"
                if row.start and name not in ("", session.versions[at]):
                    return (
                        leg.host,
                        f"goes on with {name} in a text begun with {session.versions[at]}",
                    )
        return None

    def _blame(self, number: int, culprit: PeerId, why: str, now: Instant) -> Sent:
        """What a host has answered cannot be used."""
        self.faults.append(f"{short(culprit)}: {why}")
        self._avoid(culprit, now)
        self._lose(number, why, now, culprit)
        return self._go(now)

    def look(self, now: Instant) -> Sent:
        """Time has passed."""
        for number in [n for n, lap in self._under_way.items() if lap.due <= now]:
            silent = self._under_way[number]
            for leg in silent.legs:
                self._avoid(leg.host, now)
            for slot, turn in self._turns.items():
                if turn.lap is None and self._sessions[slot].legs == silent.legs:
                    self._sessions[slot].legs = ()  # who waits to go the same way waits no longer
            self._lose(number, f"nothing came back for {now - silent.since:.0f} s", now)
        return self._go(now)

    # ------------------------------------------------------------------------------------ inside

    def _go(self, now: Instant) -> Sent:
        """Send on every turn that is not under way, together those with the same legs: they wait for each other, and for nobody
        else. Alone, and at once, those that begin, since hosts may have no room for them."""
        taken = self._taken()
        together: dict[tuple[int, tuple[Leg, ...]], list[tuple[int, Row, tuple[int, ...]]]] = {}
        for slot, turn in self._turns.items():
            if turn.lap is not None or turn.is_over:
                continue
            session = self._sessions[slot]
            if session.legs and not self._all_there(session.legs):
                session.legs = ()
            if not session.legs:
                turn.read, session.legs = 0, self._choose(now)
                self._lives += 1
                session.life = self._lives
                self.again += bool(session.legs and (session.tokens or turn.tries))
            if session.legs:
                row, tokens = self._next_of(slot)
                if row.start and session.legs in taken:
                    continue
                alone = slot if row.start == 0 else -1
                together.setdefault((alone, session.legs), []).append((slot, row, tokens))
                continue
            if turn.stuck_since is None:
                turn.stuck_since = now
            turn.is_full = self._is_full(now)
            has_rested = turn.lost_at is None or now - turn.lost_at > LAST_TRY_S
            is_over_due = now - turn.stuck_since > WAIT_S and has_rested
            if is_over_due or (turn.is_full and self._is_beside_others(slot)):
                turn.failed, turn.why = True, self._why_not(turn)
        sent: Sent = []
        for (_, legs), rows in together.items():
            sent += self._send(legs, rows, now)
        return sent

    def _taken(self) -> set[tuple[Leg, ...]]:
        """Ways on which sessions are ahead that others will go on with: they are under way, or have come home and may have more to say
        at once."""
        ahead = {lap.legs for lap in self._under_way.values() if lap.rows[0].start}
        return ahead | {self._sessions[s].legs for s, turn in self._turns.items() if turn.is_over}

    def _next_of(self, slot: int) -> tuple[Row, tuple[int, ...]]:
        """What the session's hosts are to read next."""
        turn, session = self._turns[slot], self._sessions[slot]
        before = session.tokens
        if turn.read == len(before):
            return Row(slot, turn.read, len(turn.tokens), life=session.life), turn.tokens
        stop = min(len(before), turn.read + min(CHUNK, self.turn_max), self._shape.context)
        stop = max(stop, turn.read + 1)
        tokens = tuple(before[turn.read : stop])
        return Row(slot, turn.read, len(tokens), wanted=False, life=session.life), tokens

    @property
    def turn_max(self) -> int:
        """Tokens of one turn."""
        return laps.tokens_max(self._shape.features)

    def _send(
        self, legs: tuple[Leg, ...], rows: list[tuple[int, Row, tuple[int, ...]]], now: Instant
    ) -> Sent:
        sent: Sent = []
        while rows:
            count, tokens = 1, rows[0][1].length
            most = min(len(rows), laps.wanted_max(self._shape.vocab))
            while count < most and tokens + rows[count][1].length <= self.turn_max:
                tokens += rows[count][1].length
                count += 1
            mine, rows = rows[:count], rows[count:]
            number, self._next = self._next, self._next + 1
            lap = Lap(
                self._head(Kind.FORWARD, number),
                legs,
                rows=tuple(row for _, row, _ in mine),
                tokens=tuple(token for _, _, tokens in mine for token in tokens),
            )
            self._under_way[number] = _UnderWay(legs, lap.rows, now, self._due(legs, tokens, now))
            for slot, _, _ in mine:
                self._turns[slot].lap = number
            sent.append((legs[0].host, laps.pack(lap)))
        return sent

    def _due(self, legs: Iterable[Leg], tokens: int, now: Instant) -> Instant:
        """When a lap of so many tokens is lost. What is under way with its hosts is done before it."""
        if self._took_s is None:
            return after(now, FIRST_PATIENCE_S)
        hosts = {leg.host for leg in legs}
        for lap in self._under_way.values():
            if any(leg.host in hosts for leg in lap.legs):
                tokens += lap.tokens
        usual_s = PATIENCE_S + PATIENCE_TIMES * self._took_s * tokens
        return after(now, min(usual_s, FIRST_PATIENCE_S))

    def _come_home(self, lap: Lap) -> None:
        at = 0
        for index, row in enumerate(lap.rows):
            logits = None
            if row.wanted:
                assert lap.numbers is not None
                logits, at = lap.numbers[at], at + 1
            turn, session = self._turns.get(row.slot), self._sessions.get(row.slot)
            if turn is None or session is None or turn.lap != lap.head.number:
                continue
            turn.lap, turn.read, turn.logits = None, row.start + row.length, logits
            turn.stuck_since, turn.is_full, turn.is_crowded = None, False, False
            if row.start == 0:
                named = tuple(names[index] for names in lap.versions)
                if session.versions not in ((), named):
                    session.earlier = (session.earlier + session.versions)[-EARLIER_MAX:]
                session.versions = named

    def _lose(self, number: int, why: str, now: Instant, culprit: PeerId | None = None) -> None:
        """Its sessions begin again."""
        lost = self._under_way.pop(number)
        for row in lost.rows:
            turn = self._turns.get(row.slot)
            if turn is not None and turn.lap == number:
                turn.lap, turn.why = None, f"{short(culprit)}: {why}" if culprit else why
                turn.tries, turn.is_full, turn.lost_at = turn.tries + 1, why == FULL, now
                turn.is_crowded = why == CROWDED
                turn.stuck_since = now if turn.stuck_since is None else turn.stuck_since
                turn.failed = turn.tries > TRIES_MAX
                self._sessions[row.slot].legs = ()

    def _avoid(self, peer: PeerId, now: Instant, why: str = "") -> None:
        host = self._hosts.get(peer)
        if host is not None:
            host.is_full = why == FULL
            host.fails += why not in (FULL, CROWDED)
            host.avoid_until = after(now, host.avoid_s * self._rng.uniform(0.8, 1.2))
            host.avoid_s = min(2 * host.avoid_s, AVOID_S_MAX)

    def _measure(self, sent: _UnderWay, lap: Lap, now: Instant) -> None:
        """By the token, since prompts take longer than single tokens do."""
        self._took_s = _smooth(self._took_s, (now - sent.since) / sent.tokens)
        for leg, seconds in zip(sent.legs, lap.seconds, strict=True):
            host = self._hosts.get(leg.host)
            if host is not None:
                host.took_s = _smooth(
                    host.took_s, seconds / sent.tokens / (1 + leg.last - leg.first)
                )
                host.avoid_until, host.avoid_s, host.is_full = None, AVOID_S, False
                host.fails = 0

    # ------------------------------------------------------------------------------------- legs

    def _all_there(self, legs: Iterable[Leg]) -> bool:
        return all(
            (host := self._hosts.get(leg.host)) is not None
            and host.run[0] <= leg.first
            and leg.last <= host.run[1]
            for leg in legs
        )

    def _choose(self, now: Instant) -> tuple[Leg, ...]:
        """Hosts that hold all stages between them; none: there are none for now. This node alone, where it holds them all."""
        mine = self._hosts.get(self._me)
        is_whole = mine is not None and self._last_of(mine, 0) == self._shape.stages - 1
        if mine is not None and is_whole and self._is_asked(mine, now):
            return (Leg(self._me, 0, self._shape.stages - 1),)
        legs: list[Leg] = []
        stage = 0
        while stage < self._shape.stages:
            able = [
                peer
                for peer, host in sorted(self._hosts.items())
                if self._is_fit(host, stage) and self._is_asked(host, now)
            ]
            if not able:
                return ()
            before = legs[-1].host if legs else self._me
            weights = [self._weight(peer, stage, before) for peer in able]
            host = self._rng.choices(able, weights)[0]
            legs.append(Leg(host, stage, self._last_of(self._hosts[host], stage)))
            stage = legs[-1].last + 1
        return tuple(legs)

    def _is_fit(self, host: _Host, stage: int) -> bool:
        """It holds the stage, and not with old weights while somebody has newer ones, and advances texts with them: by its own
        word alone nobody is preferred."""
        others = self._hosts.values() if host.is_behind else ()
        newer = (o for o in others if not o.is_behind and o.fails < FAILS_MAX)
        return host.holds(stage) and not any(o.holds(stage) for o in newer)

    def _last_of(self, host: _Host, first: int) -> int:
        """How far the host may lead from the stage `first` on; `first` − 1: not even through that."""
        after_it = (s for s in range(first, self._shape.stages) if not self._is_fit(host, s))
        return next(after_it, self._shape.stages) - 1

    @staticmethod
    def _is_asked(host: _Host, now: Instant) -> bool:
        """It is not left alone now."""
        return host.avoid_until is None or host.avoid_until <= now

    def _is_full(self, now: Instant) -> bool:
        """A stage has no host that is asked now, and one only because it had no room."""
        for stage in range(self._shape.stages):
            able = [h for h in self._hosts.values() if self._is_fit(h, stage)]
            if not any(self._is_asked(h, now) for h in able) and any(h.is_full for h in able):
                return True
        return False

    def _weight(self, peer: PeerId, stage: int, before: PeerId) -> float:
        """Of a host for the stages from `stage` on, behind that of `before`: the quicker, the less busy, the nearer and the
        further it leads, the more."""
        known = [host.took_s for host in self._hosts.values() if host.took_s is not None]
        host = self._hosts[peer]
        took_s = host.took_s if host.took_s is not None else min(known, default=UNTRIED_S)
        busy = sum(any(leg.host == peer for leg in s.legs) for s in self._sessions.values())
        last = self._last_of(host, stage)
        led = 1 + last - stage
        work_s = max(took_s, 1e-6) * (1 + busy)
        return led / (work_s + self._way_s(before, peer, last) / led)

    def _way_s(self, before: PeerId, peer: PeerId, last: int) -> float:
        """What a token is on the way to it, and behind the last stage home. Nobody knows how far two others are from each other: half
        of what is usual for each counts."""
        here_s, onward_s = self._ways.get(peer, (0.0, 0.0))
        if before == self._me or peer == self._me:
            there_s = self._ways.get(before, (0.0, 0.0))[0] if peer == self._me else here_s
        else:
            there_s = (self._ways.get(before, (0.0, 0.0))[1] + onward_s) / 2
        return there_s + (here_s if last == self._shape.stages - 1 else 0.0)

    def _is_beside_others(self, slot: int) -> bool:
        """Hosts go on with other sessions of this gateway, so there will hardly be room before these end."""
        return any(
            other != slot and session.legs and (session.tokens or self._has_logits(other))
            for other, session in self._sessions.items()
        )

    def _has_logits(self, slot: int) -> bool:
        return slot in self._turns and self._turns[slot].logits is not None

    def _why_not(self, turn: _Turn) -> str:
        stage = self.lacking()
        if stage is not None:
            return f"nobody who serves holds stage {stage} of the model"
        return turn.why or "no host can go on with it for now"

    def _head(self, kind: Kind, number: int) -> Head:
        return Head(kind, self._me, self._number, number)


def _smooth(known: float | None, new: float) -> float:
    return new if known is None else known + SMOOTHING * (new - known)
