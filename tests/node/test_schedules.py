"""Random misfortune for a minute, then peace: everybody must train and mix again, or all be done.

    python tests/node/test_schedules.py 0 200          # as many seeds as you have time for
    python tests/node/test_schedules.py 0 200 800000   # with a token budget that is reached meanwhile

A schedule is a function of its seed, so a failed one is replayed by its number.
"""

from __future__ import annotations

import random
import sys

import pytest
from node_scene import World

from peerlm.config import with_changes
from peerlm.events import Leave, NewPlan, Pause, Resume

FAULTS = [
    "kill",
    "kill",
    "restart",
    "restart",
    "everybody",
    "split",
    "heal",
    "freeze",
    "loss",
    "worker",
    "poison",
    "join",
    "pause",
    "leave",
    "plan",
]
TROUBLE_S = 60.0


class Schedule:
    """One seed's world and what befalls it."""

    def __init__(self, seed: int, budget: int | None) -> None:
        self.rng = random.Random(f"schedule {seed}")
        changes: dict[str, object] = {"mix.sampler": self.rng.choice(["uniform", "matching"])}
        changes["mix.exchanges"] = self.rng.choice([1, 1, 3])
        if budget is not None:
            changes["run.token_budget"] = budget
        self.world = World(seed, **changes).swarm(self.rng.choice([2, 3, 3, 4, 5]))
        self.revision = 1

    def trouble(self) -> None:
        self.world.run(self.rng.uniform(0.0, 15.0))
        end = self.world.now + TROUBLE_S
        while self.world.now < end:
            self.world.run(self.rng.expovariate(0.25))
            self.befall(self.rng.choice(FAULTS))

    def befall(self, fault: str) -> None:
        world, rng = self.world, self.rng
        number = rng.randrange(len(world.machines))
        machine = world.machines[number]
        if fault == "restart" and machine.node is None:
            # Only one may move: if all did while apart, nobody could find anybody.
            world.restart(number, new_ports=number == 0 and rng.random() < 0.5)
        elif fault == "split":
            side = [n for n in world.machines if rng.random() < 0.5]
            world.split(side, [n for n in world.machines if n not in side])
        elif fault == "heal":
            world.heal()
        elif fault == "loss":
            world.loss = rng.choice([0.0, 0.1, 0.5])
        elif fault == "everybody" and rng.random() < 0.2:
            for other in world.machines:
                world.kill(other)
        elif machine.node is not None and not machine.is_frozen:
            self._befall_running(fault, number)

    def _befall_running(self, fault: str, number: int) -> None:
        world, rng, machine = self.world, self.rng, self.world.machines[number]
        match fault:
            case "kill":
                world.kill(number)
            case "freeze":
                world.freeze(number, rng.choice([0.7, 3.0, 8.0, 15.0]))
            case "worker":
                machine.labour.worker_ends("CUDA error")
            case "poison":
                machine.poisoned = True
            case "join" if len(world.machines) < 7 and number:
                world.add(len(world.machines), number)
            case "pause":
                machine.post(Pause())
            case "leave":
                machine.post(Leave())
            case "plan":
                self.revision += 1
                changes = {"train.lr": 0.01 + self.revision / 1000}
                plan = with_changes(world.plan.plan, changes, "test")
                machine.post(NewPlan(world.sign(plan, self.revision).blob))

    def peace(self) -> None:
        """The network is well, frozen machines thaw, everybody is started again."""
        world = self.world
        world.heal()
        world.loss = 0.0
        world.run(16)
        for machine in world.up():
            machine.post(Resume())
        for number, machine in world.machines.items():
            if machine.node is None:
                world.restart(number)

    def claim(self, budget: int | None) -> float:
        """How long it took until all was well."""
        world = self.world
        if budget is None:
            return world.within(90, world.all_mixing, "everybody trains and mixes")
        took = world.within(240, lambda: world.all_in("done"), "everybody is done")
        world.run(20)
        assert world.all_in("done"), f"seed {world.seed}: not done any more\n{world.story()}"
        spread = world.spread()
        assert spread < 1e-3, f"seed {world.seed}: finished {spread} apart\n{world.story()}"
        return took


def live_through(seed: int, budget: int | None) -> float:
    schedule = Schedule(seed, budget)
    schedule.trouble()
    schedule.peace()
    return schedule.claim(budget)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("budget", [None, 800_000])
def test_after_any_trouble_all_is_well_again(seed: int, budget: int | None) -> None:
    live_through(seed, budget)


if __name__ == "__main__":
    first, last = int(sys.argv[1]), int(sys.argv[2])
    budget = int(sys.argv[3]) if len(sys.argv) > 3 else None
    worst, failed = 0.0, 0
    for seed in range(first, last):
        try:
            worst = max(worst, live_through(seed, budget))
        except AssertionError as error:
            failed += 1
            print(f"FAILED seed {seed} budget {budget}: {error}\n", flush=True)
    print(f"{last - first} schedules, {failed} failed, longest recovery {worst:.1f} s")
