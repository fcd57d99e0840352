"""Placement in a simulated swarm: nodes of real sizes, news that is late and lost, loading that takes its time.

Each node is a `decide` with a view, a mind and an rng of its own. What it announces reaches each other node after up
to `NEWS_S`, or, where that is lost, with the next sync. Who dies without a word stays in the others' views until the
failure detector has had its time: a ghost. Stages load as fast as the line of the node that loads; a switch is
at once. Weights of a stage can always be had from somebody, which holds for as long as a stage is never without
host. Speeds are measured with noise, again and again, and so is what memory is free.

What the truth is (who hosts what, who lives) is looked at every `SAMPLE_S`, and no node ever sees it.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from random import Random

from peerlm.config import Plan, preset, with_changes
from peerlm.model.stages import (
    BACKWARD,
    NOTHING,
    kind_flops,
    stage_count,
    stages,
    window_tokens,
)
from peerlm.sim.clock import Clock
from peerlm.sim.figures import Figure, quantiles
from peerlm.swarm.offering import Offering
from peerlm.swarm.placement import REPLICAS, Decision, Mind, Verb, decide, handed_over, next_stage
from peerlm.swarm.worth import NOBODY, NONE, Capability, Demand, Host, Hostings, overlap
from peerlm.types import Instant, Memory, PeerId, Role

NEWS_S = (0.1, 3.0)
"""How long news takes to a node."""

NEWS_LOST = 0.1
"""Part of the news that a node hears only with the next sync."""

SYNC_S = (3.0, 20.0)

DETECTED_S = (2.0, 8.0)
"""From a death to the first verdict; then it spreads as news."""

DRAIN_S = 300.0
"""Whoever leaves goes after this long, handed over or not."""

MEASURE_S = 600.0
SPEED_NOISE = 0.03
"""Speeds are measured this often, with this standard deviation (of the logarithm)."""

MEMORY_NOISE = 0.03
"""The same of free memory: what else a machine does."""

SAMPLE_S = 10.0
JOIN_S = 600.0
WARM_UP_S = 7200.0
AGAIN_S = 3600.0
"""A node that hosts again within this time exactly what it had given up counts as a return."""

GB, MBIT_S, TFLOPS = 10**9, 10**6 / 8, 1e12


def plan_of(layers: int = 32) -> Plan:
    """A model of 4096 features and a vocabulary of 32,000. 32 layers are 6.6e9 parameters, of which training takes 80 GB
    on devices and 53 GB on hosts: more than any of `KINDS` has."""
    changes = {
        "model.dim": 4096,
        "model.heads": 32,
        "model.kv_heads": 32,
        "model.hidden": 11_008,
        "model.blocks": ("attention", "feedforward") * layers,
        "data.vocab": 32_000,
    }
    return with_changes(preset("gpt-124m"), changes, "sim placement")


# -------------------------------------------------------------------------------------- machines


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of machine: how common it is, and from what its memory, speed and line are drawn (log-uniform).

    device_gb: None where it computes in the host's memory. speed: TFLOP/s reached in training. delay_ms: one way to others.
    """

    share: float
    device_gb: tuple[float, float] | None
    host_gb: tuple[float, float]
    speed_tflops: tuple[float, float]
    link_mbit_s: tuple[float, float]
    delay_ms: tuple[float, float]


KINDS = (
    Kind(0.25, None, (16, 32), (0.3, 3), (10, 100), (5, 80)),  # laptops
    Kind(0.35, (8, 16), (16, 64), (4, 15), (20, 300), (5, 60)),  # desktops with a graphics card
    Kind(0.25, (24, 48), (32, 128), (20, 60), (50, 1000), (2, 60)),  # workstations
    Kind(0.15, (40, 80), (128, 512), (60, 200), (200, 1000), (1, 40)),  # servers
)

UNEVEN = (0.7, 1.4)
"""A machine's speed at one kind of module, of that which is drawn for it."""

FREE = 0.8
"""Part of the memory that is free for hosting; activations and everything else have the rest."""


def draw_capability(rng: Random) -> Capability:
    kind = rng.choices(KINDS, [kind.share for kind in KINDS])[0]
    device = None if kind.device_gb is None else int(_between(rng, kind.device_gb) * GB * FREE)
    speed = _between(rng, kind.speed_tflops) * TFLOPS
    return Capability(
        memory=Memory(device, int(_between(rng, kind.host_gb) * GB * FREE)),
        speed=speed,
        link_bytes_s=_between(rng, kind.link_mbit_s) * MBIT_S,
        roles=frozenset({Role.TRAIN}),
        delay_s=_between(rng, kind.delay_ms) / 1e3,
        paces=draw_paces(rng, speed),
    )


