"""Proofs between simulated keepers of chunks: the cores that ask and answer are the nodes' own, bytes are names.

What a chunk's bytes are is told by its hash here, and only who holds it may use that. A liar answers in one of these ways, by
lot:

    lacks     says that it has not got it, though it said so before
    silent    says nothing
    guesses   makes the answer of other bytes
    passes    passes the question on to an honest node that holds it, and its answer back
    steals    asks that node in its own name, and gives the answer back as its own
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from peerlm.effects import Effect, MakeProof, Send
from peerlm.events import ProofMade
from peerlm.node.proofs import SEED_BYTES, Proofs, drawn_for
from peerlm.node.survey import Surveys
from peerlm.node.witnesses import Witnesses
from peerlm.store.catalog import Catalog
from peerlm.types import Instant, ObjectHash, PeerId
from peerlm.wire.message import ProofAsk, ProofGive

LIES = ("lacks", "silent", "guesses", "passes", "steals")


class Prover:
    """What of a node asks for proofs and gives them."""

    def __init__(self, peer: PeerId, catalog: Catalog, rng: Random) -> None:
        self.peer, self.rng = peer, rng
        self.proofs = Proofs(peer, catalog, Surveys(), rng, Instant(0.0))
        self.witnesses = Witnesses(self.proofs.is_asking, rng)

    def answer(self, asker: PeerId, ask: ProofAsk, now: Instant) -> ProofGive | None:
        """Of one that holds the chunk."""
        for effect in self.proofs.asked(asker, ask, {ObjectHash(ask.object_hash)}, now):
            assert isinstance(effect, MakeProof)
            effects, _ = self.proofs.made(_made(effect))
            (give,) = [sent.message for sent in effects if isinstance(sent, Send)]
            assert isinstance(give, ProofGive)
            return give
        return None

    def lie(
        self, ask: ProofAsk, asker: PeerId, holder: Prover | None, now: Instant
    ) -> ProofGive | None:
        """Of one that does not. `holder`: one that may be asked for it."""
        guess = self.rng.randbytes(32)
        match self.rng.choice(LIES):
            case "lacks":
                return ProofGive(ask.object_hash, ask.nonce, b"")
            case "guesses":
                return ProofGive(ask.object_hash, ask.nonce, guess)
            case "passes" if holder is not None:
                return holder.answer(asker, ask, now)
            case "steals" if holder is not None:
                seed = self.rng.randbytes(SEED_BYTES)
                mine = ProofAsk(ask.object_hash, drawn_for(holder.peer, seed), seed)
                stolen = holder.answer(self.peer, mine, now)
                return stolen and ProofGive(ask.object_hash, ask.nonce, stolen.digest)
        return None


class Asked(NamedTuple):
    is_shown: bool
    questions: int


def shown_by(
    asker: Prover, chunk: ObjectHash, others: Sequence[tuple[Prover, bool]], now: float
) -> Asked:
    """Whether all of these, who say that they hold it, of whom some do, show it. Questions take no time."""
    at, by_peer = Instant(now), {prover.peer: (prover, holds) for prover, holds in others}
    holder = next((prover for prover, holds in others if holds), asker)
    queue: list[Effect] = list(asker.witnesses.call([(chunk, len(others), list(by_peer))], at))
    count, is_shown = 0, False
    while queue:
        match queue.pop(0):
            case Send(peer, ProofAsk() as ask):
                count += 1
                prover, holds = by_peer[peer]
                give = (
                    prover.answer(asker.peer, ask, at)
                    if holds
                    else prover.lie(ask, asker.peer, holder, at)
                )
                if give is not None and asker.witnesses.is_about(peer, give):
                    queue += asker.witnesses.came(peer, give, at)
            case MakeProof() as effect:
                found = asker.witnesses.made(_made(effect))
                is_shown |= found.chunk == chunk and found.count == len(others)
                if found.liar is not None:
                    asker.witnesses.gone(found.liar)
    asker.witnesses.give_up([chunk])
    return Asked(is_shown, count)


def _made(effect: MakeProof) -> ProofMade:
    """As who holds the chunk works it out."""
    digest = hashlib.blake2b(effect.object_hash, key=effect.nonce, digest_size=32).digest()
    return ProofMade(effect.peer, effect.object_hash, effect.nonce, digest)
