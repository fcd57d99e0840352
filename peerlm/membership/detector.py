"""Who answers: SWIM's probes with Lifeguard's doubts about oneself.

Every period one member, in shuffled rounds so that all get their turn, is asked for a sign of life
over its link. If none comes, k others are asked to ask it, and in parallel we ask again over a
fresh connection, since an old one may be stuck while its peer is well. Only silence on all ways is
a failure. Helpers that find nothing answer Nack: then we know that *we* hear well. Missing Nacks,
failures without witnesses and our own loop's lag raise the local health score, which stretches
periods and patience: a sick node becomes a slow accuser, not a loud one.

SWIM: Das, Gupta, Motivala 2002. Lifeguard: Dadgar, Phillips, Currey 2017.
Decides whom to ask and when an answer is overdue; never what follows from that (`membership`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from peerlm.membership.delays import Delays
from peerlm.membership.profile import Profile
from peerlm.types import Instant, PeerId, after
from peerlm.wire.message import Ack, Nack

STRANGER_TURNS = 8
"""Every so many turns a member is drawn from all, linked or not: that costs a handshake."""

RELAYS_MAX = 256
"""Probes made for others at once; one more is answered Nack at once: honest, and costs nothing."""


class Reach(Protocol):
    """What the detector must know of the members."""

    def live_peers(self) -> Sequence[PeerId]: ...
    def linked_peers(self) -> Sequence[PeerId]: ...
    def helpers(self) -> Sequence[PeerId]: ...
    def successor(self) -> PeerId | None: ...
    def is_live(self, peer: PeerId) -> bool: ...
    def is_linked(self, peer: PeerId) -> bool: ...
    def can_dial(self, peer: PeerId) -> bool: ...
    def can_ask(self, peer: PeerId) -> bool: ...


class Way(Enum):
    LINK = "link"
    """Ping over the link."""
    FRESH = "fresh"
    """Ping over a new connection."""
    HELPER = "helper"
    """Ask a helper over its link."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a Ping to `to` (which is `target`), or by HELPER a PingRequest about `target`."""

    way: Way
    to: PeerId
    target: PeerId
    seq: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Send the outcome of a probe made for `to`."""

    to: PeerId
    message: Ack | Nack


@dataclass(frozen=True, slots=True)
class Failed:
    """`target` was silent on every way."""

    target: PeerId


Step = Ask | Answer | Failed


@dataclass(slots=True)
class _Probe:
    target: PeerId
    asked: Instant
    direct_until: float
    """When others are asked; inf once they are."""
    until: Instant
    fresh_tried: bool = False
    helpers: dict[PeerId, bool] = field(default_factory=dict)
    """Who was asked, and whether it said Nack."""


@dataclass(slots=True)
class _Relay:
    asker: PeerId
    asker_seq: int
    target: PeerId
    nack_at: float
    """inf once Nack is said; a late Ack is still passed on."""
    until: Instant


class Awareness:
    """Lifeguard's local health score: 0 is well, below `ceiling` always."""

    def __init__(self, ceiling: int) -> None:
        self._ceiling = ceiling
        self.score = 0

    def add(self, delta: int) -> None:
        self.score = min(max(self.score + delta, 0), self._ceiling - 1)


