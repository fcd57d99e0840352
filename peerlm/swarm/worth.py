"""Who hosts which stages, and what that is worth: the facts and the measure that `placement` decides by.

A node hosts one contiguous run of stages, written as a `range`; `range(0)` is none. What it says of itself in
gossip is a `Host`; a `View` is what one node has heard of all live members, itself among them. Views are some
seconds old and differ a little between nodes, and nothing here minds.

What a set of hostings is worth (`Worth`) is compared in this order: stages that nobody hosts; hosts that
stages lack to `replicas`; then the rates of the stages (see `fluid`), slowest first.

A node far away computes no faster than its line carries activations: with a run of stages its speed counts as at
most link · FLOPs(run) / bytes that cross the two ends of the run, so whoever has a thin line is worth more with a
long run, and a node with all stages needs no line at all. A long way holds it up too: of each text no more than a window
is under way at once, so with a run it passes at most its part of a window while that goes there and back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import add

from peerlm.model.stages import BACKWARD, Stage, memory_of
from peerlm.swarm.fluid import rates
from peerlm.types import Memory, PeerId, Role

NONE = range(0)

ALIKE = 0.005
"""Rates closer than this are the same when options are put in order."""

LOAD_S_MAX = 300.0
"""Nobody announces more new stages at once than its line loads in this time, or one: what is announced counts as
done, so it has to come true soon. It can take more later."""

TIED = 1.01
"""Stages up to this much faster than the slowest are as slow as it."""


@dataclass(frozen=True, slots=True)
class Capability:
    """What a node says it can do.

    memory: bytes free for hosting, what it hosts already not taken off, room for activations taken off.
    speed: FLOPs a second, measured: tokens a second times FLOPs a token of what it hosts.
    link_bytes_s: what its line carries one way. delay_s: one way between it and its neighbours; 0 if not known.
    paces: tokens a second with one module of each of `KINDS`, 0 for a kind that the plan has not; empty: not known, and then
        it is equally fast with all.
    wish: the stages it is restricted to by its owner; None: any.
    """

    memory: Memory
    speed: float
    link_bytes_s: float
    roles: frozenset[Role]
    wish: range | None = None
    delay_s: float = 0.0
    paces: tuple[float, ...] = ()


NOBODY = Capability(Memory(0, 0), 0.0, 0.0, frozenset())


@dataclass(frozen=True, slots=True)
class Host:
    """A live member. It hosts `hosts` now; `target` is what it is loading, the same when it is not. While nothing
    is to be dropped, `hosts` grows towards `target` stage by stage.

    draining: it is going to leave, and hosts only until others do.
    """

    capability: Capability
    hosts: range = NONE
    target: range = NONE
    draining: bool = False

    def is_settled(self) -> bool:
        return self.hosts == self.target


View = Mapping[PeerId, Host]
"""Live members by their id. Whoever makes it from messages leaves out what cannot be: runs beyond the last stage,
numbers that are negative or none."""


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """What the stages of a model ask of their hosts, for training or for inference.

    costs: FLOPs of a token at each stage. memory: what each run of stages takes. fetch: bytes to load of each stage.
    crossing: activation bytes of a token over each boundary and back: `crossing[s]` is that before stage s (the
    first follows the last). roles: members with one of these count. window: tokens of one text that are under way at once; 0: any
    number. kinds: of each stage, how many modules of each kind it has; may be empty.
    """

    costs: tuple[float, ...]
    memory: Mapping[range, Memory]
    fetch: tuple[int, ...]
    crossing: tuple[int, ...]
    roles: frozenset[Role]
    window: int = 0
    kinds: tuple[tuple[int, ...], ...] = ()
    _cost_to: tuple[float, ...] = field(init=False)
    _fetch_to: tuple[int, ...] = field(init=False)
    _kinds_to: tuple[tuple[int, ...], ...] = field(init=False)
    """Sums of the stages before each."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_cost_to", (0.0, *accumulate(self.costs)))
        object.__setattr__(self, "_fetch_to", (0, *accumulate(self.fetch)))
        none = (0,) * len(self.kinds[0]) if self.kinds else ()
        sums = accumulate(self.kinds, lambda a, b: tuple(map(add, a, b)), initial=none)
        object.__setattr__(self, "_kinds_to", tuple(sums))

    @classmethod
    def of(cls, cut: Sequence[Stage], is_training: bool = True, window: int = 0) -> Demand:
        """For training: nodes that train. For inference: nodes that serve, and those that train count with what
        they host anyway."""
        runs = [range(a, b) for a in range(len(cut)) for b in range(a + 1, len(cut) + 1)]
        both_ways = 2 if is_training else 1
        return cls(
            costs=tuple(max(1.0, s.flops * (1.0 + BACKWARD * is_training)) for s in cut),
            memory={run: memory_of(cut, run, is_training) for run in runs},
            fetch=tuple(s.training.host if is_training else s.inference.total() for s in cut),
            crossing=tuple(s.boundary_bytes * both_ways for s in (cut[-1], *cut)),
            roles=frozenset({Role.TRAIN} if is_training else {Role.TRAIN, Role.SERVE}),
            window=window,
            kinds=tuple(s.kinds for s in cut),
        )

    def counts(self, capability: Capability) -> bool:
        return not self.roles.isdisjoint(capability.roles)

    def allows(self, capability: Capability, run: range) -> bool:
        """Whether such a node may host `run`: by its role, its owner's wish and its memory."""
        if not run:
            return True
        wish = capability.wish
        return (
            self.counts(capability)
            and run.stop <= len(self.costs)
            and (wish is None or (wish.start <= run.start and run.stop <= wish.stop))
            and capability.memory.holds(self.memory[run])
        )

    def computes(self, capability: Capability, run: range) -> float:
        """FLOPs a second with `run`, by what it is made of where that is known."""
        if not (self.kinds and capability.paces and run):
            return capability.speed
        before, behind, seconds = self._kinds_to[run.start], self._kinds_to[run.stop], 0.0
        for pace, since, count in zip(capability.paces, before, behind, strict=True):
            if count > since:
                if pace <= 0.0:
                    return capability.speed
                seconds += (count - since) / pace
        return (self._cost_to[run.stop] - self._cost_to[run.start]) / seconds

    def speed(self, capability: Capability, run: range) -> float:
        """FLOPs a second that a host of `run` has for it: what it computes, what its line carries, or what a window allows
        that goes there and back, whichever is least. As many nodes read text as host a stage, about, so a host has one window."""
        crossing = self.crossing[run.start] + self.crossing[run.stop]
        computes = self.computes(capability, run)
        if not crossing or len(run) == len(self.costs):
            return computes
        flops = self._cost_to[run.stop] - self._cost_to[run.start]
        speed = min(computes, capability.link_bytes_s * flops / crossing)
        if not self.window or not capability.delay_s:
            return speed
        part = self.window * len(run) / len(self.costs)
        return min(speed, flops * part / (2 * capability.delay_s))

    def load_s(self, capability: Capability, run: range, hosted: range) -> float:
        """Seconds to load what `run` has beyond `hosted`."""
        both, to = overlap(run, hosted), self._fetch_to
        new = to[run.stop] - to[run.start]
        if both:
            new -= to[both.stop] - to[both.start]
        return new / max(1.0, capability.link_bytes_s)

    def options(
        self, capability: Capability, hosted: range, load_s_max: float = LOAD_S_MAX
    ) -> list[range]:
        """Runs that such a node, hosting `hosted`, could host and that are part of no other of them: more stages
        are never worth less, so the others need no look. What is new in them loads within `load_s_max`, or is one stage.
        """
        found, widest = list[range](), 0
        least = max(self.fetch) / max(1.0, capability.link_bytes_s)
        for start in range(len(self.costs)):
            stop = max(start, widest)
            while stop < len(self.costs):
                run = range(start, stop + 1)
                if not self.allows(capability, run):
                    break
                if self.load_s(capability, run, hosted) > max(load_s_max, least):
                    break
                stop += 1
            if stop > max(start, widest):
                widest = stop
                found.append(range(start, stop))
        return found