@functools.cache
def _kind_flops() -> tuple[int, ...]:
    return kind_flops(plan_of(1))


def draw_paces(rng: Random, speed: float) -> tuple[float, ...]:
    """Tokens a second with one module of each kind: no machine is equally good at all of them."""
    return tuple(
        speed * _between(rng, UNEVEN) / (max(1, flops) * (1 + BACKWARD)) for flops in _kind_flops()
    )


def draw_small(rng: Random, demand: Demand) -> Capability:
    """For swarms small enough to try every placement: memory for any number of stages, speeds of two decades."""
    many = rng.randint(1, len(demand.costs))
    room = max(need.total() for run, need in demand.memory.items() if len(run) == many)
    speed = _between(rng, (1, 100)) * TFLOPS
    return Capability(
        memory=Memory(None, room),
        speed=speed,
        link_bytes_s=_between(rng, (10, 1000)) * MBIT_S,
        roles=frozenset({Role.TRAIN}),
        delay_s=_between(rng, (1, 80)) / 1e3,
        paces=draw_paces(rng, speed),
    )


def _wavering(memory: Memory, by: float) -> Memory:
    device, part = memory.device, math.exp(by)
    return Memory(None if device is None else int(device * part), int(memory.host * part))


def _between(rng: Random, bounds: tuple[float, float]) -> float:
    return math.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1])))


# ----------------------------------------------------------------------------------------- nodes


