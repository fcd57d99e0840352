"""Random faults by a seed: a minute of trouble, then peace, and then all must be well.

Each seed draws a *menu*, a handful of the faults there are and how often they come: many menus of
few faults find more than one menu of all (swarm testing, Groce et al. 2012). Safety is looked at all
the time; once everything is mended and everybody started again, liveness must follow within
`RECOVERY_S`. A seed is the whole run: the same one fails in the same way, wherever it is run.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peerlm.config import with_changes
from peerlm.events import Leave, NewPlan, NewRevocation, Pause, Resume
from peerlm.identity.invite import ADDRESSES_MAX
from peerlm.membership.address_book import address_of, read_book
from peerlm.membership.member import State
from peerlm.sim.checks import Safety, is_well
from peerlm.sim.impostors import KINDS, knock
from peerlm.sim.learner import Quadratic
from peerlm.sim.machine import Machine
from peerlm.sim.network import Wire
from peerlm.sim.trace import Trace
from peerlm.sim.world import World, plan_of

NODES = 12
TROUBLE_S = 60.0
RECOVERY_S = 150.0
LOOK_S = 1.0
SPEED = 4_000.0

SIZES = (48, 32)
MENU_MAX = 6
SAMPLERS = ("matching", "ring", "onepeer_exp", "base2", "latency_biased")


@dataclass(frozen=True, slots=True)
class Lived:
    """How a seed went."""

    seed: int
    menu: tuple[str, ...]
    faults: int
    recovery_s: float
    digest: str
    story: str = ""
    """Empty if all was well; else what was broken, and how everybody was."""


def live_through(seed: int, nodes: int = NODES, trace: Trace | None = None) -> Lived:
    """One seed's minute of trouble and what came after."""
    return survive(Trouble(seed, nodes, trace))


def survive(trouble: Trouble) -> Lived:
    """The trouble, and what came after."""
    recovery_s, story = 0.0, ""
    try:
        trouble.run()
        recovery_s = trouble.recover()
    except Exception as broken:
        story = f"{_what(broken)}\n{_how_all_were(trouble.world)}"
    digest = trouble.world.digest()
    return Lived(trouble.seed, trouble.menu, trouble.count, recovery_s, digest, story)


def _knows_others(machine: Machine) -> bool:
    """Its address book has more than the first machine's address: a line for each, after the first."""
    return machine.disk.book.count(b"\n") > 2


def _what(broken: Exception) -> str:
    """A promise in its own words, anything else with its kind and where it happened."""
    if isinstance(broken, AssertionError) and str(broken):
        return str(broken)
    *_, last = traceback.extract_tb(broken.__traceback__)
    return f"{type(broken).__name__}: {broken} ({Path(last.filename).name}:{last.lineno})"


def _how_all_were(world: World) -> str:
    try:
        return world.story()
    except Exception as worse:
        return f"and nobody can say how they were: {_what(worse)}"