@dataclass(frozen=True, slots=True)
class Worth:
    """What hostings are worth. `rates` ascending; those of no interest may be inf."""

    unhosted: int
    lacking: int
    rates: tuple[float, ...]

    def order(self) -> tuple[object, ...]:
        """Greater is better; differences below `ALIKE` are none."""
        steps = (
            round(math.log(rate) / ALIKE)
            if 0 < rate < math.inf
            else math.copysign(math.inf, rate - 1)
            for rate in self.rates
        )
        return -self.unhosted, -self.lacking, tuple(steps)

    def covers_more_than(self, other: Worth) -> bool:
        return (self.unhosted, self.lacking) < (other.unhosted, other.lacking)

    def is_faster_than(self, other: Worth, by: float) -> bool:
        """Whether the slowest stages gain at least a factor `by`: the first of them or, that being none the
        slower, another that is as slow. Stages that hold nobody up are worth no move."""
        if (self.unhosted, self.lacking) != (other.unhosted, other.lacking):
            return False
        for mine, others in zip(self.rates, other.rates, strict=True):
            if others > other.rates[0] * TIED or mine < others * (1 - 1e-6):
                return False
            if mine > others * by:
                return True
        return False


def overlap(one: range, other: range) -> range:
    """The stages in both."""
    return range(max(one.start, other.start), min(one.stop, other.stop)) or NONE


