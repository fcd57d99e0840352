"""Fragments of stages that this node does not hold, as objects on its disk.

Two kinds, got in the same way from those that hold the stage. What is *loaded* will be held in a moment, while the node
goes on with what it holds now. A *copy* is kept for the case that the only host of a stage dies: a stage with one host
is copied by a few others again and again, so that whoever takes it over need not wait for the dead; what has not changed, as
when the run is over, is not pulled again. Copies are shown to
others only when the stage has no host any more; they are older than a host's weights, and would only be in the way. The first node of
a run that begins with given weights has copies of the stages that it does not hold.

At most one fetch is under way, and loading comes first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping

from peerlm.effects import DropObjects, Effect
from peerlm.events import PullEnded, PullProgressed
from peerlm.node.acquire import Acquisition, Progress
from peerlm.node.snapshots import Offers
from peerlm.store.placed import Copy
from peerlm.types import FragmentId, Instant, ObjectHash, PeerId, TransferId, after
from peerlm.wire.message import PullAnswer, StateGive

COPY_SHARE = 20.0
"""Copying takes at most one part in so many of the time."""

COPY_S_MAX = 60.0
"""A copy that has not come by then is given up, and begun anew when it is due."""


class Stock:
    """Args:
    stage_of, sizes: of every fragment of the plan; elements.
    copies: as they were kept.
    every_s: time between two copies of a stage, if they are quick.
    """

    def __init__(
        self,
        stage_of: Mapping[FragmentId, int],
        sizes: Mapping[FragmentId, int],
        copies: Mapping[FragmentId, Copy],
        endpoint: Callable[[PeerId], tuple[str, int] | None],
        rng: random.Random,
        every_s: float,
    ) -> None:
        self.copies = dict(copies)
        self._loaded: dict[FragmentId, Copy] = {}
        self._stage_of, self._sizes, self._endpoint = stage_of, sizes, endpoint
        self._rng, self._every_s = rng, every_s
        self._fetch: Acquisition | None = None
        self._stages: tuple[int, ...] = ()
        """What is being fetched."""
        self._is_copy = False
        self._began = Instant(0.0)
        self._due: dict[int, Instant] = {}
        """When a stage is to be copied again."""

    # ------------------------------------------------------------------------------- what is here

    def has_loaded(self, stages: Collection[int]) -> bool:
        return self._is_here(self._loaded, stages)

    def has_copy(self, stage: int) -> bool:
        return self._is_here(self.copies, (stage,))

    def _is_here(self, found: Mapping[FragmentId, Copy], stages: Collection[int]) -> bool:
        return all(fragment in found for fragment in self.fragments(stages))

    def loaded(self, stages: Collection[int]) -> dict[FragmentId, Copy]:
        return {fragment: self._loaded[fragment] for fragment in self.fragments(stages)}

    def shown(self, stages: Collection[int]) -> Offers:
        """Copies of these stages, for a donor's answer."""
        return tuple(
            (
                f,
                self.copies[f].version,
                self.copies[f].object_hash,
                *_size_and_sketch(self.copies[f]),
            )
            for f in self.fragments(stages)
            if f in self.copies
        )

    def progress(self, now: Instant) -> Progress:
        """Of what is being loaded."""
        is_loading = self._fetch is not None and not self._is_copy
        return self._fetch.progress(now) if self._fetch and is_loading else Progress()

    def fragments(self, stages: Collection[int]) -> list[FragmentId]:
        return [f for f in self._sizes if self._stage_of[f] in stages]

    # ----------------------------------------------------------------------------------- fetching

    def load(
        self, stages: Collection[int], unhosted: Collection[int], now: Instant
    ) -> list[Effect]:
        """Have these stages here. Of one without a host, a copy of our own will do."""
        for stage in stages:
            if stage in unhosted and self.has_copy(stage):
                self._loaded |= {f: self.copies[f] for f in self.fragments((stage,))}
        lacking = tuple(s for s in stages if not self.has_loaded((s,)))
        if not lacking:
            return self._stop()
        if self._fetch is not None and not self._is_copy and self._stages == lacking:
            return []
        return [*self._stop(), *self._begin(lacking, now, is_copy=False)]

    def copy_due(self, stages: Iterable[int], now: Instant) -> list[Effect]:
        """Copy one of these stages, if it is time to and nothing else is under way."""
        if self._fetch is not None:
            if self._is_copy and now - self._began > COPY_S_MAX:
                self._due[self._stages[0]] = after(now, self._every_s)
                return self._stop()
            return []
        for stage in stages:
            if self._due.get(stage, now) <= now:
                return self._begin((stage,), now, is_copy=True)
        return []

    def forget(self, *, loaded: bool, copies: Collection[int]) -> list[Effect]:
        """What was loaded, and copies of these stages, are of no use any more."""
        gone: dict[FragmentId, Copy] = {}
        if loaded:
            effects = [] if self._is_copy else self._stop()
            gone, self._loaded = self._loaded, {}
        else:
            effects = []
        for fragment in self.fragments(copies):
            if fragment in self.copies:
                gone[fragment] = self.copies.pop(fragment)
        return [*effects, *self._drop(gone.values())]

    def _begin(self, stages: tuple[int, ...], now: Instant, *, is_copy: bool) -> list[Effect]:
        sizes = {f: self._sizes[f] for f in self.fragments(stages)}
        self._fetch = Acquisition(sizes, self._endpoint, self._rng)
        self._stages, self._is_copy, self._began = stages, is_copy, now
        return self._fetch.want_state(now)

    def _stop(self) -> list[Effect]:
        fetch, self._fetch = self._fetch, None
        return fetch.forget_state() if fetch else []

    def _drop(self, gone: Iterable[Copy]) -> list[Effect]:
        used = {c.object_hash for kept in (self.copies, self._loaded) for c in kept.values()}
        hashes = tuple(c.object_hash for c in gone if c.object_hash not in used)
        return [DropObjects(hashes)] if hashes else []

    @property
    def wanted(self) -> tuple[int, ...]:
        """Stages that are being fetched."""
        return self._stages if self._fetch is not None else ()

    def donors_are(self, donors: tuple[PeerId, ...], now: Instant) -> list[Effect]:
        return self._fetch.donors_are(donors, now) if self._fetch else []

    def shows(self, peer: PeerId, give: StateGive, plan_hash: bytes, now: Instant) -> list[Effect]:
        if self._fetch is None:
            return []
        is_answer = self._fetch.awaits(peer, now) and give.plan_hash == plan_hash
        if self._is_copy and is_answer and self._is_known(give):
            self._due[self._stages[0]] = after(now, self._every_s)
            return self._stop()
        return self._fetch.on_state_give(peer, give, plan_hash, now)

    def _is_known(self, give: StateGive) -> bool:
        """What is offered is what our copy has."""
        offered = {offer.fragment: offer.object_hash for offer in give.fragments}
        wanted = self.fragments(self._stages)
        return all(
            f in self.copies and offered.get(f) == self.copies[f].object_hash for f in wanted
        )

    def answers(self, peer: PeerId, answer: PullAnswer, now: Instant) -> list[Effect]:
        return self._fetch.on_pull_answer(peer, answer, now) if self._fetch else []

    def progressed(self, event: PullProgressed, now: Instant) -> list[Effect]:
        return self._fetch.progressed(event, now) if self._fetch else []

    def ended(self, event: PullEnded, now: Instant) -> list[Effect]:
        if self._fetch is None:
            return []
        effects = self._fetch.ended(event, now)
        return effects + (self._arrived(now) if self._fetch.state_arrived else [])

    def _arrived(self, now: Instant) -> list[Effect]:
        """All that was fetched is here."""
        assert self._fetch is not None
        came = {
            fragment: Copy(version, object_hash, 4 * self._sizes[fragment], sketch)
            for fragment, version, object_hash, sketch in self._fetch.installation().objects
        }
        self._fetch = None
        if not self._is_copy:
            self._loaded |= came
            return []
        took_s = now - self._began
        self._due[self._stages[0]] = after(now, max(self._every_s, COPY_SHARE * took_s))
        old = [self.copies[f] for f in came if f in self.copies]
        self.copies |= came
        return self._drop(old)

    def is_taken(self, transfer: TransferId) -> bool:
        return self._fetch is not None and self._fetch.is_taken(transfer)

    def wake(self, now: Instant) -> list[Effect]:
        return self._fetch.wake(now) if self._fetch else []

    def deadline(self) -> Instant | None:
        return self._fetch.deadline() if self._fetch else None


def _size_and_sketch(copy: Copy) -> tuple[int, tuple[float, ...]]:
    return copy.size, copy.sketch


def hashes(copies: Mapping[FragmentId, Copy]) -> set[ObjectHash]:
    return {copy.object_hash for copy in copies.values()}
