"""Objects pulled for the swarm's store, from whoever may have them.

Scheduling is `store.fetch`'s; this file speaks its wishes in messages, one fetch for all that is wanted. Who may have an
object is guessed from its hash, by those who should keep it: a node that has not says so, and the next is asked. What
nobody has now is asked for again later, until it is not wanted any more.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from peerlm.effects import Effect
from peerlm.events import PullEnded, PullProgressed
from peerlm.node.pulling import FAULTS, Endpoint, Pull, Pulling, refusal
from peerlm.store.donor import Limits
from peerlm.store.fetch import Fault, Fetch, PullEffect, Status
from peerlm.store.manifest import CHUNK_BYTES, MANIFEST_BYTES_MAX
from peerlm.types import Instant, ObjectHash, PeerId, TransferId, after
from peerlm.wire.message import PullAnswer

ASKED_AT_ONCE = 4
"""Of an object, so many of those that may have it are known to the fetch at a time."""

MAKER_ALONE_S = 2.0
"""Who made an object is asked for it alone for so long: the others have it from there."""

ASK_AGAIN_S = 2.0
"""Those that may have an object are asked again after so long, then twice as long each time."""
ASK_AGAIN_S_MAX = 60.0

LIMITS = Limits(per_donor=2, total=12, object_bytes_max=MANIFEST_BYTES_MAX)

Sources = Callable[[ObjectHash], tuple[PeerId, ...]]
"""Live peers that may have an object, best first."""


@dataclass(slots=True)
class _Want:
    size: int
    """Bytes, as somebody says who may lie: its hash holds, so whatever size it has is taken, up to a chunk's."""
    tried: int = 0
    """Of the sources, how many have been named to the fetch in this round."""
    asked_maker: bool = False
    """If it is known; before all others."""
    widen_at: Instant | None = None
    """Then others are known to the fetch too, if its maker alone was: that one could not give it at once, or is slow."""
    rounds: int = 0
    again_at: Instant | None = None
    """Set when nobody had it."""


