"""Getting what this node lacks: corpus objects and slow weights, from several donors at once.

A newcomer, or a node that was away, asks the active members what they could donate. Each answers
with its latest snapshot as a list of objects, one a fragment, and a sketch of each (a random
projection), so that donors can be compared before a byte of state is pulled: one that is far from
the majority is passed over. Replicas are near consensus, so fragments may come from different
donors, and a donor's death costs what was under way from it. What arrives is verified by hash, and
by the driver against the sketch that was shown.

Scheduling is `store.fetch`'s; this file speaks its wishes in messages. It never decides whether
state is needed: that is the lifecycle's.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from peerlm.effects import Effect, InstallObjects, Send
from peerlm.events import PullEnded, PullProgressed
from peerlm.node.finals import agree
from peerlm.node.pulling import FAULTS, Endpoint, Pull, Pulling, refusal
from peerlm.store.donor import Key
from peerlm.store.fetch import Fault, Fetch, Phase, StartPull
from peerlm.types import FragmentId, Instant, ObjectHash, PeerId, TransferId, after
from peerlm.wire.message import FragmentOffer, PullAnswer, StateAsk, StateGive

ASK_AGAIN_S = 1.0
"""Donors that had nothing to give, or gave up on, are asked again this often."""

COMPARE_S = 1.5
"""Once a first donor has answered, others are waited for this long, to compare sketches."""

DONORS_COMPARED = 3
"""Answers that end the wait early: the donor and two others."""

SKETCH_DISTANCE_MAX = 0.7
"""Relative distance beyond which two sketches of one fragment disagree. Replicas in training lie
within a few per cent, after a fresh start within tens; unrelated weights are at about 1.4."""

FINAL_DISTANCE_MAX = 0.01
"""The same for finished weights, which agree to a tenth of a per cent unless they were finished apart."""

BYTES = 4
"""Of an element: state travels as fp32."""

BARREN_S = 15.0
"""A fetch of state that has brought nothing for this long is begun anew."""

SET_ASIDE_S = 60.0
"""Whoever had offered what then did not come is asked only if there is nobody else, for this long."""

CORPUS_AGAIN_S = 5.0
"""When nobody had what is left of the corpus, all are asked again after so long."""


@dataclass(frozen=True, slots=True)
class Progress:
    """For people: what is being fetched, and how far it is."""

    bytes_done: int = 0
    bytes_total: int = 0
    eta_s: float = 0.0
    trouble: str = ""


class Acquisition:
    """Fetches of one node: at most one for the corpus and one for the slow weights.

    Args:
        endpoint: where a peer's bulk port can be dialled, or None.
        sizes: elements of each fragment that this node holds.
    """

    def __init__(
        self,
        sizes: Mapping[FragmentId, int],
        endpoint: Endpoint,
        rng: random.Random,
    ) -> None:
        self._sizes = dict(sizes)
        self._endpoint = endpoint
        self._rng = rng
        self._pulls = Pulling(endpoint, rng, of_chunks=False)
        self._hedged_bytes = 0
        """Of fetches that are over."""
        self._corpus: Fetch | None = None
        self._corpus_hashes: tuple[ObjectHash, ...] = ()
        self._corpus_came: list[tuple[ObjectHash, int]] = []
        self._corpus_again_at: Instant | None = None
        self._state: Fetch | None = None
        self._gives: dict[PeerId, StateGive] = {}
        self._givers: dict[FragmentId, PeerId] = {}
        """Who sent which fragment of the state that arrived last."""
        self._distrusted: dict[PeerId, str] = {}
        self._aside_until: dict[PeerId, Instant] = {}
        self._barren_at: Instant | None = None
        self._pulled_from: tuple[PeerId, ...] = ()
        self._donors: tuple[PeerId, ...] = ()
        self._ask_at: Instant | None = None
        self._compare_until: Instant | None = None
        self._chosen: dict[FragmentId, FragmentOffer] = {}
        self.corpus_arrived = False
        self.state_arrived = False
        self.is_final = False
        """What is being fetched are the finished weights."""

    @property
    def hedged_bytes(self) -> int:
        """That came twice, since the start."""
        fetches = [fetch for fetch in (self._corpus, self._state) if fetch is not None]
        return self._hedged_bytes + sum(fetch.hedged_bytes for fetch in fetches)

    # --------------------------------------------------------------------------------- wishes

    def want_corpus(
        self, missing: Sequence[ObjectHash], last: Collection[ObjectHash], now: Instant
    ) -> list[Effect]:
        """Fetch these corpus objects from whoever is a donor, in place of those that were wanted before, and `last` the last.
        `take_corpus` gives them as they come, and `corpus_arrived` tells the end."""
        effects = [] if self._corpus is None else self._pulls.cancel(self._corpus)
        self._is_over(self._corpus)
        self._corpus_hashes = tuple(missing)
        self._corpus = Fetch(dict.fromkeys(missing, 0), self._rng, now, last=last)
        self._corpus_came = []
        self.corpus_arrived = False
        return [*effects, *self._offer_corpus(now)]

    def take_corpus(self) -> tuple[tuple[ObjectHash, int], ...]:
        """(hash, bytes) of what has come of the corpus since the last call, verified."""
        came, self._corpus_came = tuple(self._corpus_came), []
        return came

    def want_state(self, now: Instant) -> list[Effect]:
        """Fetch slow weights. `state_arrived` tells the end; then call `installation`."""
        effects = self.forget_state()
        self.state_arrived = False
        self._ask_at = now
        return [*effects, *self._ask(now)]

    def forget_state(self) -> list[Effect]:
        """State is not needed any more."""
        effects = self._pulls.cancel(self._state)
        self._drop_state()
        return effects

    def installation(self) -> InstallObjects:
        """What to install now that `state_arrived`; the wish is fulfilled by it."""
        assert self.state_arrived, "state has not arrived"
        offers = [self._chosen[fragment] for fragment in self._sizes]
        self._drop_state()
        return InstallObjects(
            tuple(
                (FragmentId(o.fragment), o.version, ObjectHash(o.object_hash), o.sketch)
                for o in offers
            )
        )

    def rejected(self, fragment: FragmentId, reason: str, now: Instant) -> list[Effect]:
        """A fragment was not what its donor had shown: start over without that donor."""
        if (peer := self._givers.get(fragment)) is not None:
            self._distrusted[peer] = reason
            self._donors = tuple(p for p in self._donors if p != peer)
        return self.want_state(now)

    # --------------------------------------------------------------------------------- donors

    def donors_are(self, donors: Sequence[PeerId], now: Instant) -> list[Effect]:
        """The active members that can be dialled, sorted. Call when they may have changed."""
        new = tuple(
            p for p in donors if self._endpoint(p) is not None and p not in self._distrusted
        )
        gone = [peer for peer in self._donors if peer not in new]
        came = [peer for peer in new if peer not in self._donors]
        self._donors = new
        effects: list[Effect] = []
        for peer in gone:
            self._gives.pop(peer, None)
            if not self._gives:
                self._compare_until = None  # nothing is left to compare; others will be asked
            for fetch in (self._corpus, self._state):
                if fetch is not None:
                    effects += self._pulls.carry(fetch, fetch.donor_gone(peer, now))
        if came:
            effects += self._offer_corpus(now) + self._ask(now)
        return effects

    def awaits(self, peer: PeerId, now: Instant) -> bool:
        """Whether an answer of this donor to what it has of the state is of use."""
        return self._ask_at is not None and peer in self._willing(now)

    def on_state_give(
        self, peer: PeerId, give: StateGive, plan_hash: bytes, now: Instant
    ) -> list[Effect]:
        """A donor's answer. Offers of nothing that is held here count as none, as do foreign and late ones: what
        is being pulled is what was offered first."""
        give = replace(
            give, fragments=tuple(o for o in give.fragments if o.fragment in self._sizes)
        )
        shape = {FragmentId(o.fragment): o.size for o in give.fragments}
        fits = all(size == BYTES * self._sizes[fragment] for fragment, size in shape.items())
        fits &= 0 < len(shape) == len(give.fragments)
        if not self.awaits(peer, now) or not fits:
            return []
        if give.plan_hash != plan_hash:
            return []
        self._gives[peer] = give
        if self._compare_until is None:
            self._compare_until = after(now, COMPARE_S)
        if len(self._gives) >= min(DONORS_COMPARED, len(self._willing(now))):
            return self._begin_state(now)
        return []

    def on_pull_answer(self, peer: PeerId, answer: PullAnswer, now: Instant) -> list[Effect]:
        pull = self._pulls.asked(peer, answer)
        if pull is None:
            return []
        known = pull.start.size_bytes
        accepted = []
        if not known or known == answer.size:
            accepted = self._pulls.accepted(pull, answer, now)
        return accepted or self._failed(pull, refusal(answer), now)

    def progressed(self, event: PullProgressed, now: Instant) -> list[Effect]:
        pull = self._pulls.of(event.transfer)
        if pull is None:
            return []
        self._note_progress(pull, now)
        effects = pull.fetch.progress(event.transfer, event.bytes_received, now)
        return self._pulls.carry(pull.fetch, effects)

    def ended(self, event: PullEnded, now: Instant) -> list[Effect]:
        pull = self._pulls.of(event.transfer)
        if pull is None:
            return []
        if event.outcome != "ok":
            return self._failed(pull, FAULTS[event.outcome], now)
        self._pulls.over(pull)
        if pull.fetch is self._corpus and pull.size is not None:
            self._corpus_came.append((pull.object_hash, pull.size))
        if pull.fetch is self._state:
            fragment = FragmentId(_fragment(pull.start))
            self._chosen[fragment] = self._offer_of(pull.start)
            self._givers[fragment] = pull.start.peer
            self._note_progress(pull, now)
        effects = self._pulls.carry(pull.fetch, pull.fetch.pulled(event.transfer, now))
        self._note_arrivals()
        return effects

    def wake(self, now: Instant) -> list[Effect]:
        effects: list[Effect] = []
        if self._compare_until is not None and self._compare_until <= now:
            effects += self._begin_state(now)
        if self._ask_at is not None and self._ask_at <= now:
            effects += self._ask(now)
        for fetch in (self._corpus, self._state):
            if fetch is not None:
                effects += self._pulls.carry(fetch, fetch.wake(now))
        effects += self._offer_again(now)
        barren = self._barren_at is not None and self._barren_at <= now
        stuck = self._state is not None and self._state.phase is Phase.STUCK
        if stuck or (barren and not self.state_arrived):
            for peer in self._pulled_from:
                self._aside_until[peer] = after(now, SET_ASIDE_S)
            effects += self.want_state(now)
        return effects

    def deadline(self) -> Instant | None:
        due: Instant | None = None
        for at in (self._ask_at, self._compare_until, self._barren_at, self._corpus_again_at):
            if at is not None and (due is None or at < due):
                due = at
        for fetch in (self._corpus, self._state):
            if fetch is not None:
                at = fetch.deadline()
                due = at if due is None else min(due, at)
        return due

    def progress(self, now: Instant) -> Progress:
        """Of the state when it is being fetched, else of the corpus."""
        fetch = self._state or self._corpus
        if fetch is None:
            return Progress()
        status = fetch.status(now)
        trouble = status.last_fault
        if status.phase is Phase.STUCK:
            trouble = f"nobody offers {len(status.unoffered)} of {status.objects_total} objects"
        return Progress(status.bytes_done, status.bytes_total, status.eta_s, trouble)

    def is_taken(self, transfer: TransferId) -> bool:
        """One of our pulls has this id."""
        return transfer in self._pulls

    def check(self) -> None:
        for fetch in (self._corpus, self._state):
            if fetch is not None:
                fetch.check()

    # ------------------------------------------------------------------------------- deciding

    def _ask(self, now: Instant) -> list[Effect]:
        if self._ask_at is None:
            return []
        self._ask_at = after(now, ASK_AGAIN_S)
        asked = [p for p in self._willing(now) if p not in self._gives]
        self._rng.shuffle(asked)
        return [Send(peer, StateAsk()) for peer in asked[:DONORS_COMPARED]]

    def _willing(self, now: Instant) -> tuple[PeerId, ...]:
        """Donors that were not set aside; all of them if there are no others."""
        fresh = tuple(p for p in self._donors if self._aside_until.get(p, now) <= now)
        return fresh or self._donors

    def _note_progress(self, pull: Pull, now: Instant) -> None:
        if pull.fetch is self._state:
            self._barren_at = after(now, BARREN_S)

    def _begin_state(self, now: Instant) -> list[Effect]:
        """Enough donors have answered: pull from those that agree, the most advanced included; or go on asking,
        if there is something that none of them has."""
        self._compare_until = None
        agreeing = agreeing_donors(self._gives)
        offered = {o.fragment for peer in agreeing for o in self._gives[peer].fragments}
        if len(offered) < len(self._sizes):
            return []
        self._ask_at = None
        self.is_final = self._gives[agreeing[0]].final
        wants: dict[Key, int] = {fragment: BYTES * size for fragment, size in self._sizes.items()}
        self._is_over(self._state)
        self._state, self._chosen = Fetch(wants, self._rng, now), {}
        self._givers, self._barren_at = {}, after(now, BARREN_S)
        self._pulled_from = agreeing
        effects: list[Effect] = []
        for peer in agreeing:
            offers: dict[Key, ObjectHash] = {
                int(o.fragment): ObjectHash(o.object_hash) for o in self._gives[peer].fragments
            }
            effects += self._pulls.carry(self._state, self._state.donor_offers(peer, offers, now))
        return effects

    def _offer_corpus(self, now: Instant) -> list[Effect]:
        """Any donor is taken to have the whole corpus; one that has not says so when asked."""
        effects: list[Effect] = []
        if self._corpus is not None:
            offers: Mapping[object, ObjectHash] = {h: h for h in self._corpus_hashes}
            for peer in self._donors:
                effects += self._pulls.carry(
                    self._corpus, self._corpus.donor_offers(peer, offers, now)
                )
        return effects

    def _offer_again(self, now: Instant) -> list[Effect]:
        """Who had not what is left of the corpus may have it by now, having fetched it too."""
        if self._corpus is None or self._corpus.phase is not Phase.STUCK or not self._donors:
            self._corpus_again_at = None
            return []
        if self._corpus_again_at is None:
            self._corpus_again_at = after(now, CORPUS_AGAIN_S)
        if self._corpus_again_at > now:
            return []
        self._corpus_again_at = None
        return self._offer_corpus(now)

    def _offer_of(self, start: StartPull) -> FragmentOffer:
        offers = self._gives[start.peer].fragments
        return next(offer for offer in offers if offer.fragment == _fragment(start))

    def _failed(self, pull: Pull, fault: Fault, now: Instant) -> list[Effect]:
        self._pulls.over(pull)
        return self._pulls.carry(pull.fetch, pull.fetch.failed(pull.start.transfer, fault, now))

    def _note_arrivals(self) -> None:
        if self._corpus is not None and self._corpus.phase is Phase.DONE:
            self._is_over(self._corpus)
            self._corpus, self.corpus_arrived = None, True
        if self._state is not None and self._state.phase is Phase.DONE:
            self.state_arrived = True

    def _is_over(self, fetch: Fetch | None) -> None:
        self._hedged_bytes += fetch.hedged_bytes if fetch is not None else 0

    def _drop_state(self) -> None:
        self._is_over(self._state)
        self._state = None
        self._gives, self._chosen = {}, {}
        self._ask_at = self._compare_until = self._barren_at = None


def agreeing_donors(gives: Mapping[PeerId, StateGive]) -> tuple[PeerId, ...]:
    """Donors whose sketches agree with each other. Taken first are those that agree with at least half of the others
    that hold something in common with them, and of these the most advanced. Once there are finished weights, only
    these count.

    With two donors that disagree nobody can tell who is right: the one with more outer steps behind its
    weights is taken, since a node that lags is the commoner case. How many tokens the swarm has seen both know.
    """
    distance_max = SKETCH_DISTANCE_MAX
    if any(give.final for give in gives.values()):
        gives = {peer: give for peer, give in gives.items() if give.final}
        distance_max = FINAL_DISTANCE_MAX

    def rank(peer: PeerId) -> tuple[bool, float, int, PeerId]:
        give = gives[peer]
        rivals = [o for p, o in gives.items() if p != peer and _overlap(give, o)]
        backed = 2 * sum(agree(give, o, distance_max) for o in rivals) >= len(rivals)
        versions = [o.version for o in give.fragments]
        return not backed, -sum(versions) / len(versions), -give.tokens, peer

    kept: list[PeerId] = []
    for peer in sorted(gives, key=rank):
        if all(agree(gives[p], gives[peer], distance_max) for p in kept):
            kept.append(peer)
    return tuple(kept)


def _overlap(a: StateGive, b: StateGive) -> bool:
    """They offer some fragment in common."""
    return not {o.fragment for o in a.fragments}.isdisjoint(o.fragment for o in b.fragments)


def _fragment(start: StartPull) -> int:
    assert isinstance(start.key, int), f"state is wanted by fragment, not by {start.key!r}"
    return start.key
