"""What keeps a broken or hostile peer from doing harm: gates, clipping, exclusion. Plain numbers only.

A pair exchange sees one foreign vector at a time, so it cannot tell an outlier from a majority. It
can bound what that vector does: a received difference is scaled down to τ, a little more than the
differences of the recent past (self-centred clipping, He, Karimireddy and Jaggi, arXiv 2202.01545;
with a τ from history, since pairs have no neighbourhood to take it from). An attacker then moves an
honest node by at most c·τ in an exchange. Two groups that meet again after a partition are clipped
as well, but by many partners, not by one: three distinct ones in a row double τ until the first
that is not clipped.

Clipping bounds; it seldom identifies. A *stranger* is a peer whose differences are far beyond τ time
after time while those of nearly all others are not: an honest one that is far away has been pulled
near before that. Whoever stays below twice τ is never taken for one, and is only bounded.
A *misfit* is one whose norms alone are wrong, for a minute and more. `PeerScores` leaves strangers and
misfits out for a while, longer each time, and so whoever sends what is plainly wrong (a vector that
fails a gate).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

from peerlm.types import FragmentId, Instant, PeerId, after

NORM_RATIO_MAX = 2.0
"""Weights whose norm is more than this many times ours, or less than its inverse, are refused."""

ABSURD_RATIO = 100.0
"""Weights or differences beyond this many times ours are no laggard's: their sender is excluded."""

SMALL_RMS = 2e-2
"""Fragments below this rms per element count as this large, so that those which start at zero, and
grow tenfold within a few outer steps, mix while they do."""

FIRST_CLIP = 0.2
"""τ as a share of |φ|, until `HISTORY_MIN` differences have been seen."""

HISTORY = 20
HISTORY_MIN = 5
DISTINCT_CLIPPED = 3

STRANGE = 2.0
"""A difference of more than this many τ speaks against its sender, once the history is full."""

STRANGE_TIMES = 4
"""So many of them in a row, in one fragment, make a stranger of a peer."""

STRANGERS_SHARE = 0.34
"""Unless more of the recent partners than this share sent such: then it may be us."""


def norms_agree(theirs: float, ours: float, size: int) -> bool:
    """Whether weights [size] of norm `theirs` may be mixed with weights of norm `ours`."""
    small = SMALL_RMS * math.sqrt(size)
    ratio = max(theirs, small) / max(ours, small)
    return 1 / NORM_RATIO_MAX <= ratio <= NORM_RATIO_MAX


def difference_is_possible(raw_norm: float, ours: float, size: int) -> bool:
    """Whether weights that pass `norms_agree` can differ by `raw_norm`, an int4's rounding included."""
    return raw_norm <= 1.25 * (1 + NORM_RATIO_MAX) * max(ours, SMALL_RMS * math.sqrt(size))


def is_absurd(theirs: float, ours: float, size: int) -> bool:
    """Whether no honest node of this run can have sent a vector [size] of norm `theirs`."""
    return theirs > ABSURD_RATIO * max(ours, SMALL_RMS * math.sqrt(size))


def first_clip_norm(phi_norm: float, size: int) -> float:
    """τ for a fragment [size] without history."""
    return FIRST_CLIP * max(phi_norm, SMALL_RMS * math.sqrt(size))


def clip_scale(raw_norm: float, clip_norm: float) -> float:
    """What to scale a difference of norm `raw_norm` by, so that its norm is at most `clip_norm`."""
    return 1.0 if raw_norm <= clip_norm else clip_norm / raw_norm


