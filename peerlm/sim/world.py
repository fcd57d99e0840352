"""A swarm in one process: one virtual clock, one seed, and machines that run real nodes.

Everything drawn comes from the seed, and every effect of every node enters one digest, so a run can
be compared with itself on another day, another interpreter, another machine. Machines can be killed
at any moment, frozen, slowed, cut off in one direction or both, and started again from their disks.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from peerlm.config import Plan, with_changes
from peerlm.identity.invite import enrol, make_invite, root_inviter
from peerlm.identity.keys import NodeKeys
from peerlm.identity.revocation import sign_revocation
from peerlm.identity.root import SignedPlan, create_run, sign_plan
from peerlm.membership.member import State
from peerlm.membership.profile import Profile
from peerlm.membership.table import MemberChanged
from peerlm.mix.vector import Vector
from peerlm.model.stages import stages
from peerlm.node.contacts import neighbours
from peerlm.node.lifecycle import Phase
from peerlm.node.node import Acquaintance
from peerlm.node.status import MemberSummary, Summary
from peerlm.sim.clock import Clock
from peerlm.sim.disk import Disk
from peerlm.sim.learner import Learner, Quadratic
from peerlm.sim.machine import Machine
from peerlm.sim.network import Network, Wire
from peerlm.sim.ring import Ring
from peerlm.sim.trace import Trace
from peerlm.types import FragmentId, Instant, ObjectHash, PeerId, Role, WallTime

START = 1_800_000_000.0
DAY = 86_400.0

SILENCE_S = 7.0
"""After this long without a sign of life a connection counts as broken: ZeroMQ's heartbeat, as the
daemon sets it, and as measured between daemons (docs/results.md, truth)."""

TICK_STEPS = 4

TEXT = b"all the corpus there is " * 40
Pairs = frozenset[tuple[int, int]]
"""Directions between machines."""

WORKING = (Role.TRAIN, Role.STORE, Role.SERVE, Role.OBSERVE)
WATCHING = (Role.OBSERVE,)

PLAN: Mapping[str, Any] = {
    "run.token_budget": 100_000_000,
    "swarm.profile": "lan",
    "train.batch": 8,
    "model.context": 128,
    "mix.inner_steps": 20,
    "mix.settle_deadline_s": 60.0,
}
"""A run whose steps are short and whose end is far."""


def plan_of(**changes: Any) -> Plan:
    """`PLAN` with these changes, keys with `__` for the dot."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return with_changes(Plan(), {**PLAN, **named}, "world")


