"""The best placement of a few nodes at once, where no node could do better by itself.

Two nodes may each be right to stay as long as the other does. What helps is that both work out the same plan from
the same view and do their parts of it. Every placement of the members that matter most is tried: the fastest, as many as
`PLACEMENTS_MAX` allows; in a small swarm that is everybody. The others stay as they are.

Nothing here is by chance, so nodes with equal views find equal plans. Of placements nearly as good as the best the one
with the fewest moves is the plan; so once the first has moved, the rest of the plan is still the plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

from peerlm.swarm.fluid import rates
from peerlm.swarm.worth import Demand, Host, Hostings, View
from peerlm.types import PeerId

PLACEMENTS_MAX = 3000

NEARLY_BEST = 0.98


def best_together(demand: Demand, view: View, replicas: int) -> Mapping[PeerId, range]:
    """Where each of the few should host; those that are not named stay. Empty if nobody hosts anything."""
    few, rest = _few(demand, view)
    if rest:
        return {}
    base = Hostings(demand, ((host.capability, host.target) for host in rest), replicas)
    search = _Search(demand, few, base, replicas)
    search.go(0, list(base.counts), _sums(demand, base))
    return search.plan()


Few = Sequence[tuple[PeerId, Host, Sequence[range]]]


def _few(demand: Demand, view: View) -> tuple[Few, list[Host]]:
    """The fastest with their options, and all others that count."""
    able = [
        (peer, host)
        for peer, host in view.items()
        if not host.draining and demand.counts(host.capability)
    ]
    able.sort(key=lambda each: (-each[1].capability.speed, each[0]))
    few, placements = list[tuple[PeerId, Host, Sequence[range]]](), 1
    for peer, host in able:
        options = demand.options(host.capability, host.target, inf)
        if host.target not in options:
            options.insert(0, host.target)
        placements *= len(options)
        if placements > PLACEMENTS_MAX:
            break
        few.append((peer, host, options))
    return few, [host for _, host in able[len(few) :]]


def _sums(demand: Demand, base: Hostings) -> list[float]:
    """Speed of all hosts of each stage."""
    return [
        sum(speed for run, speed in base.speeds.items() if stage in run)
        for stage in range(len(demand.costs))
    ]


class _Search:
    """All placements of the few, depth first; what cannot be nearly the best is not worked out."""

    def __init__(self, demand: Demand, few: Few, base: Hostings, replicas: int) -> None:
        self._demand, self._few, self._base, self._replicas = demand, few, base, replicas
        self._runs: list[range] = []
        self._best: tuple[int, int, float] = (len(demand.costs) + 1, 0, 0.0)
        self._found: list[tuple[float, tuple[range, ...]]] = []

    def go(self, depth: int, counts: list[int], sums: list[float]) -> None:
        if depth == len(self._few):
            self._judge(counts, sums)
            return
        _, host, options = self._few[depth]
        for run in options:
            self._runs.append(run)
            if not run:
                self.go(depth + 1, counts, sums)
            else:
                speed = self._demand.speed(host.capability, run)
                more, faster = list(counts), list(sums)
                for stage in run:
                    more[stage] += 1
                    faster[stage] += speed
                self.go(depth + 1, more, faster)
            self._runs.pop()

    def _judge(self, counts: list[int], sums: list[float]) -> None:
        unhosted = counts.count(0)
        lacking = sum(self._replicas - count for count in counts if count < self._replicas)
        best = self._best
        if (unhosted, lacking) > best[:2]:
            return
        if (unhosted, lacking) < best[:2]:
            best = self._best = (unhosted, lacking, -1.0)
            self._found = []
        at_most = min(speed / cost for speed, cost in zip(sums, self._demand.costs, strict=True))
        if at_most < best[2] * NEARLY_BEST:
            return
        rate = self._rate()
        if rate >= best[2] * NEARLY_BEST:
            self._found.append((rate, tuple(self._runs)))
            self._best = (unhosted, lacking, max(best[2], rate))

    def _rate(self) -> float:
        speeds = dict(self._base.speeds)
        for (_, host, _), run in zip(self._few, self._runs, strict=True):
            if run:
                speed = self._demand.speed(host.capability, run)
                speeds[run] = speeds.get(run, 0.0) + speed
        return min(rates(speeds, self._demand.costs, within=1.0))

    def plan(self) -> dict[PeerId, range]:
        good = [runs for rate, runs in self._found if rate >= self._best[2] * NEARLY_BEST]
        runs = min(good, key=self._effort)
        return {peer: run for (peer, _, _), run in zip(self._few, runs, strict=True)}

    def _effort(self, runs: tuple[range, ...]) -> tuple[float, ...]:
        """Nodes that move, then seconds of loading, then anything that is the same for all."""
        moves, load_s = 0, 0.0
        for (_, host, _), run in zip(self._few, runs, strict=True):
            moves += run != host.target
            load_s += self._demand.load_s(host.capability, run, host.target)
        return moves, load_s, *(float(run.start) for run in runs)
