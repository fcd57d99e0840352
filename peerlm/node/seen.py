"""The swarm as it matters to work: who may be mixed with, who shares the text, who donates.

Company knows members, links, roles and what each says of itself; work wants to know whom it can do
what with. `read_swarm` turns the one into the other. A peer counts only by its latest word on
itself, under a plan of our revision, and as far as its certificate allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from peerlm.node.lifecycle import Phase
from peerlm.swarm.hosting import Hosting, Run
from peerlm.types import PeerId, Role

if TYPE_CHECKING:
    from peerlm.node.company import Company  # work is shown what is seen, never company itself


HOLDERS = frozenset({Role.TRAIN, Role.STORE, Role.SERVE})
"""Roles that let a peer have the weights and the text."""


class Seen(NamedTuple):
    """The swarm as it matters to work; members sorted, without this node."""

    partners: tuple[PeerId, ...] = ()
    """Live, active, of the same plan: whom an exchange may be started with."""
    trainers: tuple[PeerId, ...] = ()
    """Live and training: who shares the text."""
    donors: tuple[PeerId, ...] = ()
    done: tuple[PeerId, ...] = ()
    """Donors that say the run is done."""
    unsettled: int = 0
    """Live active members that have not settled."""
    swarm_tokens: int = 0
    addresses_known: bool = False
    runs: Mapping[PeerId, Run] = MappingProxyType({})
    """The stages that each partner and donor holds."""
    servers: tuple[PeerId, ...] = ()
    """Those that have weights and may serve: who advances texts. The model is the same in each revision of the plan."""
    neighbours: tuple[PeerId, ...] = ()
    """Trainers that the stream can come from or go to."""


def read_swarm(company: Company, hosting: Hosting, *, expects_others: bool) -> Seen:
    """What company knows now. `expects_others`: somebody could be out there, seen or not."""
    partners, trainers, donors = [], [], []
    done, unsettled, servers = [], 0, []
    runs: dict[PeerId, Run] = {}
    for peer in company.linked():
        vitals, roles = company.vitals_of(peer), company.gate.roles_of(peer)
        if vitals is None or HOLDERS.isdisjoint(roles):
            continue
        may_train = Role.TRAIN in roles
        runs[peer] = (vitals.first_stage, vitals.last_stage)
        if vitals.active and vitals.phase != Phase.LEAVING and Role.SERVE in roles:
            servers.append(peer)
        if vitals.active and vitals.plan_revision == company.plan.revision:
            donors.append(peer)
            if vitals.phase == Phase.DONE and vitals.settled:
                done.append(peer)
            if may_train and vitals.phase != Phase.LEAVING:
                partners.append(peer)
                unsettled += not vitals.settled
        if may_train and vitals.phase == Phase.TRAINING:
            trainers.append(peer)
    return Seen(
        partners=tuple(partners),
        trainers=tuple(trainers),
        donors=tuple(donors),
        done=tuple(done),
        unsettled=unsettled,
        swarm_tokens=company.ledger.total(),
        addresses_known=expects_others,
        runs=runs,
        servers=tuple(servers),
        neighbours=hosting.neighbours({peer: runs[peer] for peer in trainers}),
    )