class World:
    """Machines by number.

    Args:
        plan: what to train; its `data` is replaced by a corpus of small objects.
        sizes: parameters in each fragment, for what transfers weigh; the learner's own by default.
        learner: what is learnt, and how many fragments there are.
        speed: tokens a second of each worker, of several for the machines in turn.
        profile: timers of membership instead of the plan's preset.
        scheduled: learning rates follow the plan's schedule; else they stay at the learner's peak.
        tick_steps: inner steps between two looks of a worker at its mail. Daemons' workers look after
            every one; several at a time cost the simulator less.
        remembers: keep every effect on its machine, for tests.
        shards: of the corpus. Of one the plan does not say how many tokens it has.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        plan: Plan | None = None,
        sizes: tuple[int, ...] | None = None,
        learner: Learner | None = None,
        speed: float | Sequence[float] = 20_000.0,
        wire: Wire | None = None,
        trace: Trace | None = None,
        profile: Profile | None = None,
        scheduled: bool = False,
        tick_steps: int = TICK_STEPS,
        remembers: bool = False,
        shards: int = 1,
    ) -> None:
        self.seed, self.remembers = seed, remembers
        self._speeds = (speed,) if isinstance(speed, int | float) else tuple(speed)
        self.speed = self._speeds[0]
        """Of machine 0's worker."""
        self.scheduled, self.profile, self.tick_steps = scheduled, profile, tick_steps
        self.observer: Callable[[Instant, int, MemberChanged], None] | None = None
        """Hears of every change in every member table: when, whose table, what."""
        self.rng = random.Random(f"world {seed}")
        self.clock = Clock()
        self.network = Network(
            self.clock, random.Random(f"network {seed}"), Wire() if wire is None else wire
        )
        self.trace = Trace() if trace is None else trace
        self.learner: Learner = Quadratic((64, 32, 32)) if learner is None else learner
        self.sizes = self.learner.sizes if sizes is None else sizes
        assert len(self.sizes) == len(self.learner.sizes), "a learner of other fragments"
        self.loss = 0.0
        """Probability that a transfer or an introduction is lost on the way, whatever the wire."""
        self.machines: dict[int, Machine] = {}
        self._by_peer: dict[PeerId, Machine] = {}
        self._quiet_since: dict[tuple[int, int], Instant] = {}
        self.faults_until: dict[tuple[str, int], float] = {}
        """When a fault of a kind ends for a machine (faults.py)."""
        self.guarded: set[int] = set()
        """Machines behind a firewall that lets in nothing but answers."""
        self._splits: list[Pairs] = []
        self._wires: dict[int, Wire] = {}
        """Of machines whose lines are of their own kind."""
        self._ways = 0
        self._entropy = random.Random(f"entropy {seed}").randbytes
        self.root = create_run("toy", self._entropy)
        self._inviter = root_inviter(self.root)
        texts = [TEXT + b"%d" % number for number in range(shards)] if shards > 1 else [TEXT]
        hashes = [hashlib.blake2b(text, digest_size=32).digest() for text in texts]
        self.corpus = dict(zip(map(ObjectHash, hashes), texts, strict=True))
        given = plan_of() if plan is None else plan
        tokens = [len(text) for text in texts] if shards > 1 else []
        data = {"data.shards": [name.hex() for name in self.corpus], "data.shard_tokens": tokens}
        given = with_changes(given, data, "world")
        self.plan = self.sign(given, 1)
        self.stage_of: dict[FragmentId, int] = {}
        """Of each fragment of a model in stages."""
        if given.model.stages > 1:
            cut = stages(given)
            self.stage_of = {f: stage.index for stage in cut for f in stage.fragments}
            assert len(self.stage_of) == len(self.sizes), "a learner of other fragments"
        self.ring = Ring(self)

    # ------------------------------------------------------------------------------ what happens

    def add(
        self,
        number: int,
        *seeds: int,
        roles: tuple[Role, ...] = WORKING,
        plan: SignedPlan | None = None,
        start: bool = True,
        **settings: Any,
    ) -> Machine:
        """A new machine that was invited, and tries the addresses of `seeds`. The first one is the
        run's origin and has the corpus."""
        keys = NodeKeys.generate(self._entropy)
        until = WallTime(START + 365 * DAY)
        token = make_invite(self._inviter, roles, until, until, (), self._entropy)
        disk = Disk((plan or self.plan).blob, enrol(token.inviter, keys, self.wall))
        if not self.machines:
            disk.origin = True
            disk.objects.update(self.corpus)
        machine = Machine(self, number, keys, disk, settings)
        machine.seeds = tuple(self.machines[s].address for s in seeds)
        self.machines[number] = self._by_peer[keys.peer_id] = machine
        self.trace.know(keys.peer_id, number)
        for other in self._wires:
            self._lay_wires(number, other)
        if start:
            machine.start()
        return machine

    def swarm(self, n: int, **settings: Any) -> World:
        """`n` machines, each told the address of the first."""
        for number in range(n):
            self.add(number, *([0] if number else []), **settings)
        return self

    def met(self, n: int, **settings: Any) -> World:
        """`n` machines that have met: all know all, and are linked as they would be. Nothing of how
        that came about is simulated, so a thousand of them begin at once."""
        for number in range(n):
            self.add(number, **settings)
        machines = sorted(self.machines.values(), key=lambda m: m.keys.peer_id)
        swarm: dict[PeerId, Acquaintance] = {}
        for machine in machines:
            assert machine.node is not None
            swarm[machine.keys.peer_id] = machine.node.acquaintance(self.now)
        for machine in machines:
            machine.remember(swarm)
        for machine in machines:
            me = machine.keys.peer_id
            for peer in neighbours(me, [p for p in swarm if p != me]):
                machine.be_linked(self.of(peer))
        for machine in machines:
            machine.resume()
        assert machine.node is not None
        machine.node.audit()  # they are all alike, and looked at again by whoever looks
        return self

    def kill(self, number: int, *, silently: bool = False) -> None:
        """SIGKILL: everything but the disk is gone. `silently`: as when the power fails."""
        self.machines[number].die(silently=silently)

    def restart(self, number: int, *, new_ports: bool = False) -> None:
        self.machines[number].start(new_ports=new_ports)

    def freeze(self, number: int, seconds: float) -> None:
        """The whole machine stands still, then goes on as if nothing had been."""
        machine = self.machines[number]
        machine.freeze()
        for peer in machine.lines:
            self.watch(self.of(peer), machine)
        self.clock.at(seconds, self._thaw, machine, machine.life, seconds)

    def _thaw(self, machine: Machine, life: int, seconds: float) -> None:
        if machine.life == life:
            for other in self.machines:
                self._quiet_since.pop((other, machine.number), None)
            machine.thaw(seconds)
            for peer in list(machine.lines):
                if self.is_silent(machine.number, self.of(peer).number):
                    self.watch(machine, self.of(peer))

    def cut(self, a: int, b: int) -> None:
        """Packets from `a` do not arrive at `b` any more."""
        self.network.cut(a, b)
        if self.machines[a].keys.peer_id in self.machines[b].lines:
            self.watch(self.machines[b], self.machines[a])

    def mend(self, a: int, b: int) -> None:
        self._quiet_since.pop((b, a), None)
        self.network.mend(a, b)

    def split(self, *sides: Iterable[int]) -> Pairs:
        """Machines of different sides do not hear each other; who is on no side hears all. Splits
        add up; returns what `end_split` takes."""
        side = {number: i for i, members in enumerate(sides) for number in members}
        apart = frozenset((a, b) for a in side for b in side if side[a] != side[b])
        self._splits.append(apart)
        for pair in sorted(apart):
            if self.network.reaches(*pair):
                self.cut(*pair)
        return apart

    def end_split(self, apart: Pairs) -> None:
        """One split is over, unless everything was mended since; others are not."""
        if apart in self._splits:
            self._splits.remove(apart)
            for pair in sorted(apart.difference(*self._splits)):
                self.mend(*pair)

    def heal(self) -> None:
        """All cuts are mended."""
        self._splits.clear()
        for pair in self.network.cuts():
            self.mend(*pair)

    def power_cut(self, number: int) -> None:
        """It is gone at once, and its disk may not have kept what it said it had."""
        machine = self.machines[number]
        if machine.is_up:
            machine.die(silently=True)
            machine.disk_lied |= machine.disk.power_cut(self.rng) == "epoch"

    def set_wires(self, number: int, wire: Wire | None) -> None:
        """All lines to and from this machine are like that from now on, to newcomers too; None: like
        all others."""
        self._wires.pop(number, None)
        if wire is not None:
            self._wires[number] = wire
        for other in self.machines:
            self._lay_wires(number, other)

    def _lay_wires(self, a: int, b: int) -> None:
        """Where both machines have lines of their own, the later kind holds."""
        own = [wire for number, wire in self._wires.items() if number in (a, b)]
        for pair in ((a, b), (b, a)):
            self.network.set_wire(*pair, own[-1] if own else None)

    def sign(self, plan: Plan, revision: int) -> SignedPlan:
        return sign_plan(self.root, plan, revision)

    def revocation_of(self, number: int) -> bytes:
        peer = self.machines[number].keys.peer_id
        return sign_revocation(self._inviter, [peer], self.wall)

    # ---------------------------------------------------------------------------------- what is

    @property
    def now(self) -> Instant:
        return self.clock.now

    @property
    def wall(self) -> WallTime:
        return WallTime(START + self.clock.now)

    def of(self, peer: PeerId) -> Machine:
        return self._by_peer[peer]

    def number_of(self, peer: PeerId) -> int:
        return self._by_peer[peer].number

    def speed_of(self, number: int) -> float:
        """Tokens a second of a worker there, unless its machine says otherwise."""
        return self._speeds[number % len(self._speeds)]

    def up(self) -> list[Machine]:
        return [m for m in self.machines.values() if m.is_up]

    def summary(self, number: int) -> Summary:
        node = self.machines[number].node
        assert node is not None, f"machine {number} is down"
        return node.summary(self.now)

    def member(self, viewer: int, number: int) -> MemberSummary | None:
        peer = self.machines[number].keys.peer_id
        return next((m for m in self.summary(viewer).members if m.peer == peer), None)

    def all_in(self, *phases: str) -> bool:
        return all(self.summary(m.number).phase in phases for m in self.up())

    def all_mixing(self, idle: Collection[int] = ()) -> bool:
        """Everybody up trains, takes part unless it is `idle`, and sees everybody up alive."""
        up = {m.keys.peer_id: m.node for m in self.up()}
        for me, node in up.items():
            assert node is not None
            is_excused = self.number_of(me) in idle
            takes_part = is_excused or node.work.is_participating(self.now)
            if node.work.phase is not Phase.TRAINING or not takes_part:
                return False
            members = node.company.membership.members().values()
            if {me, *(m.peer for m in members if m.state is State.ALIVE)} != up.keys():
                return False
        return True

    def spread(self, idle: Collection[int] = ()) -> float:
        """Largest relative distance of any two nodes' weights, as far as both hold the same; but for those that are `idle`."""
        if self.stage_of:
            every = sorted(set(self.stage_of.values()))
            return max(self._spread_of(stage, idle) for stage in every)
        return spread_of([m.labour.phi() for m in self.up()])

    def _spread_of(self, stage: int, idle: Collection[int]) -> float:
        """Of those who hold this stage."""
        fragments = [f for f, of in sorted(self.stage_of.items()) if of == stage]
        hosts = [
            m.labour.slow for m in self.up() if stage in m.holding.held and m.number not in idle
        ]
        return spread_of([np.concatenate([slow[f].phi for f in fragments]) for slow in hosts])

    def digest(self) -> str:
        return self.trace.digest()

    def story(self) -> str:
        """How everybody is, in a few lines, for a claim that failed."""
        lines = [f"t = {self.now:.2f}"]
        for machine in self.up():
            s = self.summary(machine.number)
            states = {self.number_of(m.peer): m.state for m in s.members}
            held = f" holds {[*machine.holding.held]}" * bool(self.stage_of)
            lines.append(
                f"{machine.number}:{held} {s.phase} {s.phase_reason!r} tokens {s.tokens}/{s.swarm_tokens}"
                f" worker {s.worker_state} mixing {s.participating} members {states}"
                f" exchanges {dict(s.exchanges)} {dict(s.exchange_reasons)} dial {dict(s.dial_errors)}"
            )
        return "\n".join(lines)

    # ------------------------------------------------------------------------------------- clock

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> float:
        """Let time pass, at most so long; stops once `until` holds. Says how long it took."""
        return self.clock.run(seconds, until)

    # --------------------------------------------------------------------- for the machines alone

    def new_way(self, kind: str) -> str:
        """The name of one connection; both ends know it by this."""
        self._ways += 1
        return f"{kind} {self._ways}"

    def at_address(self, address: str) -> Machine | None:
        host = address.removeprefix("tcp://").partition(":")[0]
        number = host.removeprefix("h")
        machine = self.machines.get(int(number)) if number.isdigit() else None
        return machine if machine is not None and machine.address == address else None

    def connects(self, a: int, b: int) -> bool:
        """Packets pass in both directions, whether or not anybody listens."""
        return self.network.reaches(a, b) and self.network.reaches(b, a)

    def dials(self, a: int, b: int) -> bool:
        """Whether `a` can open a connection to `b`."""
        return b not in self.guarded and self.connects(a, b)

    def is_silent(self, a: int, b: int) -> bool:
        """From `b` comes no answer to `a` at all, not even that nobody is there."""
        return self.machines[b].is_frozen or not self.connects(a, b)

    def is_lost(self) -> bool:
        return self.loss > 0 and self.rng.random() < self.loss

    def carry(self, a: Machine, b: Machine, action: Callable[..., None], *args: Any) -> None:
        """Something small of another connection than the control line's, from `a` to `b`."""
        self.clock.at(
            self.network.delay_s(a.number, b.number), self._arrive, a, b, b.life, action, args
        )

    def _arrive(
        self, a: Machine, b: Machine, life: int, action: Callable[..., None], args: tuple[Any, ...]
    ) -> None:
        if b.life == life and b.is_up and self.network.reaches(a.number, b.number):
            action(*args)

    def begins(self, machine: Machine) -> None:
        """A process starts there: nobody waits for a sign of the last one any longer, and its kernel
        ends the connections that others still have with that."""
        for other in self.machines.values():
            self._quiet_since.pop((other.number, machine.number), None)
            self._quiet_since.pop((machine.number, other.number), None)
            for way in other.lines.get(machine.keys.peer_id, ()):
                self.reset(machine, other, way)

    def reset(self, a: Machine, b: Machine, way: str) -> None:
        """The kernel of `a` closes a connection; `b` hears of it, or of nothing."""
        self.network.forget(a.number, b.number)
        self.network.forget(b.number, a.number)
        if self.network.reaches(a.number, b.number):
            delay_s = self.network.delay_s(a.number, b.number)
            self.clock.at(delay_s, b.line_down, a.keys.peer_id, "closed", way)
        else:
            self.watch(b, a)

    def watch(self, a: Machine, b: Machine) -> None:
        """`a` may have stopped hearing `b`: if so for long enough, it gives its lines up."""
        pair = (a.number, b.number)
        if pair not in self._quiet_since:
            self._quiet_since[pair] = self.now
            self.clock.at(SILENCE_S, self._silence, a, b, b.life, self.now)

    def _silence(self, a: Machine, b: Machine, life: int, since: Instant) -> None:
        pair = (a.number, b.number)
        if self._quiet_since.get(pair) != since:
            return
        del self._quiet_since[pair]
        gone = not b.is_up or b.life != life
        if a.is_frozen:
            return  # it looks again when it thaws
        if gone or b.is_frozen or not self.network.reaches(b.number, a.number):
            a.lines_down(b.keys.peer_id, "timeout")

    def check_admission(self, machine: Machine, peer: PeerId, key: bytes) -> None:
        """Nobody acts on a key that no certificate of the run stands behind."""
        assert machine.node is not None
        seat = machine.node.company.gate.verified(peer)
        assert seat is not None, (
            f"machine {machine.number} admits {peer.hex()} without a certificate"
        )
        assert seat.curve_pk == key, (
            f"machine {machine.number} admits another key than the certified"
        )
        revocations = machine.node.company.gate.revocations
        assert not revocations.is_revoked(seat.serials), (
            f"machine {machine.number} admits {peer.hex()}, who is revoked"
        )
        there = self._by_peer.get(peer)
        assert there is not None, f"machine {machine.number} admits {peer.hex()}, whom nobody made"
        assert there.keys.curve_public == key, (
            f"machine {machine.number} admits machine {there.number} under a key that is not its own"
        )


def spread_of(weights: Sequence[Vector]) -> float:
    """Largest relative distance of any two."""
    sized = [(w, max(float(np.linalg.norm(w)), 1e-9)) for w in weights]
    # |a − b| is |b − a|: two are farthest apart as the smaller of them sees it.
    distances = (
        float(np.linalg.norm(a - b) / min(size_a, size_b))
        for (a, size_a), (b, size_b) in combinations(sized, 2)
    )
    return max(distances, default=0.0)


def relative_distance(a: Vector, b: Vector) -> float:
    """|a − b| ÷ |a|."""
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), 1e-9))