@dataclass(slots=True, eq=False)
class Node:
    """One machine: what it is, what it has heard, what it thinks."""

    peer: PeerId
    true: Capability
    rng: Random
    said: Host
    """What it last announced; its own entry in its view is always this."""
    view: dict[PeerId, Host] = field(default_factory=dict)
    heard: dict[PeerId, int] = field(default_factory=dict)
    """Number of the last news of each peer, also of those gone."""
    offering: Offering = field(init=False)
    mind: Mind = field(default_factory=Mind)
    loaded: range = NONE
    """What is here of its target."""
    began_from: range = NONE
    """What it hosted when it announced its target."""
    loads: int = 0
    """Loadings begun: an end that is not the last one's is void."""
    look_at: float = math.inf
    is_alive: bool = True
    best_speed: float = 0.0
    """Of all runs it could host; 0: not worked out."""
    gave_up: list[tuple[float, range]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.offering = Offering(self.true.memory)

    def really(self) -> Capability:
        """What it offers, and how fast it is."""
        true = self.true
        return replace(self.said.capability, speed=true.speed, paces=true.paces)


GONE = 1 << 60
"""The number of the last news of all: a peer has left or is dead."""


@dataclass(slots=True)
class Tally:
    """What happened after the warm-up."""

    changes: int = 0
    """Joins, deaths and leaves."""
    first: int = 0
    """Nodes that hosted something for the first time."""
    takes: int = 0
    moves: int = 0
    """Switches of nodes that hosted something: without dropping, with."""
    withdrawn: int = 0
    returns: int = 0
    late_leaves: int = 0
    """Leaves at the deadline, before all was handed over."""
    decisions: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    at: float
    nodes: int
    unhosted: int
    """Stages without any host."""
    single: int
    """Stages with one."""
    lacking: int
    rate: float
    """Tokens a second of the slowest stage, by hosts that are ready."""
    bound: float
    """What no placement could exceed: every node with the run of stages at which its line hinders it least, all of that
    speed over all cost."""


class Swarm:
    """A virtual clock, its heap, and everybody."""

    def __init__(self, demand: Demand, seed: int, replicas: int = REPLICAS) -> None:
        self.demand, self.replicas, self.clock = demand, replicas, Clock()
        self.nodes: dict[PeerId, Node] = {}
        self.tally, self.samples = Tally(), list[Sample]()
        self.rng = Random(f"{seed} placement")
        self.is_at_rest = False
        """The run is over, and everybody knows."""
        self._digest = hashlib.blake2b(digest_size=16)
        self._numbers = itertools.count(1)
        self._seed = seed

    def digest(self) -> str:
        """Equal digests, equal runs: it takes in every decision that changed anything, with its time."""
        return self._digest.hexdigest()

    # ------------------------------------------------------------------------------ membership

    def join(self, capability: Capability) -> None:
        """A new machine: it learns what some member knows, and tells of itself."""
        number = next(self._numbers)
        peer = PeerId(hashlib.blake2b(f"{self._seed} {number}".encode(), digest_size=16).digest())
        host = Host(capability)
        rng = Random(f"{self._seed} {number}")
        node = Node(peer, capability, rng, host)
        if self.nodes:
            donor = self.nodes[self.rng.choice(list(self.nodes))]
            node.view, node.heard = dict(donor.view), dict(donor.heard)
        self.nodes[peer] = node
        self.tally.changes += 1
        self._say(node, host)
        self._wake(node, 1.0)
        self.clock.at(self.rng.uniform(0, MEASURE_S), self._measure, node)

    def kill(self, node: Node) -> None:
        """It is gone without a word."""
        self._end(node)
        self.tally.changes += 1
        self.clock.at(self.rng.uniform(*DETECTED_S), self._tell_gone, node)

    def leave(self, node: Node) -> None:
        """It says that it will go, and goes when others host what it does."""
        if not node.said.draining:
            self.tally.changes += 1
            self._say(node, replace(node.said, draining=True))
            self._wake(node, 0.0)
            self.clock.at(DRAIN_S, self._deadline, node)

    def _deadline(self, node: Node) -> None:
        if node.is_alive:
            self.tally.late_leaves += 1
            self._end(node)
            self._tell_gone(node)

    def _end(self, node: Node) -> None:
        node.is_alive = False
        del self.nodes[node.peer]

    # ------------------------------------------------------------------------------------ news

    def _say(self, node: Node, host: Host, is_worth_a_look: bool = True) -> None:
        node.said = node.view[node.peer] = host
        number = node.heard[node.peer] = node.heard.get(node.peer, 0) + 1
        self._spread(node.peer, number, host, is_worth_a_look)

    def _tell_gone(self, node: Node) -> None:
        self._spread(node.peer, GONE, None, True)

    def _spread(self, peer: PeerId, number: int, host: Host | None, wakes: bool) -> None:
        for other in self.nodes.values():
            if other.peer == peer:
                continue
            delay = self.rng.uniform(*NEWS_S)
            if self.rng.random() < NEWS_LOST:
                delay += self.rng.uniform(*SYNC_S)
            self.clock.at(delay, self._hear, other, peer, number, host, wakes)

    def _hear(self, node: Node, peer: PeerId, number: int, host: Host | None, wakes: bool) -> None:
        if not node.is_alive or node.heard.get(peer, 0) >= number:
            return
        node.heard[peer] = number
        if host is None:
            node.view.pop(peer, None)
        else:
            node.view[peer] = host
        if wakes:
            self._wake(node, 1.0)

    def _measure(self, node: Node) -> None:
        if node.is_alive:
            true, by = node.true, math.exp(self.rng.gauss(0, SPEED_NOISE))
            hosts, memory = node.said.hosts, true.memory
            held = self.demand.memory[hosts] if hosts else NOTHING
            node.offering.read(_wavering(memory, self.rng.gauss(0, MEMORY_NOISE)), held)
            capability = replace(
                node.said.capability,
                memory=node.offering.said,
                speed=true.speed * by,
                paces=tuple(pace * by for pace in true.paces),
            )
            self._say(node, replace(node.said, capability=capability), is_worth_a_look=False)
            self.clock.at(MEASURE_S, self._measure, node)

    # --------------------------------------------------------------------------------- looking

    def _wake(self, node: Node, within_s: float) -> None:
        self._look_at(node, self.clock.now + self.rng.uniform(0, within_s))

    def _look_at(self, node: Node, when: float) -> None:
        if when < node.look_at:
            node.look_at = when
            self.clock.on(Instant(when), self._look, node, when)

    def _look(self, node: Node, when: float) -> None:
        if not node.is_alive or node.look_at != when:
            return  # it has looked since
        node.look_at = math.inf
        if node.said.draining and handed_over(self.demand, node.view, node.peer, self.replicas):
            self._end(node)
            self._tell_gone(node)
            return
        self.tally.decisions += 1
        decision = decide(
            self.demand,
            node.view,
            node.peer,
            node.loaded,
            self.clock.now,
            node.rng,
            node.mind,
            self.replicas,
            is_at_rest=self.is_at_rest,
        )
        node.mind = decision.mind
        self._do(node, decision)
        self._look_at(node, max(decision.look_at, self.clock.now + 0.1))

    def _do(self, node: Node, decision: Decision) -> None:
        said, run = node.said, decision.stages
        if decision.verb is not Verb.KEEP:
            line = f"{self.clock.now:.4f} {node.peer.hex()} {decision.verb} {run.start} {run.stop}"
            self._digest.update(line.encode())
        match decision.verb:
            case Verb.KEEP:
                return
            case Verb.TAKE | Verb.MOVE:
                node.loads, node.loaded = node.loads + 1, overlap(said.hosts, run)
                node.began_from = said.hosts
                self._say(node, replace(said, target=run))
                self._load(node)
            case Verb.WITHDRAW:
                node.loads += 1
                self.tally.withdrawn += 1
                self._say(node, replace(said, target=said.hosts))
            case Verb.SWITCH:
                self._say(node, replace(said, hosts=run))
                self._count(node)
            case Verb.DROP:
                self._say(node, replace(said, hosts=run, target=run))

    def _load(self, node: Node) -> None:
        stage = next_stage(node.view, node.peer, node.loaded)
        if stage is not None:
            load_s = self.demand.load_s(node.said.capability, range(stage, stage + 1), NONE)
            self.clock.at(load_s, self._loaded, node, node.loads, stage)

    def _loaded(self, node: Node, load: int, stage: int) -> None:
        if node.is_alive and node.loads == load:
            loaded = node.loaded or range(stage, stage)
            node.loaded = range(min(loaded.start, stage), max(loaded.stop, stage + 1))
            self._wake(node, 0.0)
            self._load(node)

    def _count(self, node: Node) -> None:
        """A switch to its whole target is the end of a take or a move."""
        before, after, now = node.began_from, node.said.hosts, self.clock.now
        if after != node.said.target:
            return
        if not before:
            self.tally.first += 1
        elif all(stage in after for stage in before):
            self.tally.takes += 1
        else:
            self.tally.moves += 1
        node.gave_up = [(at, run) for at, run in node.gave_up if now - at < AGAIN_S]
        self.tally.returns += any(run == after for _, run in node.gave_up)
        node.gave_up.append((now, before))

    # ----------------------------------------------------------------------------------- truth

    def sample(self) -> Sample:
        """How it is, by what each live node really hosts now."""
        hosted = [(n.really(), n.said.hosts) for n in self.nodes.values()]
        truth = Hostings(self.demand, iter(hosted), self.replicas)
        rates = truth.rates_with(NOBODY, NONE, within=1.0)
        return Sample(
            at=self.clock.now,
            nodes=len(self.nodes),
            unhosted=truth.counts.count(0),
            single=truth.counts.count(1),
            lacking=sum(max(0, self.replicas - count) for count in truth.counts),
            rate=min(rates),
            bound=sum(self._best_speed(node) for node in self.nodes.values())
            / sum(self.demand.costs),
        )

    def _best_speed(self, node: Node) -> float:
        if not node.best_speed:
            capability = node.really()
            runs = self.demand.options(capability, NONE, math.inf)
            node.best_speed = max((self.demand.speed(capability, run) for run in runs), default=0.0)
        return node.best_speed


# ------------------------------------------------------------------------------------ whole runs


@dataclass(frozen=True, slots=True)
class Setting:
    """nodes: held about constant. churn: part of them that goes in a minute, and is replaced; half of the goers die,
    half leave. stages: 0 for as many as the smallest machine needs. hours: after the warm-up. is_over: by then, the run is."""

    nodes: int
    stages: int
    hours: float
    churn: float
    seed: int
    replicas: int = REPLICAS
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    setting: Setting
    stages: int
    tally: Tally
    samples: Sequence[Sample]
    last_switch_s: float
    digest: str


def demand_of(count: int, layers: int = 32) -> Demand:
    """The model in `count` stages; 0: as many as the smallest machine there can be needs."""
    plan = plan_of(layers)
    if not count:
        least = [
            Memory(
                None if kind.device_gb is None else int(kind.device_gb[0] * GB * FREE),
                int(kind.host_gb[0] * GB * FREE),
            )
            for kind in KINDS
        ]
        count = stage_count(plan, least)
    return Demand.of(stages(plan, count), window=window_tokens(plan))


def play(setting: Setting) -> Outcome:
    """All join within ten minutes; after two hours of warm-up, in which churn begins, counting begins."""
    demand = demand_of(setting.stages)
    swarm = Swarm(demand, setting.seed, setting.replicas)
    draws = Random(f"{setting.seed} machines")
    for _ in range(setting.nodes):
        capability = draw_capability(draws)
        swarm.clock.at(draws.uniform(0, JOIN_S), swarm.join, capability)
    end = WARM_UP_S + setting.hours * 3600
    if setting.churn:
        _churn(swarm, setting, draws, end)
    swarm.clock.run(WARM_UP_S)
    swarm.tally, swarm.is_at_rest = Tally(), setting.is_over
    samples, last, seen = [], 0.0, (0, 0)
    while swarm.clock.now < end:
        swarm.clock.run(SAMPLE_S)
        samples.append(swarm.sample())
        if (switches := (swarm.tally.takes, swarm.tally.moves)) != seen:
            last, seen = swarm.clock.now - WARM_UP_S, switches
    return Outcome(setting, len(demand.costs), swarm.tally, samples, last, swarm.digest())


def _churn(swarm: Swarm, setting: Setting, draws: Random, end: float) -> None:
    """Goers and comers, each a Poisson process of `churn` × `nodes` a minute."""
    each_s = 60 / (setting.churn * setting.nodes)

    def go() -> None:
        nodes = [node for node in swarm.nodes.values() if not node.said.draining]
        if len(nodes) > 2:
            node = draws.choice(nodes)
            (swarm.kill if draws.random() < 0.5 else swarm.leave)(node)

    def come() -> None:
        swarm.join(draw_capability(draws))

    for what in (go, come):
        when = JOIN_S
        while (when := when + draws.expovariate(1 / each_s)) < end:
            swarm.clock.on(Instant(when), what)


def figures(outcomes: Sequence[Outcome]) -> dict[str, float | int | Figure | None]:
    """What came out of all runs, by name; rates as shares of what no placement could exceed (`Sample.bound`)."""
    samples = [sample for outcome in outcomes for sample in outcome.samples]
    total = {
        name: sum(getattr(outcome.tally, name) for outcome in outcomes)
        for name in (f.name for f in fields(Tally))
    }
    switches = total["takes"] + total["moves"]
    return {
        "stages": max((outcome.stages for outcome in outcomes), default=0),
        "samples": len(samples),
        "samples_with_unhosted": sum(sample.unhosted > 0 for sample in samples),
        "samples_with_single": sum(sample.single > 0 for sample in samples),
        **total,
        "switches_per_change": switches / total["changes"] if total["changes"] else None,
        "last_switch_s": quantiles(outcome.last_switch_s for outcome in outcomes),
        "rate_lost": quantiles(1 - s.rate / s.bound if s.bound else 0.0 for s in samples),
    }


# -------------------------------------------------------------------------- against the optimum


@dataclass(frozen=True, slots=True)
class Compared:
    """A small swarm at rest, and the best of all placements: (stages without host, hosts that stages lack, rate)."""

    seed: int
    reached: tuple[int, int, float]
    best: tuple[int, int, float]
    switches: int
    digest: str

    def share(self) -> float:
        """Rate reached over the best; 0 where fewer stages are hosted, or hosted as often."""
        if self.reached[:2] > self.best[:2]:
            return 0.0
        return self.reached[2] / self.best[2] if self.best[2] else 1.0


REST_AFTER_S = 4 * 3600.0


def compare(nodes: int, count: int, seed: int, replicas: int = REPLICAS) -> Compared:
    """`nodes` join, one every minute or so, and rest; then every placement of them is tried."""
    demand, draws = demand_of(count, layers=3 * count), Random(f"{seed} small")
    swarm = Swarm(demand, seed, replicas)
    for number in range(nodes):
        capability = draw_small(draws, demand)
        swarm.clock.at(60.0 * number, swarm.join, capability)
    swarm.clock.run(REST_AFTER_S)
    sample = swarm.sample()
    reached = sample.unhosted, sample.lacking, sample.rate
    machines = [n.really() for n in swarm.nodes.values()]
    switches = swarm.tally.takes + swarm.tally.moves
    return Compared(seed, reached, optimum(demand, machines, replicas), switches, swarm.digest())


def optimum(
    demand: Demand, machines: Iterable[Capability], replicas: int
) -> tuple[int, int, float]:
    """The best of all placements: fewest stages without host, then fewest hosts lacking, then the highest rate."""
    machines = list(machines)
    choices = [demand.options(machine, NONE, math.inf) or [NONE] for machine in machines]
    best: tuple[int, int, float] | None = None
    for runs in itertools.product(*choices):
        placed = Hostings(demand, iter(zip(machines, runs, strict=True)), replicas)
        lacking = sum(max(0, replicas - count) for count in placed.counts)
        worth = placed.counts.count(0), lacking
        if best is None or worth <= best[:2]:
            rate = min(placed.rates_with(NOBODY, NONE, within=1.0))
            if best is None or (*worth, -rate) < (*best[:2], -best[2]):
                best = (*worth, rate)
    assert best is not None
    return best
