"""Which object to pull from whom, until everything wanted is here.

A *want* is a key, and every donor names the object it would serve for it. For a corpus shard all
donors name the same hash; for a fragment of slow weights each names its own snapshot's, and any of
them will do, because replicas are near consensus. So fragment 1 may come from one donor and
fragment 2 from another, and the death of a donor costs only what was under way from it.

Several donors are pulled from at once, few objects from each; what few donors have goes first, as
in BitTorrent (Cohen, 2003), with ties broken by lot so that joiners do not all ask for the same. A
pull that stalls or crawls is given up and tried elsewhere, and its donor rests for a time that
doubles. A donor that sent wrong bytes is left out for a time that grows with each time that it does.

A pull that takes much longer than its like (`store.pace`) is *hedged*: a second donor is asked for the same, whichever
brings it first wins, and the other is cancelled (Dean and Barroso, The tail at scale, 2013). So it is with the last pulls of a
fetch, and sooner, as in BitTorrent's endgame. Once for each object, few at once, and only while little has come twice. The donor that
was too slow is not blamed: it is asked last.

Pure: it asks for pulls and is told how they went; it sees no bytes and reads no clock.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import inf

from peerlm.store.donor import USUAL, Donor, Key, Limits, Rest
from peerlm.store.pace import Pace, Rate
from peerlm.types import Instant, ObjectHash, PeerId, TransferId, after, short


class Fault(StrEnum):
    """Why a pull ended without its object, and with that, what to do about it."""

    BUSY = "busy"
    """The donor has no room for it now: let it rest."""
    LOST = "lost"
    """The connection broke or never came about: let it rest."""
    STALLED = "stalled"
    """No byte for too long, or too slow in all: let it rest."""
    MISSING = "missing"
    """The donor no longer has the object: do not ask for it until it is offered again."""
    CORRUPT = "corrupt"
    """Wrong bytes, or values that cannot be: do not ask this donor for a while."""
    OURS = "ours"
    """Our own disk failed: nobody is to blame, rest all pulls."""


_REFUSALS = (Fault.BUSY, Fault.MISSING)
"""Without a byte: a hedge that ends so may be tried elsewhere."""


@dataclass(frozen=True, slots=True)
class StartPull:
    """Pull this object → `sized`, `progress`…, then `pulled` or `failed`."""

    transfer: TransferId
    peer: PeerId
    key: Key
    object_hash: ObjectHash
    size_bytes: int
    """0: not known, the donor will say."""


@dataclass(frozen=True, slots=True)
class CancelPull:
    """Stop this pull and forget what it brought; reports about it are ignored from now on."""

    transfer: TransferId
    peer: PeerId


PullEffect = StartPull | CancelPull


class Phase(StrEnum):
    FETCHING = "fetching"
    """Pulls are under way, or donors are resting."""
    STUCK = "stuck"
    """Nobody offers what is still wanted; only a new offer helps."""
    DONE = "done"
    """Everything wanted is here and verified."""


@dataclass(frozen=True, slots=True)
class Status:
    phase: Phase
    objects_total: int
    bytes_done: int
    """Verified, plus what has arrived of pulls under way."""
    bytes_total: int
    """Of the wants whose size is known."""
    eta_s: float
    """Of the bytes known, at the present rate; infinite when nothing moves."""
    unoffered: tuple[Key, ...]
    """Wanted, and no usable donor offers them."""
    last_fault: str
    """The latest failure in words; empty when there was none."""
    hedged_bytes: int
    """Of all that came so far, what came twice, since a pull was hedged. At most `Limits.hedged_share` of it, and what
    `Limits.hedges` objects have."""


@dataclass(slots=True)
class _Pull:
    transfer: TransferId
    peer: PeerId
    key: Key
    size_bytes: int
    """0: not known yet."""
    began: Instant
    received_bytes: int
    stalls_at: Instant
    ends_at: Instant
    is_hedge: bool
    look_at: Instant
    """It may be slow by then."""

    @property
    def due(self) -> Instant:
        return min(self.stalls_at, self.ends_at)


class Fetch:
    """One fetch, from its wants to `Phase.DONE`. Donors and wants are bounded by the caller."""

    def __init__(
        self,
        wants: Mapping[Key, int],
        rng: random.Random,
        now: Instant,
        limits: Limits = USUAL,
        last: Collection[Key] = (),
    ) -> None:
        """`wants`: key → size in bytes, 0 where only the donors know it. `last`: of those that as many donors have these
        come last."""
        self._limits = limits
        self._rng = rng
        self._sizes = dict(wants)
        lots = list(range(len(wants)))
        rng.shuffle(lots)
        late = frozenset(last)
        drawn = zip(wants, lots, strict=True)
        self._lot = {key: lot + len(lots) * (key in late) for key, lot in drawn}
        self._missing = dict.fromkeys(wants)
        self._donors: dict[PeerId, Donor] = {}
        self._pulls: dict[TransferId, _Pull] = {}
        self._own_rest = Rest()
        self._rate = Rate(now)
        self._last_fault = ""
        self._pace = Pace()
        self._hedged: set[Key] = set()
        """Of what is missing."""
        self._came_bytes = 0
        self._twice_bytes = 0
        """Of hedges that are over."""

    # ----------------------------------------------------------------------------------- wants

    def want(self, key: Key, size_bytes: int) -> None:
        """One more want, of known size; `offer` tells who has it."""
        if key not in self._missing:
            self._sizes[key], self._lot[key] = size_bytes, self._rng.randrange(1 << 30)
            self._missing[key] = None

    def offer(self, peer: PeerId, key: Key, object_hash: ObjectHash) -> None:
        """This donor has it too, besides what it offered before. `wake` starts what may be started."""
        donor = self._donors.setdefault(peer, Donor({}, Rest()))
        if not donor.excluded and key in self._missing:
            donor.offers[key] = object_hash

    def forget(self, key: Key) -> list[PullEffect]:
        """It is not wanted any more, or was pulled: nothing is known of it from here on."""
        self._missing.pop(key, None)
        self._sizes.pop(key, None)
        self._lot.pop(key, None)
        self._hedged.discard(key)
        for donor in self._donors.values():
            donor.offers.pop(key, None)
        return self._cancel([pull for pull in self._pulls.values() if pull.key == key])

    def is_offered(self, key: Key) -> bool:
        """Some donor may still be asked for it, or is being asked."""
        return bool(self._donors_of(key)) or any(p.key == key for p in self._pulls.values())

    # ---------------------------------------------------------------------------------- events

    def donor_offers(
        self, peer: PeerId, offers: Mapping[Key, ObjectHash], now: Instant
    ) -> list[PullEffect]:
        """This is what the donor has now, in place of what it offered before.

        Pulls under way from it go on. What nobody wants, and an excluded donor, is ignored.
        """
        donor = self._donors.setdefault(peer, Donor({}, Rest()))
        donor.wake(now)
        if not donor.excluded:
            donor.offers = {key: offers[key] for key in self._missing if key in offers}
        return self._schedule(now)

    def donor_gone(self, peer: PeerId, now: Instant) -> list[PullEffect]:
        """The donor left or died: its pulls go back to the queue. It may come back with offers."""
        if donor := self._donors.get(peer):
            donor.offers = {}
        return self._cancel_all_of(peer) + self._schedule(now)

    def sized(self, transfer: TransferId, size_bytes: int, now: Instant) -> list[PullEffect]:
        """The donor accepted, and says how large the object is. Counts as a sign of life.

        A size that cannot be is a lie: the pull ends as if its bytes were corrupt.
        """
        pull = self._pulls.get(transfer)
        if pull is None:
            return []
        known = self._sizes[pull.key]
        if size_bytes != known if known else not 0 < size_bytes <= self._limits.object_bytes_max:
            return [CancelPull(transfer, pull.peer), *self.failed(transfer, Fault.CORRUPT, now)]
        pull.size_bytes = size_bytes
        pull.stalls_at = after(now, self._limits.stall_timeout_s)
        pull.ends_at = self._end_of(size_bytes, pull.began)
        pull.look_at = self._look_at(pull, now)
        return []

    def progress(self, transfer: TransferId, received_bytes: int, now: Instant) -> list[PullEffect]:
        """So many bytes of the object have arrived so far. Only more than before is progress."""
        pull = self._pulls.get(transfer)
        if pull and pull.size_bytes:
            received_bytes = min(received_bytes, pull.size_bytes)
        if pull and received_bytes > pull.received_bytes:
            self._rate.add(received_bytes - pull.received_bytes, now)
            self._came_bytes += received_bytes - pull.received_bytes
            pull.received_bytes = received_bytes
            pull.stalls_at = after(now, self._limits.stall_timeout_s)
        return []

    def pulled(self, transfer: TransferId, now: Instant) -> list[PullEffect]:
        """The object is here and verified."""
        pull = self._pulls.get(transfer)
        if pull is None:
            return []
        size_bytes = pull.size_bytes or pull.received_bytes
        self.progress(transfer, size_bytes, now)
        self._sizes[pull.key] = size_bytes
        beaten = self._other(pull)
        self._drop(pull)
        del self._missing[pull.key]
        donor = self._donors[pull.peer]
        donor.rest.succeed()
        self._own_rest.succeed()
        donor.ran(size_bytes, now - pull.began)
        self._pace.add(size_bytes, now - pull.began, now)
        if pull.is_hedge and beaten:
            slow = self._donors[beaten.peer]
            slow.ran(beaten.received_bytes, now - beaten.began)
            slow.outrun += 1
        elif pull.key not in self._hedged:
            donor.outrun = 0
        self._hedged.discard(pull.key)
        return self._cancel([beaten] if beaten else []) + self._schedule(now)

    def failed(self, transfer: TransferId, fault: Fault, now: Instant) -> list[PullEffect]:
        """The pull ended without its object."""
        pull = self._pulls.get(transfer)
        if pull is None:
            return []
        self._drop(pull)
        if pull.is_hedge and fault in _REFUSALS:
            self._hedged.discard(pull.key)
        return self._blame(pull, fault, now) + self._schedule(now)

    def wake(self, now: Instant) -> list[PullEffect]:
        """Give up pulls whose time is over, let rested donors serve again."""
        effects: list[PullEffect] = []
        if not self._donors:
            return effects
        for pull in list(self._pulls.values()):
            if now >= pull.due:
                effects += self._cancel([pull])
                effects += self._blame(pull, Fault.STALLED, now)
        self._own_rest.wake(now)
        for donor in self._donors.values():
            donor.wake(now)
        return effects + self._schedule(now)

    def deadline(self) -> Instant:
        """When to call `wake`; infinite when only an event can change anything."""
        if not self._donors:
            return Instant(inf)
        ends = [min(pull.due, pull.look_at) for pull in self._pulls.values()]
        rests = [rest.until for rest in self._rests() if rest.until is not None]
        return Instant(min(ends + rests, default=inf)) if self._missing else Instant(inf)

    # --------------------------------------------------------------------------------- reading

    @property
    def phase(self) -> Phase:
        if not self._missing:
            return Phase.DONE
        if self._pulls or any(self._donors_of(key) for key in self._missing):
            return Phase.FETCHING
        return Phase.STUCK

    @property
    def hedged_bytes(self) -> int:
        """As in `status`; it never falls."""
        pairs = [(pull, self._other(pull)) for pull in self._pulls.values() if pull.is_hedge]
        return self._twice_bytes + sum(_overlap(pull, other) for pull, other in pairs)

    def status(self, now: Instant) -> Status:
        """A frozen summary for people."""
        pulls = sorted(self._pulls.values(), key=lambda pull: pull.received_bytes)
        busy = {pull.key: pull for pull in pulls}  # of two the one that is further
        sizes = self._sizes | {
            key: max(pull.size_bytes, pull.received_bytes) for key, pull in busy.items()
        }
        here = sum(size for key, size in sizes.items() if key not in self._missing)
        done = here + sum(pull.received_bytes for pull in busy.values())
        total = sum(sizes.values())
        return Status(
            phase=self.phase,
            objects_total=len(self._sizes),
            bytes_done=done,
            bytes_total=total,
            eta_s=self._eta_s(total - done, self._rate.at(now)),
            unoffered=tuple(
                key for key in self._missing if key not in busy and not self._donors_of(key)
            ),
            last_fault=self._last_fault,
            hedged_bytes=self.hedged_bytes,
        )

    def _eta_s(self, left_bytes: int, rate_bytes_s: float) -> float:
        if not self._missing:
            return 0.0
        return left_bytes / rate_bytes_s if rate_bytes_s > 0 else inf

    def check(self) -> None:
        """Raises: AssertionError when an invariant is broken."""
        if not self._donors and not self._pulls:
            return
        pulls = list(self._pulls.values())
        keys = {pull.key for pull in pulls}
        assert len(keys) <= self._limits.total, "too many objects in flight in all"
        assert len(pulls) - len(keys) <= self._limits.hedges, "too many hedges at once"
        ways = {(pull.key, pull.peer) for pull in pulls}
        assert len(ways) == len(pulls), "a want is pulled twice from one donor"
        for key in keys:
            ways_there = [pull for pull in pulls if pull.key == key]
            assert len(ways_there) <= 2, "a want is pulled from three donors"
            assert len(ways_there) == 1 or key in self._hedged, "a hedge was not counted"
        assert all(key in self._missing for key in self._hedged), "a hedge of what is here is kept"
        for peer, donor in self._donors.items():
            assert self._in_flight(peer) <= self._limits.per_donor, "too many pulls from one donor"
            assert not (donor.excluded and (donor.offers or self._in_flight(peer)))
        assert all(pull.key in self._missing for pull in pulls), "pulling what is here"

    # -------------------------------------------------------------------------------- deciding

    def _schedule(self, now: Instant) -> list[PullEffect]:
        """Hedge what is slow, start what may be started, rarest first, and hedge by whoever has nothing else to do."""
        effects: list[PullEffect] = []
        self._pace.forget_old(now)
        if self._own_rest.until is None:
            effects += self._hedge(self._limits.hedge_factor, now)
            effects += self._start_new(now)
            if len(self._busy()) < self._limits.total:
                effects += self._hedge(1.0, now)
        for pull in self._pulls.values():
            pull.look_at = self._look_at(pull, now)
        return effects

    def _start_new(self, now: Instant) -> list[PullEffect]:
        effects: list[PullEffect] = []
        room = self._limits.total - len(busy := self._busy())
        idle = {peer for peer in self._donors if self._is_free(peer)}
        if room <= 0 or not idle:
            return effects
        queue = [(len(self._donors_of(key)), self._lot[key], key) for key in self._missing]
        waiting = sorted(entry for entry in queue if entry[2] not in busy)
        for _, _, key in waiting:
            if len(effects) >= room or not idle:
                break
            free = [peer for peer in self._donors_of(key) if peer in idle]
            if free:
                peer = min(free, key=self._worth_asking)
                if not self._is_better_late(key, peer, len(waiting) - len(effects)):
                    effects.append(self._start(key, peer, now))
                    if not self._is_free(peer):
                        idle.remove(peer)
        return effects

    def _is_better_late(self, key: Key, peer: PeerId, waiting: int) -> bool:
        """This donor was too slow, and another that has the object comes to all that waits within about one pull's time."""
        if not self._donors[peer].outrun:
            return False
        good = {p for p in self._donors_of(key) if not self._donors[p].outrun}
        return waiting <= sum(pull.peer in good for pull in self._pulls.values())

    def _start(self, key: Key, peer: PeerId, now: Instant, is_hedge: bool = False) -> StartPull:
        transfer = TransferId(self._rng.randbytes(16))
        stalls_at = after(now, self._limits.stall_timeout_s)
        size = self._sizes[key]
        ends_at = self._end_of(size, now)
        self._pulls[transfer] = _Pull(
            transfer, peer, key, size, now, 0, stalls_at, ends_at, is_hedge, look_at=Instant(inf)
        )
        return StartPull(transfer, peer, key, self._donors[peer].offers[key], size)

    def _worth_asking(self, peer: PeerId) -> tuple[int, int, float, float]:
        """Smaller is better: reliable, then idle, then fast; a new donor counts as fast."""
        donor = self._donors[peer]
        slowness = 1 / donor.rate_bytes_s if donor.rate_bytes_s else 0.0
        failures = donor.rest.failures + donor.outrun
        return failures, self._in_flight(peer), slowness, self._rng.random()

    def _hedge(self, factor: float, now: Instant) -> list[PullEffect]:
        """A second pull of whatever has taken `factor` times as long as is usual, the slowest first."""
        effects: list[PullEffect] = []
        slow = [(self._slow_at(pull, factor), pull) for pull in self._pulls.values()]
        for slow_at, pull in sorted(slow, key=lambda entry: entry[0]):
            if slow_at > now or len(self._pulls) - len(self._busy()) >= self._limits.hedges:
                break
            twice_bytes = self.hedged_bytes + pull.received_bytes
            if twice_bytes > self._limits.hedged_share * self._came_bytes:
                continue
            if helpers := [p for p in self._donors_of(pull.key) if self._may_help(p, pull)]:
                self._hedged.add(pull.key)
                helper = min(helpers, key=self._fastest)
                effects.append(self._start(pull.key, helper, now, is_hedge=True))
        return effects

    def _may_help(self, peer: PeerId, slow: _Pull) -> bool:
        return peer != slow.peer and self._is_free(peer) and not self._donors[peer].outrun

    def _fastest(self, peer: PeerId) -> tuple[int, float, int, float]:
        failures, in_flight, slowness, lot = self._worth_asking(peer)
        return failures, slowness, in_flight, lot

    def _slow_at(self, pull: _Pull, factor: float) -> Instant:
        """When it has taken `factor` times what is usual, and by its own pace needs as long again as is usual: else
        it is here before a hedge would be."""
        size_bytes = pull.size_bytes or self._pace.usual_bytes()
        left_bytes = size_bytes - pull.received_bytes
        if pull.key in self._hedged or left_bytes <= 0:
            return Instant(inf)
        usual_s = self._pace.usual_s(size_bytes)
        slow_s = usual_s * max(factor, pull.received_bytes / left_bytes)
        return after(pull.began, max(self._limits.hedge_after_s, slow_s))

    def _look_at(self, pull: _Pull, now: Instant) -> Instant:
        """The next moment at which it may be slow, if it has not been until now."""
        moments = [self._slow_at(pull, factor) for factor in (1.0, self._limits.hedge_factor)]
        return min((moment for moment in moments if moment > now), default=Instant(inf))

    def _other(self, pull: _Pull) -> _Pull | None:
        """The other pull of the same object."""
        others = (p for p in self._pulls.values() if p.key == pull.key and p is not pull)
        return next(others, None)

    def _drop(self, pull: _Pull) -> None:
        """It is under way no more."""
        self._twice_bytes += _overlap(pull, self._other(pull))
        del self._pulls[pull.transfer]

    def _busy(self) -> set[Key]:
        return {pull.key for pull in self._pulls.values()}

    def _blame(self, pull: _Pull, fault: Fault, now: Instant) -> list[PullEffect]:
        donor = self._donors[pull.peer]
        self._last_fault = f"{fault} (pull from {short(pull.peer)})"
        match fault:
            case Fault.OURS:
                self._own_rest.fail(now, self._limits, self._rng)
            case Fault.MISSING:
                donor.offers.pop(pull.key, None)
            case Fault.CORRUPT:
                donor.exclude(now, self._limits)
                return self._cancel_all_of(pull.peer)
            case Fault.BUSY | Fault.LOST | Fault.STALLED:
                donor.rest.fail(now, self._limits, self._rng)
        return []

    def _cancel(self, doomed: list[_Pull]) -> list[PullEffect]:
        for pull in doomed:
            self._drop(pull)
        return [CancelPull(pull.transfer, pull.peer) for pull in doomed]

    def _cancel_all_of(self, peer: PeerId) -> list[PullEffect]:
        return self._cancel([pull for pull in self._pulls.values() if pull.peer == peer])

    def _end_of(self, size_bytes: int, began: Instant) -> Instant:
        if not size_bytes:
            return Instant(inf)
        limits = self._limits
        return after(began, limits.stall_timeout_s + size_bytes / limits.floor_bytes_s)

    def _donors_of(self, key: Key) -> list[PeerId]:
        return [peer for peer, donor in self._donors.items() if key in donor.offers]

    def _is_free(self, peer: PeerId) -> bool:
        resting = self._donors[peer].rest.until is not None
        return not resting and self._in_flight(peer) < self._limits.per_donor

    def _in_flight(self, peer: PeerId) -> int:
        return sum(pull.peer == peer for pull in self._pulls.values())

    def _rests(self) -> list[Rest]:
        return [self._own_rest, *(donor.rest for donor in self._donors.values())]


def _overlap(pull: _Pull, other: _Pull | None) -> int:
    """Bytes that came by both."""
    return min(pull.received_bytes, other.received_bytes) if other else 0
