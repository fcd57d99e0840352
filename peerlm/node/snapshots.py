"""What is kept of the slow weights, and what of it is given to others.

A snapshot is written every so often, and sooner when somebody asks for state and the latest is old:
while training is young, weights double within seconds, and whoever fetches old ones is left behind again. The latest two are donated, since a newer one
may be written while somebody is half through the one that was offered. Corpus objects are served
the same way. What is served at once is bounded; who comes too many is told to come back.

Nothing here says whether this node may donate at all: that it is active is `work`'s to know.
"""

from __future__ import annotations

from dataclasses import dataclass

from peerlm.effects import Effect, Log, Send, ServePull, WriteSnapshot
from peerlm.events import SnapshotWritten
from peerlm.node.pulling import PROGRESS_TIMEOUT_S
from peerlm.types import FragmentId, Instant, ObjectHash, PeerId, TransferId, after
from peerlm.wire.message import FragmentOffer, PullAnswer, PullRequest, StateGive

Offers = tuple[tuple[FragmentId, int, ObjectHash, int, tuple[float, ...]], ...]
"""(fragment, version, object hash, bytes, sketch) of each fragment of a snapshot."""

OFFER_AGE_S = 1.0
"""A snapshot older than this is renewed before it is offered."""

PULL_PAUSE_S = 5.0
"""Whoever pulls a snapshot may let so much time pass between one object and the next."""

BUSY_S = 0.2
"""A snapshot that falls due while another is being written looks again this much later."""

DISK_SHARE = 20.0
"""Writing takes at most one part in so many of the time."""

PULLS_MAX = 8
PULLS_MAX_EACH = 4
"""Objects served at once: to all, and to one peer."""

HELD_INTERVALS = 10
"""While somebody pulls a snapshot, no newer one takes its place for up to so many intervals: on a
slow link a joiner would otherwise start over for ever."""


@dataclass(frozen=True, slots=True)
class Restored:
    """The newest valid snapshot that the state directory held at the start."""

    number: int
    tokens: int
    offers: Offers


