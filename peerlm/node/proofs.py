"""Whether a node keeps what it says: now and then it is asked to show a chunk.

Who asks has the chunk too, if it can choose, so it can tell a right answer from a wrong one: the hash of a number that nobody
could know before, and of the chunk's bytes. (Ateniese et al., "Provable data possession", 2007, do this without the bytes.)
The number is drawn for who is asked, from a seed that is shown to it, and a node answers no other: one that lacks the chunk has nobody to
pass the question on to (`drawn_for`). It may still fetch the chunk when it is asked; then it has it.
All nodes come in turn. Two kinds of chunk are asked for: such as the other should keep, and such as it has said to keep when it was
asked (`survey`), of which some are remembered.

A node that lacks a chunk may say so, unless it goes on saying that it keeps it. One that does not show what it has said to keep is
asked whether it still says so, since it may have dropped it meanwhile, or lost and fetched it again; if it does, and then does
not show it once more, or if it answers wrongly, it is not believed (`trust`). Silence counts as not showing; but as a busy disk
is silent too, who was silent is given twice as long, and asked for the same with the same number: whenever its answer
comes before the last patience is over, it counts.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import inf

from peerlm.effects import Effect, MakeProof, Send
from peerlm.events import ProofMade
from peerlm.node.survey import Survey, Surveys
from peerlm.store.catalog import Catalog
from peerlm.types import Instant, ObjectHash, PeerId, after
from peerlm.wire.message import ProofAsk, ProofGive

PROOF_S = 60.0
"""How often some node is asked."""

SILENT_S = 30.0
"""No answer by then is none, the first time."""

SHOWN_S, SHOWN_MAX, SHOWN_AT_ONCE = 10.0, 200, 2
"""To each node a chunk is shown once in so long, so many different ones meanwhile, and so many at once; who asks faster is not answered: each is the reading
of a chunk. It takes as many for what it lets go, and one of them now and then (`witnesses`)."""

CLAIMS, CLAIMS_A_PAGE = 64, 8
"""Chunks that a node has said to keep: so many of the latest are remembered, so many of each answer."""

PEERS_TRIED, CHUNKS_TRIED = 8, 32
"""Nodes, and chunks of each, that are looked at for one that can be asked for."""

SEED_BYTES = 16

FAILURES = 3
"""So often one that goes on saying that it keeps a chunk may fail to show it, or chunks may be refused to us by it."""


def drawn_for(peer: PeerId, seed: bytes) -> bytes:
    """The number of a question to `peer`. Nobody finds a seed that gives another node the same one."""
    return hashlib.blake2b(peer, key=seed, digest_size=16).digest()


@dataclass(slots=True)
class _Asked:
    peer: PeerId
    chunk: ObjectHash
    seed: bytes
    """Empty: nothing was asked yet."""
    until: Instant
    failures: int
    """Before this one."""
    is_silent: bool = False
    """Nothing was heard of it in time: the answer may be under way."""

    @property
    def nonce(self) -> bytes:
        return drawn_for(self.peer, self.seed)


class Proofs:
    """Of one node.

    Args:
        surveys: to ask a node again whether it keeps a chunk.
    """

    def __init__(
        self, me: PeerId, catalog: Catalog, surveys: Surveys, rng: random.Random, now: Instant
    ) -> None:
        self._me = me
        self._catalog, self._surveys, self._rng = catalog, surveys, rng
        self._asked: _Asked | None = None
        self._doubted: tuple[Survey, _Asked] | None = None
        """Who is asked whether it still says that it keeps a chunk, after it did not show it, or, without a failure, would not send
        it."""
        self._claims: dict[PeerId, deque[ObjectHash]] = {}
        self._refusals: Counter[PeerId] = Counter()
        """Chunks that it would not send, and says that it keeps."""
        self._claimed: dict[tuple[bytes, bytes], bytes] = {}
        """By number and chunk, what was answered, while our own answer is being worked out."""
        self._proving: Counter[PeerId] = Counter()
        """Proofs that are being made for it."""
        self._shown: dict[PeerId, dict[ObjectHash, Instant]] = {}
        """What, and when, of late."""
        self._turns: dict[PeerId, Instant] = {}
        """When each was asked last."""
        self._due = after(now, PROOF_S)

    @property
    def due(self) -> Instant:
        """When to `ask`, or `wake`."""
        return min(self._due, self._asked.until if self._asked else Instant(inf))

    # ----------------------------------------------------------------------------------- claims

    def claimed(self, peer: PeerId, hashes: Sequence[ObjectHash]) -> None:
        """It has just said that it keeps these."""
        some = self._rng.sample(hashes, min(len(hashes), CLAIMS_A_PAGE))
        self._claims.setdefault(peer, deque(maxlen=CLAIMS)).extend(some)

    def gone(self, peer: PeerId) -> None:
        """It died or left, or is not believed any more: what it has said is forgotten."""
        self._claims.pop(peer, None)
        del self._refusals[peer]
        if self._asked is not None and self._asked.peer == peer:
            self._asked = None
        if self._doubted is not None and self._doubted[1].peer == peer:
            self._doubt_no_more()

    def refused(self, peer: PeerId, chunk: ObjectHash, now: Instant) -> list[Effect]:
        """It would not give it to us, or show it."""
        return self._doubt(_Asked(peer, chunk, b"", now, 0), now)

    def _doubt(self, asked: _Asked, now: Instant) -> list[Effect]:
        """It may have dropped the chunk since it said that it keeps it: does it say so still?"""
        if asked.chunk not in self._claims.get(asked.peer, ()) or self._doubted is not None:
            return []
        survey, effects = self._surveys.begin((asked.chunk,), (), (asked.peer,), now)
        self._doubted = (survey, asked)
        return effects

    def _doubt_no_more(self) -> None:
        if self._doubted is not None:
            self._surveys.give_up(self._doubted[0])
            self._doubted = None

    def is_about(self, survey: Survey) -> bool:
        return self._doubted is not None and self._doubted[0] is survey

    def surveyed(self, now: Instant) -> tuple[list[Effect], tuple[PeerId, ObjectHash] | None]:
        """What it says still: (what to send, who is not to be believed any more, and of which chunk)."""
        assert self._doubted is not None, "nobody was asked"
        (survey, asked), self._doubted = self._doubted, None
        peer, chunk, failures = asked.peer, asked.chunk, asked.failures
        if not survey.counts[0]:
            self._disclaim(peer, chunk)
            return [], None
        self._refusals[peer] += not failures
        if max(failures, self._refusals[peer]) >= FAILURES:
            self.gone(peer)
            return [], (peer, chunk)
        seed = asked.seed if asked.is_silent else b""
        return self._ask(peer, chunk, failures, now, seed), None

    def _disclaim(self, peer: PeerId, chunk: ObjectHash) -> None:
        left = [claim for claim in self._claims.get(peer, ()) if claim != chunk]
        self._claims[peer] = deque(left, maxlen=CLAIMS)

    # ----------------------------------------------------------------------------------- asking

    def wake(
        self, here: Collection[ObjectHash], live: Sequence[PeerId], now: Instant
    ) -> list[Effect]:
        """Have another node show a chunk, once it is time to; take silence for an answer."""
        effects: list[Effect] = []
        if self._asked is not None and self._asked.until <= now:
            asked, self._asked = self._asked, None
            asked.failures, asked.is_silent = asked.failures + 1, True
            effects += self._doubt(asked, now)
        if self._due > now:
            return effects
        self._due = after(now, PROOF_S * self._rng.uniform(0.8, 1.2))
        self._shown = {peer: shown for peer in self._shown if (shown := self._shown_to(peer, now))}
        if self._asked is not None or self._doubted is not None or not live:
            return effects
        for peer in self._in_turn(live):
            claims = list(self._claims.get(peer, ()))
            claim = self._some([claimed for claimed in claims if claimed in here])
            owned = self._some_owned(peer)
            either = claim if claim and self._rng.random() < 0.5 else owned or claim
            either = either or self._some(claims)  # it can at least say that it lacks it
            if either is not None:
                return [*effects, *self._ask(peer, either, 0, now)]
        return effects

    def _in_turn(self, live: Sequence[PeerId]) -> list[PeerId]:
        """Who was asked longest ago comes first; of those that never were, any."""
        self._turns = {peer: turn for peer, turn in self._turns.items() if peer in live}
        shuffled = self._rng.sample(live, len(live))
        return sorted(shuffled, key=lambda peer: self._turns.get(peer, -1))[:PEERS_TRIED]

    def _some_owned(self, peer: PeerId) -> ObjectHash | None:
        """What is its to keep as well as ours."""
        some = self._catalog.some_held(CHUNKS_TRIED, self._rng)
        return self._some([chunk for chunk in some if peer in self._catalog.owners(chunk)])

    def _some(self, chunks: Sequence[ObjectHash]) -> ObjectHash | None:
        return self._rng.choice(chunks) if chunks else None

    def _ask(
        self, peer: PeerId, chunk: ObjectHash, failures: int, now: Instant, seed: bytes = b""
    ) -> list[Effect]:
        seed, self._turns[peer] = seed or self._rng.randbytes(SEED_BYTES), now
        self._asked = _Asked(peer, chunk, seed, after(now, SILENT_S * 2**failures), failures)
        return [Send(peer, ProofAsk(chunk, self._asked.nonce, seed))]

    def is_asking(self, peer: PeerId) -> bool:
        """It is asked to show something, or is in doubt."""
        doubted = self._doubted[1].peer if self._doubted is not None else None
        return peer in (doubted, self._asked.peer if self._asked is not None else None)

    def came(self, peer: PeerId, give: ProofGive, now: Instant) -> list[Effect]:
        asked = next((one for one in self._open() if one.nonce == give.nonce), None)
        if asked is None or (asked.peer, asked.chunk) != (peer, give.object_hash):
            return []
        is_late = asked is not self._asked
        if not give.digest:  # it lacks it, and says so
            asked.is_silent = False
            if is_late:
                return []
            self._asked, asked.failures = None, asked.failures + 1
            return self._doubt(asked, now)
        if is_late:
            self._doubt_no_more()
        else:
            self._asked = None
        self._claimed[give.nonce, give.object_hash] = give.digest
        return [MakeProof(peer, asked.chunk, give.nonce)]

    def _open(self) -> list[_Asked]:
        """What would still be taken for an answer."""
        asked = (self._asked, self._doubted[1] if self._doubted is not None else None)
        return [one for one in asked if one is not None and one.seed]

    # -------------------------------------------------------------------------------- showing

    def asked(
        self, peer: PeerId, ask: ProofAsk, here: Collection[ObjectHash], now: Instant
    ) -> list[Effect]:
        is_for_us = len(ask.seed) == SEED_BYTES and drawn_for(self._me, ask.seed) == ask.nonce
        if not is_for_us:  # another is asked, which keeps nothing and would have the answer from us
            return []
        object_hash, shown = ObjectHash(ask.object_hash), self._shown_to(peer, now)
        is_enough = object_hash in shown or len(shown) >= SHOWN_MAX
        if is_enough or self._proving[peer] >= SHOWN_AT_ONCE:
            return []
        if object_hash not in here:
            return [Send(peer, ProofGive(object_hash, ask.nonce, b""))]
        self._proving[peer] += 1
        self._shown[peer] = {**shown, object_hash: now}
        return [MakeProof(peer, object_hash, ask.nonce)]

    def _shown_to(self, peer: PeerId, now: Instant) -> dict[ObjectHash, Instant]:
        """Of late."""
        shown = self._shown.get(peer, {})
        return {chunk: at for chunk, at in shown.items() if now - at < SHOWN_S}

    def made(self, event: ProofMade) -> tuple[list[Effect], bool]:
        """(what to send, whether the node that had answered was wrong)."""
        claimed = self._claimed.pop((event.nonce, event.object_hash), None)
        if claimed is not None:
            return [], bool(event.digest) and claimed != event.digest
        self._proving[event.peer] -= 1
        self._proving += Counter()  # none at zero
        answer = ProofGive(event.object_hash, event.nonce, event.digest)
        return [Send(event.peer, answer)], False
