"""Whether a node keeps what it says: now and then it is asked to show a chunk.

Who asks has the chunk too, so it can tell a right answer from a wrong one: the hash of a number that nobody could know
before, and of the chunk's bytes. (Ateniese et al., "Provable data possession", 2007, do this without the bytes.) A node
that lacks a chunk may say so; one that answers wrongly, or sends other bytes when it is pulled from, is no
keeper for a day.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from peerlm.effects import Effect, MakeProof, Send
from peerlm.events import ProofMade
from peerlm.store.catalog import Catalog
from peerlm.types import Instant, ObjectHash, PeerId, after
from peerlm.wire.message import ProofAsk, ProofGive

PROOF_S = 60.0
"""How often some node is asked."""

DISTRUST_S = 86_400.0

SHOWN_S = 10.0
"""Who asks for proofs faster is not answered: each is the reading of a chunk."""


class Proofs:
    def __init__(self, catalog: Catalog, rng: random.Random, now: Instant) -> None:
        self._catalog, self._rng = catalog, rng
        self._asked: tuple[PeerId, ObjectHash, bytes] | None = None
        self._claimed: dict[bytes, bytes] = {}
        """By number, what was answered, while our own answer is being worked out."""
        self._proving: set[PeerId] = set()
        """Whom a proof is being made for: one at a time for each."""
        self._shown_at: dict[PeerId, Instant] = {}
        self._until: dict[PeerId, Instant] = {}
        self.due = after(now, PROOF_S)

    @property
    def distrusted(self) -> Collection[PeerId]:
        return self._until.keys()

    def distrust(self, peer: PeerId, now: Instant) -> None:
        self._until[peer] = after(now, DISTRUST_S)

    def forgive(self, now: Instant) -> None:
        """Those whose day is over."""
        self._until = {peer: until for peer, until in self._until.items() if until > now}

    # --------------------------------------------------------------------------------- asking

    def ask(
        self, here: Collection[ObjectHash], live: Sequence[PeerId], now: Instant
    ) -> list[Effect]:
        """Have another keeper show a chunk that is ours to keep as well."""
        self.due = after(now, PROOF_S * self._rng.uniform(0.8, 1.2))
        self._asked = None
        mine = [h for h in here if self._catalog.is_due(h)] if live else []
        if not mine:
            return []
        chunk = self._rng.choice(mine)
        keepers = [peer for peer in self._catalog.owners(chunk) if peer in live]
        if not keepers:
            return []
        peer, nonce = self._rng.choice(keepers), self._rng.randbytes(16)
        self._asked = (peer, chunk, nonce)
        return [Send(peer, ProofAsk(chunk, nonce))]

    def came(self, peer: PeerId, give: ProofGive) -> list[Effect]:
        if self._asked != (peer, give.object_hash, give.nonce):
            return []
        self._asked = None
        if not give.digest:  # it lacks it, and says so
            return []
        self._claimed = {give.nonce: give.digest}
        return [MakeProof(peer, ObjectHash(give.object_hash), give.nonce)]

    # -------------------------------------------------------------------------------- showing

    def asked(
        self, peer: PeerId, ask: ProofAsk, here: Collection[ObjectHash], now: Instant
    ) -> list[Effect]:
        shown_at = self._shown_at.get(peer)
        if peer in self._proving or (shown_at is not None and now - shown_at < SHOWN_S):
            return []
        object_hash = ObjectHash(ask.object_hash)
        if object_hash not in here:
            return [Send(peer, ProofGive(object_hash, ask.nonce, b""))]
        self._proving.add(peer)
        self._shown_at[peer] = now
        return [MakeProof(peer, object_hash, ask.nonce)]

    def made(self, event: ProofMade) -> tuple[list[Effect], bool]:
        """(what to send, whether the node that had answered was wrong)."""
        claimed = self._claimed.pop(event.nonce, None)
        if claimed is not None:
            return [], bool(event.digest) and claimed != event.digest
        self._proving.discard(event.peer)
        answer = ProofGive(event.object_hash, event.nonce, event.digest)
        return [Send(event.peer, answer)], False