class Detector:
    """Driven by `wake`, `begin` and the messages; returns what to send and who failed."""

    def __init__(self, profile: Profile, rng: random.Random, now: Instant) -> None:
        self._profile = profile
        self._rng = rng
        self._round: list[PeerId] = []
        self._near: list[PeerId] = []
        self._turn = rng.randrange(STRANGER_TURNS)
        self.delays = Delays()
        self._probes: dict[int, _Probe] = {}
        self._relays: dict[int, _Relay] = {}
        self._seq = 0
        self._next = after(now, rng.random() * profile.probe_interval_s)
        self.awareness = Awareness(profile.awareness_max)

    # ------------------------------------------------------------------------------------- time

    def deadline(self) -> Instant:
        due: float = self._next
        for probe in self._probes.values():
            due = min(due, probe.direct_until, probe.until)
        for relay in self._relays.values():
            due = min(due, relay.nack_at, relay.until)
        return Instant(due)

    def wake(self, now: Instant, reach: Reach) -> list[Step]:
        """Widen or end what is overdue, begin the next period's probe."""
        steps: list[Step] = []
        for seq, probe in list(self._probes.items()):
            if now >= probe.direct_until:
                steps += self._widen(seq, probe, now, reach)
            if now >= probe.until:
                steps += self._give_up(seq, probe)
        for seq, relay in list(self._relays.items()):
            if now >= relay.nack_at:
                relay.nack_at = math.inf
                steps.append(Answer(relay.asker, Nack(relay.asker_seq, relay.target)))
            if now >= relay.until:
                del self._relays[seq]
        if now >= self._next:
            self._next = after(now, self._period_s())
            target = self._next_target(reach)
            if target is not None:
                steps += self.begin(target, now, reach)
        return steps

    def push(self, seconds: float) -> None:
        """We slept for this long: nobody else's silence counts for that time."""
        for probe in self._probes.values():
            probe.asked = after(probe.asked, seconds)
            probe.direct_until += seconds
            probe.until = after(probe.until, seconds)
        for relay in self._relays.values():
            relay.nack_at += seconds
            relay.until = after(relay.until, seconds)

    # ----------------------------------------------------------------------------------- probes

    def begin(self, target: PeerId, now: Instant, reach: Reach) -> list[Step]:
        """Probe this member now, in or out of turn. Nothing if a probe of it is in flight."""
        if self.is_probing(target):
            return []
        seq = self._new_seq()
        direct_until = after(now, self._profile.probe_timeout_s)
        probe = _Probe(target, now, direct_until, after(now, self._period_s()))
        self._probes[seq] = probe
        if reach.is_linked(target):
            return [Ask(Way.LINK, target, target, seq)]
        if reach.can_dial(target):
            probe.fresh_tried = True
            return [Ask(Way.FRESH, target, target, seq)]
        return self._widen(seq, probe, now, reach)

    def is_probing(self, target: PeerId) -> bool:
        return any(probe.target == target for probe in self._probes.values())

    def check(self) -> None:
        """Assert that we probe for no more others than promised."""
        assert len(self._relays) <= RELAYS_MAX, "too many probes for others"

    @property
    def probes_begun(self) -> int:
        """So far, those made for others included."""
        return self._seq

    def targets(self) -> list[PeerId]:
        """Whom probes are in flight to."""
        return [probe.target for probe in self._probes.values()]

    def welcome(self, peer: PeerId) -> None:
        """A new member joins the current round at a random place (SWIM 4.3)."""
        if peer not in self._round:
            self._round.insert(self._rng.randint(0, len(self._round)), peer)

    def forget(self, peer: PeerId) -> None:
        """A later incarnation, or the end: what is in flight says nothing about it any more."""
        for seq in [seq for seq, probe in self._probes.items() if probe.target == peer]:
            del self._probes[seq]
        self.delays.forget(peer)

    def on_ack(self, peer: PeerId, ack: Ack, now: Instant) -> list[Step]:
        """A sign of life of `ack.target`, from itself or from a helper we asked."""
        probe = self._probes.get(ack.seq)
        if probe is not None:
            if ack.target == probe.target and (peer == probe.target or peer in probe.helpers):
                del self._probes[ack.seq]
                self.awareness.add(-1)
                if not (probe.fresh_tried or probe.helpers):
                    self.delays.answered(peer, now - probe.asked)
            return []
        relay = self._relays.get(ack.seq)
        if relay is not None and peer == relay.target == ack.target:
            del self._relays[ack.seq]
            return [Answer(relay.asker, Ack(relay.asker_seq, relay.target, ()))]
        return []

    def on_nack(self, peer: PeerId, nack: Nack) -> None:
        """A helper is well, but found nothing."""
        probe = self._probes.get(nack.seq)
        if probe is not None and peer in probe.helpers and nack.target == probe.target:
            probe.helpers[peer] = True

    def on_request(
        self, asker: PeerId, asker_seq: int, target: PeerId, now: Instant, reach: Reach
    ) -> list[Step]:
        """Probe `target` for `asker`. The answer is Ack when it comes, or Nack in time."""
        linked = reach.is_linked(target)
        reachable = reach.is_live(target) and (linked or reach.can_dial(target))
        if not reachable or len(self._relays) >= RELAYS_MAX:
            return [Answer(asker, Nack(asker_seq, target))]
        seq = self._new_seq()
        self._relays[seq] = _Relay(
            asker,
            asker_seq,
            target,
            nack_at=after(now, self._profile.nack_after_s),
            until=after(now, self._profile.probe_interval_s),
        )
        return [Ask(Way.LINK if linked else Way.FRESH, target, target, seq)]

    # ---------------------------------------------------------------------------------- private

    def _widen(self, seq: int, probe: _Probe, now: Instant, reach: Reach) -> list[Step]:
        """Ask others, and a fresh connection; both get their time even if we come late."""
        probe.direct_until = math.inf
        rest_s = self._profile.probe_interval_s - self._profile.probe_timeout_s
        probe.until = max(probe.until, after(now, rest_s))
        able = [p for p in reach.helpers() if p != probe.target]
        helpers = self._rng.sample(able, min(self._profile.indirect_probers, len(able)))
        probe.helpers = dict.fromkeys(helpers, False)
        steps: list[Step] = [Ask(Way.HELPER, helper, probe.target, seq) for helper in helpers]
        if not probe.fresh_tried and reach.can_dial(probe.target):
            probe.fresh_tried = True
            steps.append(Ask(Way.FRESH, probe.target, probe.target, seq))
        return steps

    def _give_up(self, seq: int, probe: _Probe) -> list[Step]:
        del self._probes[seq]
        missing_nacks = sum(not nacked for nacked in probe.helpers.values())
        self.awareness.add(missing_nacks if probe.helpers else 1)
        return [Failed(probe.target)]

    def _period_s(self) -> float:
        return self._profile.probe_interval_s * (self.awareness.score + 1)

    def _next_target(self, reach: Reach) -> PeerId | None:
        """Every other turn the successor, so that each member is asked every two periods for sure;
        else a random one, of our linked members most of the time."""
        self._turn += 1
        successor = reach.successor()
        if self._turn % 2 and successor is not None and not self.is_probing(successor):
            return successor
        if self._turn % STRANGER_TURNS:
            return self._drawn(self._near, reach.linked_peers(), reach)
        return self._drawn(self._round, reach.live_peers(), reach)

    def _drawn(self, round: list[PeerId], peers: Sequence[PeerId], reach: Reach) -> PeerId | None:
        """The next of this shuffled round, which begins again with all `peers` when it is over."""
        for _ in range(2):
            while round:
                peer = round.pop()
                if reach.is_live(peer) and not self.is_probing(peer) and reach.can_ask(peer):
                    return peer
            round.extend(peers)
            self._rng.shuffle(round)
        return None

    def _new_seq(self) -> int:
        self._seq += 1
        return self._seq
