"""How many tokens a second a placement could do, if every node divided its time as well as can be.

Nodes that host the same run of stages are one *group* with a speed (FLOPs a second). A token takes `cost` FLOPs
at each stage, one after another, so the swarm is as fast as its slowest stage. A node with several stages may
divide its time between them in any way: the best division makes the slowest stage as fast as possible, then the
next slowest, and so on (the max-min fair rates). It is an optimum of a fluid: no queue, no delay, no batch;
routing has to come near to it.

Rate T is possible if each stage s can draw T·cost(s) from the groups that host it. Since what a group hosts is a
contiguous run, the earliest-deadline rule decides that: go through the stages in order, and take from the
group whose run ends first. Where it runs dry, the stages it has run dry with are a set S whose hosts together are
too slow, so T ≤ speed of hosts(S) / cost(S). Trying that bound next ends after a few rounds at the exact optimum
(Dinkelbach 1967); S is the bottleneck. Its hosts have no time left, so what remains is the same problem without S.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NEARLY = 1 - 1e-9
"""Rounding of sums, not a tolerance of the rule."""


def rates(
    speeds: Mapping[range, float], costs: Sequence[float], within: float = 0.0
) -> list[float]:
    """Tokens a second of each stage, max-min fair; 0 for one without host.

    speeds: FLOPs a second of all nodes that host exactly these stages. costs: FLOPs of a token at each stage, above 0.
    within: with 1.1, all stages above 1.1 times the slowest are given as inf: they are not worked out.
    """
    found = [float("inf")] * len(costs)
    stages = list(range(len(costs)))
    groups = [(run.start, run.stop, speed) for run, speed in speeds.items() if run and speed > 0]
    limit = float("inf")
    while stages:
        rate, slow = _bottleneck(groups, costs, stages)
        if rate > limit:
            break
        if within and limit == float("inf"):
            limit = rate * within
        for stage in slow:
            found[stage] = rate
        stages = [stage for stage in stages if stage not in slow]
        groups = [group for group in groups if slow.isdisjoint(range(group[0], group[1]))]
    return found


def _bottleneck(
    groups: list[tuple[int, int, float]], costs: Sequence[float], stages: list[int]
) -> tuple[float, set[int]]:
    """The highest rate that all of `stages` can have, and a set of them whose hosts have no time left then."""
    speed = sum(group[2] for group in groups)
    rate, slow = speed / sum(costs[stage] for stage in stages), set(stages)
    if not speed:
        return 0.0, slow
    groups = sorted(groups)
    while True:
        dry = _runs_dry(groups, costs, stages, rate * NEARLY)
        if not dry:
            return rate, slow
        hosts = sum(g[2] for g in groups if not dry.isdisjoint(range(g[0], g[1])))
        lower = hosts / sum(costs[stage] for stage in dry)
        if lower >= rate:  # rounding alone
            return rate, slow
        rate, slow = lower, dry
        if not hosts:
            return 0.0, slow


def _runs_dry(
    groups: list[tuple[int, int, float]], costs: Sequence[float], stages: list[int], rate: float
) -> set[int]:
    """Stages whose hosts together cannot give `rate`; empty if all can have it. `groups` sorted."""
    left = [group[2] for group in groups]
    served: list[list[int]] = [[] for _ in groups]
    at_hand: list[tuple[int, int]] = []
    coming, count = 0, len(groups)
    for stage in stages:
        while coming < count and groups[coming][0] <= stage:
            at_hand.append((groups[coming][1], coming))
            coming += 1
        at_hand = sorted((stop, g) for stop, g in at_hand if stop > stage and left[g] > 0)
        need = rate * costs[stage]
        for _, group in at_hand:
            served[group].append(stage)
            if left[group] >= need:
                left[group] -= need
                need = 0.0
                break
            need -= left[group]
            left[group] = 0.0
        if need > 0:
            return _together(groups, served, stage)
    return set()


def _together(
    groups: list[tuple[int, int, float]], served: list[list[int]], stage: int
) -> set[int]:
    """`stage`, and all stages that its hosts gave time to, and theirs, and so on."""
    dry, new = {stage}, [stage]
    while new:
        at = new.pop()
        for (start, stop, _), others in zip(groups, served, strict=True):
            if start <= at < stop:
                fresh = [other for other in others if other not in dry]
                dry.update(fresh)
                new += fresh
    return dry
