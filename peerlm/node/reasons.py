"""Why a node is in its phase and no further, in words for a person who waits for it.

What is in the way is known to many parts of the node's work; here it is put in the order in which somebody can do
something about it. A phase that needs no words has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peerlm.node.lifecycle import Phase

if TYPE_CHECKING:
    from peerlm.node.work import Work


def reason_of(work: Work) -> str:
    """A line; empty if its phase needs no words."""
    match work.phase:
        case Phase.STARTING:
            return "looking which stages of the model it should hold"
        case Phase.ASIDE:
            return "holds no part of the model (host.stages = none): it keeps chunks, makes token shards, asks for texts"
        case Phase.SEEKING:
            return _why_seeking(work)
        case Phase.FETCHING if (unheld := work.unheld()) and work.seen.donors:
            names = ", ".join(map(str, unheld))
            return f"nobody here holds stage {names} of the model: asking for a copy of its weights"
        case Phase.FETCHING:
            return "fetching weights from peers"
        case Phase.TRAINING if lacking := work.lacking():
            names = ", ".join(map(str, lacking))
            return f"nobody trains stage {names} of the model: `peerlm join` a node with --host {lacking[0]}"
        case Phase.READY:
            if work.paused:
                return "paused: `peerlm resume` goes on"
            if not work.may_train:
                return "this node does not train (its role or node.toml train.enabled)"
            return work.reading.line
    return ""


def _why_seeking(work: Work) -> str:
    if work.origin and not work.reading.can_train:
        return work.reading.line
    if not work.hosting.is_whole and work.seen.swarm_tokens and work.seen.donors:
        return "waiting for a member that has the weights of the stages this node is to hold"
    return "looking for a member that has weights"