class Pulls:
    """All pulls of one node for the store. `arrived` collects what came until it is taken.

    Args:
        maker_of: who has an object for certain, if that is known: the others are asked when it cannot give it.
        endpoint: where a peer's bulk port can be dialled, or None.
    """

    def __init__(
        self,
        sources: Sources,
        maker_of: Callable[[ObjectHash], PeerId | None],
        endpoint: Endpoint,
        rng: random.Random,
        now: Instant,
    ) -> None:
        self._sources, self._maker_of = sources, maker_of
        self._endpoint, self._rng = endpoint, rng
        self._fetch = Fetch({}, rng, now, LIMITS)
        self._wants: dict[ObjectHash, _Want] = {}
        self._pulls = Pulling(endpoint, rng, of_chunks=True)
        self._arrived: list[ObjectHash] = []
        self._corrupt: list[PeerId] = []
        self._refused: list[tuple[PeerId, ObjectHash]] = []

    # ---------------------------------------------------------------------------------- wants

    @property
    def wanted(self) -> Collection[ObjectHash]:
        return self._wants.keys()

    def size_of(self, object_hash: ObjectHash) -> int:
        return self._wants[object_hash].size

    def unfound(self) -> list[ObjectHash]:
        """What none of those asked had, at least once round."""
        return [wanted for wanted, want in self._wants.items() if want.again_at is not None]

    def want(self, objects: Iterable[tuple[ObjectHash, int]], now: Instant) -> list[Effect]:
        for object_hash, size in objects:
            if object_hash not in self._wants:
                self._wants[object_hash] = _Want(size)
                self._fetch.want(object_hash, 0)
        return self.wake(now)

    def forget(self, hashes: Iterable[ObjectHash]) -> list[Effect]:
        effects: list[Effect] = []
        for object_hash in hashes:
            if self._wants.pop(object_hash, None) is not None:
                effects += self._carry(self._fetch.forget(object_hash))
        return effects

    def take_arrived(self) -> list[tuple[ObjectHash, int]]:
        """What is here and verified since the last call; it is not wanted any more."""
        came = [(hash_, self._wants.pop(hash_).size) for hash_ in self._arrived]
        self._arrived = []
        for object_hash, _ in came:
            self._fetch.forget(object_hash)
        return came

    def take_corrupt(self) -> list[PeerId]:
        """Who sent wrong bytes since the last call."""
        corrupt, self._corrupt = self._corrupt, []
        return corrupt

    def take_refused(self) -> list[tuple[PeerId, ObjectHash]]:
        """Who has said since the last call that it has not what it was asked for."""
        refused, self._refused = self._refused, []
        return refused

    # --------------------------------------------------------------------------------- donors

    def _ask_more(self, now: Instant) -> None:
        """Name more of those that may have what nobody so far had."""
        for object_hash, want in self._wants.items():
            if want.again_at is not None:
                if want.again_at > now:
                    continue
                want.again_at, want.tried, want.asked_maker = None, 0, False
            is_due = want.widen_at is not None and now >= want.widen_at
            if self._fetch.is_offered(object_hash) and not is_due:
                continue
            sources = [p for p in self._sources(object_hash) if self._endpoint(p) is not None]
            if (maker := self._maker_of(object_hash)) in sources:
                sources.remove(maker)
            else:
                maker = None
            want.widen_at = None
            if maker is not None and not want.asked_maker:
                some, want.widen_at = [maker], after(now, MAKER_ALONE_S)
            else:
                some = sources[want.tried : want.tried + ASKED_AT_ONCE]
                want.tried += len(some)
            want.asked_maker = True
            for peer in some:
                self._fetch.offer(peer, object_hash, object_hash)
            if not self._fetch.is_offered(object_hash) and want.tried >= len(sources):
                pause_s = min(ASK_AGAIN_S_MAX, ASK_AGAIN_S * 2.0 ** min(want.rounds, 10))
                want.rounds += 1
                want.again_at = after(now, pause_s * self._rng.uniform(0.75, 1.25))

    def peer_gone(self, peer: PeerId, now: Instant) -> list[Effect]:
        return self._carry(self._fetch.donor_gone(peer, now))

    # --------------------------------------------------------------------------------- events

    def is_taken(self, transfer: TransferId) -> bool:
        return transfer in self._pulls

    def on_answer(self, peer: PeerId, answer: PullAnswer, now: Instant) -> list[Effect]:
        pull = self._pulls.asked(peer, answer)
        if pull is None:
            return []
        accepted = []
        if 0 < answer.size <= max(CHUNK_BYTES, self._wants[pull.object_hash].size):
            accepted = self._pulls.accepted(pull, answer, now)
        if not accepted and answer.verdict == "refuse":
            self._refused.append((peer, pull.object_hash))
        return accepted or self._failed(pull, refusal(answer), now)

    def progressed(self, event: PullProgressed, now: Instant) -> list[Effect]:
        if event.transfer not in self._pulls:
            return []
        return self._carry(self._fetch.progress(event.transfer, event.bytes_received, now))

    def ended(self, event: PullEnded, now: Instant) -> list[Effect]:
        pull = self._pulls.of(event.transfer)
        if pull is None:
            return []
        if event.outcome != "ok":
            return self._failed(pull, FAULTS[event.outcome], now)
        self._pulls.over(pull)
        self._arrived.append(pull.object_hash)
        if pull.size is not None:
            self._wants[pull.object_hash].size = pull.size
        return self._carry(self._fetch.pulled(event.transfer, now))

    def wake(self, now: Instant) -> list[Effect]:
        self._ask_more(now)
        return self._carry(self._fetch.wake(now))

    def deadline(self) -> Instant:
        due = [want.again_at for want in self._wants.values() if want.again_at is not None]
        return min([*due, self._fetch.deadline()])

    @property
    def hedged_bytes(self) -> int:
        """That came twice, since the start."""
        return self._fetch.hedged_bytes

    def status(self, now: Instant) -> Status:
        return self._fetch.status(now)

    def check(self) -> None:
        """Raises: AssertionError when an invariant is broken."""
        self._fetch.check()

    def _failed(self, pull: Pull, fault: Fault, now: Instant) -> list[Effect]:
        self._pulls.over(pull)
        if fault is not Fault.MISSING:
            self._wants[pull.object_hash].widen_at = now
        if fault is Fault.CORRUPT:
            self._corrupt.append(pull.start.peer)
        effects = self._carry(self._fetch.failed(pull.start.transfer, fault, now))
        return effects + self.wake(now)

    def _carry(self, wishes: list[PullEffect]) -> list[Effect]:
        return self._pulls.carry(self._fetch, wishes)
