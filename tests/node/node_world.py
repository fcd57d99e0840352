"""A small deterministic world: one virtual clock, one seed, and machines that run real nodes.

What happens is a heap of (time, order, action). The network delays messages, loses connections,
can be split and healed, and machines can be killed at any moment, frozen, and started again from
what their disk holds. Everything drawn comes from the seed, and every effect of every node enters
one running digest, so a run can be compared with itself.

The network keeps the order of messages between two machines, as TCP does. A killed process is
noticed at once by whoever is connected to it (its kernel says so); a split or frozen one only after
`SILENCE_S`, and what was sent meanwhile is lost.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable

from node_machine import Machine

from peerlm.config import Plan, with_changes
from peerlm.effects import Effect
from peerlm.identity.chain import Chain
from peerlm.identity.invite import enrol, make_invite, root_inviter
from peerlm.identity.keys import NodeKeys
from peerlm.identity.revocation import sign_revocation
from peerlm.identity.root import SignedPlan, create_run, sign_plan
from peerlm.node.status import MemberSummary, Summary
from peerlm.types import Instant, ObjectHash, PeerId, Role, WallTime

START = 1_800_000_000.0
DAY = 86_400.0
SILENCE_S = 6.0
"""After this long without a sign of life a connection counts as broken."""

TEXT = b"all the corpus there is " * 40
WORKING = (Role.TRAIN, Role.STORE, Role.SERVE, Role.OBSERVE)

PLAN = {
    "run.token_budget": 100_000_000,
    "swarm.profile": "lan",
    "train.batch": 8,
    "model.context": 128,
    "mix.inner_steps": 20,
    "mix.settle_deadline_s": 60.0,
}


class World:
    """Machines by number. `speed`: tokens/s of each worker unless the machine says otherwise."""

    def __init__(self, seed: int = 0, *, speed: float = 20_000.0, **changes: object) -> None:
        self.seed, self.speed = seed, speed
        self.rng = random.Random(f"world {seed}")
        self.now = Instant(0.0)
        self.loss = 0.0
        """Probability that a transfer or introduction is lost."""
        self.machines: dict[int, Machine] = {}
        self.numbers: dict[PeerId, int] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._side: dict[int, int] = {}
        self._line_free: dict[tuple[int, int], float] = {}
        self._digest = hashlib.sha256()
        self._entropy = random.Random(f"entropy {seed}").randbytes
        self.root = create_run("toy", self._entropy)
        shard = ObjectHash(hashlib.blake2b(TEXT, digest_size=32).digest())
        changes = {**PLAN, "data.shards": (shard.hex(),), **changes}
        self.plan = self.sign(with_changes(Plan(), changes, "world"), 1)
        self.corpus = {shard: TEXT}

    # ------------------------------------------------------------------------------ what happens

    def add(
        self,
        number: int,
        *seeds: int,
        roles: tuple[Role, ...] = WORKING,
        plan: SignedPlan | None = None,
        start: bool = True,
        **settings: object,
    ) -> Machine:
        """A new machine that was invited, and tries the addresses of `seeds`. The first one is the
        run's origin and has the corpus."""
        keys = NodeKeys.generate(self._entropy)
        until = WallTime(START + 365 * DAY)
        token = make_invite(root_inviter(self.root), roles, until, until, (), self._entropy)
        chain: Chain = enrol(token.inviter, keys, self.wall)
        machine = Machine(self, number, keys, chain, plan or self.plan)
        machine.settle_in(origin=not self.machines, settings=settings)
        machine.seeds = tuple(self.machines[s].address for s in seeds)
        self.machines[number], self.numbers[keys.peer_id] = machine, number
        if start:
            machine.start()
        return machine

    def swarm(self, n: int, **settings: object) -> World:
        """`n` machines, each told the address of the first."""
        for number in range(n):
            self.add(number, *([0] if number else []), **settings)
        return self

    def kill(self, number: int) -> None:
        """SIGKILL: everything but the disk is gone."""
        self.machines[number].die()

    def restart(self, number: int, *, new_ports: bool = False) -> None:
        self.machines[number].start(new_ports=new_ports)

    def freeze(self, number: int, seconds: float) -> None:
        """The whole machine stands still, then goes on as if nothing had been."""
        machine = self.machines[number]
        life = machine.life
        machine.frozen = []
        for other in self.machines:
            self.at(SILENCE_S, lambda o=other: self._cut_if(o, number, life, machine.is_frozen))
        self.at(seconds, lambda: machine.thaw(seconds))

    def split(self, *sides: list[int]) -> None:
        """Machines of different sides do not hear each other; who is on no side is on the first."""
        self._side = {number: i for i, side in enumerate(sides) for number in side}
        for a in self.machines:
            for b in self.machines:
                life = self.machines[b].life
                self.at(
                    SILENCE_S, lambda a=a, b=b, f=life: self._cut_if(a, b, f, self._apart(a, b))
                )

    def heal(self) -> None:
        self._side = {}

    def sign(self, plan: Plan, revision: int) -> SignedPlan:
        return sign_plan(self.root, plan, revision)

    def revocation_of(self, number: int) -> bytes:
        return sign_revocation(
            root_inviter(self.root), [self.machines[number].keys.peer_id], self.wall
        )

    # ---------------------------------------------------------------------------------- what is

    @property
    def wall(self) -> WallTime:
        return WallTime(START + self.now)

    def up(self) -> list[Machine]:
        return [m for m in self.machines.values() if m.node is not None]

    def summary(self, number: int) -> Summary:
        node = self.machines[number].node
        assert node is not None, f"machine {number} is down"
        return node.summary(self.now)

    def member(self, viewer: int, number: int) -> MemberSummary | None:
        peer = self.machines[number].keys.peer_id
        return next((m for m in self.summary(viewer).members if m.peer == peer), None)

    def all_in(self, *phases: str) -> bool:
        return all(self.summary(m.number).phase in phases for m in self.up())

    def all_mixing(self) -> bool:
        """Everybody up trains, takes part, and sees everybody up alive."""
        up = {m.keys.peer_id for m in self.up()}
        for machine in self.up():
            s = self.summary(machine.number)
            alive = {m.peer for m in s.members if m.state == "alive"}
            if s.phase != "training" or not s.participating or alive != up:
                return False
        return True

    def spread(self) -> float:
        """Largest relative distance of any two nodes' weights."""
        return max(
            (a.distance_to(b) for a in self.up() for b in self.up() if a is not b), default=0.0
        )

    def digest(self) -> str:
        return self._digest.hexdigest()

    def note(self, number: int, effect: Effect) -> None:
        self._digest.update(f"{self.now!r} {number} {effect!r}\n".encode())

    # ------------------------------------------------------------------------------------- clock

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> float:
        """Let time pass, at most so long; stops once `until` holds. Says how long it took."""
        began, look_at = self.now, self.now
        end = began + seconds
        while self._heap and self._heap[0][0] <= end:
            if until is not None and self.now >= look_at:
                if until():
                    return self.now - began
                look_at = Instant(self.now + 0.05)
            at, _, action = heapq.heappop(self._heap)
            self.now = Instant(at)
            action()
        self.now = Instant(end)
        return seconds

    def within(self, seconds: float, until: Callable[[], bool], claim: str) -> float:
        """`run`, where `until` must come true in time."""
        took = self.run(seconds, until)
        assert until(), f"seed {self.seed}: not within {seconds} s: {claim}\n{self.story()}"
        return took

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._order, action))

    def story(self) -> str:
        """How everybody is, in a few lines, for a failed claim."""
        lines = [f"t = {self.now:.2f}"]
        for machine in self.up():
            s = self.summary(machine.number)
            states = {self.numbers[m.peer]: m.state for m in s.members}
            lines.append(
                f"{machine.number}: {s.phase} {s.phase_reason!r} tokens {s.tokens}/{s.swarm_tokens}"
                f" worker {s.worker_state} mixing {s.participating} members {states}"
                f" exchanges {dict(s.exchanges)} {dict(s.exchange_reasons)} dial {dict(s.dial_errors)}"
            )
        return "\n".join(lines)

    # ----------------------------------------------------------------------------------- network

    def delay_s(self) -> float:
        return self.rng.uniform(0.001, 0.01)

    def reaches(self, a: int, b: int) -> bool:
        """Packets of machine `a` arrive at a process of machine `b` that runs."""
        return not self._apart(a, b) and self.machines[b].node is not None

    def is_silent(self, a: int, b: int) -> bool:
        """From `b` comes no answer at all, not even that nobody is there."""
        return self._apart(a, b) or self.machines[b].is_frozen()

    def carry(self, a: int, b: int, arrive: Callable[[], None]) -> None:
        """Bytes from `a` to `b`, in order behind those already under way; perhaps they get lost."""
        at = max(self.now + self.delay_s(), self._line_free.get((a, b), 0.0))
        self._line_free[a, b] = at
        life = self.machines[b].life
        self.at(at - self.now, lambda: arrive() if self._arrives(a, b, life) else None)

    def at_address(self, address: str) -> int | None:
        return next((n for n, m in self.machines.items() if m.address == address), None)

    def _arrives(self, a: int, b: int, life: int) -> bool:
        return self.reaches(a, b) and self.machines[b].life == life

    def _apart(self, a: int, b: int) -> bool:
        return self._side.get(a, 0) != self._side.get(b, 0)

    def _cut_if(self, a: int, b: int, life: int, still: bool | Callable[[], bool]) -> None:
        """Nothing was heard for so long: both ends give their connection up."""
        holds = still if isinstance(still, bool) else still()
        if holds and a != b and self.machines[b].life == life and self._is_quiet(a, b):
            self.machines[a].line_down(self.machines[b].keys.peer_id, "timeout")
            self.machines[b].line_down(self.machines[a].keys.peer_id, "timeout")

    def _is_quiet(self, a: int, b: int) -> bool:
        return self.is_silent(a, b)