class ClipTracker:
    """τ of one fragment: `factor` times the median of recent raw |d̂|, doubled while many are clipped.

    Raw norms enter the median even when they were clipped; it takes a majority of the last twenty
    to move it.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._raw_norms: deque[float] = deque(maxlen=HISTORY)
        self._clipped_by: deque[PeerId] = deque(maxlen=DISTINCT_CLIPPED)
        self._doublings = 0
        self._partners: deque[tuple[PeerId, bool]] = deque(maxlen=HISTORY)
        self._strange: dict[PeerId, int] = {}  # in a row, by peer

    def tau(self, phi_norm: float) -> float:
        """The most a difference may count for, when our own weights have norm `phi_norm`."""
        if len(self._raw_norms) < HISTORY_MIN:
            usual = FIRST_CLIP * phi_norm
        else:
            usual = self._factor * statistics.median(self._raw_norms)
        return math.ldexp(usual, self._doublings)

    def update(self, partner: PeerId, raw_norm: float, clipped: bool) -> bool:
        """An exchange with `partner` brought a difference of norm `raw_norm`. Returns whether
        `partner` is a stranger: see the module's docstring."""
        is_stranger = self._judge(partner, raw_norm)
        self._raw_norms.append(raw_norm)
        self._adapt(partner, clipped)
        return is_stranger

    def _judge(self, partner: PeerId, raw_norm: float) -> bool:
        has_history = len(self._raw_norms) == HISTORY
        is_strange = has_history and raw_norm > STRANGE * self.tau(0.0)
        self._partners.append((partner, is_strange))
        if not is_strange:
            self._strange.pop(partner, None)
            return False
        self._strange[partner] = self._strange.get(partner, 0) + 1
        known = {peer for peer, _ in self._partners}
        strange = {peer for peer, was_strange in self._partners if was_strange}
        is_minority = len(strange) <= STRANGERS_SHARE * len(known)
        return self._strange[partner] >= STRANGE_TIMES and is_minority

    def _adapt(self, partner: PeerId, clipped: bool) -> None:
        if not clipped:
            self._clipped_by.clear()
            self._doublings = 0
            return
        self._clipped_by.append(partner)
        if len(set(self._clipped_by)) == DISTINCT_CLIPPED:
            self._doublings += 1


MISFIT_TIMES = 8
MISFIT_S = 60.0
"""So often, and for so long, must weights of a peer have failed the gate of norms, with none that fitted
in between, before it is excluded for that."""

FITTING_MIN = 3
"""And so many others must have fitted within that time."""


@dataclass(slots=True)
class _Misfit:
    since: Instant
    last: Instant
    times: int = 0


class Misfits:
    """Peers whose weights fail the gate of norms again and again while nearly everybody else's fit.

    Failing it once is an honest laggard's. But that one hears from two partners that it is behind, and has
    newer weights within seconds; of one that learns much faster some fragments fit; and where many
    do not fit, it may be us. A difference that had to be clipped is no fit.
    """

    def __init__(self) -> None:
        self._fitted: dict[PeerId, Instant] = {}
        self._misfits: dict[PeerId, _Misfit] = {}

    def fits(self, peer: PeerId, now: Instant) -> None:
        """An exchange with `peer` went through unclipped."""
        self._fitted[peer] = now
        self._misfits.pop(peer, None)

    def failed(self, peer: PeerId, now: Instant) -> bool:
        """A norm of `peer` did not fit. Returns whether that is enough; if so it begins anew."""
        old = self._misfits.get(peer)
        if old is None or now - old.last > EXCLUSION_S:
            old = self._misfits[peer] = _Misfit(now, now)
        old.times, old.last = old.times + 1, now
        if old.times < MISFIT_TIMES or now - old.since < MISFIT_S:
            return False
        misfits = {p for p, m in self._misfits.items() if now - m.last < MISFIT_S}
        fitting = {p for p, at in self._fitted.items() if now - at < MISFIT_S} - misfits
        is_minority = len(misfits) <= STRANGERS_SHARE * (len(misfits) + len(fitting))
        if len(fitting) < FITTING_MIN or not is_minority:
            return False
        del self._misfits[peer]
        return True

    def forget(self, peer: PeerId) -> None:
        """`peer` is gone."""
        self._fitted.pop(peer, None)
        self._misfits.pop(peer, None)


EXCLUSION_S = 600.0
EXCLUSION_MAX_S = 86_400.0
FORGIVENESS_S = 3600.0
"""A refusal weighs less by one for each hour after its exclusion has ended."""

EXCLUDED_BY_S = 60.0
"""Who has excluded us is not asked for so long: it does not say until when."""

