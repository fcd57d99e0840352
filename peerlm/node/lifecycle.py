"""Where a node stands in the life of a run, as a pure function of a few facts.

    starting ─▶ seeking ─▶ fetching ─▶ installing ─▶ ready ⇄ training
                  └── own snapshot, or (origin) fresh weights ──▶┘      │ budget reached
                                     done ◀─ settling ◀─ draining ◀─────┘

*Starting*: a node that decides by itself which stages it holds has not decided yet. *Aside*: it is to hold none, and stays a
member without weights. *Seeking*: no weights yet; find out whether somebody has newer ones than our own snapshot.
*Ready*: has weights and mixes, but takes no inner steps (paused, not a trainer, text unusable).
*Draining*: the worker hands in its last progress. *Settling*: mix only, until the spread is
small; nobody decides for the others, everybody sees from gossip when all are settled. *Done*: the
weights are final; the node stays to serve and donate. A larger budget brings it back to ready. Who
comes too late to settle with the others fetches the finished weights from one that is done.

Fresh nodes must never pass for experienced ones: only the run's origin makes initial weights, and
only when no active member is in sight and it has no snapshot. If it finds later that the others are
far ahead, it was a *stray*, and fetches theirs.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peerlm.node.facts import Facts

GRACE_S = 4.0
"""How long a starting node that knows addresses looks for others before it goes on by itself."""

FRESH_GRACE_S = 10.0
"""The same before an origin that has lost its snapshot makes initial weights again."""

BEHIND_STEPS = 8.0
"""A snapshot this many outer steps of the whole swarm behind is not worth resuming from while
somebody has newer weights, nor is one that has seen less than half of the run; less is made good by
mixing."""


class Phase(StrEnum):
    STARTING = "starting"
    ASIDE = "aside"
    SEEKING = "seeking"
    FETCHING = "fetching"
    INSTALLING = "installing"
    READY = "ready"
    TRAINING = "training"
    DRAINING = "draining"
    SETTLING = "settling"
    DONE = "done"
    LEAVING = "leaving"


NEXT: dict[Phase, tuple[Phase, ...]] = {
    Phase.STARTING: (Phase.SEEKING, Phase.ASIDE),
    Phase.ASIDE: (),
    Phase.SEEKING: (Phase.FETCHING, Phase.INSTALLING, Phase.READY),
    Phase.FETCHING: (Phase.SEEKING, Phase.INSTALLING),
    Phase.INSTALLING: (Phase.SEEKING, Phase.READY),
    Phase.READY: (Phase.TRAINING, Phase.DRAINING, Phase.FETCHING),
    Phase.TRAINING: (Phase.READY, Phase.DRAINING, Phase.FETCHING),
    Phase.DRAINING: (Phase.SETTLING, Phase.READY),
    Phase.SETTLING: (Phase.DONE, Phase.READY, Phase.FETCHING),
    Phase.DONE: (Phase.READY, Phase.FETCHING),
    Phase.LEAVING: (),
}
"""Legal transitions; any phase may go to leaving."""


def decide(phase: Phase, f: Facts) -> Phase:
    """The phase that follows from the facts; the same one when nothing is to change."""
    match phase:
        case Phase.READY | Phase.TRAINING:
            return _while_running(f)
        case Phase.STARTING:
            if f.is_aside:
                return Phase.ASIDE
            return Phase.SEEKING if f.is_placed else phase
        case Phase.SEEKING:
            return _after_seeking(f)
        case Phase.FETCHING:
            if f.state_arrived:
                return Phase.INSTALLING
            return phase if f.donors or f.keepers else Phase.SEEKING
        case Phase.INSTALLING:
            return Phase.READY if f.installed else phase
        case Phase.DRAINING:
            if f.swarm_tokens < f.budget:
                return Phase.READY
            return Phase.SETTLING if f.worker_drained else phase
        case Phase.SETTLING:
            return _while_settling(f)
        case Phase.DONE:
            if f.swarm_tokens < f.budget:
                return Phase.READY
            return Phase.FETCHING if f.is_outdone and f.donors_done else phase
        case Phase.ASIDE | Phase.LEAVING:
            return phase


def _after_seeking(f: Facts) -> Phase:
    if f.installed:
        return Phase.READY
    grace_s = FRESH_GRACE_S if f.snapshot_tokens is None else GRACE_S
    alone = not f.donors and (f.waited_s >= grace_s or not f.addresses_known)
    if f.snapshot_tokens is None:
        if f.donors or f.keepers:
            return Phase.FETCHING
        return Phase.INSTALLING if f.origin and alone and f.corpus_ready else Phase.SEEKING
    if f.has_final:
        return Phase.INSTALLING
    if f.donors and (f.donors_done or is_behind(f)):
        return Phase.FETCHING
    return Phase.INSTALLING if alone or f.donors else Phase.SEEKING


def is_behind(f: Facts) -> bool:
    assert f.snapshot_tokens is not None, "no snapshot to be behind with"
    missed = f.swarm_tokens - f.snapshot_tokens
    return missed > min(BEHIND_STEPS * f.tokens_per_round, f.snapshot_tokens)


def _while_running(f: Facts) -> Phase:
    if f.is_stray and f.donors:
        return Phase.FETCHING
    if f.swarm_tokens >= f.budget:
        return Phase.DRAINING
    return Phase.TRAINING if f.may_train and f.corpus_ready else Phase.READY


def _while_settling(f: Facts) -> Phase:
    if f.swarm_tokens < f.budget:
        return Phase.READY
    if f.has_final or f.settled_everywhere:
        return Phase.DONE
    if (f.donors_done and not f.settled) or (f.is_stray and f.donors):
        return Phase.FETCHING
    return Phase.DONE if f.settle_overdue else Phase.SETTLING
