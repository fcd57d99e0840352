"""What only somebody sees of a model in stages who looks at all machines: each part of each batch, and who has a gradient of it.

A part of a batch goes by several numbers where it is sent again, so no node can tell that something is counted
twice. Here each part has one name, and nobody else is told it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from peerlm.sim.world import World

ENDS = -1
"""The end of the model, whose gradient is there before anybody else's: a stage of its own here."""

LINGER_S = 60.0
"""What has gone through a stage is home at most so long after its last host was there: a machine may stand still with it."""

PARTS_MAX = 20_000


class Part(NamedTuple):
    """Of a batch. `life`, `generation`: of the worker that reads it."""

    machine: int
    life: int
    generation: int
    batch: int
    part: int


class Ring:
    """Of one world. Each method raises `AssertionError` where a promise is broken."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._gradients: dict[Part, set[int]] = {}
        self._counted: dict[Part, None] = {}
        self._hosted_at: dict[int, float] = {}

    def look(self) -> None:
        """Who is there."""
        for stage in self.hosted():
            self._hosted_at[stage] = self._world.now

    def hosted(self) -> set[int]:
        """Stages that somebody works at, with others."""
        found = set[int]()
        for machine in self._world.up():
            worker = machine.labour.worker
            if not machine.holding.is_whole and worker is not None and worker.is_ready:
                found |= {*machine.holding.held}
        return found

    def gradient(self, machine: int, part: Part, stages: tuple[int, ...]) -> None:
        """This machine adds the part's gradient for these stages."""
        has = self._gradients.setdefault(part, set())
        for stage in stages:
            assert stage not in has, f"machine {machine} adds a second gradient of {part}: {stage}"
            has.add(stage)
        while len(self._gradients) > PARTS_MAX:
            del self._gradients[next(iter(self._gradients))]

    def counted(self, part: Part, count: int) -> None:
        """Its reader counts the part's tokens: each stage has had its gradient, of a host that was there."""
        assert part not in self._counted, f"{part} is counted twice"
        self._counted[part] = None
        has = self._gradients.get(part, set())
        assert {ENDS, *range(count)} == has, f"{part} is counted, and only {sorted(has)} learnt it"
        for stage in range(count):
            gone_s = self._world.now - self._hosted_at.get(stage, self._world.now)
            assert gone_s < LINGER_S, (
                f"{part} is home, and nobody has held {stage} for {gone_s:.0f} s"
            )
        while len(self._counted) > PARTS_MAX:
            del self._counted[next(iter(self._counted))]