class Hostings:
    """Hostings of members without one of them, to see what it could add.

    hosted: by what run each member counts. late: a stage for each of them that is not to be counted on for it yet,
    though its speed is.
    """

    def __init__(
        self,
        demand: Demand,
        hosted: Iterable[tuple[Capability, range]],
        replicas: int,
        late: Iterable[int] = (),
    ) -> None:
        self._demand, self._replicas = demand, replicas
        self.counts = [0] * len(demand.costs)
        self._hosts: dict[range, list[Capability]] = {}
        self._speeds: dict[range, float] | None = None
        hosts, roles = self._hosts, demand.roles
        for capability, run in hosted:
            if run and not roles.isdisjoint(capability.roles):
                if run in hosts:
                    hosts[run].append(capability)
                else:
                    hosts[run] = [capability]
        for run, capabilities in self._hosts.items():
            for stage in run:
                self.counts[stage] += len(capabilities)
        for stage in late:
            self.counts[stage] -= 1

    @property
    def speeds(self) -> dict[range, float]:
        """FLOPs a second of all that host exactly these stages."""
        if self._speeds is None:
            self._speeds = {
                run: sum(self._demand.speed(capability, run) for capability in capabilities)
                for run, capabilities in self._hosts.items()
            }
        return self._speeds

    def lacking(self, run: range = NONE) -> list[int]:
        """Stages with fewer than `replicas` hosts when one more node hosts `run`."""
        least = self._replicas
        return [s for s, count in enumerate(self.counts) if count + (s in run) < least]

    def cover_with(self, run: range) -> tuple[int, int]:
        """(stages without host, hosts that stages lack) when one more node hosts `run`."""
        unhosted = lacking = 0
        for stage, count in enumerate(self.counts):
            count += stage in run
            unhosted += not count
            lacking += max(0, self._replicas - count)
        return unhosted, lacking

    def with_host(self, capability: Capability, run: range, within: float = 0.0) -> Worth:
        """What it is worth when a node of this capability hosts `run` besides. `within`: see `fluid.rates`."""
        return Worth(
            *self.cover_with(run), rates=tuple(sorted(self.rates_with(capability, run, within)))
        )

    def rates_with(self, capability: Capability, run: range, within: float = 0.0) -> list[float]:
        """Of each stage, when a node of this capability hosts `run` besides."""
        speeds = self.speeds
        if run:
            speed = self._demand.speed(capability, run)
            speeds = {**speeds, run: speeds.get(run, 0.0) + speed}
        return rates(speeds, self._demand.costs, within)
