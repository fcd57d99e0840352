"""What exchanges have taught this node: of its fragments, of its peers, and how they went in all.

Whatever becomes of an exchange, something is left of it. Of a fragment: how far from its partners
it is, which norm of a difference is usual (and so what the next one is clipped to). Of a peer:
whether it failed, failed a gate or is a stranger (`robust.PeerScores`), and whether it has found our
weights to be of a time gone by. For people: counts, and the reasons behind them.

The protocol (exchange.py) tells what happened and asks here before it chooses a partner, a codec or
a bound; nothing here starts, answers or locks anything. What is kept is bounded by the fragments and
members there are, the reasons that peers give in their own words included.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from peerlm.effects import Effect, Log
from peerlm.events import ExchangeEnded, ExchangeServed
from peerlm.mix.exchange_records import Initiated, Served
from peerlm.mix.robust import ClipTracker, Misfits, PeerScores
from peerlm.types import FragmentId, Instant, PeerId, short

YOU_ARE_BEHIND = "norm: you are behind"
"""A refusal that tells a peer to fetch newer weights."""

EXCLUDED = "excluded"
"""A refusal that tells a peer to ask others."""

BEHIND_MEMORY_S = 60.0
TOLD_S = 60.0
NEVER = Instant(-math.inf)

REASONS_MAX = 48
"""Reasons that are told apart in the counts."""


@dataclass(slots=True)
class FragmentState:
    """What exchanges have taught about one fragment."""

    clip: ClipTracker
    phi_norm: float = 0.0
    version: int = 0
    rounds: int = 0
    distance: float | None = None
    """Relative distance to partners: an average over recent exchanges."""
    last: dict[PeerId, float] = field(default_factory=dict)
    """Relative distance at the last exchange with each partner, and how far we have moved since: where
    both ends say less than x, they are within 2x."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What has become of all exchanges since the daemon started, for people and tests."""

    initiated_ok: int
    served_ok: int
    busy: int
    refused: int
    timed_out: int
    replayed: int
    reasons: Mapping[str, int]
    bytes_sent: int
    bytes_received: int
    clipped: int
    clip_booked: float
    """Norm of what clipping has kept back, summed over exchanges: the most by which that, and nothing
    else, has bent Σφ."""


