"""A placement for a person: which node hosts which stage, why, how busy it is, and where one death would hurt.

Made from one node's view, so it is as old as that. Nothing is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass

from peerlm.swarm.worth import NOBODY, NONE, TIED, Demand, Host, Hostings, View
from peerlm.types import PeerId


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage. hosts: those ready; coming: those that load it; leaving: those of `hosts` that drain or will drop it.

    rate: tokens a second it could do at best, beside what its hosts do for slower stages. A stage with one host is a
    single point of failure.
    """

    stage: int
    hosts: tuple[PeerId, ...]
    coming: tuple[PeerId, ...]
    leaving: tuple[PeerId, ...]
    rate: float
    is_slowest: bool

    def is_single(self) -> bool:
        return len(self.hosts) == 1

    def is_unhosted(self) -> bool:
        return not self.hosts


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node. load: part of its time that the swarm needs at the speed of its slowest stage, 0 to 1.

    spare: bytes that it has free beyond what it hosts and loads, device and host together.
    """

    peer: PeerId
    hosts: range
    target: range
    load: float
    spare: int
    why: str


@dataclass(frozen=True, slots=True)
class Picture:
    """rate: tokens a second of the whole swarm at best, by the hosts that are ready."""

    stages: tuple[StageRow, ...]
    nodes: tuple[NodeRow, ...]
    rate: float


def explain(demand: Demand, view: View, replicas: int) -> Picture:
    """Rows by stage, and by PeerId."""
    members = {peer: view[peer] for peer in sorted(view) if demand.counts(view[peer].capability)}
    ready = Hostings(demand, ((h.capability, h.hosts) for h in members.values()), replicas)
    rates = ready.rates_with(NOBODY, NONE)
    slowest = min(rates)
    stages = tuple(
        StageRow(
            stage=stage,
            hosts=tuple(p for p, h in members.items() if stage in h.hosts),
            coming=tuple(
                p for p, h in members.items() if stage in h.target and stage not in h.hosts
            ),
            leaving=tuple(p for p, h in members.items() if stage in h.hosts and _leaves(h, stage)),
            rate=rate,
            is_slowest=rate <= slowest * TIED,
        )
        for stage, rate in enumerate(rates)
    )
    nodes = tuple(
        NodeRow(
            peer=peer,
            hosts=host.hosts,
            target=host.target,
            load=slowest / own
            if (own := min((rates[s] for s in host.hosts), default=0.0))
            else 0.0,
            spare=_spare(demand, host),
            why=_why(demand, host, ready.counts, {row.stage for row in stages if row.is_slowest}),
        )
        for peer, host in members.items()
    )
    return Picture(stages, nodes, slowest)


def _leaves(host: Host, stage: int) -> bool:
    return host.draining or stage not in host.target


def _spare(demand: Demand, host: Host) -> int:
    memory, needs = (
        host.capability.memory,
        [demand.memory[r] for r in (host.hosts, host.target) if r],
    )
    return max(0, memory.total() - max((need.total() for need in needs), default=0))


def _why(demand: Demand, host: Host, counts: list[int], slowest: set[int]) -> str:
    if host.draining:
        return "leaving: serves until others do"
    if not host.is_settled():
        return f"loading stages {shown(host.target)}"
    if not host.hosts:
        fits = any(demand.allows(host.capability, range(s, s + 1)) for s in range(len(counts)))
        return "choosing" if fits else "no stage fits"
    alone = [stage for stage in host.hosts if counts[stage] == 1]
    if alone:
        return f"only host of stage{'s' * (len(alone) > 1)} {', '.join(map(str, alone))}"
    if not slowest.isdisjoint(host.hosts):
        return "hosts the slowest stages"
    return "hosts stages that are faster than the slowest"


def shown(run: range) -> str:
    """`2-4`, or `-` for none; both ends are hosted."""
    if not run:
        return "-"
    return str(run.start) if len(run) == 1 else f"{run.start}-{run[-1]}"