FAILURE_PAUSE_S = 2.0
FAILURE_PAUSE_MAX_S = 60.0

REQUESTS_PER_S = 16.0
REQUEST_BURST = 32.0
"""Requests for one fragment that a peer may make: far above what a plan asks for on a fast link."""


_NEVER = Instant(-math.inf)


@dataclass(slots=True)
class _Record:
    refusals: int = 0
    excluded_until: Instant = _NEVER
    failures: int = 0
    avoided_until: Instant = _NEVER
    excludes_us_until: Instant = _NEVER


@dataclass(slots=True)
class _Bucket:
    requests: float
    filled_at: Instant


class PeerScores:
    """Who is left out, and who is tried later. Bounded by the peers and fragments there are."""

    def __init__(self) -> None:
        self._records: dict[PeerId, _Record] = {}
        self._buckets: dict[tuple[PeerId, FragmentId], _Bucket] = {}

    def __len__(self) -> int:
        """How much is remembered of all."""
        return len(self._records) + len(self._buckets)

    def refused(self, peer: PeerId, now: Instant) -> Instant:
        """`peer` failed a gate: leave it out for ten minutes, doubling. Returns until when."""
        record = self._records.setdefault(peer, _Record())
        record.refusals = self._refusals(record, now) + 1
        exclusion_s = EXCLUSION_S * 2.0 ** min(record.refusals - 1, 20)
        record.excluded_until = after(now, min(exclusion_s, EXCLUSION_MAX_S))
        return record.excluded_until

    def failed(self, peer: PeerId, now: Instant) -> None:
        """An exchange with `peer` was lost, or its weights are of another size than ours, which an
        honest laggard's can be: try others first for a little while."""
        record = self._records.setdefault(peer, _Record())
        pause_s = FAILURE_PAUSE_S * 2.0 ** min(record.failures, 20)
        record.failures += 1
        record.avoided_until = after(now, min(pause_s, FAILURE_PAUSE_MAX_S))

    def excluded_by(self, peer: PeerId, now: Instant) -> None:
        """`peer` has excluded us, rightly or not: nothing comes of asking it."""
        self._records.setdefault(peer, _Record()).excludes_us_until = after(now, EXCLUDED_BY_S)

    def succeeded(self, peer: PeerId, now: Instant) -> None:
        """An exchange with `peer` went well: its losses are forgotten, its refusals are not."""
        record = self._records.get(peer)
        if record is not None:
            record.failures, record.avoided_until = 0, _NEVER
            record.excludes_us_until = _NEVER
            if self._refusals(record, now) == 0:
                del self._records[peer]

    def excluded(self, peer: PeerId, now: Instant) -> bool:
        """Whether nothing may be exchanged with `peer`, in either direction."""
        record = self._records.get(peer)
        return record is not None and now < record.excluded_until

    def at_odds(self, peer: PeerId, now: Instant) -> bool:
        """Whether one of us has excluded the other: it is of no use to ask `peer`."""
        record = self._records.get(peer)
        return record is not None and now < max(record.excluded_until, record.excludes_us_until)

    def avoided(self, peer: PeerId, now: Instant) -> bool:
        """Whether others should be asked before `peer`. It may still ask us."""
        record = self._records.get(peer)
        return record is not None and now < max(record.avoided_until, record.excluded_until)

    def allow_request(self, peer: PeerId, fragment: int, now: Instant) -> bool:
        """Whether `peer` may ask for `fragment` once more; counts the request if so."""
        key = (peer, FragmentId(fragment))
        bucket = self._buckets.setdefault(key, _Bucket(REQUEST_BURST, now))
        refill = (now - bucket.filled_at) * REQUESTS_PER_S
        bucket.requests = min(REQUEST_BURST, bucket.requests + refill)
        bucket.filled_at = now
        if bucket.requests < 1:
            return False
        bucket.requests -= 1
        return True

    def _refusals(self, record: _Record, now: Instant) -> int:
        if record.refusals == 0:
            return 0
        hours = max(0.0, now - record.excluded_until) / FORGIVENESS_S
        return max(0, record.refusals - int(hours))