class Trouble:
    """A world and what befalls it."""

    sizes: tuple[int, ...] = SIZES
    speed, recovery_s = SPEED, RECOVERY_S

    def __init__(self, seed: int, nodes: int, trace: Trace | None) -> None:
        self.seed = seed
        self.rng = rng = random.Random(f"trouble {seed}")
        wire = Wire(
            loss=rng.choice([0.0, 0.0, 0.01, 0.05, 0.2]),
            duplicate=rng.choice([0.0, 0.0, 0.1, 0.5]),
            delay_s=rng.choice([(0.001, 0.01), (0.02, 0.1), (0.0, 0.5)]),
            rate_bytes_s=rng.choice([125e6, 1e5]),
        )
        plan = plan_of(
            mix__algorithm=rng.choice([*3 * ["outer_mix"], "dgd", "noloco", "adpsgd"]),
            mix__sampler=rng.choice([*3 * ["uniform"], *SAMPLERS]),
            mix__inner_steps=rng.choice([8, 20]),
            mix__bandwidth_share=rng.choice([0.0, 0.0, 0.5]),
            **self.model(),
        )
        learner = Quadratic(self.sizes)
        self.world = World(
            seed, plan=plan, learner=learner, speed=self.speed, wire=wire, trace=trace
        )
        self.safety = Safety(self.world)
        self.nodes, self.count, self.revision = nodes, 0, 1
        self.menu = self.draw_menu()
        self.every_s = rng.choice([1.0, 3.0, 8.0])
        self.revoked: set[int] = set()
        self.gone: set[int] = set()
        """Machines that do not come back for another reason."""
        for number in range(nodes):
            self.add(*([0] if number else []))
        self._look()

    def model(self) -> dict[str, Any]:
        """Of the plan."""
        return {}

    def draw_menu(self) -> tuple[str, ...]:
        return tuple(sorted(self.rng.sample(list(FAULTS), self.rng.randint(1, MENU_MAX))))

    def add(self, *seeds: int) -> None:
        """One more machine."""
        self.world.add(len(self.world.machines), *seeds)

    def befall(self, fault: str, number: int) -> None:
        FAULTS[fault](self, number)

    def run(self) -> None:
        """The minute of trouble."""
        world, end = self.world, self.world.now + TROUBLE_S
        while world.now < end:
            world.run(min(self.rng.expovariate(1 / self.every_s), end - world.now))
            if world.now < end:
                self.count += 1
                self.befall(self.rng.choice(self.menu), self.rng.randrange(len(world.machines)))

    def recover(self) -> float:
        """Mend everything, start everybody; returns how long it took until all was well."""
        world, mended = self.world, self.world.now
        self._mend()
        for number, machine in world.machines.items():
            if number in self.revoked | self.gone:
                world.kill(number)
            elif not machine.is_up:
                world.restart(number)
        for number in sorted(set(world.machines) - self.revoked - self.gone):
            self._show_the_way(number)
        is_well = self.what_is_well()
        world.run(self.recovery_s, is_well)
        late = f"not well {self.recovery_s:g} s after everything was mended"
        assert is_well(), f"{late}{self.what_is_wrong(mended)}"
        self.safety.look()
        return world.now - mended

    def what_is_well(self) -> Callable[[], bool]:
        """What must come true, now that everything is mended."""
        return lambda: is_well(self.world)

    def what_is_wrong(self, since: float) -> str:
        """For who reads of it, with a colon before it; empty where there is nothing to say."""
        return ""

    def _mend(self) -> None:
        world = self.world
        world.heal()
        world.loss = 0.0
        world.network.wire = Wire()
        for machine in world.machines.values():
            world.set_wires(machine.number, None)
            machine.slowness, machine.fatal, machine.wall_skew_s = None, "", 0.0
        world.run(20, lambda: not any(m.is_frozen for m in world.up()))
        for machine in world.up():
            machine.post(Resume())

    def _show_the_way(self, number: int) -> None:
        """Where nobody lives any more at any address that a machine ever knew, its person has to name another
        (`peerlm up --peer`)."""
        world, machine = self.world, self.world.machines[number]
        book, _ = read_book(machine.disk.book, world.now, world.wall)
        known = {address_of(c.host, c.intro_port) for c in book.contacts()}
        known |= {*machine.seeds, *book.seeds}
        gone = {world.machines[r].address for r in self.revoked | self.gone} | {machine.address}
        others = sorted(set(world.machines) - self.revoked - self.gone - {number})
        if others and not any(world.at_address(a) is not None for a in known - gone):
            machine.seeds = (world.machines[others[0]].address,)
            world.kill(number)
            world.restart(number)

    def _look(self) -> None:
        self.safety.look()
        self.world.clock.at(LOOK_S, self._look)

    # ------------------------------------------------------------------------------- the faults

    def kill(self, number: int) -> None:
        self.world.kill(number, silently=self.rng.random() < 0.3)

    def power(self, number: int) -> None:
        self.world.power_cut(number)

    def restart(self, number: int) -> None:
        machine = self.world.machines[number]
        if not machine.is_up and number not in self.revoked:
            # Only one may move, and only if all have met somebody: who knows nothing but the address
            # that it was given could not be found either.
            may_move = number == 0 and all(map(_knows_others, self.world.machines.values()))
            self.world.restart(number, new_ports=may_move and self.rng.random() < 0.5)

    def bounce(self, number: int) -> None:
        """Killed, and back before anybody has noticed."""
        if self.world.machines[number].is_up:
            self.world.kill(number)
            self.restart(number)

    def freeze(self, number: int) -> None:
        machine = self.world.machines[number]
        if machine.is_up and not machine.is_frozen:
            self.world.freeze(number, self.rng.choice([0.7, 3.0, 8.0, 15.0]))

    def slow(self, number: int) -> None:
        machine = self.world.machines[number]
        machine.slowness = None if machine.slowness else self.rng.choice([(0.1, 0.5), (1.0, 3.0)])

    def split(self, number: int) -> None:
        side = [n for n in self.world.machines if self.rng.random() < 0.5]
        self.world.heal()
        self.world.split(side, [n for n in self.world.machines if n not in side])

    def cut(self, number: int) -> None:
        """One direction between two machines."""
        other = self.rng.randrange(len(self.world.machines))
        if other != number:
            self.world.cut(number, other)

    def bridge(self, number: int) -> None:
        """Two halves that only one machine can talk to."""
        others = [n for n in self.world.machines if n != number]
        half = len(others) // 2
        self.world.heal()
        self.world.split(others[:half], others[half:])

    def heal(self, number: int) -> None:
        self.world.heal()

    def loss(self, number: int) -> None:
        """Transfers and introductions vanish."""
        self.world.loss = self.rng.choice([0.0, 0.1, 0.5])

    def worker(self, number: int) -> None:
        machine = self.world.machines[number]
        if machine.is_up and not machine.is_frozen:
            machine.labour.worker_ends("CUDA error")

    def poison(self, number: int) -> None:
        self.world.machines[number].poisoned = True

    def clock(self, number: int) -> None:
        """The wall clock is set."""
        self.world.machines[number].wall_skew_s = self.rng.uniform(-200.0, 200.0)

    def everybody(self, number: int) -> None:
        if self.rng.random() < 0.2:
            for other in self.world.machines:
                self.world.kill(other)

    def join(self, number: int) -> None:
        """Invited by this machine: the token names it, and some that it sees alive."""
        if len(self.world.machines) < self.nodes + 3:
            seeds = [number, *self._seen_alive(number)][:ADDRESSES_MAX]
            self.add(*seeds)

    def _seen_alive(self, number: int) -> list[int]:
        machine = self.world.machines[number]
        if machine.node is None:
            return []
        members = sorted(machine.node.company.membership.members().items())
        return [self.world.number_of(peer) for peer, m in members if m.state == State.ALIVE]

    def pause(self, number: int) -> None:
        self.world.machines[number].post(Pause())

    def leave(self, number: int) -> None:
        self.world.machines[number].post(Leave())

    def replan(self, number: int) -> None:
        """A new revision of the plan, signed at one machine."""
        self.revision += 1
        changes = {"train.lr": 0.01 + self.revision / 1000}
        plan = with_changes(self.world.plan.plan, changes, "trouble")
        self.world.machines[number].post(NewPlan(self.world.sign(plan, self.revision).blob))

    def revoke(self, number: int) -> None:
        """A machine is not welcome any more; it hears of it like all others."""
        if number and len(self.revoked) < 2 and number not in self.revoked:
            self.revoked.add(number)
            teller = next(m for m in self.world.machines.values() if m.number != number)
            teller.post(NewRevocation(self.world.revocation_of(number)))

    def impostor(self, number: int) -> None:
        """Somebody with a chain that is none introduces itself."""
        knock(self.world, number, self.rng.choice(KINDS), self.rng.randbytes)


FAULTS: dict[str, Callable[[Trouble, int], None]] = {
    name: getattr(Trouble, name)
    for name in (
        *("kill", "power", "restart", "bounce", "freeze", "slow", "split", "cut", "bridge"),
        *("heal", "loss", "worker", "poison", "clock", "everybody", "join", "pause", "leave"),
        *("replan", "revoke", "impostor"),
    )
}
