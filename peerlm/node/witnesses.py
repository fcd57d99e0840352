"""Who shows a chunk before this node lets its own copy of it go.

What others say to keep is a claim (`survey`). A copy goes only once as many others as should keep the chunk have shown it, each by
a number that was drawn for it from a fresh seed (`proofs`). All of them are asked in one moment, and what is not there half a minute later counts for nothing:
then it stays, until the next survey. So a chunk that moves costs each of its new keepers one reading, and two short messages.

To a node one question is under way at a time, and few enough for it to answer. One of an earlier release shows a chunk in ten
seconds, and is silent in between: who is silent is asked the same once more, after that. Silence is no fault here; that is
for `proofs` to find out, which asks the same nodes.

Pure. A node that has this one's bytes sent to it while it is asked, and throws them away, is not told from a keeper.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

from peerlm.effects import Effect, MakeProof, Send
from peerlm.events import ProofMade
from peerlm.node.proofs import SEED_BYTES, SHOWN_MAX, SHOWN_S, drawn_for
from peerlm.types import Instant, ObjectHash, PeerId, after
from peerlm.wire.message import ProofAsk, ProofGive

PROVEN_S = 30.0
"""All that is needed is shown within so long, or none of it counts."""

AGAIN_S = 12.0
"""Who is silent is asked the same once more; longer than `SHOWN_S`."""

CLAIMS_S = 300.0
"""What others have said is asked anew after so long."""

UNDER_WAY = 16
"""Chunks that are asked for at once: this node reads each of them too."""

TRIED = 64
"""Of those that wait, so many are looked at in a row for one whose keepers can be asked now."""

ASKED_MAX = SHOWN_MAX * 4 // 5
"""Questions to a node in `SHOWN_S`, with something left for the clocks and for `proofs`."""

NEVER = Instant(inf)

Called = tuple[ObjectHash, int, Sequence[PeerId]]
"""A chunk, how many are to show it, and who says to keep it."""


@dataclass(slots=True)
class _Case:
    chunk: ObjectHash
    needed: int
    claimants: list[PeerId]
    seeds: dict[PeerId, bytes] = field(default_factory=dict)
    """Of those that were asked."""
    shown: set[PeerId] = field(default_factory=set)
    again_at: Instant = NEVER
    until: Instant = NEVER


@dataclass(frozen=True, slots=True)
class Shown:
    """What came of an answer: `chunk` was shown by `count` others; or `liar` has shown something else."""

    chunk: ObjectHash | None = None
    count: int = 0
    liar: PeerId | None = None


class Witnesses:
    """Of one node.

    Args:
        is_busy: whether a node is to be asked nothing now.
    """

    def __init__(self, is_busy: Callable[[PeerId], bool], rng: random.Random) -> None:
        self._is_busy, self._rng = is_busy, rng
        self._waiting: deque[_Case] = deque()
        self._open: dict[ObjectHash, _Case] = {}
        self._at: dict[PeerId, _Case] = {}
        """Whose answer is waited for."""
        self._asked_at: dict[PeerId, deque[Instant]] = {}
        """Its latest questions."""
        self._checked: dict[tuple[bytes, bytes], tuple[PeerId, bytes]] = {}
        """By number and chunk: who has answered what, while our own answer is being worked out."""
        self._lacking: list[tuple[PeerId, ObjectHash]] = []
        self._until = NEVER
        """What waits then is given up."""

    @property
    def are_called(self) -> bool:
        return bool(self._waiting or self._open)

    def call(self, called: Iterable[Called], now: Instant) -> list[Effect]:
        """Have these shown → `came`, `made`, unless too few say to keep them."""
        cases = [_Case(chunk, needed, list(peers)) for chunk, needed, peers in called]
        self._waiting.extend(case for case in cases if len(case.claimants) >= case.needed > 0)
        self._until = after(now, CLAIMS_S)
        return self._begin(now)

    def give_up(self, chunks: Iterable[ObjectHash]) -> None:
        """They are to stay."""
        gone = set(chunks)
        if not gone or not self.are_called:
            return
        self._waiting = deque(case for case in self._waiting if case.chunk not in gone)
        for chunk in [chunk for chunk in self._open if chunk in gone]:
            self._close(self._open[chunk])

    def gone(self, peer: PeerId) -> None:
        """It died or left, or is not believed any more: what it has shown counts no more."""
        self._asked_at.pop(peer, None)
        for case in [case for case in self._open.values() if peer in case.claimants]:
            self._without(case, peer)
        for case in self._waiting:
            if peer in case.claimants:
                case.claimants.remove(peer)
        self._waiting = deque(c for c in self._waiting if len(c.claimants) >= c.needed)

    # ----------------------------------------------------------------------------------- asking

    def wake(self, now: Instant) -> list[Effect]:
        """Call it once a second, while some `are_called`."""
        if self._until <= now:
            self._waiting.clear()
        effects: list[Effect] = []
        for case in list(self._open.values()):
            if case.until <= now:
                self._close(case)
            elif case.again_at <= now:
                case.again_at = NEVER
                silent = [peer for peer in case.seeds if self._at.get(peer) is case]
                again = [peer for peer in silent if not self._is_busy(peer)]
                effects += [self._question(case, peer, now) for peer in again]
        return [*effects, *self._begin(now)]

    def _begin(self, now: Instant) -> list[Effect]:
        """Ask for those whose keepers can be asked, all of them."""
        effects: list[Effect] = []
        for _ in range(min(TRIED, len(self._waiting))):
            if len(self._open) >= UNDER_WAY:
                break
            case = self._waiting.popleft()
            free = [peer for peer in case.claimants if self._is_free(peer, now)]
            if len(free) < case.needed:
                self._waiting.append(case)
                continue
            self._open[case.chunk] = case
            case.again_at, case.until = after(now, AGAIN_S), after(now, PROVEN_S)
            for peer in self._rng.sample(free, case.needed):
                case.seeds[peer] = self._rng.randbytes(SEED_BYTES)
                self._at[peer] = case
                effects.append(self._question(case, peer, now))
        return effects

    def _is_free(self, peer: PeerId, now: Instant) -> bool:
        asked_at = self._asked_at.get(peer)
        is_asked_enough = (
            asked_at is not None and len(asked_at) == ASKED_MAX and now - asked_at[0] < SHOWN_S
        )
        return not (peer in self._at or is_asked_enough or self._is_busy(peer))

    def _question(self, case: _Case, peer: PeerId, now: Instant) -> Effect:
        self._asked_at.setdefault(peer, deque(maxlen=ASKED_MAX)).append(now)
        seed = case.seeds[peer]
        return Send(peer, ProofAsk(case.chunk, drawn_for(peer, seed), seed))

    # ---------------------------------------------------------------------------------- answers

    def is_about(self, peer: PeerId, give: ProofGive) -> bool:
        """Whether it answers a question of ours."""
        case = self._at.get(peer)
        if case is None or case.chunk != give.object_hash:
            return False
        return drawn_for(peer, case.seeds[peer]) == give.nonce

    def came(self, peer: PeerId, give: ProofGive, now: Instant) -> list[Effect]:
        """An answer that `is_about` a question."""
        case = self._at[peer]
        if not give.digest:
            self._lacking.append((peer, case.chunk))
            self._without(case, peer)
            return self._begin(now)
        del self._at[peer]
        self._checked[give.nonce, case.chunk] = peer, give.digest
        return [MakeProof(peer, case.chunk, give.nonce), *self._begin(now)]

    def take_lacking(self) -> list[tuple[PeerId, ObjectHash]]:
        """Who has said to keep a chunk, and then that it does not."""
        taken, self._lacking = self._lacking, []
        return taken

    def is_made_for_us(self, event: ProofMade) -> bool:
        return (event.nonce, event.object_hash) in self._checked

    def made(self, event: ProofMade) -> Shown:
        """Of an event that `is_made_for_us`."""
        peer, digest = self._checked.pop((event.nonce, event.object_hash))
        case = self._open.get(event.object_hash)
        if not event.digest:  # ours is damaged
            self.give_up([event.object_hash])
            return Shown()
        if digest != event.digest:
            return Shown(liar=peer)
        if case is None or event.nonce != drawn_for(peer, case.seeds.get(peer, b"")):
            return Shown()
        case.shown.add(peer)
        if len(case.shown) < case.needed:
            return Shown()
        self._close(case)
        return Shown(case.chunk, len(case.shown))

    # ------------------------------------------------------------------------------------ ends

    def _close(self, case: _Case) -> None:
        del self._open[case.chunk]
        for peer in case.seeds:
            if self._at.get(peer) is case:
                del self._at[peer]

    def _without(self, case: _Case, peer: PeerId) -> None:
        """It is none of the keepers: others are asked anew, if there are enough."""
        self._close(case)
        left = [other for other in case.claimants if other != peer]
        if len(left) >= case.needed:
            self._waiting.append(_Case(case.chunk, case.needed, left))
