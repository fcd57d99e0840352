"""What people ask of a membership protocol, as scenes with figures.

Every scene begins with a swarm that has met and rests for a while, so its cost at rest is known;
then something happens, and the scene records when who believed what. Times are seconds of virtual
time since it happened. Nodes are whole nodes without work: enrolled to observe, so all they do is
know each other.

A *false death* is a verdict on a machine that ran, could be reached, and was not the one the scene
took down. The scenes and their bars follow what memberlist, serf and Lifeguard are measured by.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from peerlm.errors import ConfigError
from peerlm.events import Leave
from peerlm.membership.member import State
from peerlm.membership.profile import (
    Profile,
    profile_named,
    without_early_verdicts,
    without_lifeguard,
)
from peerlm.membership.table import MemberChanged
from peerlm.sim.checks import Safety
from peerlm.sim.network import Wire
from peerlm.sim.params import NODES_MAX, check_nodes, read_number
from peerlm.sim.trace import Trace
from peerlm.sim.world import WATCHING, World, plan_of
from peerlm.types import Instant

LOOK_S = 5.0
"""Between two looks at the whole swarm."""

REST_S = 20.0
"""Before anything happens; the cost at rest is measured over it."""

PATIENCE_S = 240.0
"""What has not happened by then is reported as never."""

SETTLED_S = 1.0
"""A newcomer is given so long before tables are judged by it."""

NEVER = float("inf")

Params = Mapping[str, float]


@dataclass(slots=True)
class Scene:
    """One run of a scenario: a world, who saw what, and the figures so far."""

    world: World
    params: Params
    rng: random.Random
    samples: dict[str, list[float]] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    victims: set[int] = field(default_factory=set)
    """Whose death is no false one."""
    is_apart: bool = False
    """While machines are cut off, only those that are cut off from each other may take each other for
    dead."""
    began: float = 0.0
    seen: list[tuple[float, int, int, State]] = field(default_factory=list)
    """(when, viewer, subject, state), every change since the rest."""

    def note(self, now: Instant, viewer: int, change: MemberChanged) -> None:
        subject = self.world.number_of(change.peer)
        self.seen.append((now, viewer, subject, change.new))
        if change.new is State.DEAD and change.old is not State.DEAD:
            if subject not in self.victims or self._is_near(viewer, subject):
                self.count("false_deaths", 1)
        elif change.new is State.SUSPECT and subject not in self.victims:
            self.count("false_suspicions", 1)

    def _is_near(self, viewer: int, subject: int) -> bool:
        """In a partition: on the viewer's own side."""
        cuts = self.world.network.cuts()
        return self.is_apart and bool(cuts) and self.world.connects(viewer, subject)

    def happens(self, *victims: int) -> None:
        """Times count from now; these machines' deaths are true."""
        self.began = self.world.now
        self.victims.update(victims)
        self.seen.clear()

    def sample(self, name: str, value: float) -> None:
        self.samples.setdefault(name, []).append(value)

    def count(self, name: str, n: int) -> None:
        self.totals[name] = self.totals.get(name, 0) + n

    def first(self, subject: int, state: State) -> float:
        """When somebody first held `subject` in that state, since it happened."""
        times = [at for at, _, who, what in self.seen if who == subject and what is state]
        return min(times) - self.began if times else NEVER

    def holds(self, viewer: int, subject: int) -> State | None:
        node = self.world.machines[viewer].node
        assert node is not None
        member = node.company.membership.member(self.world.machines[subject].keys.peer_id)
        return None if member is None else member.state

    def healthy(self) -> list[int]:
        return [m.number for m in self.world.up() if not m.is_frozen]

    def all_hold(self, subjects: list[int], state: State) -> bool:
        viewers = self.healthy()
        return all(self.holds(v, s) is state for s in subjects for v in viewers if v != s)

    def until(self, name: str, condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
        """Let time pass until it holds, and record when, counted from when it happened."""
        self.world.clock.run(seconds, condition)
        took_s = self.world.now - self.began
        self.sample(name, took_s if condition() else NEVER)

    def pick(self, count: int, spare: tuple[int, ...] = ()) -> list[int]:
        able = [m.number for m in self.world.up() if m.number not in spare]
        return sorted(self.rng.sample(able, count))


# ------------------------------------------------------------------------------------- scenarios


def crash(scene: Scene) -> None:
    """`share` of the machines (one at least) fall silent at once; `reset`: their kernels say so."""
    world, params = scene.world, scene.params
    victims = scene.pick(max(1, round(params["share"] * len(world.machines))))
    scene.happens(*victims)
    sent = sum(world.network.messages.values())
    for victim in victims:
        world.kill(victim, silently=not params["reset"])
    scene.until("all_know_dead_s", lambda: scene.all_hold(victims, State.DEAD))
    survivors, took_s = len(world.up()), world.now - scene.began
    more = (sum(world.network.messages.values()) - sent) / survivors
    scene.sample("extra_messages_per_node", more - took_s * scene.samples["messages_per_node_s"][0])
    for victim in victims:
        scene.sample(
            "first_suspect_s", min(scene.first(victim, s) for s in (State.SUSPECT, State.DEAD))
        )
        scene.sample("first_dead_s", scene.first(victim, State.DEAD))


def freeze(scene: Scene) -> None:
    """`share` of the machines stand still for `seconds`, then go on."""
    world, seconds = scene.world, scene.params["seconds"]
    frozen = scene.pick(max(1, round(scene.params["share"] * len(world.machines))))
    scene.happens()
    held_dead: set[int] = set()
    world.observer = _noting(scene, held_dead, frozen)
    for number in frozen:
        world.freeze(number, seconds)
    world.run(seconds)
    scene.began = world.now
    scene.until("alive_again_s", lambda: scene.all_hold(frozen, State.ALIVE))
    world.run(30.0)
    scene.count("frozen_declared_dead", len(held_dead))


def _noting(
    scene: Scene, held_dead: set[int], frozen: list[int]
) -> Callable[[Instant, int, MemberChanged], None]:
    """Deaths of the frozen are counted by themselves: they are no fault where a freeze is longer than
    a suspicion."""

    def note(now: Instant, viewer: int, change: MemberChanged) -> None:
        subject = scene.world.number_of(change.peer)
        if subject in frozen:
            if change.new is State.DEAD:
                held_dead.add(subject)
        else:
            scene.note(now, viewer, change)

    return note


def loss(scene: Scene) -> None:
    """The network loses `rate` of all packets for `minutes`; then one machine falls silent.
    `datagrams`: lost messages are gone instead of late; `fallback` 0: not even probes over fresh
    connections get through."""
    world, params = scene.world, scene.params
    scene.happens()
    wire = world.network.wire
    world.network.wire = Wire(
        wire.delay_s, params["rate"], wire.rate_bytes_s, datagrams=bool(params["datagrams"])
    )
    world.network.fresh_is_sure = bool(params["fallback"])
    world.run(60.0 * params["minutes"])
    node_minutes = len(world.machines) * params["minutes"]
    scene.sample("suspicions_per_node_minute", _suspicions(scene) / node_minutes)
    crash(scene)


def _suspicions(scene: Scene) -> int:
    """Distinct outbreaks: a suspicion that all hear of counts once for each teller's minute."""
    first: dict[tuple[int, int], float] = {}
    for at, _, subject, state in scene.seen:
        if state is State.SUSPECT:
            first.setdefault((subject, int(at // 10)), at)
    return len(first)


def partition(scene: Scene) -> None:
    """The swarm is apart for `minutes`. `kind` 0: halves; 1: one half hears the other but not the
    reverse; 2: halves that one machine can still talk to, by which they keep each other alive: how far
    that goes is `cut_off_held_dead`, the share of those who are cut off from a machine that it holds
    dead in the end."""
    world, params = scene.world, scene.params
    numbers = sorted(world.machines)
    scene.rng.shuffle(numbers)
    half = len(numbers) // 2
    left, right = numbers[:half], numbers[half:]
    scene.happens(*numbers)
    scene.is_apart = True
    match int(params["kind"]):
        case 0:
            world.split(left, right)
        case 1:
            for a in left:
                for b in right:
                    world.cut(a, b)
        case _:
            world.split(left[1:], right)
    if int(params["kind"]) == 0:
        scene.until("other_half_dead_s", lambda: _apart(scene, left, right))
        for side, other in ((left, right), (right, left)):
            times = _first_deaths(scene, side, other)
            scene.sample("first_dead_of_a_half_s", min(times.values(), default=NEVER))
            whole = len(times) == len(side) * len(other)
            scene.sample("half_knows_all_dead_s", max(times.values()) if whole else NEVER)
    world.run(max(0.0, 60.0 * params["minutes"] - (world.now - scene.began)))
    dead = [scene.holds(b, a) is State.DEAD for a, b in _cut_off(world)]
    scene.sample("cut_off_held_dead", sum(dead) / max(1, len(dead)))
    scene.began = world.now
    world.heal()
    scene.until("heal_s", lambda: scene.all_hold(numbers, State.ALIVE))
    scene.victims.clear()
    world.run(30.0)


def _cut_off(world: World) -> list[tuple[int, int]]:
    """Pairs that cannot talk, in both orders."""
    cuts = world.network.cuts()
    return sorted({pair for a, b in cuts for pair in ((a, b), (b, a))})


def _apart(scene: Scene, left: list[int], right: list[int]) -> bool:
    """Each half holds all of the other dead."""
    pairs = [*((v, s) for v in left for s in right), *((v, s) for v in right for s in left)]
    return all(scene.holds(v, s) is State.DEAD for v, s in pairs)


def _first_deaths(
    scene: Scene, viewers: list[int], subjects: list[int]
) -> dict[tuple[int, int], float]:
    """When each viewer first held each subject dead, since it happened."""
    times: dict[tuple[int, int], float] = {}
    for at, viewer, subject, state in scene.seen:
        if state is State.DEAD and viewer in viewers and subject in subjects:
            times.setdefault((viewer, subject), at - scene.began)
    return times


def restart(scene: Scene) -> None:
    """One machine after the other is killed and back within a second, `times` times in all."""
    world = scene.world
    for _ in range(int(scene.params["times"])):
        (victim,) = scene.pick(1)
        scene.happens(victim)
        world.kill(victim)
        world.run(scene.rng.uniform(0.05, 0.95))
        world.restart(victim)
        scene.began = world.now
        epoch = world.machines[victim].disk.epoch
        scene.until("alive_again_s", partial(_all_hold_epoch, scene, victim, epoch))
        scene.victims.clear()
        world.run(2.0)


def _all_hold_epoch(scene: Scene, subject: int, epoch: int) -> bool:
    peer = scene.world.machines[subject].keys.peer_id
    for machine in scene.world.up():
        if machine.number != subject:
            assert machine.node is not None
            member = machine.node.company.membership.member(peer)
            if member is None or member.state is not State.ALIVE or member.record.epoch != epoch:
                return False
    return True


def join(scene: Scene) -> None:
    """`count` newcomers come at once, each by the address of one member."""
    world = scene.world
    old = sorted(world.machines)
    seed = scene.rng.choice(old)
    new = [len(old) + i for i in range(int(scene.params["count"]))]
    scene.happens()
    for number in new:
        world.add(number, seed, roles=WATCHING)
    everybody = [*old, *new]
    scene.until(
        "joiner_complete_s",
        lambda: all(scene.holds(v, s) is State.ALIVE for v in new for s in everybody if s != v),
    )
    scene.until("join_known_by_all_s", lambda: scene.all_hold(everybody, State.ALIVE))
    world.run(10.0)


def leave(scene: Scene) -> None:
    """One machine says goodbye."""
    (leaver,) = scene.pick(1)
    scene.happens()
    scene.world.machines[leaver].post(Leave())
    scene.until("left_known_by_all_s", lambda: scene.all_hold([leaver], State.LEFT))
    scene.world.run(30.0)
    scene.count(
        "suspicions_of_the_leaver",
        sum(
            subject == leaver and state in (State.SUSPECT, State.DEAD)
            for _, _, subject, state in scene.seen
        ),
    )


def churn(scene: Scene) -> None:
    """`per_minute` of the machines are replaced by new ones each minute, for `minutes`; every other
    one goes silently, the rest with a goodbye of their kernel."""
    world, params = scene.world, scene.params
    gap_s = 60.0 / (params["per_minute"] * len(world.machines))
    scene.happens()
    end = world.now + 60.0 * params["minutes"]
    next_at, next_look = float(world.now), world.now + 5.0
    newest = (-1, Instant(0.0))
    while world.now < end:
        world.run(max(0.0, min(next_at, next_look) - world.now))
        if world.now >= next_at:
            next_at += gap_s
            (victim,) = scene.pick(1)
            scene.victims.add(victim)
            seed = scene.rng.choice([m.number for m in world.up() if m.number != victim])
            world.kill(victim, silently=scene.rng.random() < 0.5)
            newest = (world.add(len(world.machines), seed, roles=WATCHING).number, world.now)
        if world.now >= next_look:
            next_look += 5.0
            new = newest[0] if world.now - newest[1] < SETTLED_S else None
            wrong, strictly = _wrong(scene, new)
            scene.sample("entries_wrong", wrong)
            scene.sample("entries_wrong_strictly", strictly)


def _wrong(scene: Scene, new: int | None) -> tuple[float, float]:
    """Share of wrong entries in the tables of all that are up: the living not held live, the gone
    held alive (a suspect is rightly doubted); strictly, the gone held alive or suspect. Machine `new`
    has only just begun: it is neither asked nor asked for."""
    counted = [m for m in scene.world.up() if m.number != new]
    up = {m.keys.peer_id for m in counted}
    lax = strict = entries = 0
    for machine in counted:
        assert machine.node is not None
        table = machine.node.company.membership.members()
        missing = sum(p not in table or not table[p].is_live for p in up) - 1  # itself
        gone = [m.state for p, m in table.items() if m.is_live and not scene.world.of(p).is_up]
        lax += missing + sum(state is State.ALIVE for state in gone)
        strict += missing + len(gone)
        entries += len(up) - 1
    return lax / entries, strict / entries


def slow(scene: Scene) -> None:
    """`count` machines take 1 to 3 s to read each message, for `minutes`."""
    world = scene.world
    scene.happens()
    sick = scene.pick(int(scene.params["count"]))
    for number in sick:
        world.machines[number].slowness = (1.0, 3.0)
    world.run(60.0 * scene.params["minutes"])
    deaths = {s for _, _, s, state in scene.seen if state is State.DEAD}
    scene.count("healthy_declared_dead", len(deaths - set(sick)))
    scene.count("sick_declared_dead", len(deaths & set(sick)))


def rest(scene: Scene) -> None:
    """Nothing happens for `minutes`."""
    scene.happens()
    scene.world.run(60.0 * scene.params["minutes"])


@dataclass(frozen=True, slots=True)
class Scenario:
    play: Callable[[Scene], None]
    params: Params
    """With their defaults."""


SCENARIOS: dict[str, Scenario] = {
    "crash": Scenario(crash, {"share": 0.0, "reset": 0.0}),
    "freeze": Scenario(freeze, {"share": 0.05, "seconds": 5.0}),
    "loss": Scenario(
        loss,
        {
            "rate": 0.05,
            "minutes": 10.0,
            "datagrams": 1.0,
            "fallback": 1.0,
            "share": 0.0,
            "reset": 0.0,
        },
    ),
    "partition": Scenario(partition, {"minutes": 5.0, "kind": 0.0}),
    "churn": Scenario(churn, {"per_minute": 0.1, "minutes": 30.0}),
    "join": Scenario(join, {"count": 1.0}),
    "leave": Scenario(leave, {}),
    "restart": Scenario(restart, {"times": 10.0}),
    "slow": Scenario(slow, {"count": 4.0, "minutes": 5.0}),
    "rest": Scenario(rest, {"minutes": 2.0}),
}

COMMON: Params = {"lifeguard": 1.0, "early": 1.0, "checks": 1.0}
"""`lifeguard` 0: plain SWIM; `early` 0: verdicts never below memberlist's floor; `checks` 0: do not
look at the whole swarm's promises (node-local ones are always held)."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run's figures. A sample of inf is something that never came."""

    samples: dict[str, list[float]]
    totals: dict[str, int]
    digest: str


def read_params(
    scenario: str, given: Mapping[str, str], nodes: int = NODES_MAX
) -> dict[str, float]:
    """The scenario's parameters, with those that were given.

    Raises:
        ConfigError: no such scenario or parameter, no number that it may be, or too few `nodes`.
    """
    if scenario not in SCENARIOS:
        raise ConfigError(f"--scenario {scenario!r}: must be one of {', '.join(SCENARIOS)}")
    read = {**COMMON, **SCENARIOS[scenario].params}
    for key, text in given.items():
        if key not in read:
            raise ConfigError(
                f"--param {key}={text}: scenario {scenario} knows {', '.join(sorted(read))}"
            )
        read[key] = read_number(key, text)
    check_nodes(scenario, read, nodes)
    return read


def play(
    scenario: str,
    nodes: int,
    seed: int,
    *,
    params: Params,
    profile: str = "lan",
    wire: Wire | None = None,
    trace: Trace | None = None,
) -> Run:
    """One run. Raises `AssertionError` if a promise is broken on the way."""
    world = World(
        seed,
        plan=plan_of(swarm__profile=profile),
        wire=wire,
        trace=trace,
        profile=_profile(profile, params),
    )
    world.met(nodes, roles=WATCHING)
    scene = Scene(world, params, random.Random(f"scene {seed}"))
    scene.totals["false_deaths"] = 0
    world.run(5.0)
    world.observer = scene.note
    messages, sent = sum(world.network.messages.values()), sum(world.network.bytes.values())
    world.run(REST_S)
    node_seconds = nodes * REST_S
    scene.sample(
        "messages_per_node_s", (sum(world.network.messages.values()) - messages) / node_seconds
    )
    scene.sample("bytes_per_node_s", (sum(world.network.bytes.values()) - sent) / node_seconds)
    if params["checks"]:
        _look(world, Safety(world))
    SCENARIOS[scenario].play(scene)
    return Run(scene.samples, scene.totals, world.digest())


def _look(world: World, safety: Safety) -> None:
    """At the whole swarm, every few seconds, for as long as the run goes on."""
    safety.look()
    world.clock.at(LOOK_S, _look, world, safety)


def _profile(name: str, params: Params) -> Profile:
    profile = profile_named(name)
    if not params["lifeguard"]:
        return without_lifeguard(profile)
    return profile if params["early"] else without_early_verdicts(profile)
