"""Why a node is in its phase and no further, and what is in the way between it and a member, in words for a person.

What is in the way is known to many parts of the node; here it is put in the order in which somebody can do
something about it. What needs no words has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peerlm.membership.address_book import address_of
from peerlm.membership.member import Member, State
from peerlm.node.lifecycle import Phase
from peerlm.types import Instant, Role

if TYPE_CHECKING:
    from peerlm.node.company import Company
    from peerlm.node.work import Work

OTHER_PLAN = "another plan"
"""What is said of a member with one begins so."""


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


def trouble_with(company: Company, work: Work, member: Member, now: Instant) -> str:
    """Why a member is in its state, or why this node does not mix with it; empty if nothing is in the way."""
    peer, record = member.peer, member.record
    error = company.contacts.error_at(address_of(record.host, record.intro_port))
    why = f": {error}" if error else ""
    if member.state is State.LEFT:
        return "it said goodbye"
    if peer in company.refused_plans:  # it hears nothing else from us, and may look dead
        line = company.refused_plans[peer]  # in our words, or in the peer's
        return line if line.startswith(OTHER_PLAN) else f"{OTHER_PLAN}: {line}"
    if member.state is State.DEAD:
        return f"it answered nobody in time{why}"
    if member.state is State.SUSPECT:
        return f"it did not answer a probe, and may refute{why}"
    if work.exchanges.outcomes.scores.excluded(peer, now):
        return "left out for a while: its weights failed this node's checks"
    if work.exchanges.outcomes.scores.at_odds(peer, now):
        return "it leaves this node out for a while: our weights failed its checks"
    if not company.contacts.is_linked(peer) and error:
        return f"no connection{why}"
    if not company.allows(peer, Role.TRAIN):
        return "its invite does not let it train"
    if not record.host and company.dial_back.guarded:
        return "nobody can dial it, nor this node: they meet through others alone"
    if not record.host or not company.dial_back.can_dial(peer):
        return "it cannot be dialled from here: exchanges begin at its end"
    return ""