class Snapshots:
    """Snapshots of one node, and their donation."""

    def __init__(self, every_s: float, restored: Restored | None, now: Instant) -> None:
        self.number = restored.number if restored else 0
        self.tokens = restored.tokens if restored else 0
        """Of the swarm, when the latest was taken."""
        self.error = ""
        self.is_writing = False
        self.is_final = False
        """The latest one holds the finished weights."""
        self.due = after(now, every_s)
        self.corpus: tuple[tuple[ObjectHash, int], ...] = ()
        """(hash, bytes) of the corpus objects on our disk."""
        self.copies: Offers = ()
        """Of stages that are held nowhere any more: shown and given as well."""
        self._every_s = every_s
        self._written_at: Instant | None = None
        self._rest_until = now
        self._writing_final = False
        self._offers: Offers = restored.offers if restored else ()
        self._offers_before: Offers = ()
        self._askers: dict[PeerId, None] = {}
        self._served: dict[TransferId, PeerId] = {}
        self._pulled_at: dict[PeerId, Instant] = {}
        """When each peer last asked for an object of a snapshot, if lately."""

    # -------------------------------------------------------------------------------- writing

    def is_held(self, now: Instant, but_for: PeerId | None = None) -> bool:
        """Somebody else than `but_for` is half through the latest snapshot, and it is not too old for that."""
        if self._written_at is None or now - self._written_at >= HELD_INTERVALS * self._every_s:
            return False
        return any(
            peer != but_for and self._is_pulling(peer, at, now)
            for peer, at in self._pulled_at.items()
        )

    def _is_pulling(self, peer: PeerId, asked_at: Instant, now: Instant) -> bool:
        return peer in self._served.values() or now - asked_at < PULL_PAUSE_S

    def write(
        self, swarm_tokens: int, own_tokens: int, now: Instant, *, final: bool
    ) -> list[Effect]:
        """Write one now, unless one is being written or the finished weights are kept already."""
        if self.is_writing:
            self.due = after(now, BUSY_S)
            return []
        self.due = after(now, self._every_s)
        if final and self.is_final:
            return []
        self.is_writing, self._writing_final = True, final
        return [WriteSnapshot(swarm_tokens, own_tokens, final, ())]

    def written(self, event: SnapshotWritten, now: Instant) -> None:
        self.is_writing, self.error = False, ""
        self.number, self.tokens = event.number, event.tokens
        self.is_final = self._writing_final
        self._offers_before, self._offers = self._offers, event.offers
        self._written_at = now
        self._rest_until = after(now, DISK_SHARE * event.seconds)
        self.due = max(self.due, self._rest_until)

    @property
    def is_finishing(self) -> bool:
        """The finished weights are being written: whoever asks waits for these."""
        return self.is_writing and self._writing_final

    def failed(self, reason: str) -> list[Effect]:
        self.is_writing, self.error = False, reason
        return [Log("error", "snapshot_failed", (("reason", reason),))]

    # ------------------------------------------------------------------------------- donating

    def is_fresh(self, asker: PeerId, now: Instant) -> bool:
        """The latest one is new enough to be offered to `asker` as it is, or a newer one cannot be had. What it pulled
        itself it does not want again."""
        recent = self._written_at is not None and now - self._written_at < OFFER_AGE_S
        return recent or bool(self.error) or self.is_held(now, asker) or now < self._rest_until

    def offer_later(self, peer: PeerId) -> None:
        """Offer the next snapshot to this peer as soon as it is written."""
        self._askers[peer] = None

    def offer(self, plan_hash: bytes, *, active: bool) -> StateGive:
        """What could be donated; nothing unless this node is active."""
        shown = (*self._offers, *self.copies) if active else ()
        offers = tuple(FragmentOffer(*offer) for offer in shown)
        return StateGive(plan_hash, self.tokens, self.is_final, offers)

    def offer_to_askers(self, offer: StateGive) -> list[Effect]:
        askers, self._askers = self._askers, {}
        return [Send(peer, offer) for peer in askers]

    def donate(
        self,
        peer: PeerId,
        request: PullRequest,
        now: Instant,
        *,
        active: bool,
        taken: bool,
        stored: int | None = None,
    ) -> list[Effect]:
        """Answer a pull. `taken`: its transfer id is in use. `stored`: bytes of it, if the store has it."""
        transfer, wanted = TransferId(request.transfer), ObjectHash(request.object_hash)
        sizes = dict(self.corpus)
        if active:
            given = (*self._offers_before, *self._offers, *self.copies)
            sizes |= {offer[2]: offer[3] for offer in given}
        is_state = wanted in sizes and wanted not in dict(self.corpus)
        if stored is not None:
            sizes.setdefault(wanted, stored)
        if taken:
            return [Send(peer, PullAnswer(transfer, "refuse", "transfer id is taken", 0))]
        if wanted not in sizes:
            return [Send(peer, PullAnswer(transfer, "refuse", "no such object", 0))]
        each = sum(served == peer for served in self._served.values())
        if len(self._served) >= PULLS_MAX or each >= PULLS_MAX_EACH:
            return [Send(peer, PullAnswer(transfer, "busy", "serving others", 0))]
        self._served[transfer] = peer
        if is_state:
            held = {p: at for p, at in self._pulled_at.items() if self._is_pulling(p, at, now)}
            self._pulled_at = {**held, peer: now}
        serve = ServePull(
            transfer=transfer,
            peer=peer,
            object_hash=wanted,
            key_up=request.key_up,
            key_down=request.key_down,
            progress_timeout_s=PROGRESS_TIMEOUT_S,
        )
        return [serve, Send(peer, PullAnswer(transfer, "accept", "", sizes[wanted]))]

    def is_serving(self, transfer: TransferId) -> bool:
        return transfer in self._served

    def served(self, transfer: TransferId) -> None:
        """A pull has ended, one way or another."""
        self._served.pop(transfer, None)