class Outcomes:
    """What one node has learnt from its exchanges.

    Args:
        sizes: elements of each fragment that this node holds.
        clip_factor: the plan's, for the clipping of differences.
    """

    def __init__(self, sizes: Mapping[FragmentId, int], clip_factor: float) -> None:
        self.fragments = {fragment: FragmentState(ClipTracker(clip_factor)) for fragment in sizes}
        self.scores = PeerScores()
        self._misfits = Misfits()
        self._sizes = dict(sizes)
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._clip_booked = 0.0
        self._ahead_of_us: dict[PeerId, Instant] = {}
        self._met: dict[PeerId, Instant] = {}
        self._told: dict[tuple[PeerId, str], Instant] = {}
        self._has_learnt = False
        """Something that this node has learnt is in its weights."""

    # ------------------------------------------------------------------------------ of fragments

    def stepped(self, fragment: FragmentId, version: int, phi_norm: float) -> None:
        """An outer step has changed φ of this fragment."""
        self.fragments[fragment].version = version
        self.fragments[fragment].phi_norm = phi_norm
        self._has_learnt = True

    def installed(self, *, ours: bool) -> None:
        """There are other weights now; `ours`: this node's own of an earlier life."""
        self._has_learnt = ours
        self.caught_up()

    def mixed(
        self,
        exchange: Initiated | Served,
        event: ExchangeEnded | ExchangeServed,
        now: Instant,
        *,
        settling: bool,
    ) -> list[Effect]:
        """An exchange has been applied on our side."""
        peer, state = exchange.peer, self.fragments[exchange.fragment]
        self.scores.succeeded(peer, now)
        self._ahead_of_us.pop(peer, None)
        self._met[peer] = now
        state.phi_norm = event.phi_norm
        is_stranger = state.clip.update(peer, event.raw_norm, event.clipped)
        relative = event.raw_norm / event.phi_norm if event.phi_norm > 0 else 0.0
        old = state.distance
        state.distance = relative if old is None else old + 0.2 * (relative - old)
        moved = event.applied_norm / event.phi_norm if event.phi_norm > 0 else 0.0
        state.last = {p: distance + moved for p, distance in state.last.items()}
        state.last[peer] = relative
        if not event.clipped:
            self._misfits.fits(peer, now)
        else:
            self._counts["clipped"] += 1
            self._clip_booked += event.booked
        # Settled nodes are so close that an honest one which comes later looks like a stranger.
        return self._exclude(peer, exchange.fragment, now) if is_stranger and not settling else []

    def _exclude(self, peer: PeerId, fragment: FragmentId, now: Instant) -> list[Effect]:
        self.note("excluded: a stranger")
        self.scores.refused(peer, now)
        fields = (("peer", short(peer)), ("fragment", str(fragment)))
        return [Log("warning", "stranger_excluded", fields)]

    def clip_norm(self, fragment: FragmentId) -> float | None:
        """What the next difference of this fragment is clipped to; None while φ has no norm yet."""
        state = self.fragments[fragment]
        return state.clip.tau(state.phi_norm) if state.phi_norm > 0 else None

    def distance(self) -> float | None:
        """Relative consensus distance over all fragments: rms of their recent averages, weighted
        by size; None before the first exchange."""
        known = [
            (self._sizes[fragment], state.distance)
            for fragment, state in self.fragments.items()
            if state.distance is not None
        ]
        if not known:
            return None
        total = sum(size for size, _ in known)
        return float((sum(size * d * d for size, d in known) / total) ** 0.5)

    # ---------------------------------------------------------------------------------- of peers

    def refused_by(self, peer: PeerId, reason: str, now: Instant) -> None:
        """`peer` will not have this exchange with us. Its gates, not its deeds: it is only left
        alone for a while."""
        self.count("refused", reason)
        self.scores.failed(peer, now)
        if reason == EXCLUDED:
            self.scores.excluded_by(peer, now)
        elif reason.startswith(YOU_ARE_BEHIND):
            self._ahead_of_us[peer] = now

    def failed(self, peer: PeerId, reason: str, now: Instant) -> None:
        """`peer` did not answer, or its tensors got lost."""
        self.count("timed_out", reason)
        self.scores.failed(peer, now)

    def reply_refused(self, peer: PeerId, reason: str, now: Instant) -> None:
        """The reply of a peer that we had asked failed a gate."""
        self.count("refused", reason)
        self._distrust(peer, reason, now)

    def request_refused(self, exchange: Served, reason: str, now: Instant) -> str:
        """The weights of a peer that had asked us failed a gate. Returns what to tell it: when it is
        their size, one of us may merely have missed what the others have learnt since, the one
        with fewer outer steps behind its fragment."""
        self.note(f"answered refuse: {reason}")
        self._distrust(exchange.peer, reason, now)
        if reason.startswith("norm"):
            ours = self.fragments[exchange.fragment].version
            if exchange.version < ours:
                return YOU_ARE_BEHIND
            if exchange.version > ours:
                self._ahead_of_us[exchange.peer] = now
        return reason

    def log_of(self, peer: PeerId, reason: str, now: Instant) -> list[Effect]:
        """A gate held: told once a minute of each peer. That norms differ is nothing unusual early in a run."""
        level = "info" if reason.startswith("norm") else "warning"
        if now - self._told.get((peer, level), NEVER) < TOLD_S:
            return []
        self._told[peer, level] = now
        return [Log(level, "exchange_refused", (("peer", short(peer)), ("reason", reason)))]

    def _distrust(self, peer: PeerId, reason: str, now: Instant) -> None:
        """A gate held. Weights of another size can be an honest laggard's, all else cannot."""
        if not reason.startswith("norm"):
            self.scores.refused(peer, now)
        elif self._misfits.failed(peer, now):
            self.note("excluded: a misfit")
            self.scores.refused(peer, now)
        else:
            self.scores.failed(peer, now)

    def is_behind(self, partners: Sequence[PeerId], now: Instant) -> bool:
        """Whether two partners, or the only one, lately found our weights to be of a time gone by.
        Mixing will not make that good, since nobody mixes with them: newer ones must be fetched. One partner's word
        will do while nothing of our own would be lost."""
        if not self._ahead_of_us:
            return False
        lately = [p for p in partners if now - self._ahead_of_us.get(p, NEVER) < BEHIND_MEMORY_S]
        needed = 2 if self._has_learnt else 1
        return bool(partners) and len(lately) >= min(needed, len(partners))

    def caught_up(self) -> None:
        """The weights are not the ones that were found to be behind."""
        self._ahead_of_us.clear()

    def met(self, peer: PeerId, now: Instant) -> float | None:
        """Seconds since the last exchange with `peer` that was applied here; None: none that we know of."""
        at = self._met.get(peer)
        return None if at is None else now - at

    def lately(self, now: Instant, within_s: float, most: int) -> list[tuple[PeerId, float]]:
        """With whom an exchange was applied here within so many seconds, and how many ago it was: the latest first."""
        latest = heapq.nsmallest(most, ((now - at, peer) for peer, at in self._met.items()))
        return [(peer, ago) for ago, peer in latest if ago <= within_s]

    def forget(self, peer: PeerId) -> None:
        """`peer` is gone, and how far it was from us and ahead of us with it; its score stays."""
        self._met.pop(peer, None)
        for level in ("info", "warning"):
            self._told.pop((peer, level), None)
        self._ahead_of_us.pop(peer, None)
        self._misfits.forget(peer)
        for state in self.fragments.values():
            state.last.pop(peer, None)

    # --------------------------------------------------------------------------------- for people

    def count(self, what: str, reason: str | None = None) -> None:
        """One more of what `Totals` names, and why, if there is anything to say."""
        self._counts[what] += 1
        if reason is not None:
            self.note(f"{what}: {reason}")

    def note(self, reason: str) -> None:
        """Count a reason without its figures. What a peer answers is its own text, so there is an
        end to how many are told apart."""
        words = ":".join(reason.split(":")[:2])[:60]
        known = words in self._reasons or len(self._reasons) < REASONS_MAX
        self._reasons[words if known else "other"] += 1

    def moved(self, event: ExchangeEnded | ExchangeServed) -> None:
        """Count the bytes of an exchange, however it ended."""
        self._counts["bytes_sent"] += event.bytes_sent
        self._counts["bytes_received"] += event.bytes_received

    def check(self) -> None:
        """Assert that no more reasons are told apart than promised, and others together."""
        assert len(self._reasons) <= REASONS_MAX + 1, "too many reasons"

    def totals(self) -> Totals:
        c = self._counts
        return Totals(
            initiated_ok=c["initiated_ok"],
            served_ok=c["served_ok"],
            busy=c["busy"],
            refused=c["refused"],
            timed_out=c["timed_out"],
            replayed=c["replayed"],
            reasons=dict(self._reasons),
            bytes_sent=c["bytes_sent"],
            bytes_received=c["bytes_received"],
            clipped=c["clipped"],
            clip_booked=self._clip_booked,
        )
