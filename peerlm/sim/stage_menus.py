"""Random faults by a seed for a model in stages: a minute of trouble, at times a stage that nobody holds, and then peace.

As menus.py, with nodes that hold a part of the model each: by their owners' word, by their own decision, or both kinds
in one swarm, and now and then one that holds everything. Two faults more hit all hosts of a stage at once.

What must come true in the end follows from what is left. A stage *is left* while some machine has weights of it, or a
copy, or while nothing was learnt. If all are left, and there is somebody to hold each, everybody must train
again, each stage's hosts must agree, and every worker must have stepped. If not, nobody may train but those who hold everything, and
all must say why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peerlm.model.stages import memory_of, stages
from peerlm.node.lifecycle import Phase
from peerlm.sim.checks import SPREAD_MAX
from peerlm.sim.machine import Machine
from peerlm.sim.menus import FAULTS, MENU_MAX, Lived, Trouble, live_through, survive
from peerlm.sim.trace import Trace
from peerlm.sim.world import World

STAGES_MOST = 4

MODEL: dict[str, Any] = {
    "model__dim": 16,
    "model__heads": 1,
    "model__kv_heads": 1,
    "model__hidden": 32,
    "model__blocks": ("recurrent", "feedforward", "recurrent", "feedforward"),
    "train__accumulate": 2,
}
"""Small enough for slow lines, and cut into four at most."""

FRAGMENTS = 6
"""That this model has."""

RECOVERY_S = 300.0
"""A node gives stages up for which it has found no weights after a minute, and decides anew."""

WARM_S = (0.0, 25.0, 60.0)
"""Before the trouble begins: nothing is learnt yet; something is; there are copies of what one node holds alone."""

FAMINE_S = 75.0
"""A stage is without hosts so long."""
QUIET_S = 15.0
"""And nothing is learnt in the last part of it."""

OF_STAGES = ("stage", "flicker")
"""All hosts of a stage die; and are back at once."""


def live(seed: int, nodes: int, count: int, trace: Trace | None = None) -> Lived:
    """One seed of a model in `count` stages, or in one piece."""
    if count == 1:
        return live_through(seed, nodes, trace)
    return survive(StageTrouble(seed, nodes, trace, count))


class StageTrouble(Trouble):
    """A world of hosts of stages, and what befalls it."""

    sizes = (12,) * FRAGMENTS
    speed, recovery_s = 2_000.0, RECOVERY_S

    def __init__(self, seed: int, nodes: int, trace: Trace | None, count: int) -> None:
        self.stages = count
        super().__init__(seed, nodes, trace)

    def model(self) -> dict[str, Any]:
        self.mode = self.rng.choice(["fixed", "auto", "mixed"])
        self.has_famine, self.has_losses = self.rng.random() < 0.3, self.rng.random() < 0.3
        return {"model__stages": self.stages, **MODEL}

    def draw_menu(self) -> tuple[str, ...]:
        menu = set(self.rng.sample(list(FAULTS), self.rng.randint(1, MENU_MAX)))
        menu |= {self.rng.choice(OF_STAGES)} if self.rng.random() < 0.6 else set()
        return tuple(sorted(menu))

    def add(self, *seeds: int) -> None:
        number = len(self.world.machines)
        is_auto = self.mode == "auto" or (self.mode == "mixed" and self.rng.random() < 0.5)
        settings = self._auto() if is_auto else {"host.stages": self._fixed(number)}
        self.world.add(number, *seeds, **settings)

    def _auto(self) -> dict[str, Any]:
        """It offers memory for one stage, whichever, or for two."""
        cut, length = stages(self.world.plan.plan), self.rng.choice([1, 1, 2])
        runs = [range(a, a + length) for a in range(len(cut) + 1 - length)]
        room = max(memory_of(cut, run).total() for run in runs)
        return {"host.stages": "auto", "host.memory_bytes": room}

    def _fixed(self, number: int) -> str:
        """The first ones hold a stage each, from 0, so that each has a host."""
        first = number if number < self.stages else self.rng.randrange(self.stages)
        if number >= self.stages and self.rng.random() < 0.1:
            return "all"
        last = min(first + (self.rng.random() < 0.25), self.stages - 1)
        return f"{first}-{last}" if (first, last) != (0, self.stages - 1) else str(first)

    # ------------------------------------------------------------------------------- the faults

    def befall(self, fault: str, number: int) -> None:
        match fault:
            case "stage":
                self._kill_hosts(self.rng.randrange(self.stages))
            case "flicker":
                for host in self._kill_hosts(self.rng.randrange(self.stages)):
                    self.restart(host)
            case _:
                super().befall(fault, number)

    def _kill_hosts(self, stage: int) -> list[int]:
        hosts = [m.number for m in self.world.up() if stage in m.holding.held and is_part(m)]
        silently = self.rng.random() < 0.3
        for host in hosts:
            self.world.kill(host, silently=silently)
        return hosts

    def run(self) -> None:
        self.world.run(self.rng.choice(WARM_S))
        super().run()
        if self.has_famine:
            self._starve()

    def _starve(self) -> None:
        """All hosts of a stage die. Whoever stays holds, and says so, unless somebody can take the stage over."""
        world, stage = self.world, self.rng.randrange(self.stages)
        self._mend()
        world.run(5.0)
        self._kill_hosts(stage)
        world.run(FAMINE_S)
        learnt = learnt_in_parts(world)
        world.run(QUIET_S)
        if stage in world.ring.hosted():
            return
        assert learnt_in_parts(world) == learnt, f"nobody holds stage {stage}, and they train"
        for machine in world.up():
            if is_part(machine):
                _assert_says_why(machine, {stage})

    # ---------------------------------------------------------------------------------- what comes

    def recover(self) -> float:
        if self.has_losses:
            able = sorted(set(self.world.machines) - self.revoked)
            self.gone = set(self.rng.sample(able, min(len(able) - 3, self.rng.randint(1, 2))))
        return super().recover()

    def what_is_well(self) -> Callable[[], bool]:
        world, began = self.world, self.world.now
        lacking = set(range(self.stages)) - self._left()
        held, spare = self._hosts()
        open_ = len(set(range(self.stages)) - held)
        if lacking or open_ > sum(spare):
            return _Held(world, lacking).is_well
        if open_ > len(spare):  # where two go to one node, it depends on which
            is_held = _Held(world, set()).is_well
            return lambda: not trouble_of(world, began) or is_held()
        return lambda: not trouble_of(world, began)

    def what_is_wrong(self, since: float) -> str:
        return f": {trouble_of(self.world, since)}"

    def _left(self) -> set[int]:
        """Stages that are left, with text for the first."""
        world = self.world
        left = set(range(self.stages)) if _is_blank(world) else _left(world)
        has_text = any(set(world.corpus) <= set(m.disk.objects) for m in world.up())
        return left if has_text else left - {0}

    def _hosts(self) -> tuple[set[int], list[int]]:
        """What is held by those whose stages are fixed, and how many each of the others can hold."""
        parts = [m for m in self.world.up() if is_part(m)]
        fixed = {stage for m in parts if not is_auto(m) for stage in m.holding.held}
        cut = stages(self.world.plan.plan)
        spare = []
        for machine in filter(is_auto, parts):
            assert machine.holding.offered is not None
            memory, fits = machine.holding.offered.memory, 0
            for length in range(1, len(cut) + 1):
                runs = (range(a, a + length) for a in range(len(cut) + 1 - length))
                fits = length if any(memory.holds(memory_of(cut, run)) for run in runs) else fits
            spare.append(fits)
        return fixed, spare


def is_auto(machine: Machine) -> bool:
    return machine.settings.host.stages == "auto"


def is_part(machine: Machine) -> bool:
    """It trains with others."""
    return not machine.holding.is_whole


def learnt_in_parts(world: World) -> int:
    """Tokens that were trained on by nodes that hold a part."""
    return sum(m.tokens_trained for m in world.machines.values() if is_part(m))


def trouble_of(world: World, since: float) -> str:
    """What of it all is not well: one swarm in which everyone trains, and everybody to whom the stream may come takes part,
    agrees with the other hosts of its stages, and has stepped `since`. Empty: nothing."""
    hosts = _on_the_way(world)
    on_the_way = {machine.number for machine in hosts}
    idle = {m.number for m in world.up() if is_part(m)} - on_the_way
    if not world.all_mixing(idle):
        return "not everybody takes part"
    if (spread := world.spread(idle)) >= SPREAD_MAX:
        return f"hosts of a stage are {spread:.2f} apart"
    for machine in hosts:
        worker = machine.labour.worker
        if worker is None or worker.stage is None or worker.stage.stepped_at <= since:
            return f"machine {machine.number} does not step"
    return ""


def _on_the_way(world: World) -> list[Machine]:
    """Who reads, and whoever holds the stage behind somebody's last who is on the way: of a run of stages each takes the
    stream from where it comes in to the last."""
    hosts, found, nexts = [m for m in world.up() if is_part(m)], list[Machine](), {0}
    while more := [m for m in hosts if m not in found and nexts & {*m.holding.held}]:
        found += more
        nexts = {m.holding.held.stop for m in more}
    return found


def _is_blank(world: World) -> bool:
    """Nothing was learnt, as far as anybody knows."""
    ledgers = (m.node.company.ledger for m in world.up() if m.node is not None)
    return not any(ledger.total() for ledger in ledgers)


def _left(world: World) -> set[int]:
    """Stages whose weights, or copies of them, are on some machine that is up."""
    found = set[int]()
    for machine in world.up():
        node, holding = machine.node, machine.holding
        assert node is not None
        if node.work.installed or holding.restored is not None:
            found |= {*holding.held}
        if node.placing is not None:
            stock, objects = node.placing.stock, machine.disk.objects
            kept = [c.object_hash in objects for c in stock.copies.values()]
            found |= {s for s in range(holding.count) if stock.has_copy(s) and all(kept)}
    return found


def _assert_says_why(machine: Machine, lacking: set[int]) -> None:
    summary = machine.world.summary(machine.number)
    why = summary.phase_reason
    says = f"machine {machine.number} is {summary.phase} and says {why!r}"
    assert why, f"{says}: nobody holds {sorted(lacking)}"
    if summary.phase == Phase.TRAINING:
        missing = lacking - {*machine.holding.held}
        assert all(str(stage) in why for stage in missing), f"{says}: not {missing}"


class _Held:
    """Some stages cannot be held: nothing is learnt in parts, and everybody says why."""

    def __init__(self, world: World, lacking: set[int]) -> None:
        self._world, self._lacking = world, lacking
        self._began, self._learnt = world.now, learnt_in_parts(world)

    def is_well(self) -> bool:
        world = self._world
        if (learnt := learnt_in_parts(world)) != self._learnt:
            self._began, self._learnt = world.now, learnt
        if world.now - self._began < FAMINE_S:
            return False
        for machine in world.up():
            if is_part(machine):
                _assert_says_why(machine, self._lacking)
        return True
